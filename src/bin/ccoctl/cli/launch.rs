//! Starts the daemon: for `daemon start`, and for every command that finds no daemon.
//!
//! Nothing here decides which daemon may run: the daemon itself takes the lock, and of several that start at once, all
//! but one find it taken and end. The command that started one waits for the socket, whichever daemon answers there.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use ccod::config::{Config, Origin};
use ccod::log_file::{self, MAX_LOG_BYTES};
use ccod::program::exit::{CliError, CliResult, Exit};
use ccod_protocol::api::{self, HealthParams, HealthStatus, Method};
use ccod_protocol::client::{CallOptions, Client, ClientError};
use ccod_protocol::endpoint;
use ccod_protocol::error::ErrorKind;

use crate::cli::Context;
use crate::cli::connect::{self, NoConnection};
use crate::cli::engine::Engine;
use crate::cli::output;

/// How long a start may take if `--timeout` does not say.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(10);

/// First wait between two looks at the socket; it doubles up to [`MAX_POLL`].
pub(super) const MIN_POLL: Duration = Duration::from_millis(2);

/// Longest wait between two looks: people would notice a longer one, and a shorter one would only cost time.
pub(super) const MAX_POLL: Duration = Duration::from_millis(50);

/// Daemons that one start may spawn: the first may find the lock held by one that is just ending, or by another start
/// that probes it.
const MAX_SPAWNS: u32 = 3;

/// Lines of the log that a failed start shows.
const LOG_TAIL_LINES: usize = 20;

/// A daemon that answers.
#[derive(Debug)]
pub(crate) struct Launched {
    /// The connection to it.
    pub(crate) client: Client,
    /// Whether this process spawned it.
    pub(crate) spawned: bool,
}

/// Connects to the daemon, spawning one with `arguments` unless one answers already.
pub(crate) async fn launch(context: &Context, arguments: &[String]) -> CliResult<Launched> {
    let config = &context.loaded.config;
    let deadline = Instant::now() + context.timeout.unwrap_or(START_TIMEOUT);
    let mut child: Option<SpawnedDaemon> = None;
    let mut spawns = 0;
    let mut poll = MIN_POLL;
    loop {
        let mut reason = None;
        match look_at(&config.socket_path(), deadline).await {
            // One that is stopping takes no work: wait for its end, then start the next.
            Presence::Stopping => {}
            // It runs, so another one could not start.
            Presence::Silent(why) => reason = Some(why),
            Presence::Serving(client) => {
                return Ok(Launched {
                    client,
                    spawned: child.is_some(),
                });
            }
            Presence::Unusable(error) => return Err(error),
            // The connection was closed. The lock says whether the daemon is still there.
            Presence::Left if child.is_none() && a_lock_is_held(config) => {}
            Presence::Absent | Presence::Left if serves_elsewhere(config, deadline).await => {
                return Err(listens_elsewhere(config));
            }
            Presence::Absent | Presence::Left => match &mut child {
                None => {
                    child = Some(spawn(context, arguments)?);
                    spawns += 1;
                }
                Some(daemon) => {
                    if let Some(error) = daemon.failure(config, spawns)? {
                        return Err(error);
                    }
                    if daemon.lost_to_another {
                        child = None;
                    }
                }
            },
        }
        if Instant::now() >= deadline {
            if let Some(why) = reason {
                return Err(runs_silently(&config.socket_path(), &why));
            }
            // The daemon that this process spawned is gone, so another one holds the lock.
            if let Some(daemon) = &mut child
                && matches!(daemon.child.try_wait(), Ok(Some(_)))
                && a_lock_is_held(config)
            {
                return Err(holds_and_does_not_listen(config));
            }
            return Err(CliError::new(
                Exit::Unavailable,
                format!(
                    "the daemon did not answer on {} in time",
                    config.socket_path().display()
                ),
            )
            .fix(format!(
                "look into {}, or give more time with --timeout",
                config.log_path().display()
            )));
        }
        tokio::time::sleep(poll).await;
        poll = (poll * 2).min(MAX_POLL);
    }
}

