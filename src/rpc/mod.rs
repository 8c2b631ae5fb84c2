//! The methods of the wire, over the actors. The only place that knows both sides: parameters become domain
//! requests, results and errors become what `api.md` promises. One file for each group of methods.

mod admin;
mod convert;
mod errors;
mod feed;
mod life;
mod metrics;
mod page;
mod probe;
mod read;
mod store;
mod transfer;
mod verify;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::ProjectName;
use ccod_actors::error::KnowledgeError;
use ccod_actors::reader::Within;
use ccod_actors::routes::Routes;
use ccod_actors::store::Store;
use ccod_protocol::api::{self, Method};
use ccod_protocol::context::CallContext;
use ccod_protocol::error::{ErrorKind, WireError};
use ccod_protocol::limits::ServerStats;
use ccod_protocol::params::{self, Bounds};
use jsonrpsee::{ResponsePayload, RpcModule};
use jsonrpsee_types::ErrorObjectOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

pub(crate) use errors::{unwritten, wire_error};
pub(crate) use transfer::Turns;

/// What every handler can reach.
pub(crate) struct App {
    /// The settings, as loaded.
    pub(crate) config: Config,
    /// The projects, for what needs no query (names, caches).
    pub(crate) store: Arc<Store>,
    /// The present actors.
    pub(crate) routes: watch::Receiver<Routes>,
    /// Begins the shutdown.
    pub(crate) shutdown: CancellationToken,
    /// Counters of the server.
    pub(crate) server: Arc<ServerStats>,
    /// The places of long work with files.
    pub(crate) turns: Turns,
    /// When the daemon began to serve.
    pub(crate) started: Instant,
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
    /// The project, or the default one.
    pub(crate) fn project(&self) -> ProjectName {
        self.project.clone().unwrap_or_default()
    }

    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::at(self.context.deadline)
    }

    /// Whose queue the call's work belongs to: work is shared out fairly among connections.
    pub(crate) fn origin(&self) -> u64 {
        self.context.connection.0
    }
}

impl App {
    /// What is read for an answer, as far as it can be sent: the readers stop where it would be more.
    pub(crate) fn within_answer<T>(&self, wanted: T) -> Within<T> {
        Within {
            wanted,
            max_answer_bytes: self.config.limits.max_response_bytes,
        }
    }

    /// The present actors. A clone of references, taken once for each call.
    pub(crate) fn routes(&self) -> Routes {
        self.routes.borrow().clone()
    }
}

/// Refuses a name that differs from that of an existing project in case only. Whether there is such a project is the
/// answer.
///
/// # Errors
/// -32602.
async fn is_there(app: &App, project: &ProjectName) -> Result<bool, WireError> {
    match app.store.view(project).await {
        // A directory is there: what is the matter with it is for the method to tell.
        Ok(None) => Ok(app.store.config().knowledge_dir.join(project.as_str()).exists()),
        Err(error @ KnowledgeError::InvalidParameter { .. }) => {
            // A project out of reach, on a disk that is not mounted, is one that the method tells of.
            let not_served = app.store.not_served().await;
            match not_served
                .iter()
                .any(|left| left.is_project && left.project == project.as_str())
            {
                true => Ok(true),
                false => Err(wire_error(error)),
            }
        }
        // One that cannot be opened is there.
        Ok(Some(_)) | Err(_) => Ok(true),
    }
}

/// Refuses a project that is named and does not exist, where that can only be a mistake: to have it looked through,
/// maintained or exported would answer "all is well", or an empty file, to a misspelled name. Reads of it find nothing,
/// as documented.
///
/// # Errors
/// -32020, or as [`is_there`].
async fn must_exist(app: &App, project: &ProjectName) -> Result<(), WireError> {
    if is_there(app, project).await? {
        return Ok(());
    }
    Err(WireError::new(
        ErrorKind::NotFound,
        format!("there is no project {project}; `knowledge.projects` lists those that there are"),
    ))
}

