//! What every command gets.

use std::time::Duration;

use super::output::Output;
use super::project;
use ccod::config::Loaded;
use ccod::program::exit::{CliError, CliResult, Exit};

/// What every command needs to know.
#[derive(Debug)]
pub(crate) struct Context {
    /// The configuration and where it comes from.
    pub(super) loaded: Loaded,
    /// How to print.
    pub(super) output: Output,
    /// `--no-start`.
    pub(super) no_start: bool,
    /// `--timeout`.
    pub(super) timeout: Option<Duration>,
}

impl Context {
    /// The project of a command: the one named, else that of the current directory.
    ///
    /// # Errors
    /// When it is not known which repository has which project.
    pub(super) fn project(&self, named: Option<&str>) -> CliResult<String> {
        match (named, std::env::current_dir()) {
            (Some(name), _) => Ok(name.to_owned()),
            (None, Ok(directory)) => project::detect(&self.loaded.config.home, &directory),
            // A directory that was removed meanwhile belongs to no repository.
            (None, Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(ccod_protocol::api::DEFAULT_PROJECT.to_owned())
            }
            (None, Err(error)) => Err(CliError::new(
                Exit::Config,
                format!("the project cannot be determined: the current directory cannot be read ({error})"),
            )
            .fix("name the project with --project")),
        }
    }
}
