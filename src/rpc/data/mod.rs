//! `admin.backup`, `restore`, `export`, `import` and `verify`: all stored data goes into files and back, while
//! everything else goes on.
//!
//! Files are read and written with the rights of the daemon, so only the user that it runs as may name them.

mod copies;
mod export;
mod import;
mod long;
mod places;
mod verify;

pub(super) use copies::{backup, restore};
pub(super) use export::export;
pub(super) use import::import;
pub(crate) use long::Turns;
pub(super) use verify::verify;
