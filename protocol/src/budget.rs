//! The memory of answers that wait to be written.
//!
//! A client that asks and does not read leaves its answers with the daemon. The memory for the answers of a connection
//! is bounded, and so is the memory for those of all connections together. Beyond a bound a large answer is replaced
//! by `busy`: a client that reads frees memory, and one that does not is given up by the write timeout. Small answers
//! always pass, so that a few large ones lock nobody out. The answer of a write is never replaced, because it says
//! what was done.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::error::WireError;
use crate::limits::{Limits, ServerStats};

/// Answers up to this size always pass. The number of calls in flight bounds what they sum up to.
const SMALL_BYTES: usize = 16 << 10;

/// One connection's share of the memory for answers.
#[derive(Debug)]
pub(crate) struct Share {
    used: AtomicUsize,
    /// Woken when `used` has become less.
    freed: Notify,
    /// From this many bytes on no further call of the connection is started, until its client has read some.
    full: usize,
    /// For this connection.
    max: usize,
    /// For all connections, whose use is counted in `stats`.
    max_in_all: usize,
    retry_after_ms: u64,
    stats: Arc<ServerStats>,
}

/// Bytes of an answer or a notification that are held until they are written or dropped.
#[derive(Debug)]
pub(crate) struct Held {
    share: Arc<Share>,
    bytes: usize,
}

impl Share {
    pub(crate) fn new(limits: &Limits, stats: Arc<ServerStats>) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            freed: Notify::new(),
            full: limits.max_response_bytes,
            // What runs when it is full may answer as well.
            max: (limits.max_queued_bytes / 2).max(limits.max_response_bytes),
            max_in_all: limits.max_queued_bytes,
            retry_after_ms: limits.busy_retry_after_ms,
            stats,
        })
    }

    /// Counts `bytes`, even beyond the bounds.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.stats.bytes_queued.fetch_add(bytes as u64, Ordering::Relaxed);
        Held {
            share: Arc::clone(self),
            bytes,
        }
    }

    /// Whether so much waits to be written that no further call may be started.
    pub(crate) fn is_full(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.full
    }

    /// Ready when it is not full.
    pub(crate) async fn not_full(&self) {
        loop {
            let freed = self.freed.notified();
            if !self.is_full() {
                return;
            }
            freed.await;
        }
    }

    /// Counts `bytes` if they are within the bounds.
    pub(crate) fn try_hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let held = self.hold(bytes);
        let all = self.stats.bytes_queued.load(Ordering::Relaxed);
        let fits = self.used.load(Ordering::Relaxed) <= self.max && all <= self.max_in_all as u64;
        fits.then_some(held)
    }

    /// Counts an answer of `bytes`, if it is small or within the bounds.
    ///
    /// # Errors
    /// `busy`.
    pub(crate) fn try_hold_answer(self: &Arc<Self>, bytes: usize) -> Result<Held, WireError> {
        if bytes <= SMALL_BYTES {
            return Ok(self.hold(bytes));
        }
        self.try_hold(bytes).ok_or_else(|| {
            WireError::busy(
                "the answers that wait to be read use all the memory that they may use",
                self.retry_after_ms,
            )
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.share.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.share.freed.notify_waiters();
        let stats = &self.share.stats;
        stats.bytes_queued.fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}

/// Bytes of the parameters of a call, counted until it has ended.
#[derive(Debug)]
pub(crate) struct RequestBytes {
    bytes: usize,
    stats: Arc<ServerStats>,
}

impl RequestBytes {
    /// Counts the parameters of a call.
    ///
    /// # Errors
    /// `busy` if they are large and those of all connections take too much already.
    pub(crate) fn count(bytes: usize, limits: &Limits, stats: &Arc<ServerStats>) -> Result<Self, WireError> {
        let before = stats.bytes_in_flight.fetch_add(bytes as u64, Ordering::Relaxed);
        let counted = Self {
            bytes,
            stats: Arc::clone(stats),
        };
        if bytes <= SMALL_BYTES || before + bytes as u64 <= limits.max_buffered_bytes as u64 {
            return Ok(counted);
        }
        Err(WireError::busy(
            "the large requests of other calls use all the memory that they may use",
            limits.busy_retry_after_ms,
        ))
    }
}

impl Drop for RequestBytes {
    fn drop(&mut self) {
        self.stats
            .bytes_in_flight
            .fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_and_all_of_them_are_bounded_and_what_is_dropped_counts_no_more() {
        let limits = Limits {
            max_response_bytes: 1 << 20,
            max_queued_bytes: 4 << 20,
            ..Limits::default()
        };
        let stats = Arc::new(ServerStats::default());
        let one = Share::new(&limits, Arc::clone(&stats));
        let two = Share::new(&limits, Arc::clone(&stats));
        let held = (one.try_hold(1 << 20).unwrap(), one.try_hold(1 << 20).unwrap());
        assert!(one.try_hold(1).is_none());
        assert_eq!(one.try_hold_answer(SMALL_BYTES + 1).unwrap_err().code, -32009);
        drop(one.try_hold_answer(SMALL_BYTES).unwrap());
        assert!(one.is_full() && !two.is_full());
        let other = (two.try_hold(1 << 20).unwrap(), two.hold(1 << 20));
        assert!(
            Share::new(&limits, Arc::clone(&stats)).try_hold(1).is_none(),
            "all together"
        );
        assert_eq!(stats.snapshot().bytes_queued, 4 << 20);
        drop(held);
        assert!(!one.is_full() && one.try_hold(1 << 20).is_some());
        drop(other);
        assert_eq!(stats.snapshot().bytes_queued, 0);
    }

    #[test]
    fn large_requests_in_flight_are_bounded_together_and_small_ones_pass() {
        let limits = Limits {
            max_message_bytes: 1 << 20,
            max_buffered_bytes: 1 << 20,
            ..Limits::default()
        };
        let stats = Arc::new(ServerStats::default());
        let first = RequestBytes::count(1 << 20, &limits, &stats).unwrap();
        assert_eq!(RequestBytes::count(1 << 20, &limits, &stats).unwrap_err().code, -32009);
        drop(RequestBytes::count(100, &limits, &stats).unwrap());
        assert_eq!(stats.snapshot().bytes_in_flight, 1 << 20);
        drop(first);
        assert_eq!(stats.snapshot().bytes_in_flight, 0);
    }
}
