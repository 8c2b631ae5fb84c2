//! Reads arguments into a [`Cli`], and adds the rules that the derived grammar does not have.
//!
//! - The global flags may stand at every level, and each is given once at most.
//! - A switch may be repeated, an option with one value may not: nobody can know which of two values was meant.
//! - An empty value is refused: it comes from a variable that a script has not set, and means neither "all" nor
//!   "nothing".
//! - A word such as `--agnet` in the place of a text is a mistyped flag, not a text; behind `--` it is a text.
//! - With `--json` the error of a wrong command line is JSON.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Id};

use super::arguments::{Cli, GlobalArgs};
use ccod::program::exit::{CliError, Exit};

/// Arguments that may be empty: texts, which the daemon judges, and the positional arguments of
/// `knowledge-manager`, of which a later one can be given only with the earlier ones.
const MAY_BE_EMPTY: [&str; 4] = ["text", "km_type", "km_agent", "km_limit"];

/// The whole grammar.
pub(super) fn command() -> Command {
    at_every_level(Cli::command())
}

fn at_every_level(command: Command) -> Command {
    command
        .mut_args(|argument| match argument.get_action() {
            ArgAction::SetTrue => {
                let itself = argument.get_id().clone();
                argument.overrides_with(itself)
            }
            _ => argument,
        })
        .mut_subcommands(|subcommand| {
            let about = subcommand.get_about().cloned();
            let with_flags = GlobalArgs::augment_args(subcommand);
            at_every_level(match about {
                Some(about) => with_flags.about(about),
                None => with_flags,
            })
        })
}

/// Reads a command line; the first argument is the name of the program.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = command();
    let mut check = Check {
        like_flags: arguments
            .iter()
            .take_while(|argument| *argument != "--")
            .filter(|argument| looks_like_a_flag(argument))
            .cloned()
            .collect(),
        given: HashSet::new(),
        global: GlobalArgs::default(),
    };
    let matches = command.try_get_matches_from_mut(arguments)?;
    check.level(&mut command, &matches)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.global = check.global;
    Ok(cli)
}

/// `--word`, perhaps with a value.
fn looks_like_a_flag(argument: &OsStr) -> bool {
    let bytes = argument.as_encoded_bytes();
    let name = bytes.split(|byte| *byte == b'=').next().unwrap_or_default();
    name.strip_prefix(b"--").is_some_and(|name| {
        name.first().is_some_and(u8::is_ascii_lowercase)
            && name.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'-')
    })
}

/// The checks that concern all levels of a command line.
struct Check {
    /// Arguments that look like a flag.
    like_flags: HashSet<OsString>,
    /// Global flags with a value that were found so far.
    given: HashSet<Id>,
    global: GlobalArgs,
}

impl Check {
    /// Checks what was given at one level and at those below it, and gathers the global flags.
    fn level(&mut self, command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
        if let Some((kind, message)) = self.wrong(command, matches) {
            return Err(command.error(kind, message));
        }
        self.global.add(GlobalArgs::from_arg_matches(matches)?);
        if let Some((name, matches)) = matches.subcommand()
            && let Some(command) = command.find_subcommand_mut(name)
        {
            self.level(command, matches)?;
        }
        Ok(())
    }

    fn wrong(&mut self, command: &Command, matches: &ArgMatches) -> Option<(ErrorKind, String)> {
        for argument in command.get_arguments() {
            let id = argument.get_id();
            if !argument.get_action().takes_values()
                || matches.value_source(id.as_str()) != Some(ValueSource::CommandLine)
            {
                continue;
            }
            let values: Vec<&OsStr> = matches.get_raw(id.as_str()).into_iter().flatten().collect();
            let blank = values
                .iter()
                .any(|value| value.as_encoded_bytes().trim_ascii().is_empty());
            if blank && !MAY_BE_EMPTY.contains(&id.as_str()) {
                let message = format!("the value of '{argument}' is empty; leave it out, or say what it is");
                return Some((ErrorKind::InvalidValue, message));
            }
            let mistyped = values.iter().find(|value| self.like_flags.contains(**value));
            if let Some(flag) = mistyped.filter(|_| argument.is_allow_hyphen_values_set()) {
                let flag = flag.to_string_lossy();
                let message = format!("there is no flag '{flag}' here; if it is the text, write it behind `--`");
                return Some((ErrorKind::UnknownArgument, message));
            }
            if is_global(id) && !self.given.insert(id.clone()) {
                let message = format!("the argument '{argument}' cannot be used multiple times");
                return Some((ErrorKind::ArgumentConflict, message));
            }
        }
        None
    }
}

