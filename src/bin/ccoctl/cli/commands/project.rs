//! The argument of every command that is about one project.

use clap::Args;

use ccod::program::exit::CliResult;

use crate::cli::Context;

/// The project of a command.
#[derive(Debug, Args)]
pub(crate) struct ProjectArg {
    /// The project; that of the current repository if absent
    #[arg(long, value_name = "P")]
    project: Option<String>,
}

impl ProjectArg {
    /// The project that was named, else that of the current directory.
    ///
    /// # Errors
    /// As [`Context::project`].
    pub(crate) fn find(&self, context: &Context) -> CliResult<String> {
        context.project(self.project.as_deref())
    }
}
