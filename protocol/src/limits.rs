//! Every limit of the socket, with its default and its reason, and the counters beside them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::ErrorKind;

/// The limits of the socket. Every number can be configured; `rpc.version` shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections at the same time; one more gets a busy line and is closed. Each costs two file descriptors and
    /// up to `max_message_bytes` of memory.
    #[schemars(range(min = 1))]
    pub max_connections: usize,
    /// Connections beyond `max_connections` that serve what an operator needs (`admin.health`, `status`, `metrics`,
    /// `shutdown`, `rpc.version` and `rpc.cancel`) and answer anything else `busy`: a daemon that is full can still
    /// be asked and stopped.
    pub operator_connections: usize,
    /// The longest request, in bytes. Holds a batch of 1,000 items of usual size.
    #[schemars(range(min = 1024, max = 1 << 30))]
    pub max_message_bytes: usize,
    /// The longest response; more than a request, so that what went in comes out.
    #[schemars(range(min = 1024, max = 1 << 30))]
    pub max_response_bytes: usize,
    /// Requests in one JSON-RPC batch. Items belong into `knowledge.store_batch`.
    #[schemars(range(min = 1))]
    pub max_batch_requests: usize,
    /// Levels of nested JSON. Real requests have about five; parsers recurse, so no more than 127.
    #[schemars(range(min = 1, max = 127))]
    pub max_depth: usize,
    /// Requests of one connection at once; at the limit its input is not read and the sender waits.
    #[schemars(range(min = 1))]
    pub max_in_flight_per_connection: usize,
    /// Requests in flight overall; one more is answered `busy` at once. The default is what 256 connections may have
    /// with 16 requests each; searches of so many are answered in a few seconds.
    #[schemars(range(min = 1))]
    pub max_in_flight: usize,
    /// As `max_in_flight`, for what an operator needs when that is used up.
    pub operator_in_flight: usize,
    /// Change feeds of one connection.
    pub max_subscriptions_per_connection: usize,
    /// Bytes of incomplete requests held for all connections together, and as many of those of calls in flight;
    /// bounds what many large requests at once can occupy. A connection whose incomplete request would go over it
    /// is answered `busy` and closed, a call that would is answered `busy`.
    pub max_buffered_bytes: usize,
    /// Bytes of answers and notifications that wait to be written, for all connections together. One connection may
    /// have half of them. Beyond, a large answer of a read becomes `busy`: clients that ask and do not read would
    /// otherwise leave any number of answers with the daemon.
    pub max_queued_bytes: usize,
    /// Lines waiting to be written to one connection; responses wait for a place, notifications are refused without
    /// one.
    #[schemars(range(min = 1))]
    pub reply_queue_lines: usize,
    /// How long a client may leave its socket full; at least 30 s while it has a change feed open.
    #[schemars(range(min = 1))]
    pub write_timeout_ms: u64,
    /// Milliseconds without a byte after which an incomplete request is given up. Idle connections without one are
    /// left alone: subscribers say nothing for hours.
    #[schemars(range(min = 1))]
    pub partial_request_timeout_ms: u64,
    /// Milliseconds that a method may overrun its deadline before the call is answered without it. Lets the method,
    /// which knows more, answer first.
    pub deadline_grace_ms: u64,
    /// Time for accepted requests at the end; a part of `shutdown.grace_ms`, of which two seconds (half, if it is
    /// short) are kept for what follows.
    pub shutdown_grace_ms: u64,
    /// How often the daemon looks whether its socket file is still there.
    #[schemars(range(min = 1))]
    pub socket_check_ms: u64,
    /// The wait that `busy` suggests.
    pub busy_retry_after_ms: u64,
    /// Requests per second of one peer process; none means any number. Off by default: the peers of a private
    /// socket are its owner's own programs.
    #[schemars(range(min = 1))]
    pub rate_limit_per_second: Option<u32>,
    /// Requests at once before that rate counts; one second's worth if absent.
    #[schemars(range(min = 1))]
    pub rate_limit_burst: Option<u32>,
    /// Items in one `knowledge.store_batch`.
    pub max_batch_items: usize,
    /// The longest text of an item, in bytes.
    pub max_text_bytes: usize,
    /// The largest metadata of an item, in bytes of JSON.
    pub max_metadata_bytes: usize,
    /// Texts in one `embedding.embed`.
    pub max_embed_texts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 256,
            operator_connections: 8,
            max_message_bytes: 16 << 20,
            max_response_bytes: 32 << 20,
            max_batch_requests: 32,
            max_depth: 64,
            max_in_flight_per_connection: 32,
            max_in_flight: 4_096,
            operator_in_flight: 16,
            max_subscriptions_per_connection: 16,
            max_buffered_bytes: 256 << 20,
            max_queued_bytes: 256 << 20,
            reply_queue_lines: 64,
            write_timeout_ms: 10_000,
            partial_request_timeout_ms: 30_000,
            deadline_grace_ms: 250,
            shutdown_grace_ms: 8_000,
            socket_check_ms: 1_000,
            busy_retry_after_ms: 100,
            rate_limit_per_second: None,
            rate_limit_burst: None,
            max_batch_items: 1_000,
            max_text_bytes: 1 << 20,
            max_metadata_bytes: 64 << 10,
            max_embed_texts: 1_000,
        }
    }
}

