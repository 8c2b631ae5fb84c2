//! Checks that the values are in their ranges and fit together.

use super::Config;

/// Longest socket path that every supported kernel takes: `sun_path` holds 104 bytes on macOS and 108 on
/// Linux, with a NUL at the end.
const MAX_SOCKET_PATH_BYTES: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// Tokens of the longest passage the model reads. A budget below it could never admit such a passage, which
/// would then wait at the head of its queue forever.
const MODEL_MAX_TOKENS: u32 = 256;

/// Below this, bulk work would go to the model in batches of one short text each. A passage longer than the quantum
/// still runs, alone.
const LEAST_BULK_QUANTUM_TOKENS: u32 = 16;

/// A value that cannot be used, before it is known where it was set.
pub(super) struct Problem {
    pub(super) key: String,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
        }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), Problem> {
        if !self.home.is_absolute() {
            return Err(Problem::new("home", "must be an absolute directory"));
        }
        if let Err(part) = self.access.uids() {
            return Err(Problem::new(
                "access.allowed_uids",
                format!("must be numeric user ids separated by commas, `{part}` is none"),
            ));
        }
        if !(0.0..=1.0).contains(&self.search.min_similarity) {
            return Err(Problem::new("search.min_similarity", "must be from 0 to 1"));
        }
        let socket = self.socket_path();
        let socket_bytes = socket.as_os_str().len();
        if socket_bytes > MAX_SOCKET_PATH_BYTES {
            return Err(Problem::new(
                "socket",
                format!(
                    "{} has {socket_bytes} bytes and a Unix socket allows {MAX_SOCKET_PATH_BYTES}; set --socket \
                     or CCO_SOCKET to a shorter path",
                    socket.display()
                ),
            ));
        }
        self.check_ranges()?;
        self.check_relations()
    }

    fn check_ranges(&self) -> Result<(), Problem> {
        const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
        const GIB: u64 = 1024 * 1024 * 1024;
        let ranges = [
            ("items.max_text_bytes", self.items.max_text_bytes, 1, GIB),
            ("items.max_metadata_bytes", self.items.max_metadata_bytes, 2, GIB),
            ("items.store_batch_max", self.items.store_batch_max.into(), 1, 100_000),
            (
                "store.session_index_cache_bytes",
                self.store.session_index_cache_bytes,
                1024 * 1024,
                1024 * GIB,
            ),
            (
                "store.session_metadata_cache_bytes",
                self.store.session_metadata_cache_bytes,
                1024 * 1024,
                1024 * GIB,
            ),
            ("store.retention_days", self.store.retention_days.into(), 0, 36_500),
            ("store.min_free_bytes", self.store.min_free_bytes, 0, 1024 * 1024 * GIB),
            ("readers.workers", self.readers.workers.into(), 0, 256),
            ("readers.queue", self.readers.queue.into(), 1, 1_000_000),
            ("writer.max_group_rows", self.writer.max_group_rows.into(), 1, 1_000_000),
            ("writer.max_group_bytes", self.writer.max_group_bytes, 1024, GIB),
            ("writer.queue_ops", self.writer.queue_ops.into(), 1, 1_000_000),
            ("writer.queue_bytes", self.writer.queue_bytes, 1024, u64::from(u32::MAX)),
            (
                "embedder.batch_tokens",
                self.embedder.batch_tokens.into(),
                MODEL_MAX_TOKENS.into(),
                1_000_000,
            ),
            ("embedder.max_batch", self.embedder.max_batch.into(), 1, 4_096),
            (
                "embedder.bulk_quantum_tokens",
                self.embedder.bulk_quantum_tokens.into(),
                LEAST_BULK_QUANTUM_TOKENS.into(),
                1_000_000,
            ),
            ("embedder.query_cache", self.embedder.query_cache.into(), 0, 10_000_000),
            (
                "supervision.max_restarts",
                self.supervision.max_restarts.into(),
                1,
                1_000,
            ),
            ("supervision.window_ms", self.supervision.window_ms, 100, DAY_MS),
            ("supervision.backoff_ms", self.supervision.backoff_ms, 1, DAY_MS),
            (
                "supervision.degraded_retry_ms",
                self.supervision.degraded_retry_ms,
                100,
                DAY_MS,
            ),
            ("shutdown.grace_ms", self.shutdown.grace_ms, 100, 600_000),
        ];
        for (key, value, minimum, maximum) in ranges {
            if !(minimum..=maximum).contains(&value) {
                return Err(Problem::new(
                    key,
                    format!("{value} is out of range; it takes {minimum} to {maximum}"),
                ));
            }
        }
        let item_bytes = self.items.max_text_bytes + self.items.max_metadata_bytes;
        let message_bytes = self.limits.max_message_bytes as u64;
        if item_bytes > message_bytes {
            return Err(Problem::new(
                "items.max_text_bytes",
                format!(
                    "with items.max_metadata_bytes it makes {item_bytes}, more than limits.max_message_bytes \
                     ({message_bytes}): such an item could never arrive"
                ),
            ));
        }
        self.limits.validate().map_err(|message| {
            // The message begins with the name of the limit in backquotes.
            let name = message.split('`').nth(1).unwrap_or_default();
            Problem::new(format!("limits.{name}"), message.as_str())
        })?;
        Ok(())
    }

    fn check_relations(&self) -> Result<(), Problem> {
        let embedder = &self.embedder;
        for (key, queue) in [
            ("embedder.interactive_queue_tokens", embedder.interactive_queue_tokens),
            ("embedder.bulk_queue_tokens", embedder.bulk_queue_tokens),
        ] {
            if queue < embedder.batch_tokens {
                return Err(Problem::new(
                    key,
                    format!(
                        "{queue} is less than embedder.batch_tokens ({}), so a full batch could never form",
                        embedder.batch_tokens
                    ),
                ));
            }
        }
        if embedder.bulk_quantum_tokens > embedder.batch_tokens {
            return Err(Problem::new(
                "embedder.bulk_quantum_tokens",
                format!(
                    "{} is more than embedder.batch_tokens ({}), which bounds every pass",
                    embedder.bulk_quantum_tokens, embedder.batch_tokens
                ),
            ));
        }
        if self.writer.max_group_bytes > self.writer.queue_bytes {
            return Err(Problem::new(
                "writer.max_group_bytes",
                format!(
                    "{} is more than writer.queue_bytes ({}), so a full group could never form",
                    self.writer.max_group_bytes, self.writer.queue_bytes
                ),
            ));
        }
        let message_bytes = self.limits.max_message_bytes as u64;
        if self.writer.queue_bytes < message_bytes {
            return Err(Problem::new(
                "writer.queue_bytes",
                format!(
                    "{} is less than limits.max_message_bytes ({message_bytes}), so a large batch could never be \
                     written",
                    self.writer.queue_bytes
                ),
            ));
        }
        if self.limits.shutdown_grace_ms > self.shutdown.grace_ms {
            return Err(Problem::new(
                "limits.shutdown_grace_ms",
                format!(
                    "{} is more than shutdown.grace_ms ({}), of which it is a part",
                    self.limits.shutdown_grace_ms, self.shutdown.grace_ms
                ),
            ));
        }
        if self.supervision.backoff_ms > self.supervision.backoff_cap_ms {
            return Err(Problem::new(
                "supervision.backoff_ms",
                format!(
                    "{} is more than supervision.backoff_cap_ms ({})",
                    self.supervision.backoff_ms, self.supervision.backoff_cap_ms
                ),
            ));
        }
        Ok(())
    }
}
