//! What a handler gets: what it can reach, and one decoded call.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::ProjectName;
use ccod_actors::embedder::ModelCell;
use ccod_actors::knowledge::{Asked, Knowledge};
use ccod_actors::routes::Routes;
use ccod_actors::store::Store;
use ccod_protocol::api::Method;
use ccod_protocol::context::CallContext;
use ccod_protocol::error::{ErrorKind, WireError};
use ccod_protocol::limits::ServerStats;
use ccod_protocol::params::Decoded;
use tokio_util::sync::CancellationToken;

use super::{Failure, Turns};
use crate::config::Config;

/// What every handler can reach.
pub(crate) struct App {
    /// The settings, as loaded.
    pub(crate) config: Config,
    /// The model that makes vectors of texts.
    pub(crate) model: Arc<ModelCell>,
    /// The knowledge that the methods read and change.
    pub(crate) knowledge: Knowledge,
    /// Begins the shutdown.
    pub(crate) shutdown: CancellationToken,
    /// Counters of the server.
    pub(crate) server: Arc<ServerStats>,
    /// Limits how much long work with files runs at once.
    pub(crate) turns: Turns,
    /// When the daemon began to serve.
    pub(crate) started: Instant,
    /// The names of the methods that are served: set by [`methods`].
    pub(crate) served: OnceLock<Vec<&'static str>>,
}

/// One decoded call.
pub(crate) struct Call<M: Method> {
    pub(crate) params: M::Params,
    /// The project as named; none where the caller left it out.
    pub(crate) project: Option<ProjectName>,
    /// Whether the caller asked for every project (`"*"`), where a method takes that.
    pub(crate) every_project: bool,
    pub(crate) context: CallContext,
}

impl<M: Method> Call<M> {
    /// # Errors
    /// -32602 for a project that has no valid name.
    pub(super) fn of(decoded: Decoded<M::Params>, context: CallContext) -> Result<Self, WireError> {
        let every_project = M::SCOPE.takes_every() && decoded.project_id.as_deref() == Some("*");
        let project = decoded
            .project_id
            .as_deref()
            .filter(|_| !every_project)
            .map(|name| ProjectName::parse(name, "project_id"))
            .transpose()?;
        Ok(Self {
            params: decoded.params,
            project,
            every_project,
            context,
        })
    }

    /// The project, or the default one.
    pub(crate) fn project(&self) -> ProjectName {
        self.project.clone().unwrap_or_default()
    }

    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::at(self.context.deadline)
    }

    /// The connection for which the work is done: work is shared out fairly among connections.
    pub(crate) fn asked(&self) -> Asked {
        Asked {
            deadline: self.deadline(),
            origin: self.context.connection.0,
            cancelled: self.context.cancelled.clone(),
        }
    }
}

impl App {
    /// The projects, for what needs no query (names, caches).
    pub(crate) fn store(&self) -> &Arc<Store> {
        self.knowledge.projects()
    }

    /// The names of the methods that are served.
    pub(crate) fn served(&self) -> &[&'static str] {
        self.served.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// The present actors. A clone of references, taken once for each call.
    pub(crate) fn routes(&self) -> Routes {
        self.knowledge.routes()
    }
}

/// Refuses a project that is named and does not exist, where that can only be a mistake: verifying, maintaining or
/// exporting it would answer "all is well", or an empty file, to a misspelled name. Reads of such a project find
/// nothing, as documented.
///
/// # Errors
/// -32020, or as [`Knowledge::exists`].
pub(super) async fn must_exist(app: &App, project: &ProjectName) -> Result<(), Failure> {
    if app.knowledge.exists(project).await? {
        return Ok(());
    }
    Err(WireError::new(
        ErrorKind::NotFound,
        format!("there is no project {project}; `knowledge.projects` lists those that there are"),
    )
    .into())
}