/// What is behind a socket.
enum Presence {
    /// Nobody.
    Absent,
    /// A daemon that takes requests.
    Serving(Client),
    /// A daemon that is about to end.
    Stopping,
    /// A daemon that takes no requests now, with its error or the fact that it did not answer.
    Silent(String),
    /// A process that closed the connection without an answer.
    Left,
    /// Something that can never be used from here.
    Unusable(CliError),
}

/// Asks who is behind `socket`. Any answer proves that a daemon is there.
async fn look_at(socket: &Path, deadline: Instant) -> Presence {
    let client = match connect::connect(socket).await {
        Ok(client) => client,
        Err(NoConnection::Absent) => return Presence::Absent,
        Err(NoConnection::Failed(error)) => return Presence::Unusable(error),
    };
    let left = deadline.saturating_duration_since(Instant::now()).max(MAX_POLL);
    let options = CallOptions::default().timeout(left);
    match client.call::<api::Health>(&HealthParams::default(), options).await {
        Ok(health) if health.status == HealthStatus::Stopping => Presence::Stopping,
        Ok(_) => Presence::Serving(client),
        Err(ClientError::Closed) => Presence::Left,
        Err(ClientError::Rpc(error)) if error.kind() == ErrorKind::ShuttingDown => Presence::Stopping,
        Err(error) if is_for_now(&error) => Presence::Silent(error.to_string()),
        // It refuses this user, or is not a daemon of this version; waiting changes neither.
        Err(error) => Presence::Unusable(connect::client_error(&error)),
    }
}

/// Whether an error of a call says that a daemon is there, and cannot answer now.
fn is_for_now(error: &ClientError) -> bool {
    match error {
        ClientError::Rpc(error) => error.data.retryable,
        ClientError::Timeout { .. } => true,
        _ => false,
    }
}

/// The error for a daemon that runs and does not answer.
pub(super) fn runs_silently(socket: &Path, why: &str) -> CliError {
    CliError::new(
        Exit::Retry,
        format!("a daemon runs on {} and does not answer: {why}", socket.display()),
    )
    .fix("try again, or give more time with --timeout; SIGTERM ends the process")
}

/// The outcome of [`ask`].
pub(super) enum Asked<R> {
    Answered(R),
    /// Nobody is there.
    Absent,
    /// A daemon is there, and answers with nothing but this error.
    Silent(ClientError),
}

/// Calls `M` on the daemon behind `socket`. Where all its places are in use, also those for operators, it tries again
/// until `deadline`: operators' places are free again soon.
pub(super) async fn ask<M: Method>(
    socket: &Path,
    params: &M::Params,
    deadline: Instant,
) -> CliResult<Asked<M::Result>> {
    loop {
        let client = match connect::connect(socket).await {
            Ok(client) => client,
            Err(NoConnection::Absent) => return Ok(Asked::Absent),
            Err(NoConnection::Failed(error)) => return Err(error),
        };
        let left = deadline.saturating_duration_since(Instant::now()).max(MAX_POLL);
        match client.call::<M>(params, CallOptions::default().timeout(left)).await {
            Ok(result) => return Ok(Asked::Answered(result)),
            Err(error) => {
                let passes = match &error {
                    ClientError::Rpc(error) => error.kind() == ErrorKind::Busy,
                    error => matches!(error, ClientError::Closed),
                };
                if passes && Instant::now() < deadline {
                    tokio::time::sleep(MAX_POLL).await;
                } else if passes || is_for_now(&error) {
                    return Ok(Asked::Silent(error));
                } else {
                    return Err(connect::call_error(M::NAME, &error));
                }
            }
        }
    }
}

/// A daemon that this process spawned.
#[derive(Debug)]
struct SpawnedDaemon {
    child: Child,
    /// Where its own lines begin in the log.
    log_start: u64,
    /// It ended because another daemon holds the lock, or did.
    lost_to_another: bool,
}

