//! The way from arguments to an exit code.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use nix::sys::stat::{Mode, umask};

use super::arguments::{Cli, Command};
use super::commands::{admin, daemon, data, items, legacy, life, search};
use super::context::Context;
use super::grammar;
use super::output::Output;
use ccod::config::{Config, Overrides};
use ccod::program::exit::{CliError, CliResult, Exit};
use ccod::program::{self, report};

/// Runs the command line `arguments` (the first is the name of the program).
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    // Before anything else: every file that this process or its daemon creates, LanceDB's included, is for this user
    // alone.
    umask(Mode::from_bits_truncate(0o077));
    program::tell_place_of_panics();
    let arguments = by_program_name(arguments);
    let asks_for_json = grammar::ask_for_json(&arguments);
    let cli = match grammar::parse(arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && asks_for_json => {
            report("ccoctl", &grammar::usage_error(&error), true);
            return Exit::Usage.into();
        }
        Err(error) => return print_by_clap(&error).into(),
    };
    let json = cli.global.json;
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(error) => {
            report("ccoctl", &error, json);
            error.exit.into()
        }
    }
}

/// Prints the help, the version, or what is wrong with the command line.
fn print_by_clap(error: &clap::Error) -> Exit {
    match error.print() {
        _ if error.use_stderr() => Exit::Usage,
        Ok(()) => Exit::Ok,
        // `ccoctl --help | head` closes the pipe early: nobody is left to read it.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            report("ccoctl", &CliError::io("write to standard output", &error), false);
            Exit::Failed
        }
    }
}

/// Chooses the command by the name of the program: a link called `ccod` is `ccoctl daemon run`, one called
/// `knowledge-manager` is `ccoctl km`.
fn by_program_name(arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments
        .first()
        .and_then(|program| Path::new(program).file_name())
        .unwrap_or_default();
    let command: &[&str] = match name.to_str() {
        Some("ccod") => &["daemon", "run"],
        Some("knowledge-manager") => &["km"],
        _ => &[],
    };
    let rest = arguments.iter().skip(1).cloned();
    std::iter::once(OsString::from("ccoctl"))
        .chain(command.iter().map(|word| OsStr::new(word).to_owned()))
        .chain(rest)
        .collect()
}

fn run(cli: Cli) -> CliResult {
    let Cli { global, command } = cli;
    let output = Output::detect(global.json);
    let mut overrides = Overrides {
        home: global.home,
        socket: global.socket,
        ..Overrides::default()
    };
    if let Command::Admin(admin::AdminCommand::Completions(arguments)) = &command {
        return admin::completions(arguments); // Also where the configuration is wrong.
    }
    if let Command::Daemon(daemon::DaemonCommand::Run(arguments)) = command {
        arguments.add_to(&mut overrides);
        return daemon::run(&arguments, overrides, global.json);
    }
    if let Command::Daemon(daemon::DaemonCommand::Start(arguments)) = &command {
        arguments.add_to(&mut overrides);
    }
    let context = Context {
        loaded: Config::load(overrides)?,
        output,
        no_start: global.no_start,
        timeout: global.timeout,
    };
    // One thread is enough for one request, and is up sooner than a pool.
    let runtime = program::runtime(tokio::runtime::Builder::new_current_thread().enable_all())?;
    runtime.block_on(dispatch(&context, command))
}

