//! What a method knows about the call it serves: its [`CallContext`].

use bytes::Bytes;
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::RPC_PROGRESS;
use crate::budget::{Held, Share};
use crate::connection::BatchPlace;
use crate::error::WireError;
use crate::limits::{Limits, ServerStats};
use crate::peer::PeerIdentity;

/// The number of a connection, from 1 on since the daemon's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One call: who made it, how long it may take, and how to reach the caller meanwhile.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Who made it.
    pub peer: PeerIdentity,
    /// The connection that it came on; fairness counts by it.
    pub connection: ConnectionId,
    /// The request's id as raw JSON; none for a notification.
    pub request_id: Option<Arc<str>>,
    /// When it was read.
    pub received: Instant,
    /// When it must be answered. A handler passes this on and starts nothing after it.
    pub deadline: Instant,
    /// Cancelled when `rpc.cancel` names the call, its deadline has passed or its connection is gone.
    pub cancelled: CancellationToken,
    /// The caller's own name for the call; it stands in the call's error and in the log.
    pub trace_id: Option<Arc<str>>,
    /// Sends notifications to the caller.
    pub notifier: Notifier,
    /// The connection's change feeds.
    pub subscriptions: Subscriptions,
}

impl CallContext {
    /// The time that is left; zero if there is none.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether the deadline has passed or nobody wants the answer any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.cancelled.is_cancelled() || self.remaining().is_zero()
    }

    /// Tells the caller how far a long call is (`rpc.progress`). Says nothing if the call has no id or the
    /// caller's queue is full: progress is not worth waiting for.
    pub fn progress(&self, done: u64, total: Option<u64>, message: &str) {
        #[derive(Serialize)]
        struct Progress<'a> {
            request_id: &'a serde_json::value::RawValue,
            done: u64,
            total: Option<u64>,
            message: &'a str,
        }
        let Some(id) = &self.request_id else { return };
        // The id was parsed when the request came, so this cannot fail.
        let Ok(request_id) = serde_json::from_str(id) else {
            return;
        };
        if let Err(reason) = self.notifier.notify(
            RPC_PROGRESS,
            &Progress {
                request_id,
                done,
                total,
                message,
            },
        ) {
            tracing::debug!(connection = %self.connection, %reason, "progress was not sent");
        }
    }

    /// A context without a connection, for tests of handlers: notifications are refused as closed.
    #[must_use]
    pub fn detached(timeout: Duration) -> Self {
        let now = Instant::now();
        let cancelled = CancellationToken::new();
        let limits = Limits::default();
        let share = Share::new(&limits, Arc::default());
        let (outbox, _) = Outbox::new(&limits, Arc::default(), share);
        Self {
            peer: PeerIdentity {
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
                pid: i32::try_from(std::process::id()).ok(),
            },
            connection: ConnectionId(0),
            request_id: None,
            received: now,
            deadline: now + timeout,
            trace_id: None,
            notifier: outbox.notifier(),
            subscriptions: Subscriptions::new(cancelled.clone(), Limits::default().max_subscriptions_per_connection),
            cancelled,
        }
    }
}

/// Why a notification was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// The caller reads too slowly; its queue has no place.
    #[error("the connection's queue is full")]
    Full,
    /// The caller is gone.
    #[error("the connection is closed")]
    Closed,
    /// The parameters cannot be written as JSON, or are over the response limit.
    #[error("the notification cannot be written")]
    Unwritable,
}

/// Sends notifications on one connection, without ever waiting.
#[derive(Clone)]
pub struct Notifier {
    // Weak: a subscription task that outlives its connection must not keep its writer alive.
    lines: mpsc::WeakSender<Line>,
    bytes: Arc<Semaphore>,
    share: Arc<Share>,
    max_line_bytes: usize,
    stats: Arc<ServerStats>,
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").finish_non_exhaustive()
    }
}

