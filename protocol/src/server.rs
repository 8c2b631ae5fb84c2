//! Accepts connections until it is stopped, and then finishes everything that was accepted.

use interprocess::local_socket::traits::tokio::Listener as _;
use interprocess::os::unix::uds_local_socket::tokio::{Listener, Stream};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::anteroom::{Admission, Anteroom};
use crate::connection::{self, LINGERING, Shared};
use crate::context::ConnectionId;
use crate::descriptors::{Reserve, lacks_descriptors};
use crate::endpoint::{BoundSocket, EndpointName};
use crate::error::WireError;
use crate::limits::{ServerStats, add};
use crate::peer::{PeerIdentity, PeerPolicy};
use crate::places::Place;
use crate::service::Service;

/// The first wait after a failed accept; it doubles up to [`ACCEPT_BACKOFF_MAX`]. Such failures (no more
/// descriptors) pass by themselves, and trying again at once would only burn the processor.
const ACCEPT_BACKOFF_MIN: Duration = Duration::from_millis(10);
/// The longest wait after a failed accept.
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Time after the grace for what is left: each open call is told that the daemon stops, and the answers go out.
pub const FAREWELL: Duration = Duration::from_secs(1);
/// Connections that are about to end, beyond all that may last: with more, nobody is let in until some have ended.
const MOST_ENDING: usize = 64;

/// How serving ended.
#[derive(Debug, Default)]
pub struct ServeReport {
    /// Connections that were accepted.
    pub connections: u64,
    /// Requests that wanted an answer.
    pub requests: u64,
    /// Connections, and notifications that ran on without one, that had not finished within the grace period. Their
    /// calls were answered `shutting_down`.
    pub cut_off: usize,
    /// Why it could not begin; none if it did.
    pub error: Option<io::Error>,
}

impl ServeReport {
    /// Whether everything that was accepted was finished.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.cut_off == 0 && self.error.is_none()
    }
}

/// A server before it serves: a service behind a Unix socket.
#[derive(Debug)]
pub struct Server {
    service: Arc<Service>,
    policy: Option<PeerPolicy>,
}

impl Server {
    /// A server of this service, which may have other transports besides. When it stops, it ends what is left of their
    /// calls after the grace, as of its own.
    #[must_use]
    pub fn over(service: Arc<Service>) -> Self {
        Self { service, policy: None }
    }