impl Limits {
    /// Refuses limits that contradict each other or make the socket useless.
    ///
    /// # Errors
    /// A sentence that names the limit and what it must be.
    pub fn validate(&self) -> Result<(), String> {
        let at_least_one = [
            ("max_connections", self.max_connections),
            ("max_batch_requests", self.max_batch_requests),
            ("max_in_flight_per_connection", self.max_in_flight_per_connection),
            ("max_in_flight", self.max_in_flight),
            ("reply_queue_lines", self.reply_queue_lines),
        ];
        if let Some((name, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(format!("`{name}` must be at least 1"));
        }
        if !(1..=127).contains(&self.max_depth) {
            return Err("`max_depth` must be from 1 to 127".to_owned());
        }
        for (name, value) in [
            ("max_message_bytes", self.max_message_bytes),
            ("max_response_bytes", self.max_response_bytes),
        ] {
            if !(1024..=1 << 30).contains(&value) {
                return Err(format!("`{name}` must be from 1024 to {}", 1 << 30));
            }
        }
        if self.max_buffered_bytes < self.max_message_bytes {
            return Err("`max_buffered_bytes` must be at least `max_message_bytes`".to_owned());
        }
        if self.max_queued_bytes < self.max_response_bytes {
            return Err("`max_queued_bytes` must be at least `max_response_bytes`".to_owned());
        }
        if self.max_text_bytes > self.max_message_bytes {
            return Err("`max_text_bytes` must be at most `max_message_bytes`".to_owned());
        }
        for (name, value) in [
            ("write_timeout_ms", self.write_timeout_ms),
            ("partial_request_timeout_ms", self.partial_request_timeout_ms),
            ("socket_check_ms", self.socket_check_ms),
        ] {
            if value == 0 {
                return Err(format!("`{name}` must be at least 1"));
            }
        }
        if self.rate_limit_per_second == Some(0) || self.rate_limit_burst == Some(0) {
            return Err("`rate_limit_per_second` and `rate_limit_burst` must be at least 1, or absent".to_owned());
        }
        Ok(())
    }

    pub(crate) fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }

    pub(crate) fn partial_request_timeout(&self) -> Duration {
        Duration::from_millis(self.partial_request_timeout_ms)
    }

    pub(crate) fn deadline_grace(&self) -> Duration {
        Duration::from_millis(self.deadline_grace_ms)
    }
}

/// Counters of the socket, which the server counts and `admin.status` reads.
#[derive(Debug, Default)]
pub struct ServerStats {
    pub(crate) connections_open: AtomicU64,
    pub(crate) connections_total: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) notifications: AtomicU64,
    pub(crate) responses: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_buffered: AtomicU64,
    pub(crate) bytes_in_flight: AtomicU64,
    pub(crate) bytes_queued: AtomicU64,
    /// Connections that could not be accepted because no file descriptor was left, and when that was last.
    pub(crate) descriptors_lacking: AtomicU64,
    pub(crate) descriptors_lacked_at: Mutex<Option<Instant>>,
    pub(crate) notifications_sent: AtomicU64,
    pub(crate) notifications_refused: AtomicU64,
    pub(crate) rebinds: AtomicU64,
    /// By place in [`ErrorKind::ALL`]; the last one is for all other codes.
    pub(crate) errors: ErrorCounts,
}

/// Errors sent, by kind.
#[derive(Debug)]
pub(crate) struct ErrorCounts([AtomicU64; ErrorKind::ALL.len() + 1]);

