//! Exit codes, and the error that carries one.
//!
//! The codes are part of the contract with scripts and agents (docs/cli.md): they follow `sysexits.h` where it
//! has a fitting one, so that "retry later" and "wrong input" can be told apart without reading the message.

use std::fmt;
use std::process::ExitCode;

use ccod_protocol::endpoint::EndpointError;
use nix::errno::Errno;

use crate::access::AccessError;
use crate::config::ConfigError;
use crate::home::HomeError;

/// The outcome of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed, or the item or project does not exist.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The daemon refused the data.
    BadData = 65,
    /// No daemon runs and none could be started.
    Unavailable = 69,
    /// The same command may succeed later.
    Retry = 75,
    /// The system or a sandbox forbids it.
    Permission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// Its name in an error that `--json` shows and no daemon has sent.
    fn kind(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::BadData => "bad_data",
            Self::Unavailable => "unavailable",
            Self::Retry => "retry",
            Self::Permission => "permission",
            Self::Config => "configuration",
        }
    }

    /// Its number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The code for a JSON-RPC error, by the table of errors in the contract.
    pub fn from_rpc(code: i32, retryable: bool) -> Self {
        match code {
            // The method does not exist: the command line asked for it by name.
            -32601 => Self::Usage,
            -32602 | -32600 | -32700 | -32007 | -32010 | -32021 | -32022 => Self::BadData,
            -32026 => Self::Permission,
            _ if retryable => Self::Retry,
            _ => Self::Failed,
        }
    }
}

/// Why a command failed: what happened, what to do, and the exit code.
#[derive(Clone, Debug)]
pub struct CliError {
    /// The exit code.
    pub exit: Exit,
    /// What happened, in one sentence.
    pub message: String,
    /// What to do, if that is known.
    pub fix: Option<String>,
    /// The daemon's error object, shown with `--json`.
    pub rpc: Option<Box<serde_json::Value>>,
    /// The daemon's result of a change that was made before the failure, and that standard output did not take.
    pub done: Option<Box<serde_json::Value>>,
}

/// Result of a command.
pub type CliResult<T = Exit> = Result<T, CliError>;

impl CliError {
    /// An error without advice.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            fix: None,
            rpc: None,
            done: None,
        }
    }

    /// An error of standard output, which did not take `result`: the error carries the result of a change, an undo token
    /// above all.
    pub fn unwritten(error: &std::io::Error, result: &impl serde::Serialize) -> Self {
        Self {
            done: serde_json::to_value(result).ok().map(Box::new),
            ..Self::io("write to standard output", error)
        }
    }

    /// The error as `--json` shows it.
    pub fn to_json(&self) -> serde_json::Value {
        let mut object = self.rpc.as_deref().cloned().unwrap_or_else(|| {
            let mut data = serde_json::json!({ "kind": self.exit.kind(), "retryable": self.exit == Exit::Retry });
            if let Some(fix) = &self.fix {
                data["fix"] = fix.as_str().into();
            }
            serde_json::json!({ "message": self.message, "data": data })
        });
        if let Some(done) = self.done.as_deref() {
            object["data"]["executed"] = true.into();
            object["data"]["result"] = done.clone();
        }
        serde_json::json!({ "error": object, "exit": self.exit as u8 })
    }

    /// Adds what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// An error of the operating system while doing `action`.
    pub fn io(action: impl fmt::Display, error: &std::io::Error) -> Self {
        let message = format!("cannot {action}: {error}");
        if lacks_descriptors(error) {
            return Self::new(Exit::Retry, message).fix(
                "raise the limit of open files (ulimit -n in the shell, LimitNOFILE of a systemd unit), or close programs \
                 if the whole system has no more",
            );
        }
        let exit = match error.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => Exit::Permission,
            _ => Exit::Failed,
        };
        Self::new(exit, message)
    }
}

/// Whether an error of the system says that this process, or the system, has no file descriptor left.
pub fn lacks_descriptors(error: &std::io::Error) -> bool {
    let lacking = [Errno::EMFILE, Errno::ENFILE].map(|errno| errno as i32);
    error.raw_os_error().is_some_and(|code| lacking.contains(&code))
}

impl fmt::Display for CliError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if let Some(fix) = &self.fix {
            write!(formatter, "\n  fix: {fix}")?;
        }
        if let Some(done) = &self.done {
            write!(formatter, "\n  it was done; the result: {done}")?;
        }
        Ok(())
    }
}

