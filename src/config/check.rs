//! Checks that the values are in their ranges and fit together.

use super::Config;
use super::options::options_of;

/// Longest socket path that every supported kernel takes: `sun_path` holds 104 bytes on macOS and 108 on
/// Linux, with a NUL at the end.
const MAX_SOCKET_PATH_BYTES: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

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
                format!("must be numeric user ids separated by commas, and `{part}` is not one"),
            ));
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
        let defaults = super::Config::default().values();
        let changed: Vec<(String, serde_json::Value)> = {
            let defaults: std::collections::BTreeMap<_, _> = defaults.into_iter().collect();
            let values = self.values().into_iter();
            values.filter(|(key, value)| defaults.get(key) != Some(value)).collect()
        };
        for option in options_of(changed.iter().map(|(key, _)| key.as_str())) {
            let value = changed.iter().find(|(key, _)| *key == option.key);
            let Some(number) = value.and_then(|(_, value)| value.as_f64()) else {
                continue; // Not a number.
            };
            if option.minimum.is_some_and(|least| number < least) || option.maximum.is_some_and(|most| number > most) {
                return Err(Problem::new(
                    option.key.clone(),
                    format!("{number} is out of range; it takes {}", option.range()),
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