impl SpawnedDaemon {
    /// Why the start failed, if it has. A daemon that found the lock taken has not failed: the other one will
    /// answer, or, if that one is gone by now, the next one.
    fn failure(&mut self, config: &Config, spawns: u32) -> CliResult<Option<CliError>> {
        let ended = self
            .child
            .try_wait()
            .map_err(|error| CliError::io("watch the daemon", &error))?;
        let Some(ended) = ended else {
            return Ok(None);
        };
        if let Some(error) = of_another_home(config) {
            return Ok(Some(error));
        }
        if a_lock_is_held(config) {
            return Ok(None);
        }
        let lost = ended.code() == Some(i32::from(Exit::Retry.code()));
        if lost && spawns < MAX_SPAWNS {
            self.lost_to_another = true;
            return Ok(None);
        }
        let exit = [Exit::Config, Exit::Permission]
            .into_iter()
            .find(|exit| ended.code() == Some(i32::from(exit.code())))
            .unwrap_or(Exit::Unavailable);
        let mut message = format!("the daemon ended at its start ({ended})");
        let tail = log_tail(&config.log_path(), self.log_start);
        if !tail.is_empty() {
            message.push_str("; the end of its log:\n");
            message.push_str(&tail);
        }
        Ok(Some(
            CliError::new(exit, message).fix("run `ccoctl daemon run --log debug` to watch it start"),
        ))
    }
}

