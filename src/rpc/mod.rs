//! The methods of the wire, over the actors. The only place that knows both sides: parameters become domain
//! requests, results and errors become what `api.md` promises. One file for each group of methods.

mod admin;
mod convert;
mod data;
mod errors;
mod feed;
mod items;
mod life;
mod metrics;
mod page;
mod search;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::ProjectName;
use ccod_actors::knowledge::{Asked, Knowledge};
use ccod_actors::routes::Routes;
use ccod_actors::store::Store;
use ccod_protocol::api::{self, Method};
use ccod_protocol::context::CallContext;
use ccod_protocol::error::{ErrorKind, WireError};
use ccod_protocol::limits::ServerStats;
use ccod_protocol::methods::Methods;
use ccod_protocol::params::Decoded;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

pub(crate) use data::Turns;
pub(crate) use errors::{Failure, wire_error};

/// What every handler can reach.
pub(crate) struct App {
    /// The settings, as loaded.
    pub(crate) config: Config,
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
    fn of(decoded: Decoded<M::Params>, context: CallContext) -> Result<Self, WireError> {
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
async fn must_exist(app: &App, project: &ProjectName) -> Result<(), Failure> {
    if app.knowledge.exists(project).await? {
        return Ok(());
    }
    Err(WireError::new(
        ErrorKind::NotFound,
        format!("there is no project {project}; `knowledge.projects` lists those that there are"),
    )
    .into())
}

/// The methods that the daemon serves. One that is not among them answers -32601.
pub(crate) fn methods(app: App) -> Methods {
    let mut table = Table {
        methods: Methods::default(),
        app: Arc::new(app),
    };
    table.serve::<api::Store, _, _>(items::store);
    table.serve::<api::StoreBatch, _, _>(items::store_batch);
    table.serve::<api::Search, _, _>(search::search);
    table.serve::<api::List, _, _>(items::list);
    table.serve::<api::Get, _, _>(items::get);
    table.serve::<api::Update, _, _>(life::update);
    table.serve::<api::History, _, _>(life::history);
    table.serve::<api::Delete, _, _>(life::delete);
    table.serve::<api::Undelete, _, _>(life::undelete);
    table.serve::<api::Purge, _, _>(life::purge);
    table.serve::<api::Cleanup, _, _>(life::cleanup);
    table.serve::<api::Similar, _, _>(search::similar);
    table.serve::<api::Stats, _, _>(items::stats);
    table.serve::<api::Projects, _, _>(items::projects);
    table.serve_notifying::<api::Subscribe, _, _>(feed::subscribe);
    table.serve::<api::Unsubscribe, _, _>(feed::unsubscribe);
    table.serve::<api::Embed, _, _>(search::embed);
    table.serve::<api::Health, _, _>(admin::health);
    table.serve::<api::Status, _, _>(admin::status);
    table.serve::<api::Metrics, _, _>(admin::metrics);
    table.serve::<api::Optimize, _, _>(admin::optimize);
    table.serve::<api::Backup, _, _>(data::backup);
    table.serve::<api::Restore, _, _>(data::restore);
    table.serve::<api::Import, _, _>(data::import);
    table.serve::<api::Export, _, _>(data::export);
    table.serve::<api::Verify, _, _>(data::verify);
    table.serve::<api::Shutdown, _, _>(admin::shutdown);
    table.serve::<api::Version, _, _>(admin::version);
    table.serve::<api::Discover, _, _>(admin::discover);
    // Only here is the list complete; no call has been served yet.
    table.app.served.get_or_init(|| table.methods.names().to_vec());
    table.methods
}

/// The methods, with what their handlers can reach.
struct Table {
    methods: Methods,
    app: Arc<App>,
}

impl Table {
    fn serve<M, F, E>(&mut self, handler: fn(Arc<App>, Call<M>) -> F)
    where
        M: Method,
        F: Future<Output = Result<M::Result, E>> + Send + 'static,
        E: Into<WireError>,
    {
        let app = Arc::clone(&self.app);
        self.methods.serve::<M, _, _>(move |decoded, context| {
            let app = Arc::clone(&app);
            async move {
                let ended = handler(app, Call::of(decoded, context)?).await;
                ended.map_err(Into::<WireError>::into)
            }
        });
    }

    /// As [`Self::serve`], for a method whose notifications come after its answer.
    fn serve_notifying<M, F, E>(&mut self, handler: fn(Arc<App>, Call<M>) -> F)
    where
        M: Method,
        F: Future<Output = Result<(M::Result, oneshot::Sender<()>), E>> + Send + 'static,
        E: Into<WireError>,
    {
        let app = Arc::clone(&self.app);
        self.methods.serve_notifying::<M, _, _>(move |decoded, context| {
            let app = Arc::clone(&app);
            async move {
                let ended = handler(app, Call::of(decoded, context)?).await;
                ended.map_err(Into::<WireError>::into)
            }
        });
    }
}
