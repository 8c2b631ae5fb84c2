//! The command line: its grammar, and the way from arguments to an exit code.
//!
//! One file per group of commands. Each command builds the parameters of a method, calls it through
//! [`connect`] and prints the result through [`output`]. What can go wrong becomes a
//! [`CliError`](ccod::program::exit::CliError), which carries the exit code.

mod arguments;
mod commands;
mod confirm;
mod connect;
mod context;
mod engine;
mod grammar;
mod launch;
mod output;
mod progress;
mod project;
mod raw;
mod run;
mod state_file;
mod text;
mod unpack;
mod when;

pub(crate) use context::Context;
pub(crate) use run::main;
