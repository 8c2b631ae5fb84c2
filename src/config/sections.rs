//! The sections of the configuration, each with its values, their defaults and the reasons.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Durability;

/// Tokens of the longest passage the model reads. A budget below it could never admit such a passage, which
/// would then wait at the head of its queue forever.
const MODEL_MAX_TOKENS: u32 = 256;

/// Below this, bulk work would go to the model in batches of one short text each. A passage longer than the quantum
/// still runs, alone.
const LEAST_BULK_QUANTUM_TOKENS: u32 = 16;

/// Milliseconds of a day.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// What the daemon writes to its log. It never holds the text of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,ccod_actors=debug`. The log never holds
    /// the text of an item. A daemon in the background logs to `run/ccod.log`, which it sets aside as `ccod.log.1`
    /// when it has passed 8 MiB, so both take 16 MiB at most. Where the file is moved or removed (`logrotate`), the
    /// daemon makes a new one within a second, or at once on SIGHUP. A log that goes elsewhere (a terminal, the
    /// journal, a file of one's own) is left alone.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
    /// A file for the log, in a directory that exists, instead of standard error or `run/ccod.log`; it is set aside
    /// in the same way.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ItemsConfig {
    /// Longest text of an item. 1 MB is several chapters of a book; more is a file, not knowledge.
    #[schemars(range(min = 1, max = 1 << 30))]
    pub max_text_bytes: u64,
    /// The largest metadata of an item, as JSON. It comes back with every hit.
    #[schemars(range(min = 2, max = 1 << 30))]
    pub max_metadata_bytes: u64,
    /// Items in one `knowledge.store_batch`, and texts in one `embedding.embed`.
    #[schemars(range(min = 1, max = 100_000))]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `full`: a write is acknowledged when it would survive a loss of power. `fast`: when it would survive the end
    /// of the daemon.
    pub durability: Durability,
    /// Cache of index pages, shared by all projects. LanceDB's own default is 6 GiB per connection, which a
    /// background daemon may not take.
    #[schemars(range(min = 1 << 20, max = 1_u64 << 40))]
    pub session_index_cache_bytes: u64,
    /// Cache of table metadata, shared by all projects (LanceDB's default: 1 GiB).
    #[schemars(range(min = 1 << 20, max = 1_u64 << 40))]
    pub session_metadata_cache_bytes: u64,
    /// Days for which replaced and deleted revisions stay, for `history`, `undelete` and `as_of`. With 0 they go
    /// with the next upkeep, and a deletion cannot be undone.
    #[schemars(range(min = 0, max = 36_500))]
    pub retention_days: u32,
    /// Bytes of the file system that stay free: stores are refused (`read_only`) below it, so that upkeep and
    /// deletions still have space. `0` lets the disk fill up.
    #[schemars(range(min = 0, max = 1_u64 << 50))]
    pub min_free_bytes: u64,
    /// Seconds without a request after which an open project is closed: its index in memory, what the caches hold of
    /// it, its table and its open files are freed, and the next request opens it again. That takes a tenth of a second
    /// at 10,000 items; a client that works on a project seldom pauses longer. `0` keeps projects open.
    #[schemars(range(min = 0, max = 31_536_000))]
    pub idle_close_s: u32,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            durability: Durability::Full,
            session_index_cache_bytes: 64 * 1024 * 1024,
            session_metadata_cache_bytes: 64 * 1024 * 1024,
            retention_days: 7,
            min_free_bytes: 64 * 1024 * 1024,
            idle_close_s: 600,
        }
    }
}

/// Who may use the socket, besides the user that the daemon runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// Numeric user ids that are served besides the daemon's own, separated by commas. Root needs to be named like
    /// any other.
    pub allowed_uids: String,
    /// A group that may open the socket file: it gets mode 0660, its directory 0750. Its users are served only if
    /// `access.allowed_uids` names them. The group must be able to pass through all directories above, and a home
    /// is closed to it: give a `socket` outside the home, or let the group pass with `chgrp GROUP ~/.cco && chmod
    /// 710 ~/.cco`. The daemon does not start where the group cannot come in, and names the directory.
    pub socket_group: String,
}

impl AccessConfig {
    /// The user ids of `allowed_uids`.
    ///
    /// # Errors
    /// The part that is not a number.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// Cosine below which a passage does not count as found by its meaning: unrelated texts have a cosine of about
    /// 0.1 with the bundled model, and what matches nothing must return nothing.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_similarity: f64,
    /// Bytes that the indexes of what is live may take in memory, of all projects together: some 1.5 KB for each
    /// passage, 0.6 KB in projects of more than 300,000. The default is enough for a million and a half. Of what does
    /// not fit, the projects that were used least recently are read again when they are next used, and one that is
    /// larger by itself is searched on disk, by a vector index, which takes longer. `0` keeps none in memory.
    #[schemars(range(min = 0, max = 1_u64 << 40))]
    pub resident_bytes: u64,
    /// Bytes that the items may take that answers have shown lately, of all projects together: what was shown is mostly
    /// shown again, and comes from memory then. The default is enough for some 25,000 items of 400 characters. `0`
    /// keeps none.
    #[schemars(range(min = 0, max = 1_u64 << 40))]
    pub text_cache_bytes: u64,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            min_similarity: 0.2,
            resident_bytes: 1024 * 1024 * 1024,
            text_cache_bytes: 32 * 1024 * 1024,
        }
    }
}

