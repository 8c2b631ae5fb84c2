//! `ccoctl`: the command line. It talks to the daemon over its socket and starts `ccod` when none runs.
//!
//! What it does is chosen by the name it is called by (`knowledge-manager` is the drop-in for the old tool) and by
//! the command. Everything else is in [`cli`].

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect())
}
