//! Questions before a command removes many items, or removes items for good.

use std::io::{self, BufRead, IsTerminal, Write};

use ccod::program::exit::{CliError, CliResult, Exit};

/// Whether a command may go on without asking, may ask, or can do neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consent {
    /// `--yes`.
    Given,
    /// A person is at the terminal.
    Ask,
    /// Nobody is there to ask.
    Impossible,
}

impl Consent {
    /// What `--yes` and the terminal allow. Both ends must be a terminal: nobody sees a question elsewhere, and a pipe
    /// does not answer one.
    pub(crate) fn detect(yes: bool) -> Self {
        if yes {
            Self::Given
        } else if io::stdin().is_terminal() && io::stderr().is_terminal() {
            Self::Ask
        } else {
            Self::Impossible
        }
    }

    /// Whether the command must ask; an error where nobody can answer. `action` says what the command would do, such as
    /// "delete items by filter"; `look` is the flag that shows it beforehand, if there is one.
    pub(crate) fn must_ask(self, action: &str, look: Option<&str>) -> CliResult<bool> {
        match self {
            Self::Given => Ok(false),
            Self::Ask => Ok(true),
            Self::Impossible => {
                let look = look
                    .map(|flag| format!("; {flag} shows what it would do"))
                    .unwrap_or_default();
                Err(CliError::new(
                    Exit::Usage,
                    format!("this would {action}, and there is no terminal to ask whether it may"),
                )
                .fix(format!("add --yes{look}")))
            }
        }
    }
}

/// Asks `question` on standard error and reads the answer from standard input. Only yes means yes; what is neither yes
/// nor no is asked again.
pub(crate) fn ask(question: &str) -> CliResult<bool> {
    ask_on(question, &mut io::stdin().lock(), &mut io::stderr().lock())
}

fn ask_on(question: &str, input: &mut impl BufRead, output: &mut impl Write) -> CliResult<bool> {
    let failed = |error: io::Error| CliError::io("ask on the terminal", &error);
    loop {
        write!(output, "{question} [y/N] ")
            .and_then(|()| output.flush())
            .map_err(failed)?;
        let mut answer = String::new();
        if input.read_line(&mut answer).map_err(failed)? == 0 {
            // The end of input, on a line of its own.
            writeln!(output).map_err(failed)?;
            return Ok(false);
        }
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => return Ok(true),
            "" | "n" | "no" => return Ok(false),
            _ => {}
        }
    }
}

/// The error of a command after the answer no.
pub(crate) fn declined() -> CliError {
    CliError::new(Exit::Failed, "nothing was changed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(input: &str) -> (bool, String) {
        let mut output = Vec::new();
        let yes = ask_on("Delete 3 items?", &mut input.as_bytes(), &mut output).expect("asked");
        (yes, String::from_utf8(output).expect("utf-8"))
    }

    #[test]
    fn only_yes_is_yes() {
        for yes in ["y\n", "Y\n", "yes\n", " YES \n", "y"] {
            assert!(answered(yes).0, "{yes:?}");
        }
        for no in ["\n", "n\n", "No\n", "", "nothing\nn\n"] {
            assert!(!answered(no).0, "{no:?}");
        }
    }

    #[test]
    fn an_unclear_answer_is_asked_again() {
        assert_eq!(
            answered("maybe\ny\n"),
            (true, "Delete 3 items? [y/N] Delete 3 items? [y/N] ".to_owned())
        );
        assert_eq!(answered(""), (false, "Delete 3 items? [y/N] \n".to_owned()));
    }

    #[test]
    fn without_a_terminal_it_takes_yes() {
        assert!(!Consent::Given.must_ask("delete items", None).expect("goes on"));
        assert!(Consent::Ask.must_ask("delete items", None).expect("asks"));
        let refused = Consent::Impossible
            .must_ask("delete items", Some("--dry-run"))
            .expect_err("refused");
        assert_eq!(refused.exit, Exit::Usage);
        assert_eq!(
            refused.to_string(),
            "this would delete items, and there is no terminal to ask whether it may\n  \
             fix: add --yes; --dry-run shows what it would do"
        );
    }
}