/// Builds the table of methods. A method that is not in it answers -32601.
pub(crate) fn module(app: App) -> Result<RpcModule<App>, jsonrpsee::core::RegisterMethodError> {
    let mut module = RpcModule::new(app);
    register::<api::Store, _, _>(&mut module, store::store)?;
    register::<api::StoreBatch, _, _>(&mut module, store::store_batch)?;
    register::<api::Search, _, _>(&mut module, read::search)?;
    register::<api::List, _, _>(&mut module, read::list)?;
    register::<api::Get, _, _>(&mut module, read::get)?;
    register::<api::Update, _, _>(&mut module, life::update)?;
    register::<api::History, _, _>(&mut module, life::history)?;
    register::<api::Delete, _, _>(&mut module, life::delete)?;
    register::<api::Undelete, _, _>(&mut module, life::undelete)?;
    register::<api::Purge, _, _>(&mut module, life::purge)?;
    register::<api::Cleanup, _, _>(&mut module, life::cleanup)?;
    register::<api::Similar, _, _>(&mut module, read::similar)?;
    register::<api::Stats, _, _>(&mut module, read::stats)?;
    register::<api::Projects, _, _>(&mut module, read::projects)?;
    register_subscribe(&mut module)?;
    register::<api::Unsubscribe, _, _>(&mut module, feed::unsubscribe)?;
    register::<api::Embed, _, _>(&mut module, read::embed)?;
    register::<api::Health, _, _>(&mut module, admin::health)?;
    register::<api::Status, _, _>(&mut module, admin::status)?;
    register::<api::Metrics, _, _>(&mut module, admin::metrics)?;
    register::<api::Optimize, _, _>(&mut module, admin::optimize)?;
    register::<api::Backup, _, _>(&mut module, transfer::backup)?;
    register::<api::Restore, _, _>(&mut module, transfer::restore)?;
    register::<api::Import, _, _>(&mut module, transfer::import)?;
    register::<api::Export, _, _>(&mut module, transfer::export)?;
    register::<api::Verify, _, _>(&mut module, verify::verify)?;
    register::<api::Shutdown, _, _>(&mut module, admin::shutdown)?;
    register::<api::Version, _, _>(&mut module, admin::version)?;
    register::<api::Discover, _, _>(&mut module, admin::discover)?;
    Ok(module)
}

/// The methods that [`module`] serves, for `rpc.version` and `rpc.discover`.
pub(crate) const SERVED: [&str; 29] = [
    api::Store::NAME,
    api::StoreBatch::NAME,
    api::Search::NAME,
    api::List::NAME,
    api::Get::NAME,
    api::Update::NAME,
    api::History::NAME,
    api::Delete::NAME,
    api::Undelete::NAME,
    api::Purge::NAME,
    api::Cleanup::NAME,
    api::Similar::NAME,
    api::Stats::NAME,
    api::Projects::NAME,
    api::Subscribe::NAME,
    api::Unsubscribe::NAME,
    api::Embed::NAME,
    api::Health::NAME,
    api::Status::NAME,
    api::Metrics::NAME,
    api::Optimize::NAME,
    api::Backup::NAME,
    api::Restore::NAME,
    api::Import::NAME,
    api::Export::NAME,
    api::Verify::NAME,
    api::Shutdown::NAME,
    api::Version::NAME,
    api::Discover::NAME,
];

fn register<M, H, F>(module: &mut RpcModule<App>, handler: H) -> Result<(), jsonrpsee::core::RegisterMethodError>
where
    M: Method,
    H: Fn(Arc<App>, Call<M>) -> F + Copy + Send + Sync + 'static,
    F: Future<Output = Result<M::Result, WireError>> + Send + 'static,
{
    for name in std::iter::once(&M::NAME).chain(M::OTHER_NAMES) {
        module.register_async_method(name, move |raw, app, extensions| async move {
            let bounds = Bounds::from(&app.config.limits);
            let call = decode::<M>(&raw, bounds, extensions.get::<CallContext>()).map_err(ErrorObjectOwned::from)?;
            handler(app, call).await.map_err(ErrorObjectOwned::from)
        })?;
    }
    Ok(())
}

/// As [`register`], for the method whose notifications must come after its answer.
fn register_subscribe(module: &mut RpcModule<App>) -> Result<(), jsonrpsee::core::RegisterMethodError> {
    module
        .register_async_method(api::Subscribe::NAME, |raw, app, extensions| async move {
            let bounds = Bounds::from(&app.config.limits);
            let call = decode::<api::Subscribe>(&raw, bounds, extensions.get::<CallContext>());
            let opened = match call {
                Ok(call) => feed::subscribe(app, call).await,
                Err(error) => Err(error),
            };
            match opened {
                Ok(opened) => {
                    let result = opened.result.clone();
                    let (response, answered) = ResponsePayload::success(result).notify_on_completion();
                    opened.begin_after(answered);
                    response
                }
                Err(error) => ResponsePayload::error(ErrorObjectOwned::from(error)),
            }
        })
        .map(drop)
}

fn decode<M: Method>(
    raw: &jsonrpsee_types::Params<'_>,
    bounds: Bounds,
    context: Option<&CallContext>,
) -> Result<Call<M>, WireError> {
    let decoded = params::decode_within::<M>(raw.as_str(), bounds)?;
    let context = context
        .cloned()
        .ok_or_else(|| WireError::internal("the call came without its context"))?;
    let every_project = M::SCOPE.takes_every() && decoded.project_id.as_deref() == Some("*");
    let project = decoded
        .project_id
        .as_deref()
        .filter(|_| !every_project)
        .map(|name| ProjectName::parse(name, "project_id"))
        .transpose()
        .map_err(wire_error)?;
    Ok(Call {
        params: decoded.params,
        project,
        every_project,
        context,
    })
}