    /// Serves other users than the socket's own policy says.
    #[must_use]
    pub fn policy(mut self, policy: PeerPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Serves until the service's `shutdown` is cancelled. Then it stops accepting and removes the socket's name,
    /// connections stop reading, accepted calls finish, their answers are flushed. What is not done after
    /// [`Limits::shutdown_grace_ms`](crate::Limits::shutdown_grace_ms) is cancelled and answered `shutting_down`,
    /// within [`FAREWELL`].
    pub async fn serve(self, socket: BoundSocket) -> ServeReport {
        let Self { service, policy } = self;
        let (listener, name) = socket.into_parts();
        let listener = match Listener::try_from(listener) {
            Ok(listener) => listener,
            Err(error) => {
                return ServeReport {
                    error: Some(error),
                    ..ServeReport::default()
                };
            }
        };
        let shutdown = service.shutdown.clone();
        let mut door = Door {
            policy: policy.unwrap_or_else(|| name.policy.clone()),
            reserve: Reserve::new(service.limits.operator_connections),
            anteroom: Anteroom::default(),
            connections: JoinSet::new(),
            shared: Arc::new(Shared::new(service)),
        };
        let name = door.accept(listener, name, &shutdown).await;
        // New clients must not find a name behind which nobody listens.
        drop(name);
        door.finish().await
    }
}

/// Lets clients in.
struct Door {
    shared: Arc<Shared>,
    policy: PeerPolicy,
    /// Descriptors for connections beyond the limit when there are no others.
    reserve: Reserve,
    /// Where the connections wait that are beyond the limit and have not sent a request yet.
    anteroom: Anteroom,
    /// Everything that holds a descriptor: those that are served, that wait in the anteroom, and that are ending.
    connections: JoinSet<()>,
}

impl Door {
    async fn accept(
        &mut self,
        mut listener: Listener,
        mut name: EndpointName,
        shutdown: &CancellationToken,
    ) -> EndpointName {
        let mut look = tokio::time::interval(Duration::from_millis(self.shared.service.limits.socket_check_ms));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = ACCEPT_BACKOFF_MIN;
        let mut lost = false;
        let limits = &self.shared.service.limits;
        let most = (limits.max_connections)
            .saturating_add(limits.operator_connections)
            .saturating_add(Anteroom::MOST + LINGERING + MOST_ENDING);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return name,
                _ = self.connections.join_next(), if !self.connections.is_empty() => {}
                _ = look.tick() => {
                    self.reserve.fill();
                    if let Some(rate) = &self.shared.service.rate {
                        rate.forget_idle();
                    }
                    if let Some((again, renamed)) = bind_again(&name, &mut lost) {
                        // Those who connected before the name was gone still wait on the old listener.
                        while let Some(Ok(stream)) = futures::FutureExt::now_or_never(listener.accept()) {
                            self.admit(stream, false);
                        }
                        self.shared.service.stats.rebinds.fetch_add(1, Ordering::Relaxed);
                        (listener, name) = (again, renamed);
                    }
                }
                accepted = listener.accept(), if self.connections.len() < most => match accepted {
                    Ok(stream) => {
                        backoff = ACCEPT_BACKOFF_MIN;
                        self.admit(stream, false);
                    }
                    Err(error) if lacks_descriptors(&error) && self.reserve.release() => {
                        tracing::warn!(%error, "no file descriptors are left; a connection is accepted with a reserved one");
                        self.shared.service.stats.lacks_descriptors();
                        // Somebody else may have taken what was released.
                        if let Some(Ok(stream)) = futures::FutureExt::now_or_never(listener.accept()) {
                            self.admit(stream, true);
                        }
                    }
                    Err(error) => {
                        if lacks_descriptors(&error) {
                            self.shared.service.stats.lacks_descriptors();
                            // A connection that sends nothing makes room for one that may send a request.
                            self.anteroom.send_one_away();
                        }
                        tracing::warn!(%error, wait_ms = backoff.as_millis(), "a connection could not be accepted");
                        tokio::select! {
                            () = shutdown.cancelled() => return name,
                            () = tokio::time::sleep(backoff) => {}
                        }
                        backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
                    }
                },
            }
        }
    }

    /// Lets a client in; `scarce` if only a reserved file descriptor was left for it.
    fn admit(&mut self, stream: Stream, scarce: bool) {
        let stats = Arc::clone(&self.shared.service.stats);
        add(&stats.connections_total, 1);
        let id = self.shared.service.next_connection();
        let peer = match PeerIdentity::of(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a client was refused: the kernel does not say who it is");
                return self.refuse(stream.into(), WireError::forbidden(None));
            }
        };
        if let Err(refusal) = self.policy.check(&peer) {
            tracing::warn!(
                uid = peer.uid,
                pid = peer.pid,
                "a client was refused: its user is not allowed"
            );
            return self.refuse(stream.into(), refusal);
        }
        let shared = Arc::clone(&self.shared);
        let stream = UnixStream::from(stream);
        if !scarce && let Ok(permit) = Arc::clone(&shared.places).try_acquire_owned() {
            self.connections
                .spawn(async move { attend(shared, stream, peer, id, Place::Full(permit)).await });
            return;
        }
        let reason = if scarce {
            "the daemon has no file descriptors left".to_owned()
        } else {
            format!("{} connections are open already", shared.service.limits.max_connections)
        };
        let waiting = self.anteroom.enter();
        self.connections.spawn(async move {
            match waiting.admit(&shared, &stream, &reason, scarce).await {
                Admission::To(place) => attend(shared, stream, peer, id, place).await,
                Admission::Refused { error, lingers } => {
                    tracing::warn!(uid = peer.uid, pid = peer.pid, reason, "a client was refused");
                    count_refusal(&shared.service.stats, &error);
                    connection::refuse(&shared, stream, error, lingers).await;
                }
            }
        });
    }

    fn refuse(&mut self, stream: UnixStream, error: WireError) {
        let shared = Arc::clone(&self.shared);
        count_refusal(&shared.service.stats, &error);
        self.connections
            .spawn(async move { connection::refuse(&shared, stream, error, true).await });
    }

    async fn finish(mut self) -> ServeReport {
        let grace = Instant::now() + Duration::from_millis(self.shared.service.limits.shutdown_grace_ms);
        self.shared.service.detached.close();
        let cut_off = self.ended_by(grace).await;
        if cut_off > 0 {
            tracing::warn!(
                cut_off,
                "the time for stopping is over; what still runs is cancelled and answered so"
            );
            self.shared.service.over.cancel();
            let silent = self.ended_by(Instant::now() + FAREWELL).await;
            if silent > 0 {
                tracing::warn!(
                    silent,
                    "connections were closed before their clients had read everything"
                );
            }
        }
        self.connections.shutdown().await;
        let seen = self.shared.service.stats.snapshot();
        ServeReport {
            connections: seen.connections_total,
            requests: seen.requests,
            cut_off,
            error: None,
        }
    }

    /// Waits for connections and notifications until `deadline`. Returns how many are left.
    async fn ended_by(&mut self, deadline: Instant) -> usize {
        while !self.connections.is_empty() {
            if tokio::time::timeout_at(deadline, self.connections.join_next())
                .await
                .is_err()
            {
                break;
            }
        }
        let waited = tokio::time::timeout_at(deadline, self.shared.service.detached.wait()).await;
        self.connections.len()
            + if waited.is_err() {
                self.shared.service.detached.len()
            } else {
                0
            }
    }
}

fn count_refusal(stats: &ServerStats, error: &WireError) {
    add(&stats.connections_refused, 1);
    stats.errors.add(error.code);
}

/// Serves a connection that was let in.
async fn attend(shared: Arc<Shared>, stream: UnixStream, peer: PeerIdentity, id: ConnectionId, place: Place) {
    shared.service.stats.connections_open.fetch_add(1, Ordering::Relaxed);
    let open = OpenConnection(Arc::clone(&shared.service.stats));
    connection::serve(shared, stream, peer, id, place).await;
    drop(open);
}

/// Counts a connection as open.
struct OpenConnection(Arc<ServerStats>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Binds the socket again if its name is gone. `lost` remembers that it was said.
fn bind_again(name: &EndpointName, lost: &mut bool) -> Option<(Listener, EndpointName)> {
    if name.is_ours() {
        *lost = false;
        return None;
    }
    let path = name.path()?.display();
    let bound = name.rebind().map_err(|error| error.to_string()).and_then(|socket| {
        let (listener, renamed) = socket.into_parts();
        let listener = Listener::try_from(listener).map_err(|error| error.to_string())?;
        Ok((listener, renamed))
    });
    match bound {
        Ok(bound) => {
            tracing::warn!(%path, "the socket file was gone and has been bound again");
            *lost = false;
            Some(bound)
        }
        Err(error) => {
            if !*lost {
                tracing::error!(%path, error, "the socket file is gone and cannot be bound again; trying on");
            }
            *lost = true;
            None
        }
    }
}