/// The pool of readers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReadersConfig {
    /// Searches that run at once; 0 takes the number of cores, at least 2 and at most 8.
    #[schemars(range(min = 0, max = 256))]
    pub workers: u32,
    /// Requests that may wait for a reader. One more is answered `busy`. As many as may be in flight by default: what
    /// is asked mostly takes less than a millisecond.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue: u32,
}

impl Default for ReadersConfig {
    fn default() -> Self {
        Self {
            workers: 0,
            queue: 4_096,
        }
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WriterConfig {
    /// Most rows of one commit: bounds how long the writes in a group wait for each other. A delete by filter, in which
    /// nobody waits, is cut into commits of four times as much.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_group_rows: u32,
    /// Most bytes of one commit, for the same reason and for the memory of a commit.
    #[schemars(range(min = 1024, max = 1 << 30))]
    pub max_group_bytes: u64,
    /// Writes that may wait; one more is answered `busy`. As many as may be in flight by default: they wait for one
    /// commit together.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue_ops: u32,
    /// Bytes that may wait; at least `limits.max_message_bytes`, or the largest message could never be written.
    #[schemars(range(min = 1024, max = u32::MAX))]
    pub queue_bytes: u64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            max_group_rows: 1_000,
            max_group_bytes: 8 * 1024 * 1024,
            queue_ops: 4_096,
            queue_bytes: 32 * 1024 * 1024,
        }
    }
}

/// How exactly vectors are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// `int8` where the processor has instructions for it, else `exact`.
    #[default]
    Auto,
    /// Products of 8-bit integers: three times as fast, and more for a short query. Searches find the same.
    Int8,
    /// float32 throughout.
    Exact,
}

/// The embedder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedderConfig {
    /// Directory of another BERT-family model; empty for the one in the executable.
    pub model: String,
    /// How exactly vectors are computed: `int8` (products of 8-bit integers), `exact` (float32), or `auto`, which is
    /// `int8` where the processor has instructions for it. Vectors of both may be mixed in a store; searches find the
    /// same.
    pub precision: Precision,
    /// Load the model at start, not at the first request that needs it, and keep it.
    pub warm: bool,
    /// Seconds without a text to embed after which the model is given up until it is needed again. It takes some 50 MB,
    /// and to load it again a twentieth of a second. `0` keeps it.
    #[schemars(range(min = 0, max = 31_536_000))]
    pub idle_unload_s: u32,
    /// Tokens of searches and single stores that may wait. Tokens, not requests: the cost of a text follows its
    /// tokens. A text of more than 1,024 tokens waits with the bulk work.
    pub interactive_queue_tokens: u32,
    /// Tokens of batches and imports that may wait.
    pub bulk_queue_tokens: u32,
    /// Tokens of one forward pass; at least 256, the longest passage. More gains nothing on a processor.
    #[schemars(range(min = MODEL_MAX_TOKENS, max = 1_000_000))]
    pub batch_tokens: u32,
    /// Most texts in one forward pass.
    #[schemars(range(min = 1, max = 4_096))]
    pub max_batch: u32,
    /// Tokens of one pass of bulk work, which is how long a search can be held up by an import. After ten seconds
    /// without a search or single store, bulk work gets whole passes.
    #[schemars(range(min = LEAST_BULK_QUANTUM_TOKENS, max = 1_000_000))]
    pub bulk_quantum_tokens: u32,
    /// Query vectors that are remembered, 1.5 KiB each; 0 for none.
    #[schemars(range(min = 0, max = 10_000_000))]
    pub query_cache: u32,
}

impl Default for EmbedderConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            precision: Precision::Auto,
            warm: false,
            idle_unload_s: 300,
            interactive_queue_tokens: 65_536,
            bulk_queue_tokens: 262_144,
            batch_tokens: 512,
            max_batch: 32,
            bulk_quantum_tokens: 64,
            query_cache: 1_024,
        }
    }
}

/// How crashed parts are restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisionConfig {
    /// Restarts of one part within the window; one more and the part is degraded, which `ccoctl health` shows.
    #[schemars(range(min = 1, max = 1_000))]
    pub max_restarts: u32,
    /// The window in which restarts are counted.
    #[schemars(range(min = 100, max = DAY_MS))]
    pub window_ms: u64,
    /// Wait before the first restart; doubles with each one in the window.
    #[schemars(range(min = 1, max = DAY_MS))]
    pub backoff_ms: u64,
    /// Longest wait before a restart.
    pub backoff_cap_ms: u64,
    /// How often a degraded part is tried again.
    #[schemars(range(min = 100, max = DAY_MS))]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownConfig {
    /// Time for the whole end, from the signal or `admin.shutdown` on: accepted requests, the queues behind them,
    /// the last commit. What still runs when the requests' part of it is over is cancelled and answered -32053. A
    /// service manager must wait some seconds longer than this before it kills; systemd is asked to.
    #[schemars(range(min = 100, max = 600_000))]
    pub grace_ms: u64,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { grace_ms: 10_000 }
    }
}
