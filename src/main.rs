//! `ccoctl`: the daemon and its command line in one executable.
//!
//! What it does is chosen by the name it is called by (`ccod` runs the daemon, `knowledge-manager` is the drop-in
//! for the old tool) and by the command. Everything else is in [`cli`].

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os().collect())
}
