//! The daemon as its users meet it: the real executable, model, LanceDB and socket. One binary, because every
//! test binary links the whole tree.

mod admin;
mod daemon;
mod damage;
mod data;
mod feed;
mod input;
mod items;
mod knowledge;
mod life;
mod life_commands;
mod process;
mod recovery;
mod search;
#[path = "../support/mod.rs"]
mod support;
mod transfer;