impl Default for ErrorCounts {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl ErrorCounts {
    pub(crate) fn add(&self, code: i32) {
        let place = ErrorKind::ALL
            .iter()
            .position(|kind| kind.code() == code)
            .unwrap_or(ErrorKind::ALL.len());
        self.0[place].fetch_add(1, Ordering::Relaxed);
    }
}

/// [`ServerStats`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerSnapshot {
    /// Connections now.
    pub connections_open: u64,
    /// Connections since the start, those refused included.
    pub connections_total: u64,
    /// Connections that were over the limit or not allowed.
    pub connections_refused: u64,
    /// Requests that wanted an answer.
    pub requests: u64,
    /// Requests that wanted none.
    pub notifications: u64,
    /// Answers that were queued for writing.
    pub responses: u64,
    /// Calls that are running.
    pub in_flight: u64,
    /// Calls that `rpc.cancel` named.
    pub cancelled: u64,
    /// Calls that ended in a panic.
    pub panics: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes of incomplete requests held now.
    pub bytes_buffered: u64,
    /// Bytes of the parameters of calls that wait or run.
    pub bytes_in_flight: u64,
    /// Bytes of answers and notifications that wait to be written.
    pub bytes_queued: u64,
    /// Times that a connection could not be accepted because no file descriptor was left.
    pub descriptors_lacking: u64,
    /// Notifications that were queued for writing.
    pub notifications_sent: u64,
    /// Notifications for which a queue had no place.
    pub notifications_refused: u64,
    /// How often the socket file was gone and bound again.
    pub rebinds: u64,
    /// Errors by kind; only those that occurred.
    pub errors: std::collections::BTreeMap<String, u64>,
}

impl ServerStats {
    /// Notes that a connection could not be accepted because no file descriptor was left.
    pub(crate) fn lacks_descriptors(&self) {
        self.descriptors_lacking.fetch_add(1, Ordering::Relaxed);
        *self.descriptors_lacked_at.lock() = Some(Instant::now());
    }

    /// When a connection last could not be accepted because no file descriptor was left.
    #[must_use]
    pub fn descriptors_lacked_at(&self) -> Option<Instant> {
        *self.descriptors_lacked_at.lock()
    }

    /// The numbers as they are now. They are read one by one, so they may be a few calls apart.
    #[must_use]
    pub fn snapshot(&self) -> ServerSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let kinds = ErrorKind::ALL.iter().copied().chain([ErrorKind::Unknown]);
        ServerSnapshot {
            connections_open: read(&self.connections_open),
            connections_total: read(&self.connections_total),
            connections_refused: read(&self.connections_refused),
            requests: read(&self.requests),
            notifications: read(&self.notifications),
            responses: read(&self.responses),
            in_flight: read(&self.in_flight),
            cancelled: read(&self.cancelled),
            panics: read(&self.panics),
            bytes_read: read(&self.bytes_read),
            bytes_written: read(&self.bytes_written),
            bytes_buffered: read(&self.bytes_buffered),
            bytes_in_flight: read(&self.bytes_in_flight),
            bytes_queued: read(&self.bytes_queued),
            descriptors_lacking: read(&self.descriptors_lacking),
            notifications_sent: read(&self.notifications_sent),
            notifications_refused: read(&self.notifications_refused),
            rebinds: read(&self.rebinds),
            errors: kinds
                .zip(&self.errors.0)
                .map(|(kind, counter)| (kind.to_string(), read(counter)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_contract_and_valid() {
        let limits = Limits::default();
        limits.validate().unwrap();
        assert_eq!(limits.max_message_bytes, 16_777_216);
        assert_eq!(limits.max_response_bytes, 33_554_432);
        assert_eq!(
            (limits.max_connections, limits.max_batch_requests, limits.max_depth),
            (256, 32, 64)
        );
        let json = serde_json::to_value(&limits).unwrap();
        assert_eq!(serde_json::from_value::<Limits>(json).unwrap(), limits);
    }

    #[test]
    fn contradictions_are_named() {
        for (limits, name) in [
            (
                Limits {
                    max_depth: 128,
                    ..Limits::default()
                },
                "max_depth",
            ),
            (
                Limits {
                    max_connections: 0,
                    ..Limits::default()
                },
                "max_connections",
            ),
            (
                Limits {
                    max_buffered_bytes: 1,
                    ..Limits::default()
                },
                "max_buffered_bytes",
            ),
            (
                Limits {
                    write_timeout_ms: 0,
                    ..Limits::default()
                },
                "write_timeout_ms",
            ),
            (
                Limits {
                    rate_limit_per_second: Some(0),
                    ..Limits::default()
                },
                "rate_limit_per_second",
            ),
        ] {
            assert!(limits.validate().unwrap_err().contains(name));
        }
    }

    #[test]
    fn errors_are_counted_by_kind() {
        let stats = ServerStats::default();
        stats.errors.add(-32602);
        stats.errors.add(-32602);
        stats.errors.add(-1);
        let errors = stats.snapshot().errors;
        assert_eq!((errors["invalid_params"], errors["unknown"], errors.len()), (2, 1, 2));
    }
}