impl Notifier {
    /// Puts a notification into the connection's queue.
    ///
    /// # Errors
    /// [`NotifyError::Full`] if there is no place, [`NotifyError::Closed`] if there is no reader.
    pub fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), NotifyError> {
        #[derive(Serialize)]
        struct Notification<'a, P: ?Sized> {
            jsonrpc: &'static str,
            method: &'a str,
            params: &'a P,
        }
        let Some(lines) = self.lines.upgrade() else {
            return Err(NotifyError::Closed);
        };
        let text = serde_json::to_vec(&Notification {
            jsonrpc: "2.0",
            method,
            params,
        })
        .map_err(|_| NotifyError::Unwritable)?;
        if text.len() > self.max_line_bytes {
            return Err(NotifyError::Unwritable);
        }
        let refused = |reason| {
            self.stats.notifications_refused.fetch_add(1, Ordering::Relaxed);
            reason
        };
        let place = lines.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => refused(NotifyError::Full),
            mpsc::error::TrySendError::Closed(()) => NotifyError::Closed,
        })?;
        let weight = weight(text.len(), self.max_line_bytes);
        let held = Arc::clone(&self.bytes)
            .try_acquire_many_owned(weight)
            .map_err(|_| refused(NotifyError::Full))?;
        let counted = self
            .share
            .try_hold(text.len())
            .ok_or_else(|| refused(NotifyError::Full))?;
        place.send(Line {
            parts: vec![single_line(text)],
            guards: vec![Guard::Space(held), Guard::Bytes(counted)],
        });
        self.stats.notifications_sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lines.upgrade().is_none_or(|lines| lines.is_closed())
    }
}

/// One line on its way out, in parts so that a large result need not be copied. The writer adds the newline.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) parts: Vec<Bytes>,
    /// What the line holds until it is written or dropped, so that a client that does not read cannot start more.
    pub(crate) guards: Vec<Guard>,
}

/// What a line holds.
#[derive(Debug)]
#[allow(dead_code, reason = "held for their Drop")]
pub(crate) enum Guard {
    /// Its share of the bytes that may wait in the connection's queue.
    Space(OwnedSemaphorePermit),
    /// Its share of the memory for answers.
    Bytes(Held),
    /// The call's place among those in flight.
    Slot(OwnedSemaphorePermit),
    /// The place of the batch that it answers.
    Batch(BatchPlace),
}

impl Line {
    pub(crate) fn new(parts: Vec<Bytes>) -> Self {
        Self {
            parts,
            guards: Vec::new(),
        }
    }

