//! The daemon, put together: lock, store, model, actors, socket; and taken apart in the other order.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ccod_actors::embedder::{EmbedderConfig, EmbedderShared, ModelCell};
use ccod_actors::reader::ReaderConfig;
use ccod_actors::restart::RestartPolicy;
use ccod_actors::store::{Durability, ModelIdentity, Store, StoreConfig};
use ccod_actors::supervisor::{self, SupervisorArguments, SupervisorMessage};
use ccod_actors::writer::WriterConfig;
use ccod_protocol::endpoint::{self, BindOptions, BoundSocket, EndpointLock};
use ccod_protocol::limits::ServerStats;
use ccod_protocol::peer::PeerPolicy;
use ccod_protocol::server::Server;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config};
use crate::rpc::{self, App};
use crate::shutdown;

/// Mode of every directory under `$CCO_HOME`.
const DIRECTORY_MODE: u32 = 0o700;
/// What is left of the grace for stopping the actors once the connections are done, at least.
const LEAST_ACTOR_GRACE: Duration = Duration::from_secs(1);

/// Why the daemon could not start, for the exit code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket or its directory cannot be used: taken, unsafe, or not permitted.
    #[error(transparent)]
    Endpoint(#[from] endpoint::EndpointError),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// Serves until SIGTERM, SIGINT or `admin.shutdown`. True if everything that was accepted was finished.
pub async fn run(config: Config) -> Result<bool, StartError> {
    let stop = CancellationToken::new();
    shutdown::listen(stop.clone()).context("signals cannot be listened to")?;
    run_until(config, stop).await
}

/// Serves until `stop` is cancelled. Tests run the daemon inside their process by this.
pub async fn run_until(config: Config, stop: CancellationToken) -> Result<bool, StartError> {
    let started = Instant::now();
    // Lance creates its files with the modes of the process: owner only, for all of them.
    endpoint::restrict_umask();
    create_private_directory(&config.home)?;

    raise_open_files();

    // Nothing is read, changed or unlinked before the lock is held.
    let socket_path = config.socket_path();
    let options = bind_options(&config.access)?;
    endpoint::check_socket_path(&socket_path)?;
    endpoint::prepare_run_dir(&config.run_dir(), &options)?;
    let lock = EndpointLock::acquire(&config.lock_path())?;
    if let Some(directory) = socket_path.parent()
        && directory != config.run_dir()
    {
        endpoint::prepare_run_dir(directory, &options)?;
    }
    let socket = match inherited_socket()? {
        Some(descriptor) => BoundSocket::from_fd(descriptor)?.with_policy(options.policy.clone()),
        None => endpoint::bind(&socket_path, &lock, &options)?,
    };
    create_private_directory(&config.knowledge_dir())?;

    let model = Arc::new(load_model(&config)?);
    let identity = ModelIdentity {
        name: model.identity().to_owned(),
        dimensions: model.dimensions(),
    };
    let (store, access) = Store::open(store_config(&config, identity)).context("the store cannot be opened")?;
    let embedder_config = embedder_config(&config.embedder);
    embedder_config
        .validate(model.max_tokens())
        .map_err(|reason| anyhow::anyhow!("the embedder's settings do not fit the model: {reason}"))?;
    let embedder = EmbedderShared::new(embedder_config, model);
    let (supervisor, supervisor_task, routes) = supervisor::start(SupervisorArguments {
        store: Arc::clone(&store),
        access,
        writer: writer_config(&config),
        readers: ReaderConfig {
            workers: config.readers.effective_workers(),
            queue_requests: config.readers.queue,
        },
        embedder,
        restarts: restart_policy(&config.supervision),
    })
    .await
    .context("the supervisor cannot start")?;

    let stats = Arc::new(ServerStats::default());
    let limits = config.limits.clone();
    let grace = Duration::from_millis(config.shutdown.grace_ms);
    let module = rpc::module(App {
        config,
        store,
        routes,
        shutdown: stop.clone(),
        server: Arc::clone(&stats),
        turns: rpc::Turns::default(),
        started,
    })
    .context("the methods cannot be registered")?;
    notify_manager(NotifyState::Ready);
    tracing::info!(
        socket = %socket_path.display(),
        started_in_ms = started.elapsed().as_millis() as u64,
        "serving"
    );

    // The supervisor must not die; if it does, the daemon ends and the service manager starts it again.
    let supervisor_died = stop.clone();
    let watchdog = tokio::spawn(async move {
        let ended = supervisor_task.await;
        if !supervisor_died.is_cancelled() {
            tracing::error!(?ended, "the supervisor ended, so does the daemon");
            supervisor_died.cancel();
            return false;
        }
        true
    });

    // Returns once the listener is closed and every accepted request is answered.
    let report = Server::new(module)
        .limits(limits)
        .stats(stats)
        .serve(socket, stop.clone())
        .await;
    if let Some(error) = &report.error {
        tracing::error!(%error, "the socket cannot be served");
        stop.cancel();
    }
    notify_manager(NotifyState::Stopping);
    let stopping = Instant::now();
    let actor_grace = grace.saturating_sub(stopping.elapsed()).max(LEAST_ACTOR_GRACE);
    let (reply, answer) = oneshot::channel();
    let drained = match supervisor.cast(SupervisorMessage::Shutdown(actor_grace, reply)) {
        Ok(()) => answer.await.unwrap_or(false),
        Err(_) => false,
    };
    let supervised = watchdog.await.unwrap_or(false);
    drop(lock);
    tracing::info!(drained, ?report, "stopped");
    Ok(drained && supervised && report.is_clean())
}

fn bind_options(access: &config::AccessConfig) -> Result<BindOptions, StartError> {
    let uids = access
        .uids()
        .map_err(|part| anyhow::anyhow!("access.allowed_uids: `{part}` is no user id"))?;
    let socket_group = match access.socket_group.as_str() {
        "" => None,
        name => Some(endpoint::group_id(name)?),
    };
    Ok(BindOptions {
        socket_group,
        policy: PeerPolicy::own_user_and(uids),
    })
}

/// The listening socket that a service manager passed on (systemd's `LISTEN_FDS`), if it did.
fn inherited_socket() -> Result<Option<OwnedFd>, StartError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut descriptors = sd_notify::listen_fds().context("the socket of the service manager cannot be taken over")?;
    if descriptors.len() > 1 {
        return Err(anyhow::anyhow!(
            "the service manager passed on {} sockets; one is served",
            descriptors.len()
        )
        .into());
    }
    let Some(raw) = descriptors.next().filter(|_| !TAKEN.swap(true, Ordering::SeqCst)) else {
        return Ok(None);
    };
    #[allow(unsafe_code)]
    // SAFETY: `listen_fds` has checked that the descriptor was passed to this very process and is open, and
    // `TAKEN` that it gets one owner.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// Tells the service manager, where there is one.
fn notify_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Descriptors that the daemon asks for: 256 connections take two each, and a query opens a file of every fragment.
const OPEN_FILES: u64 = 16_384;

/// Raises the soft limit of open files as far as the hard one lets it. What it stays at is still enough to
/// begin with, so a refusal is told and no more.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft >= OPEN_FILES {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(hard), hard)
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// Creates a directory for its owner alone, with its parents; tightens one of ours that is too open. Afterwards
/// its name is on disk: what is acknowledged must not vanish with the directory that it lies in. The name is
/// synced even if the directory was there, for whoever made it may not have done that.
fn create_private_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let missing = path
        .ancestors()
        .skip(1)
        .take_while(|ancestor| !ancestor.exists())
        .count();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .with_context(|| format!("{} cannot be created", path.display()))?;
    let metadata = std::fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(DIRECTORY_MODE))
            .with_context(|| format!("{} is open to others and cannot be closed", path.display()))?;
    }
    for parent in path.ancestors().skip(1).take(missing + 1) {
        // A parent of another user may not be readable; the directory can be used all the same.
        if let Err(error) = std::fs::File::open(parent).and_then(|directory| directory.sync_all()) {
            tracing::warn!(directory = %parent.display(), %error, "cannot be synced, a power cut could take what is in it");
        }
    }
    Ok(())
}

