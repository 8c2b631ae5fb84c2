//! `ccoctl`: the daemon and its command line in one executable.
//!
//! What it does is chosen by the name it is called by (`ccod` runs the daemon, `knowledge-manager` is the drop-in
//! for the old tool) and by the command. Everything else is in [`cli`].

// The optimised build lays out the futures of a whole query here.
#![recursion_limit = "256"]

mod cli;

use std::process::ExitCode;

/// Gives memory back to the system. The daemon lives for weeks on many threads with large buffers that come and
/// go (texts, batches, query results), of which the C library's allocator keeps most.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect())
}