fn spawn(context: &Context, arguments: &[String]) -> CliResult<SpawnedDaemon> {
    let config = &context.loaded.config;
    // A home that the daemon would refuse is not touched here either.
    ccod::home::check(&config.home).map_err(|error| CliError::from(&error))?;
    let options = ccod::access::bind_options(&config.access).map_err(|error| CliError::from(&error))?;
    endpoint::prepare_run_dir(&config.run_dir(), &options).map_err(|error| CliError::from(&error))?;
    let engine = Engine::find(&config.home)?;
    let log_path = config.log_path();
    if !a_lock_is_held(config) {
        // A log that cannot be set aside grows; the daemon starts all the same.
        log_file::set_aside_if_large(&log_path).unwrap_or_default();
    }
    let log =
        log_file::open(&log_path).map_err(|error| CliError::io(format_args!("open {}", log_path.display()), &error))?;
    let log_start = log.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let error_log = log
        .try_clone()
        .map_err(|error| CliError::io(format_args!("open {}", log_path.display()), &error))?;

    let mut command = engine.command();
    command.args(["--detached", "--home"]).arg(&config.home);
    // The daemon has another current directory, so a path that was relative to this one is passed on as a whole.
    let socket_origin = context.loaded.origins.get("socket");
    if let Some(socket) = &config.socket
        && matches!(socket_origin, Some(Origin::Flag { .. } | Origin::Environment { .. }))
    {
        command.arg("--socket").arg(socket);
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(error_log)
        // A daemon must not keep a directory from being unmounted or removed.
        .current_dir("/");
    // A service manager set these for this process, not for the daemon.
    for name in [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    ] {
        command.env_remove(name);
    }
    // A path of `--set` is relative to the directory here as well.
    if let Some(log) = &config.log.file {
        command.arg(format!("--set=log.file={}", log.display()));
    }
    let child = command.spawn().map_err(|error| engine.cannot_run(&error))?;
    Ok(SpawnedDaemon {
        child,
        log_start,
        lost_to_another: false,
    })
}

/// The last lines of the log that were written since `start`.
fn log_tail(path: &Path, start: u64) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut log| {
        // A log that was set aside meanwhile begins again.
        let start = if log.metadata()?.len() < start { 0 } else { start };
        log.seek(SeekFrom::Start(start))?;
        log.take(MAX_LOG_BYTES).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
    shown
        .iter()
        .map(|line| format!("  {}", output::printable(line)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether a daemon holds the endpoint's lock or the store's.
pub(super) fn a_lock_is_held(config: &Config) -> bool {
    lock_is_held(&config.lock_path()) || lock_is_held(&config.store_lock_path())
}

/// Whether a daemon holds the lock. The look takes the lock for a very short time, so it needs a reason.
pub(super) fn lock_is_held(path: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).open(path) else {
        return false;
    };
    matches!(
        Flock::lock(file, FlockArg::LockSharedNonblock),
        Err((_, Errno::EWOULDBLOCK))
    )
}

/// The error for a daemon that has the home and does not listen on its socket.
pub(super) fn holds_and_does_not_listen(config: &Config) -> CliError {
    if let Some(error) = of_another_home(config) {
        return error;
    }
    let lock = if lock_is_held(&config.lock_path()) {
        config.lock_path()
    } else {
        config.store_lock_path()
    };
    CliError::new(
        Exit::Unavailable,
        format!(
            "a daemon{} holds {} and does not listen on {}",
            process(Holder::of(&lock).pid),
            lock.display(),
            config.socket_path().display()
        ),
    )
    .fix("it may be starting or stopping: try again; or it was started with another --socket")
}

/// The error that names the holder of the store's lock, if that is the daemon of another home with the same knowledge
/// directory.
pub(super) fn of_another_home(config: &Config) -> Option<CliError> {
    let lock = config.store_lock_path();
    if lock_is_held(&config.lock_path()) || !lock_is_held(&lock) {
        return None;
    }
    let holder = Holder::of(&lock);
    let home = holder.knowledge_dir.as_deref().and_then(Path::parent)?;
    if home.canonicalize().ok() == config.home.canonicalize().ok() {
        return None;
    }
    let error = CliError::new(
        Exit::Unavailable,
        format!(
            "another daemon{} holds {}: that of {home:?}, whose knowledge directory is also that of {:?}",
            process(holder.pid),
            lock.display(),
            config.home
        ),
    );
    Some(error.fix(format!(
        "use that one with `ccoctl --home {home:?}`, or stop it with `ccoctl --home {home:?} daemon stop`; two homes \
         with a daemon each need a knowledge directory each"
    )))
}

pub(super) fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// Who holds a lock, as the holder wrote it into the lock file: its process, and in the store's lock file also the
/// knowledge directory by the holder's name for it.
#[derive(Debug, Default)]
pub(super) struct Holder {
    pid: Option<u32>,
    knowledge_dir: Option<PathBuf>,
}

impl Holder {
    fn of(lock: &Path) -> Self {
        const MOST: u64 = 8 << 10;
        let mut text = Vec::new();
        let read = File::open(lock).and_then(|file| file.take(MOST).read_to_end(&mut text));
        if read.is_err() {
            return Self::default();
        }
        let mut lines = text.split(|byte| *byte == b'\n');
        let pid = lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let knowledge_dir = lines.next().filter(|line| !line.is_empty());
        Self {
            pid: pid.and_then(|pid| pid.trim().parse().ok()),
            knowledge_dir: knowledge_dir.map(|line| PathBuf::from(OsStr::from_bytes(line))),
        }
    }
}

/// Whether the daemon of the home listens on the default socket, and not on the configured one.
pub(super) async fn serves_elsewhere(config: &Config, deadline: Instant) -> bool {
    let usual = config.default_socket_path();
    usual != config.socket_path()
        && a_lock_is_held(config)
        && matches!(
            look_at(&usual, deadline).await,
            Presence::Serving(_) | Presence::Silent(_)
        )
}

pub(super) fn listens_elsewhere(config: &Config) -> CliError {
    let usual = config.default_socket_path();
    CliError::new(
        Exit::Unavailable,
        format!(
            "the daemon of {} listens on {}, not on {}; a home has one daemon",
            config.home.display(),
            usual.display(),
            config.socket_path().display()
        ),
    )
    .fix(format!(
        "leave --socket, CCO_SOCKET and `socket` of the configuration out; or stop it first, with `ccoctl --socket {} daemon stop`; or use another \
         home",
        usual.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_seen_while_it_is_held() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("ccod.lock");
        assert!(!lock_is_held(&path));
        let file = File::create(&path).expect("created");
        assert!(!lock_is_held(&path));
        let lock = Flock::lock(file, FlockArg::LockExclusive).expect("locked");
        assert!(lock_is_held(&path));
        drop(lock);
        assert!(!lock_is_held(&path));
    }

    #[test]
    fn a_failed_start_shows_its_own_end_of_the_log() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("ccod.log");
        std::fs::write(&path, "old line\n").expect("written");
        let mut text = String::from("old line\n");
        for number in 0..30 {
            text.push_str(&format!("line {number}\n"));
        }
        std::fs::write(&path, &text).expect("written");
        let tail = log_tail(&path, 9);
        assert_eq!(tail.lines().count(), LOG_TAIL_LINES);
        assert!(tail.ends_with("  line 29"), "{tail}");
        assert!(!tail.contains("old line"), "{tail}");
    }
}
