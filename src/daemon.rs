//! The daemon, put together: lock, store, model, actors, socket; and taken apart in the other order.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ccod_actors::embedder::{EmbedderConfig, EmbedderShared, ModelCell, PrecisionChoice};
use ccod_actors::knowledge::{Knowledge, Limits};
use ccod_actors::reader::ReaderConfig;
use ccod_actors::restart::RestartPolicy;
use ccod_actors::store::{ModelIdentity, Store, StoreConfig, StoreLock, StoreLockError};
use ccod_actors::supervisor::{self, SupervisorArguments, SupervisorMessage};
use ccod_actors::writer::WriterConfig;
use ccod_protocol::endpoint::{self, BoundSocket, EndpointLock};
use ccod_protocol::limits::ServerStats;
use ccod_protocol::server::Server;
use ccod_protocol::service::Service;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::access::{self, AccessError};
use crate::config::{self, Config, Precision};
use crate::home::{self, HomeError};
use crate::housekeeping::Housekeeping;
use crate::log_file::LogFile;
use crate::ownership::Ownership;
use crate::rpc::{self, App};
use crate::shutdown;

/// Of the grace, what is kept for the time after the server's part: the answers to what it cut off, then the actors.
const RESERVED_GRACE: Duration = Duration::from_secs(2);
/// What the actors have to stop, at least, however late it is.
const LEAST_ACTOR_GRACE: Duration = Duration::from_millis(100);
/// How much longer than the grace a service manager is asked to wait: the end of the runtime, and of the process.
const MANAGER_PATIENCE: Duration = Duration::from_secs(5);

