//! The daemon's log: lines on standard error, which a daemon in the background has as its log file.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use ccod::config::{LogConfig, LogFormat};
use ccod::log_file::LogFile;

use ccod::program::exit::{CliError, CliResult, Exit};

/// Starts logging. Called once, at the start.
/// `file` is the daemon's own file behind standard error, if it is one.
pub(crate) fn init(log: &LogConfig, file: Option<LogFile>) -> CliResult<()> {
    let filter = EnvFilter::try_new(directives(&log.level)).map_err(|error| {
        CliError::new(
            Exit::Config,
            format!("log.level: `{}` is no filter: {error}", log.level),
        )
        .fix("use error, warn, info, debug or trace, or a filter such as `info,ccod_actors=debug`")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Where the log cannot be written (a closed pipe, a terminal that is gone), the subscriber would say so on
        // standard error, and fail the request in which it tries.
        .log_internal_errors(false)
        .with_writer(move || -> Box<dyn std::io::Write> {
            match &file {
                Some(file) => Box::new(file.clone()),
                None => Box::new(std::io::stderr()),
            }
        });
    let started = match log.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    started.map_err(|error| CliError::new(Exit::Failed, format!("cannot start logging: {error}")))
}

/// A plain level is about this program: at `info` LanceDB tells of every file and every plan, at `debug` it
/// tells more than a disk wants to hold. A filter with targets of its own is taken as it is.
fn directives(level: &str) -> String {
    const LIBRARIES: [&str; 8] = [
        "lance",
        "lance_core",
        "lance_encoding",
        "lance_file",
        "lance_index",
        "lance_io",
        "lance_table",
        "lancedb",
    ];
    let plain = ["info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str());
    if !plain {
        return level.to_owned();
    }
    LIBRARIES
        .iter()
        .fold(level.to_owned(), |all, library| format!("{all},{library}=warn"))
}