fn is_global(id: &Id) -> bool {
    GlobalArgs::augment_args(Command::new("global"))
        .get_arguments()
        .any(|argument| argument.get_id() == id)
}

/// Whether `arguments`, which could not be read, ask for JSON.
pub(super) fn ask_for_json(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| argument == "--json" || argument.as_encoded_bytes().starts_with(b"--json="))
}

/// What is wrong with a command line, without the layout for a terminal.
pub(super) fn usage_error(error: &clap::Error) -> CliError {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(one_line);
    let mut message = paragraphs.next().unwrap_or_default();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        message = "a command is missing".to_owned();
    } else if let Some(told) = message.strip_prefix("error: ") {
        message = told.to_owned();
    }
    let fixes: Vec<String> = text
        .split("\n\n")
        .flat_map(str::lines)
        .filter_map(|line| {
            let line = line.trim();
            line.strip_prefix("tip: ")
                .or_else(|| line.starts_with("Usage: ").then_some(line))
        })
        .map(str::to_owned)
        .collect();
    let told = CliError::new(Exit::Usage, message);
    if fixes.is_empty() {
        told
    } else {
        told.fix(fixes.join("; "))
    }
}

fn one_line(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    /// Every command with its arguments, as Markdown.
    fn reference(command: &clap::Command, path: &str, into: &mut String) {
        for subcommand in command.get_subcommands().filter(|found| found.get_name() != "help") {
            let path = format!("{path} {}", subcommand.get_name());
            let about = subcommand.get_about().map(ToString::to_string).unwrap_or_default();
            into.push_str(&format!("\n### `{path}`\n\n{about}.\n"));
            let own = |argument: &&clap::Arg| {
                !argument.is_hide_set()
                    && argument.get_help_heading() != Some("Global options")
                    && !["help", "version"].contains(&argument.get_id().as_str())
            };
            let arguments: Vec<&clap::Arg> = subcommand.get_arguments().filter(own).collect();
            if !arguments.is_empty() {
                into.push_str("\n| argument | |\n|---|---|\n");
            }
            for argument in arguments {
                let default: Vec<_> = argument
                    .get_default_values()
                    .iter()
                    .map(|value| value.to_string_lossy())
                    .collect();
                let default = if default.is_empty() || default == ["false"] {
                    String::new()
                } else {
                    format!(" Default: `{}`.", default.join(" "))
                };
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                into.push_str(&format!(
                    "| `{}` | {help}.{default} |\n",
                    argument.to_string().replace('|', "\\|")
                ));
            }
            reference(subcommand, &path, into);
        }
    }

    /// The reference in `docs/cli.md` is made from the grammar. `UPDATE_DOCS=1` writes it.
    #[test]
    fn the_documentation_has_every_command_and_argument() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
        let text = std::fs::read_to_string(&path).expect("read");
        let (before, after) = text.split_once("<!-- commands -->\n").expect("a marker");
        let (_, after) = after.split_once("<!-- end -->").expect("an end");
        let mut commands = String::new();
        let mut whole = super::Cli::command();
        whole.build();
        reference(&whole, "ccoctl", &mut commands);
        let made = format!("{before}<!-- commands -->\n{commands}<!-- end -->{after}");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, made).expect("written");
        } else {
            assert!(
                made == text,
                "docs/cli.md is not what the code says; run the tests with UPDATE_DOCS=1"
            );
        }
    }

    use clap::Arg;

    use super::*;

    /// A value that an option takes, by the name that the help shows.
    fn sample(argument: &Arg) -> String {
        if let Some(first) = argument.get_possible_values().first() {
            return first.get_name().to_owned();
        }
        let name = argument.get_value_names().and_then(|names| names.first().cloned());
        let value = match (argument.get_id().as_str(), name.as_deref().unwrap_or_default()) {
            ("knowledge_type" | "km_type", _) => "issue",
            ("mode", _) => "text",
            ("order", _) => "oldest",
            ("on_duplicate", _) => "store",
            ("threshold", _) => "0.5",
            ("metadata" | "parameters", "JSON") => "{}",
            (_, "KEY=VALUE") => "readers.workers=3",
            (_, "D" | "VERSION|TIME") if argument.get_id() != "durability" => "2025-01-31",
            (_, "N" | "DAYS" | "S") if argument.get_id() != "session" => "5",
            ("km_limit", _) => "5",
            _ => "word",
        };
        value.to_owned()
    }

    /// Every command that can be run: the words that lead to it, and its grammar.
    fn commands() -> Vec<(Vec<String>, Command)> {
        fn collect(command: &Command, words: &[String], found: &mut Vec<(Vec<String>, Command)>) {
            if command.get_subcommands().next().is_none() {
                found.push((words.to_vec(), command.clone()));
            }
            for subcommand in command.get_subcommands() {
                let words: Vec<String> = words
                    .iter()
                    .cloned()
                    .chain([subcommand.get_name().to_owned()])
                    .collect();
                collect(subcommand, &words, found);
            }
        }
        let mut found = Vec::new();
        collect(&command(), &["ccoctl".to_owned()], &mut found);
        assert!(found.len() > 25, "{}", found.len());
        found
    }

    /// `words` with `options` and what else the command cannot do without; `place` has a value for one of the
    /// positional arguments, which takes all before it.
    fn line(words: &[String], command: &Command, options: &[String], place: Option<(&Id, &str)>) -> Vec<OsString> {
        let mut line = words.to_vec();
        line.extend(options.iter().cloned());
        let given = |flag: &str| options.iter().any(|option| option.starts_with(flag));
        let mut before = place.is_some();
        for argument in command.get_positionals() {
            let itself = place.filter(|(id, _)| *id == argument.get_id());
            before &= itself.is_none();
            // `undelete` takes ids or a token.
            let required = argument.is_required_set() || command.get_name() == "undelete" && !given("--undo");
            match itself {
                Some((_, value)) => line.push(value.to_owned()),
                None if before || required => line.push(sample(argument)),
                None => {}
            }
        }
        if command.get_name() == "update" && !given("--type") {
            line.push("--type=issue".to_owned());
        }
        line.into_iter().map(OsString::from).collect()
    }

    fn options(command: &Command) -> impl Iterator<Item = &Arg> {
        command
            .get_arguments()
            .filter(|argument| !argument.is_positional() && !["help", "version"].contains(&argument.get_id().as_str()))
    }

    #[test]
    fn no_option_that_takes_one_value_takes_the_last_of_two() {
        let mut repeatable = Vec::new();
        for (words, command) in commands() {
            for option in options(&command) {
                let flag = format!("--{}", option.get_long().expect("a long name"));
                let once = match option.get_action() {
                    ArgAction::SetTrue => flag.clone(),
                    _ => format!("{flag}={}", sample(option)),
                };
                let one = parse(line(&words, &command, std::slice::from_ref(&once), None));
                let one = one.map_err(|error| error.to_string());
                assert!(one.is_ok(), "{words:?} {once}: {one:?}");
                let twice = parse(line(&words, &command, &[once.clone(), once.clone()], None));
                match option.get_action() {
                    ArgAction::SetTrue => assert!(twice.is_ok(), "{words:?} {once}"),
                    ArgAction::Append => {
                        assert!(twice.is_ok(), "{words:?} {once}");
                        repeatable.push(flag);
                    }
                    ArgAction::Set => {
                        let error = twice.expect_err(&once);
                        assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{words:?} {once}: {error}");
                        assert!(error.to_string().contains(&flag), "{error}");
                    }
                    other => panic!("{words:?} {flag}: what does {other:?} twice mean?"),
                }
            }
        }
        repeatable.sort();
        repeatable.dedup();
        assert_eq!(repeatable, ["--agent", "--meta", "--session", "--set", "--type"]);
    }

    #[test]
    fn no_value_is_empty() {
        for (words, command) in commands() {
            for argument in command.get_arguments() {
                if !argument.get_action().takes_values() || ["help", "version"].contains(&argument.get_id().as_str()) {
                    continue;
                }
                for empty in ["", " ", "\t"] {
                    let line = match argument.get_long() {
                        Some(long) => line(&words, &command, &[format!("--{long}={empty}")], None),
                        None => line(&words, &command, &[], Some((argument.get_id(), empty))),
                    };
                    let parsed = parse(line.clone());
                    if MAY_BE_EMPTY.contains(&argument.get_id().as_str()) {
                        assert!(parsed.is_ok(), "{line:?}");
                    } else {
                        let error = parsed.expect_err(&format!("{line:?}"));
                        assert_eq!(error.exit_code(), 2, "{line:?}");
                    }
                }
            }
        }
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_global_flags_are_given_once_wherever_they_stand() {
        for once in [
            "ccoctl --home /h daemon --json start --timeout 3",
            "ccoctl daemon start --home /h --json --timeout 3 --json",
            "ccoctl --json --timeout 3 daemon start --json --home=/h",
        ] {
            let cli = parse(words(once)).expect(once);
            assert_eq!(cli.global.home.as_deref(), Some(std::path::Path::new("/h")), "{once}");
            assert_eq!(cli.global.timeout, Some(std::time::Duration::from_secs(3)));
            assert!(cli.global.json && !cli.global.no_start);
        }
        for twice in [
            "ccoctl --home /a search q --home /b",
            "ccoctl --home /a daemon --home /a start",
            "ccoctl --socket /a daemon start --socket /b",
            "ccoctl --timeout 1 search q --timeout 2",
        ] {
            let error = parse(words(twice)).expect_err(twice);
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{twice}");
        }
    }

    #[test]
    fn a_mistyped_flag_is_not_a_text() {
        for line in [
            "ccoctl store --agnet",
            "ccoctl search --limt=3",
            "ccoctl update id --text --type",
            "ccoctl km store --type issue text",
            "ccoctl rpc knowledge.search --params",
            "ccoctl embed --quiet",
        ] {
            let error = parse(words(line)).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
        for line in [
            "ccoctl store -- --agnet",
            "ccoctl store ---",
            "ccoctl store --1",
            "ccoctl update id --text=--type",
            "ccoctl search --Wextra",
        ] {
            parse(words(line)).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn the_flags_of_all_commands_leave_their_descriptions_alone() {
        for (words, command) in commands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains("flags"), "{words:?}: {about}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_one_sentence_and_what_to_do() {
        let told = |line: &str| {
            let error = usage_error(&parse(words(line)).expect_err(line));
            assert_eq!(error.exit, Exit::Usage);
            (error.message, error.fix.unwrap_or_default())
        };
        let (message, fix) = told("ccoctl serach q");
        assert_eq!(message, "unrecognized subcommand 'serach'");
        assert!(fix.contains("'search'") && fix.contains("Usage: ccoctl"), "{fix}");
        let (message, fix) = told("ccoctl search");
        assert_eq!(message, "the following required arguments were not provided: <QUERY>");
        assert!(fix.starts_with("Usage: ccoctl search"), "{fix}");
        let (message, fix) = told("ccoctl search q --limit 0");
        assert!(message.contains("'0'") && message.contains("--limit"), "{message}");
        assert_eq!(fix, "");
        let (message, _) = told("ccoctl search q --agent=");
        assert_eq!(
            message,
            "the value of '--agent <A>' is empty; leave it out, or say what it is"
        );
        let (message, fix) = told("ccoctl daemon");
        assert_eq!(message, "a command is missing");
        assert!(fix.contains("Usage: ccoctl daemon"), "{fix}");
    }

    #[test]
    fn json_is_asked_for_anywhere_but_behind_two_hyphens() {
        for (line, asked) in [
            ("ccoctl --json nonsense", true),
            ("ccoctl search --limit 0 --json", true),
            ("ccoctl nonsense", false),
            ("ccoctl store --bogus -- --json", false),
        ] {
            assert_eq!(ask_for_json(&words(line)), asked, "{line}");
        }
    }
}
