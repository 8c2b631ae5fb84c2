//! The daemon as its users meet it: the real executable, model, LanceDB and socket. One binary, because every
//! test binary links the whole tree.

mod admin;
mod daemon;
mod damage;
mod data;
mod feed;
mod input;
mod items;
mod life;
mod rig;
mod search;
#[path = "../support/mod.rs"]
mod support;
