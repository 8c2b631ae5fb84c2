//! The arguments that all commands have, and the groups that the commands are in.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::commands::{admin, daemon, data, items, legacy, life, search};

/// Shown below the help.
const AFTER_HELP: &str = "\
Exit codes: 0 ok, 1 failed or not found, 2 usage, 65 bad data, 69 daemon unavailable,
75 retry later or cancelled, 77 permission or sandbox, 78 configuration.
Data goes to standard output, messages to standard error.
Commands start the daemon when none runs.";

/// Longest time that `--timeout` takes: the wire's own limit.
const MAX_TIMEOUT_SECONDS: f64 = 600.0;

#[derive(Debug, Parser)]
#[command(
    name = "ccoctl",
    version,
    propagate_version = true,
    about = "Stores what AI coding agents learn and gives it back when it matters",
    after_help = AFTER_HELP,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: GlobalArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

// The flags that every command takes, before or after its name; [`grammar`] adds them to each. This is not a
// doc comment, which would become the description of the commands.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct GlobalArgs {
    /// Directory of everything the daemon keeps [default: ~/.cco]
    #[arg(long, value_name = "DIR", help_heading = "Global options")]
    pub(super) home: Option<PathBuf>,
    /// Socket of the daemon [default: run/ccod.sock in the home]
    #[arg(long, value_name = "PATH", help_heading = "Global options")]
    pub(super) socket: Option<PathBuf>,
    /// Print the result as one line of JSON
    #[arg(long, help_heading = "Global options")]
    pub(super) json: bool,
    /// Fail with 69 instead of starting the daemon
    #[arg(long, help_heading = "Global options")]
    pub(super) no_start: bool,
    /// Give up after this many seconds
    #[arg(long, value_name = "S", value_parser = parse_timeout, help_heading = "Global options")]
    pub(super) timeout: Option<Duration>,
}

impl GlobalArgs {
    /// Adds the flags of another level of the command line.
    pub(super) fn add(&mut self, other: Self) {
        let Self {
            home,
            socket,
            json,
            no_start,
            timeout,
        } = other;
        self.home = self.home.take().or(home);
        self.socket = self.socket.take().or(socket);
        self.json |= json;
        self.no_start |= no_start;
        self.timeout = self.timeout.or(timeout);
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run, start, stop or look at the daemon
    #[command(subcommand, arg_required_else_help = true)]
    Daemon(daemon::DaemonCommand),
    #[command(flatten)]
    Items(items::ItemsCommand),
    #[command(flatten)]
    Search(search::SearchCommand),
    #[command(flatten)]
    Life(life::LifeCommand),
    #[command(flatten)]
    Data(data::DataCommand),
    #[command(flatten)]
    Admin(admin::AdminCommand),
    /// What the old `knowledge-manager` did, with the same output
    #[command(name = "km", subcommand, arg_required_else_help = true)]
    Legacy(legacy::LegacyCommand),
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "takes a number of seconds".to_owned())?;
    if !(0.001..=MAX_TIMEOUT_SECONDS).contains(&seconds) {
        return Err(format!("takes 0.001 to {MAX_TIMEOUT_SECONDS} seconds"));
    }
    Ok(Duration::from_secs_f64(seconds))
}
