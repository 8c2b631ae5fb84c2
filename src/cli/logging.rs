//! The daemon's log: lines on standard error, which a daemon in the background has as its log file.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use ccod::config::{LogConfig, LogFormat};

use super::exit::{CliError, CliResult, Exit};

/// Starts logging. Called once, by `daemon run`.
pub(crate) fn init(log: &LogConfig) -> CliResult<()> {
    let filter = EnvFilter::try_new(&log.level).map_err(|error| {
        CliError::new(
            Exit::Config,
            format!("log.level: `{}` is no filter: {error}", log.level),
        )
        .fix("use error, warn, info, debug or trace, or a filter such as `info,ccod_actors=debug`")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    started.map_err(|error| CliError::new(Exit::Failed, format!("cannot start logging: {error}")))
}
