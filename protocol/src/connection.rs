//! One connection: what it reads, what it runs, what it writes.
//!
//! ```text
//! socket -> framer -> envelope -> queue -> slot (32) -> a task per call -> outbox (64 lines, 32 MiB) -> writer -> socket
//! ```
//!
//! - A call keeps its slot until its line is written. With no slot free, what is read waits in a short queue, so that
//!   an `rpc.cancel` behind it is seen; when the queue is full, input is not read: the kernel makes the client wait.
//!   Requests of one connection run side by side; responses come as they finish.
//! - A batch has one line, so its calls give their slots back when they finish. The batch itself has a place, of which
//!   there are a few, until its line is written.
//! - End of input ends reading, not the calls: they finish, their lines are written, then the socket is
//!   closed. When a client is gone altogether (the kernel reports it, even while input is not read), its calls end,
//!   and so do those of a client that does not read for the write timeout.
//! - When the daemon stops, what was started is answered; what waits and what is read after that is refused with
//!   `shutting_down`.
//! - A connection beyond the limit has one of a few spare places, which are for what an operator needs: anything else
//!   is answered `busy`, and then it is closed (see [`Place`]).

mod batch;
mod calls;
mod cancel;
mod outcome;
mod output;
mod place;
mod queue;
mod reading;

use bytes::Bytes;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant as TokioInstant;
use tokio_util::sync::CancellationToken;

use crate::budget::Share;
use crate::caller::Caller;
use crate::codec::Framer;
use crate::context::{ConnectionId, Outbox, Subscriptions};
use crate::error::WireError;
use crate::peer::PeerIdentity;
use crate::places::{Place, SparePlaces};
use crate::service::Service;

use calls::send;
use outcome::{Outcome, head};
use output::{Hangup, Patience, linger, write};
use queue::{Queue, Running};

pub(crate) use output::refuse;
pub(crate) use queue::BatchPlace;

/// How much is read at once. It is small, because every idle connection holds such a buffer; a large request takes
/// many reads, each of which is far cheaper than handling the request.
const READ_BYTES: usize = 16 << 10;
/// Batches of one connection whose answers are not written yet. A batch holds many requests, so a few batches keep a
/// connection busy.
const BATCHES: usize = 4;
/// Connections that are given time to read why they are cut off; further ones are closed as soon as they have been
/// told.
pub(crate) const LINGERING: usize = 64;

/// What all connections of a socket share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) service: Arc<Service>,
    /// Connections that may still be opened.
    pub(crate) places: Arc<Semaphore>,
    /// Connections beyond that may still be served, to an operator: see [`Place::Spare`].
    pub(crate) spare_places: Arc<SparePlaces>,
    /// Connections that may still be given time to read why they are cut off.
    lingering: Semaphore,
}

impl Shared {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(service.limits.max_connections)),
            spare_places: SparePlaces::new(service.limits.operator_connections),
            lingering: Semaphore::new(LINGERING),
            service,
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve(shared: Arc<Shared>, stream: UnixStream, peer: PeerIdentity, id: ConnectionId, place: Place) {
    let gone = CancellationToken::new();
    let Service { limits, stats, .. } = &*shared.service;
    let share = Share::new(limits, Arc::clone(stats));
    let (outbox, lines) = Outbox::new(limits, Arc::clone(stats), Arc::clone(&share));
    let hangup = stream.as_fd().try_clone_to_owned();
    let (reader, writer) = stream.into_split();
    let subscriptions = Subscriptions::new(gone.clone(), limits.max_subscriptions_per_connection);
    let writer = tokio::spawn(write(
        writer,
        lines,
        Patience {
            usual: limits.write_timeout(),
            subscriptions: subscriptions.clone(),
        },
        Arc::clone(stats),
        gone.clone(),
    ));
    let server = Arc::clone(&shared);
    let mut connection = Connection {
        framer: Framer::new(limits.max_message_bytes, limits.max_depth),
        slots: Arc::new(Semaphore::new(limits.max_in_flight_per_connection)),
        batches: Arc::new(Semaphore::new(BATCHES)),
        waiting: Queue::default(),
        calls: JoinSet::new(),
        running: Arc::default(),
        caller: Caller {
            who: peer,
            connection: id,
            request_id: None,
            cancelled: gone.clone(),
            notifier: outbox.notifier(),
            subscriptions,
            share,
        },
        hangup: Hangup {
            descriptor: hangup.ok(),
            watched: None,
        },
        buffered: 0,
        outbox,
        gone: gone.clone(),
        closing: CancellationToken::new(),
        quiet_since: TokioInstant::now(),
        asked: false,
        place,
        shared,
    };
    let ended = connection.run(&reader).await;
    if ended.is_ok() {
        connection.finish().await;
    }
    let stats = &server.service.stats;
    stats
        .bytes_buffered
        .fetch_sub(connection.buffered as u64, Ordering::Relaxed);
    if ended.is_err() {
        gone.cancel();
    }
    // Dropping the rest ends the calls that are left and closes the outbox, which lets the writer finish.
    drop(connection);
    if writer.await.is_err() {
        tracing::error!(connection = %id, "the writer panicked");
    }
    gone.cancel();
    if matches!(ended, Ok(Ended::ByUs)) {
        linger(&server, reader.as_ref()).await;
    }
}

/// The connection is gone, or given up: nothing more can be sent on it.
struct Gone;

/// Whether to read on.
#[derive(PartialEq, Eq)]
enum Reading {
    On,
    Over,
}

/// Why reading ended.
#[derive(Clone, Copy)]
enum Ended {
    /// The client has sent everything.
    ByClient,
    /// The daemon: reading on is pointless, or there is no time for it.
    ByUs,
}

struct Connection {
    shared: Arc<Shared>,
    /// The client, as each of its calls knows it.
    caller: Caller,
    place: Place,
    framer: Framer,
    /// Bytes of the framer that are counted in the server's total.
    buffered: usize,
    outbox: Outbox,
    /// Calls that were read and have no slot yet.
    waiting: Queue,
    /// Places for calls that run or whose line waits to be written.
    slots: Arc<Semaphore>,
    /// Places for batches whose line is not written yet.
    batches: Arc<Semaphore>,
    calls: JoinSet<()>,
    running: Running,
    /// Cancelled when the connection has failed: every call's token is its child.
    gone: CancellationToken,
    /// Cancelled when nothing more shall be read: an answer was one after which the connection is closed.
    closing: CancellationToken,
    /// Since when it has no call.
    quiet_since: TokioInstant,
    /// Whether it has sent anything whole.
    asked: bool,
    hangup: Hangup,
}

impl Connection {
    /// Answers with an error of the connection's own.
    async fn say(&self, id: Option<&str>, error: WireError) -> Result<(), Gone> {
        self.queue(head(id), self.shared.failure(error)).await
    }

    async fn queue(&self, head: Bytes, outcome: Outcome) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Gone),
            sent = send(&self.outbox, head, outcome, None) => if sent { Ok(()) } else { Err(Gone) },
        }
    }

    /// Waits for the calls in flight, unless the client leaves altogether.
    async fn finish(&mut self) {
        let gone = self.gone.clone();
        while !self.calls.is_empty() {
            tokio::select! {
                biased;
                _ = self.calls.join_next() => {}
                () = gone.cancelled() => return,
                () = self.hangup.wait() => {
                    tracing::debug!(connection = %self.caller.connection, calls = self.calls.len(), "the client left its calls behind");
                    gone.cancel();
                    return;
                }
            }
        }
    }
}