async fn dispatch(context: &Context, command: Command) -> CliResult {
    match command {
        Command::Daemon(command) => daemon::control(context, command).await,
        Command::Items(command) => items::run(context, command).await,
        Command::Search(command) => search::run(context, command).await,
        Command::Life(command) => life::run(context, command).await,
        Command::Data(command) => data::run(context, command).await,
        Command::Admin(command) => admin::run(context, command).await,
        Command::Legacy(command) => legacy::run(context, command).await,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        let arguments = arguments.iter().map(|argument| OsString::from(*argument)).collect();
        grammar::parse(by_program_name(arguments))
    }

    #[test]
    fn the_grammar_is_consistent() {
        grammar::command().debug_assert();
    }

    #[test]
    fn the_program_name_chooses_the_command() {
        let ccod = parse(&["/usr/local/bin/ccod", "--home", "/h"]).expect("parses");
        assert!(matches!(ccod.command, Command::Daemon(daemon::DaemonCommand::Run(_))));
        assert_eq!(ccod.global.home, Some(PathBuf::from("/h")));
        let manager = parse(&["knowledge-manager", "stats"]).expect("parses");
        assert!(matches!(manager.command, Command::Legacy(legacy::LegacyCommand::Stats)));
        let other = parse(&["some-copy", "daemon", "status"]).expect("parses");
        assert!(matches!(other.command, Command::Daemon(daemon::DaemonCommand::Status)));
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for arguments in [
            ["ccoctl", "--json", "--timeout", "2.5", "search", "q"],
            ["ccoctl", "search", "q", "--json", "--timeout", "2.5"],
        ] {
            let cli = parse(&arguments).expect("parses");
            assert!(cli.global.json);
            assert_eq!(cli.global.timeout, Some(Duration::from_millis(2_500)));
        }
    }

    #[test]
    fn wrong_command_lines_are_usage_errors() {
        for arguments in [
            &["ccoctl"][..],
            &["ccoctl", "nonsense"],
            &["ccoctl", "search"],
            &["ccoctl", "search", "q", "--mode", "fuzzy"],
            &["ccoctl", "search", "q", "--limit", "0"],
            &["ccoctl", "search", "q", "--project", "p", "--all-projects"],
            &["ccoctl", "search", "q", "--timeout", "0"],
            &["ccoctl", "search", "q", "--since", "yesterday"],
            &["ccoctl", "store", "t", "--type", "idea"],
            &["ccoctl", "search", "q", "--as-of", "yesterday"],
            &["ccoctl", "get"],
            &["ccoctl", "update", "id"],
            &["ccoctl", "update", "--text", "t"],
            &["ccoctl", "history"],
            &["ccoctl", "undelete"],
            &["ccoctl", "undelete", "id", "--undo", "token"],
            &["ccoctl", "purge"],
            &["ccoctl", "purge", "--yes"],
            &["ccoctl", "cleanup", "--older-than", "-1"],
            &["ccoctl", "similar", "id", "--limit", "101"],
            &["ccoctl", "backup"],
            &["ccoctl", "restore"],
            &["ccoctl", "export", "x", "--format", "pdf"],
            &["ccoctl", "import"],
        ] {
            let error = parse(arguments).expect_err("refused");
            assert!(error.exit_code() == 2, "{arguments:?}: {error}");
        }
    }

    #[test]
    fn the_commands_of_an_items_life_are_read() {
        for arguments in [
            &[
                "ccoctl",
                "update",
                "id",
                "--type",
                "issue",
                "--metadata",
                "{}",
                "--project",
                "p",
            ][..],
            &["ccoctl", "update", "id", "--text", "-"],
            &["ccoctl", "update", "id", "--text", "- a list item"],
            &["ccoctl", "delete", "a", "b"],
            // Ids and filters are checked later: neither and both are errors with advice.
            &["ccoctl", "delete"],
            &[
                "ccoctl", "delete", "--type", "issue", "--agent", "a", "--until", "7d", "--yes",
            ],
            &[
                "ccoctl",
                "delete",
                "--meta",
                "k=v",
                "--metadata",
                "{\"a\":1}",
                "--dry-run",
            ],
            &["ccoctl", "undelete", "a", "b"],
            &["ccoctl", "undelete", "--undo", "5f", "--project", "p"],
            &["ccoctl", "purge", "a", "--yes"],
            &[
                "ccoctl",
                "cleanup",
                "--older-than",
                "30",
                "--session",
                "s",
                "--apply",
                "--yes",
            ],
            &["ccoctl", "similar", "id", "--limit", "3", "--json"],
            &["ccoctl", "search", "q", "--as-of", "12"],
            &["ccoctl", "--timeout", "5", "backup", "dir"],
            &["ccoctl", "restore", "dir", "--yes"],
            &["ccoctl", "export", "out.md", "--format", "markdown", "--project", "p"],
            &["ccoctl", "import", "in.jsonl", "--dry-run"],
            &["ccoctl", "verify", "--project", "p"],
            &["ccoctl", "optimize"],
        ] {
            parse(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        }
    }

    #[test]
    fn texts_may_begin_with_a_hyphen() {
        let cli = parse(&["ccoctl", "store", "- a list item", "--type", "issue"]).expect("parses");
        let Command::Items(items::ItemsCommand::Store(arguments)) = cli.command else {
            panic!("another command");
        };
        assert_eq!(arguments.text, "- a list item");
        parse(&["knowledge-manager", "store", "-- dashes", "issue", "cli"]).expect("parses");
    }
}
