//! The sections of the configuration, each with its values, their defaults and the reasons.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Durability;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// What the daemon writes to its log. It never holds the text of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as `info,ccod_actors=debug`.
    pub level: String,
    /// Text or JSON lines.
    pub format: LogFormat,
    /// The file that it goes to; none for standard error, which for a daemon in the background is `run/ccod.log`.
    pub file: Option<PathBuf>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
            file: None,
        }
    }
}

/// Bounds on one item and on what one call may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ItemsConfig {
    /// Longest text of an item. 1 MB is several chapters of a book; more is a file, not knowledge.
    pub max_text_bytes: u64,
    /// Longest metadata of an item, as JSON. It is returned with every hit, so it stays small.
    pub max_metadata_bytes: u64,
    /// Most items in one `knowledge.store_batch`, and most texts in one `embedding.embed`.
    pub store_batch_max: u32,
}

impl Default for ItemsConfig {
    fn default() -> Self {
        Self {
            max_text_bytes: 1_000_000,
            max_metadata_bytes: 64_000,
            store_batch_max: 1_000,
        }
    }
}

/// The store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `full`: an acknowledged write survives power loss. `fast`: it survives a crash of the daemon only.
    pub durability: Durability,
    /// Cache of index pages, shared by all projects. LanceDB's own default is 6 GiB per connection, which a
    /// background daemon may not take.
    pub session_index_cache_bytes: u64,
    /// Cache of table metadata, shared by all projects (LanceDB's default: 1 GiB).
    pub session_metadata_cache_bytes: u64,
    /// Days for which replaced and deleted revisions stay, for `history`, `undelete` and `as_of`. With 0 they go
    /// with the next upkeep, and a deletion cannot be undone.
    pub retention_days: u32,
    /// Bytes of the file system that stay free: what adds to a project is refused below it, so that upkeep and
    /// deleting still have room. 0 lets the disk fill up.
    pub min_free_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            durability: Durability::Full,
            session_index_cache_bytes: 64 * 1024 * 1024,
            session_metadata_cache_bytes: 64 * 1024 * 1024,
            retention_days: 7,
            min_free_bytes: 64 * 1024 * 1024,
        }
    }
}

/// Who may use the socket, besides the user that the daemon runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// Numeric user ids that are served, separated by commas. Root needs to be named like any other.
    pub allowed_uids: String,
    /// A group that may open the socket file: it gets mode 0660, its directory 0750. The users of the group
    /// are served only if `allowed_uids` names them.
    pub socket_group: String,
}

impl AccessConfig {
    /// The user ids of `allowed_uids`.
    ///
    /// # Errors
    /// The part that is no number.
    pub fn uids(&self) -> Result<Vec<u32>, String> {
        self.allowed_uids
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().map_err(|_| part.to_owned()))
            .collect()
    }
}

/// What counts as found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// Cosine below which a passage does not count as found by its meaning: unrelated texts have a cosine of
    /// about 0.1 with the bundled model, and what matches nothing must return nothing.
    pub min_similarity: f64,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self { min_similarity: 0.2 }
    }
}

/// The pool of readers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadersConfig {
    /// Searches that run at once; 0 takes the number of cores, at least 2 and at most 8.
    pub workers: u32,
    /// Requests that may wait for a reader; one more is answered `busy`.
    pub queue: u32,
}

impl Default for ReadersConfig {
    fn default() -> Self {
        Self { workers: 0, queue: 256 }
    }
}

impl ReadersConfig {
    /// The number of readers, with 0 resolved to what this machine has.
    pub fn effective_workers(&self) -> usize {
        if self.workers > 0 {
            return self.workers as usize;
        }
        std::thread::available_parallelism()
            .map_or(2, std::num::NonZero::get)
            .clamp(2, 8)
    }
}

/// The writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WriterConfig {
    /// Most rows (passages) of one commit. Bounds how long the requests in a group wait for each other.
    pub max_group_rows: u32,
    /// Most bytes of one commit, for the same reason and to bound the memory of a commit.
    pub max_group_bytes: u64,
    /// Writes that may wait; one more is answered `busy`.
    pub queue_ops: u32,
    /// Bytes that may wait. Must hold the largest message, or that could never be written.
    pub queue_bytes: u64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            max_group_rows: 1_000,
            max_group_bytes: 8 * 1024 * 1024,
            queue_ops: 256,
            queue_bytes: 32 * 1024 * 1024,
        }
    }
}

/// The embedder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedderConfig {
    /// Directory of another BERT-family model; empty for the one in the executable.
    pub model: String,
    /// Loads the model at start instead of at the first request that needs it.
    pub warm: bool,
    /// Tokens of searches and single stores that may wait. Tokens, because texts differ in length by a
    /// hundred times and the cost of embedding follows the tokens.
    pub interactive_queue_tokens: u32,
    /// Tokens of batches and imports that may wait.
    pub bulk_queue_tokens: u32,
    /// Padded tokens of one forward pass. Larger passes gain little on a CPU and delay whoever comes next.
    pub batch_tokens: u32,
    /// Most texts in one forward pass.
    pub max_batch: u32,
    /// Padded tokens of one forward pass of bulk work. A pass cannot be interrupted, so this is how long a
    /// search can be held up by an import.
    pub bulk_quantum_tokens: u32,
    /// Query vectors that are remembered; each takes 1.5 KiB.
    pub query_cache: u32,
}

impl Default for EmbedderConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            warm: false,
            interactive_queue_tokens: 16_384,
            bulk_queue_tokens: 262_144,
            batch_tokens: 512,
            max_batch: 32,
            bulk_quantum_tokens: 64,
            query_cache: 1_024,
        }
    }
}

/// How crashed parts are restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisionConfig {
    /// Restarts of one part within `window_ms`; one more and the part is degraded, which `health` shows.
    pub max_restarts: u32,
    /// The window in which restarts are counted.
    pub window_ms: u64,
    /// Wait before the first restart; it doubles with each one in the window.
    pub backoff_ms: u64,
    /// Longest wait before a restart.
    pub backoff_cap_ms: u64,
    /// How often a degraded part is tried again.
    pub degraded_retry_ms: u64,
}

impl Default for SupervisionConfig {
    fn default() -> Self {
        Self {
            max_restarts: 3,
            window_ms: 30_000,
            backoff_ms: 100,
            backoff_cap_ms: 5_000,
            degraded_retry_ms: 60_000,
        }
    }
}

/// The end of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// Time for the whole end: accepted requests, the queues behind them, the last commit. Service managers
    /// kill after their own limit, so stay below it.
    pub grace_ms: u64,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { grace_ms: 10_000 }
    }
}