impl From<&EndpointError> for CliError {
    fn from(error: &EndpointError) -> Self {
        let exit = match error {
            EndpointError::Locked { .. } => Exit::Retry,
            EndpointError::PathTooLong { .. } | EndpointError::PathNotAbsolute(_) => Exit::Config,
            EndpointError::RunDirIsLink(_)
            | EndpointError::RunDirIsForeign { .. }
            | EndpointError::RunDirIsOpen { .. }
            | EndpointError::GroupCannotReach { .. }
            | EndpointError::LockIsForeign(_) => Exit::Permission,
            EndpointError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Exit::Permission
            }
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<&HomeError> for CliError {
    fn from(error: &HomeError) -> Self {
        let exit = match error {
            HomeError::NoDirectory(_) | HomeError::Dangling { .. } => Exit::Config,
            HomeError::Io { source, .. } if source.kind() != std::io::ErrorKind::PermissionDenied => Exit::Failed,
            _ => Exit::Permission,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<&AccessError> for CliError {
    fn from(error: &AccessError) -> Self {
        match error {
            AccessError::UserId(_) => Self::new(Exit::Config, error.to_string()),
            AccessError::Group(error) => error.into(),
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error.to_string())
            .fix("correct the value; `ccoctl config show` shows where each one comes from")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_contract_has_its_exit_code() {
        let expected = [
            (-32700, false, Exit::BadData),
            (-32600, false, Exit::BadData),
            (-32601, false, Exit::Usage),
            (-32602, false, Exit::BadData),
            (-32603, false, Exit::Failed),
            (-32007, false, Exit::BadData),
            (-32008, false, Exit::Failed),
            (-32010, false, Exit::BadData),
            (-32009, true, Exit::Retry),
            (-32020, false, Exit::Failed),
            (-32021, false, Exit::BadData),
            (-32022, false, Exit::BadData),
            (-32023, false, Exit::Failed),
            (-32024, true, Exit::Retry),
            (-32025, true, Exit::Retry),
            (-32026, false, Exit::Permission),
            (-32027, true, Exit::Retry),
            (-32028, false, Exit::Failed),
            (-32029, false, Exit::Failed),
            (-32050, true, Exit::Retry),
            (-32051, true, Exit::Retry),
            (-32052, true, Exit::Retry),
            (-32053, true, Exit::Retry),
        ];
        for (code, retryable, exit) in expected {
            assert_eq!(Exit::from_rpc(code, retryable), exit, "code {code}");
        }
    }

    #[test]
    fn the_numbers_are_those_of_the_documentation() {
        let numbers = [
            (Exit::Ok, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::BadData, 65),
            (Exit::Unavailable, 69),
            (Exit::Retry, 75),
            (Exit::Permission, 77),
            (Exit::Config, 78),
        ];
        for (exit, number) in numbers {
            assert_eq!(exit as u8, number);
        }
    }

    #[test]
    fn an_error_says_what_to_do() {
        let error = CliError::new(Exit::Failed, "it broke").fix("mend it");
        assert_eq!(error.to_string(), "it broke\n  fix: mend it");
        assert_eq!(
            error.to_json(),
            serde_json::json!({
                "error": {"message": "it broke", "data": {"kind": "failed", "retryable": false, "fix": "mend it"}},
                "exit": 1,
            })
        );
    }

    #[test]
    fn a_lack_of_file_descriptors_says_how_to_get_more() {
        for errno in [Errno::EMFILE, Errno::ENFILE] {
            let error = CliError::io("open x", &std::io::Error::from_raw_os_error(errno as i32));
            assert_eq!(error.exit, Exit::Retry);
            assert!(
                error.fix.as_deref().is_some_and(|fix| fix.contains("ulimit -n")),
                "{error}"
            );
        }
        let other = CliError::io("open x", &std::io::Error::from_raw_os_error(Errno::EIO as i32));
        assert_eq!((other.exit, other.fix), (Exit::Failed, None));
    }

    #[test]
    fn a_result_that_could_not_be_printed_is_in_the_error() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = CliError::unwritten(&full, &serde_json::json!({"undo_token": "5f"}));
        assert_eq!(error.exit, Exit::Failed);
        assert!(
            error
                .to_string()
                .contains(r#"it was done; the result: {"undo_token":"5f"}"#),
            "{error}"
        );
        let json = error.to_json();
        assert_eq!(json["error"]["data"]["executed"], true);
        assert_eq!(json["error"]["data"]["result"]["undo_token"], "5f");
    }
}