fn load_model(config: &Config) -> anyhow::Result<ModelCell> {
    let name = &config.embedder.model;
    if name.is_empty() {
        return ModelCell::bundled().context("the bundled model is damaged; build the executable again");
    }
    let directory = config.models_dir().join(name);
    ModelCell::from_directory(&directory)
        .with_context(|| format!("the model in {} cannot be used", directory.display()))
}

fn store_config(config: &Config, model: ModelIdentity) -> StoreConfig {
    StoreConfig {
        knowledge_dir: config.knowledge_dir(),
        durability: match config.store.durability {
            config::Durability::Full => Durability::Full,
            config::Durability::Fast => Durability::Fast,
        },
        index_cache_bytes: config.store.session_index_cache_bytes as usize,
        metadata_cache_bytes: config.store.session_metadata_cache_bytes as usize,
        min_free_bytes: config.store.min_free_bytes,
        model,
        retention: chrono::TimeDelta::days(i64::from(config.store.retention_days)),
    }
}

fn writer_config(config: &Config) -> WriterConfig {
    let setbacks = restart_policy(&config.supervision);
    let config = &config.writer;
    WriterConfig {
        max_group_rows: config.max_group_rows as usize,
        max_group_bytes: config.max_group_bytes as usize,
        queue_requests: config.queue_ops,
        queue_bytes: u32::try_from(config.queue_bytes).unwrap_or(u32::MAX),
        setbacks,
    }
}

fn embedder_config(config: &config::EmbedderConfig) -> EmbedderConfig {
    EmbedderConfig {
        warm: config.warm,
        interactive_queue_tokens: config.interactive_queue_tokens,
        bulk_queue_tokens: config.bulk_queue_tokens,
        batch_tokens: config.batch_tokens as usize,
        max_batch: config.max_batch as usize,
        bulk_quantum_tokens: config.bulk_quantum_tokens as usize,
        query_cache: config.query_cache as usize,
        ..EmbedderConfig::default()
    }
}

fn restart_policy(config: &config::SupervisionConfig) -> RestartPolicy {
    RestartPolicy {
        max_restarts: config.max_restarts as usize,
        window: Duration::from_millis(config.window_ms),
        backoff: Duration::from_millis(config.backoff_ms),
        backoff_cap: Duration::from_millis(config.backoff_cap_ms),
        degraded_retry: Duration::from_millis(config.degraded_retry_ms),
    }
}