/// Why the daemon could not start, for the exit code.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket or its directory cannot be used: taken, unsafe, or not permitted.
    #[error(transparent)]
    Endpoint(#[from] endpoint::EndpointError),
    /// The configuration of who may use the socket is wrong.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The home, or the directory of the projects, cannot be used: it is not a directory, or others own it or
    /// can write into it.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Another process writes to the store, or it cannot be locked.
    #[error(transparent)]
    Store(#[from] StoreLockError),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The daemon was asked to stop, and everything that was accepted was finished.
    Finished,
    /// The daemon was asked to stop, and something was left when the time was over.
    Unfinished,
    /// The daemon was not asked to stop: it could not go on.
    Failed,
}

/// Serves until SIGTERM, SIGINT or `admin.shutdown`. `log` is the file behind standard error, if it is the daemon's.
///
/// # Errors
/// When it cannot start.
pub async fn run(config: Config, log: Option<LogFile>) -> Result<End, StartError> {
    let stop = CancellationToken::new();
    shutdown::listen(stop.clone(), log.clone()).context("signals cannot be listened to")?;
    serve(config, stop, log).await
}

/// Serves until `stop` is cancelled; true if everything that was accepted was finished. Tests use this to run the
/// daemon inside their process.
///
/// # Errors
/// When it cannot start.
pub async fn run_until(config: Config, stop: CancellationToken) -> Result<bool, StartError> {
    Ok(serve(config, stop, None).await? == End::Finished)
}

async fn serve(config: Config, stop: CancellationToken, log: Option<LogFile>) -> Result<End, StartError> {
    let started = Instant::now();
    // Lance creates its files with the modes of the process: owner only, for all of them.
    endpoint::restrict_umask();
    home::prepare(&config.home)?;

    raise_open_files();

    // The store's lock comes first: whoever holds it is the daemon of this home, whatever becomes of sockets and run
    // directories.
    home::projects::prepare(&config.knowledge_dir())?;
    let store_lock = StoreLock::acquire(&config.knowledge_dir())?;
    home::projects::close(&config.knowledge_dir())?;
    if config.access.socket_group.is_empty() {
        home::projects::advise(&config.home);
    }
    // Nothing is read, changed or unlinked before the lock is held.
    let socket_path = config.socket_path();
    let options = access::bind_options(&config.access)?;
    endpoint::check_socket_path(&socket_path)?;
    endpoint::prepare_run_dir(&config.run_dir(), &options)?;
    let lock = EndpointLock::acquire(&config.lock_path())?;
    if let Some(log) = &log {
        log.take();
    }
    let socket = match inherited_socket()? {
        // Its name, and the directory that it lies in, are the service manager's.
        Some(descriptor) => BoundSocket::from_fd(descriptor)?.with_policy(options.policy.clone()),
        None => {
            if let Some(directory) = socket_path.parent() {
                if directory != config.run_dir() {
                    endpoint::prepare_run_dir(directory, &options)?;
                }
                endpoint::check_reachable(directory, &options)?;
            }
            endpoint::bind(&socket_path, &lock, &options)?
        }
    };

    let model = Arc::new(load_model(&config)?);
    let identity = ModelIdentity {
        name: model.identity().to_owned(),
        dimensions: model.dimensions(),
    };
    let (store, access) =
        Store::open(store_config(&config, identity), store_lock.clone()).context("the store cannot be opened")?;
    let embedder_config = embedder_config(&config.embedder);
    embedder_config
        .validate(model.max_tokens())
        .map_err(|reason| anyhow::anyhow!("the embedder's settings do not fit the model: {reason}"))?;
    let embedder = EmbedderShared::new(embedder_config, Arc::clone(&model));
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
    let grace = Duration::from_millis(config.shutdown.grace_ms);
    let mut limits = config.limits.clone();
    limits.shutdown_grace_ms = server_grace(&config);
    let check_period = Duration::from_millis(limits.socket_check_ms);
    let idle_close = config.store.idle_close_s;
    let housekeeping = Housekeeping {
        store: Arc::clone(&store),
        stats: Arc::clone(&stats),
        close_after: (idle_close > 0).then(|| Duration::from_secs(idle_close.into())),
    };
    tokio::spawn(housekeeping.run(stop.clone()));
    let methods = rpc::methods(App {
        knowledge: Knowledge::new(store, routes, item_limits(&config)),
        config,
        model,
        shutdown: stop.clone(),
        server: Arc::clone(&stats),
        turns: rpc::Turns::default(),
        started,
        served: OnceLock::new(),
    });
    let service = Service::new(methods)
        .with_limits(limits)
        .with_stats(stats)
        .with_shutdown(stop.clone());
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
            tracing::error!(panicked = ended.is_err(), "the supervisor ended, so does the daemon");
            supervisor_died.cancel();
            return false;
        }
        true
    });
    let ownership = Ownership {
        store: store_lock,
        endpoint: lock.clone(),
        options,
        log,
    };
    let ownership = tokio::spawn(ownership.watch(check_period, stop.clone()));
    // One clock for the whole end, which starts when the end was asked for.
    let asked = stop.clone();
    let clock = tokio::spawn(async move {
        asked.cancelled().await;
        let deadline = Instant::now() + grace;
        notify_manager(NotifyState::Stopping);
        let patience = u32::try_from((grace + MANAGER_PATIENCE).as_micros()).unwrap_or(u32::MAX);
        notify_manager(NotifyState::ExtendTimeoutUsec(patience));
        deadline
    });

    // Returns once the listener is closed and every accepted request is answered.
    let report = Server::over(Arc::new(service)).serve(socket).await;
    if let Some(error) = &report.error {
        tracing::error!(%error, "the socket cannot be served");
        stop.cancel();
    }
    let deadline = clock.await.unwrap_or_else(|_| Instant::now());
    let actor_grace = deadline
        .saturating_duration_since(Instant::now())
        .max(LEAST_ACTOR_GRACE);
    let (reply, answer) = oneshot::channel();
    let drained = match supervisor.cast(SupervisorMessage::Shutdown(actor_grace, reply)) {
        Ok(()) => answer.await.unwrap_or(false),
        Err(_) => false,
    };
    let supervised = watchdog.await.unwrap_or(false);
    let owned = ownership.await.unwrap_or(false);
    drop(lock);
    tracing::info!(drained, ?report, "stopped");
    Ok(if !(supervised && owned && report.error.is_none()) {
        End::Failed
    } else if drained && report.is_clean() {
        End::Finished
    } else {
        End::Unfinished
    })
}