    pub(crate) fn length(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// JSON without newlines. In valid JSON they can only stand between tokens, so a space means the same.
pub(crate) fn single_line(mut json: Vec<u8>) -> Bytes {
    if json.contains(&b'\n') || json.contains(&b'\r') {
        for byte in &mut json {
            if matches!(*byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
    Bytes::from(json)
}

/// A line's share of the bytes that may wait. One over the whole allowance takes all of it, rather than
/// waiting for more than there is.
fn weight(length: usize, max: usize) -> u32 {
    u32::try_from(length.clamp(1, max)).unwrap_or(u32::MAX)
}

/// The queue of a connection's writer: bounded in lines and in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    lines: mpsc::Sender<Line>,
    bytes: Arc<Semaphore>,
    share: Arc<Share>,
    max_line_bytes: usize,
    stats: Arc<ServerStats>,
}

impl Outbox {
    pub(crate) fn new(limits: &Limits, stats: Arc<ServerStats>, share: Arc<Share>) -> (Self, mpsc::Receiver<Line>) {
        let (lines, receiver) = mpsc::channel(limits.reply_queue_lines);
        let max_line_bytes = limits.max_response_bytes;
        (
            Self {
                lines,
                bytes: Arc::new(Semaphore::new(max_line_bytes)),
                share,
                max_line_bytes,
                stats,
            },
            receiver,
        )
    }

    pub(crate) fn notifier(&self) -> Notifier {
        Notifier {
            lines: self.lines.downgrade(),
            bytes: Arc::clone(&self.bytes),
            share: Arc::clone(&self.share),
            max_line_bytes: self.max_line_bytes,
            stats: Arc::clone(&self.stats),
        }
    }

    /// Counts an answer that was queued.
    pub(crate) fn count_response(&self) {
        self.stats.responses.fetch_add(1, Ordering::Relaxed);
    }

    /// Queues a line once there is space. False if the writer is gone.
    pub(crate) async fn send(&self, mut line: Line) -> bool {
        let weight = weight(line.length(), self.max_line_bytes);
        let Ok(held) = Arc::clone(&self.bytes).acquire_many_owned(weight).await else {
            return false;
        };
        line.guards.push(Guard::Space(held));
        self.lines.send(line).await.is_ok()
    }
}

/// The change feeds of one connection. They end with it.
#[derive(Clone, Debug)]
pub struct Subscriptions {
    open: Arc<Mutex<HashMap<String, CancellationToken>>>,
    next: Arc<AtomicU64>,
    /// The connection's token; none if it cannot be notified.
    connection: Option<CancellationToken>,
    max: usize,
}

impl Subscriptions {
    pub(crate) fn new(connection: CancellationToken, max: usize) -> Self {
        Self {
            open: Arc::default(),
            next: Arc::default(),
            connection: Some(connection),
            max,
        }
    }

    /// The feeds of a caller that cannot be notified: none can be opened.
    pub(crate) fn refused() -> Self {
        Self {
            open: Arc::default(),
            next: Arc::default(),
            connection: None,
            max: 0,
        }
    }

    /// Opens a subscription: its id, and the token that is cancelled when it or its connection ends.
    ///
    /// # Errors
    /// `busy` if the connection has as many as it may, -32600 if nothing can be sent on it.
    pub fn open(&self) -> Result<(String, CancellationToken), WireError> {
        let Some(connection) = &self.connection else {
            return Err(WireError::invalid_request(
                "a change feed needs a connection that it can be sent on; subscribe over the daemon's socket",
            ));
        };
        let mut open = self.open.lock();
        if open.len() >= self.max {
            return Err(WireError::busy(
                format!("this connection has {} subscriptions already", self.max),
                1_000,
            ));
        }
        let id = format!("sub-{}", self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let token = connection.child_token();
        open.insert(id.clone(), token.clone());
        Ok((id, token))
    }

    /// Ends a subscription. False if there is none of this id.
    #[must_use]
    pub fn close(&self, id: &str) -> bool {
        let token = self.open.lock().remove(id);
        token.inspect(CancellationToken::cancel).is_some()
    }

    /// How many are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_are_refused_when_full_and_when_closed() {
        let limits = Limits {
            reply_queue_lines: 2,
            ..Limits::default()
        };
        let stats = Arc::new(ServerStats::default());
        let (outbox, receiver) = Outbox::new(&limits, Arc::clone(&stats), Share::new(&limits, Arc::clone(&stats)));
        let notifier = outbox.notifier();
        notifier.notify("a", &1).unwrap();
        notifier.notify("a", &2).unwrap();
        assert_eq!(notifier.notify("a", &3), Err(NotifyError::Full));
        drop(receiver);
        assert_eq!(notifier.notify("a", &3), Err(NotifyError::Closed));
        assert!(notifier.is_closed());
        drop(outbox);
        assert_eq!(notifier.notify("a", &3), Err(NotifyError::Closed));
        assert_eq!(stats.snapshot().notifications_sent, 2);
        assert_eq!(stats.snapshot().notifications_refused, 1);
    }

    #[test]
    fn notifications_are_bounded_in_bytes() {
        let limits = Limits {
            max_response_bytes: 2048,
            ..Limits::default()
        };
        let (outbox, mut receiver) = Outbox::new(&limits, Arc::default(), Share::new(&limits, Arc::default()));
        let notifier = outbox.notifier();
        notifier.notify("a", &"x".repeat(1200)).unwrap();
        assert_eq!(notifier.notify("a", &"x".repeat(1200)), Err(NotifyError::Full));
        assert_eq!(notifier.notify("a", &"x".repeat(4000)), Err(NotifyError::Unwritable));
        let line = receiver.try_recv().unwrap();
        assert_eq!(line.parts.len(), 1);
        drop(line);
        notifier.notify("a", &"x".repeat(1200)).unwrap();
    }

    #[test]
    fn a_result_with_newlines_stays_one_line() {
        assert_eq!(single_line(b"{\n\"a\":\r\n\"b\\n\"}".to_vec()), "{ \"a\":  \"b\\n\"}");
        assert_eq!(single_line(b"{}".to_vec()), "{}");
    }

    #[test]
    fn subscriptions_end_with_their_connection() {
        let connection = CancellationToken::new();
        let subscriptions = Subscriptions::new(connection.clone(), 2);
        let (first, first_token) = subscriptions.open().unwrap();
        let (second, second_token) = subscriptions.open().unwrap();
        assert_ne!(first, second);
        assert_eq!(subscriptions.open().unwrap_err().code, -32009);
        assert!(subscriptions.close(&first) && !subscriptions.close(&first));
        assert!(first_token.is_cancelled() && !second_token.is_cancelled());
        connection.cancel();
        assert!(second_token.is_cancelled());
    }

    #[test]
    fn a_detached_context_has_time_and_no_caller() {
        let context = CallContext::detached(Duration::from_secs(60));
        assert!(!context.is_over());
        context.progress(1, None, "x");
        assert_eq!(context.notifier.notify("a", &()), Err(NotifyError::Closed));
    }
}
