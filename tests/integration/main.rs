//! The daemon as its users meet it: the real executable, model, LanceDB and socket. One binary, because every
//! test binary links the whole tree.

mod apart;
mod bad_input;
mod careless_commands;
// The time is told by the C library, which the daemon is linked to here.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod clock;
mod command_line;
mod concurrency;
mod condition;
mod damaged_configuration;
mod degraded;
mod descriptors;
mod empty_is_not_all;
mod feed;
mod growth;
mod knowledge;
mod large_answers;
mod large_text;
mod life;
mod life_commands;
mod lifecycle;
mod line_endings;
mod losses;
mod not_guessed;
mod openrpc;
mod paging;
mod presence;
mod process;
mod recovery;
#[path = "../support/mod.rs"]
mod support;
mod trace;
mod transfer;