/// The server's part of the grace, in milliseconds: what is configured, but so much less than the whole that there is
/// time for what comes after.
fn server_grace(config: &Config) -> u64 {
    let whole = config.shutdown.grace_ms;
    let reserved = u64::try_from(RESERVED_GRACE.as_millis()).unwrap_or(u64::MAX);
    config.limits.shutdown_grace_ms.min(whole - reserved.min(whole / 2))
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

/// Notifies the service manager, where there is one.
fn notify_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Descriptors that the daemon asks for: 256 connections take two each, and a query opens a file of every fragment.
const OPEN_FILES: u64 = 16_384;

/// Raises the soft limit of open files as far as the hard one lets it. What it stays at is still enough to
/// begin with, so a refusal is only logged.
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

fn load_model(config: &Config) -> anyhow::Result<ModelCell> {
    let name = &config.embedder.model;
    let model = if name.is_empty() {
        ModelCell::bundled().context("the bundled model is damaged; build the executable again")
    } else {
        let directory = config.models_dir().join(name);
        ModelCell::from_directory(&directory)
            .with_context(|| format!("the model in {} cannot be used", directory.display()))
    }?;
    Ok(model.with_precision(match config.embedder.precision {
        Precision::Auto => PrecisionChoice::Auto,
        Precision::Int8 => PrecisionChoice::Int8,
        Precision::Exact => PrecisionChoice::Exact,
    }))
}

fn store_config(config: &Config, model: ModelIdentity) -> StoreConfig {
    StoreConfig {
        knowledge_dir: config.knowledge_dir(),
        durability: config.store.durability,
        index_cache_bytes: config.store.session_index_cache_bytes as usize,
        metadata_cache_bytes: config.store.session_metadata_cache_bytes as usize,
        resident_bytes: config.search.resident_bytes,
        text_cache_bytes: config.search.text_cache_bytes,
        min_free_bytes: config.store.min_free_bytes,
        model,
        retention: chrono::TimeDelta::days(i64::from(config.store.retention_days)),
    }
}

fn item_limits(config: &Config) -> Limits {
    Limits {
        max_text_bytes: config.items.max_text_bytes,
        max_metadata_bytes: config.items.max_metadata_bytes,
        max_batch: config.items.store_batch_max as usize,
        max_answer_bytes: config.limits.max_response_bytes,
        min_similarity: config.search.min_similarity as f32,
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
        unload_after: (!config.warm && config.idle_unload_s > 0)
            .then(|| Duration::from_secs(config.idle_unload_s.into())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_part_of_the_grace_leaves_time_for_the_rest() {
        let cases = [(10_000, 8_000, 8_000), (10_000, 10_000, 8_000), (10_000, 500, 500)];
        let short = [(3_000, 3_000, 1_500), (100, 100, 50), (600_000, 600_000, 598_000)];
        for (whole, configured, expected) in cases.into_iter().chain(short) {
            let mut config = Config::at("/home");
            config.shutdown.grace_ms = whole;
            config.limits.shutdown_grace_ms = configured;
            assert_eq!(server_grace(&config), expected, "{whole} {configured}");
        }
    }

    /// What `docs/configuration.md` says to service managers.
    #[test]
    fn the_units_wait_longer_than_the_grace_and_do_not_restart_what_was_asked_to_stop() {
        let grace = config::ShutdownConfig::default().grace_ms / 1_000 + MANAGER_PATIENCE.as_secs();
        let unit = include_str!("../packaging/systemd/ccod.service");
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        assert!(value("TimeoutStopSec=").parse::<u64>().unwrap() > grace);
        let codes: Vec<&str> = value("RestartPreventExitStatus=").split(' ').collect();
        assert!(codes.contains(&shutdown::UNFINISHED_EXIT.to_string().as_str()));
        let agent = include_str!("../packaging/launchd/org.cco.ccod.plist");
        let timeout = agent.split("<key>ExitTimeOut</key>").nth(1).unwrap();
        let timeout = timeout.split("<integer>").nth(1).unwrap().split('<').next().unwrap();
        assert!(timeout.parse::<u64>().unwrap() > grace);
    }
}
