//! The configuration: every limit of the daemon with its default and the reason for it.
//!
//! Values come from flags, the environment (`CCO_...`), `$CCO_HOME/ccod.toml` and the defaults, in this order of
//! precedence. [`Config::load`] merges them, refuses keys that it does not know (a misspelled limit must not
//! silently be no limit), checks that the values fit together, and remembers for each where it came from.
//! The command line loads it too, so nothing here touches the disk beyond reading that one file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::providers::Serialized;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use ccod_protocol::api::Durability;
pub use ccod_protocol::limits::Limits;

/// Prefix of the environment variables that are read.
const ENVIRONMENT_PREFIX: &str = "CCO_";

/// Variables that stand for a nested key, because people set them by hand.
const ENVIRONMENT_ALIASES: [(&str, &str); 3] = [
    ("CCO_DURABILITY", "store.durability"),
    ("CCO_LOG", "log.level"),
    ("CCO_LOG_FORMAT", "log.format"),
];

/// Limits that are copies of those in `items`, and so are no keys of their own.
const SHARED_LIMITS: [&str; 4] = [
    "limits.max_batch_items",
    "limits.max_embed_texts",
    "limits.max_text_bytes",
    "limits.max_metadata_bytes",
];

/// Name of the file in `knowledge/` that the daemon locks, for the command line, which does not know the engine.
const STORE_LOCK_FILE: &str = ".lock";
#[cfg(all(test, feature = "engine"))]
#[test]
fn the_lock_of_the_store_is_where_the_store_has_it() {
    assert_eq!(STORE_LOCK_FILE, ccod_actors::store::lock::LOCK_FILE);
}

/// Longest socket path that every supported kernel takes: `sun_path` holds 104 bytes on macOS and 108 on
/// Linux, with a NUL at the end.
const MAX_SOCKET_PATH_BYTES: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// Tokens of the longest passage the model reads. A budget below it could never admit such a passage, which
/// would then wait at the head of its queue forever.
const MODEL_MAX_TOKENS: u32 = 256;

/// Below this, bulk work would go to the model in batches of one short text each. A passage longer than the quantum
/// still runs, alone.
const LEAST_BULK_QUANTUM_TOKENS: u32 = 16;

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

/// The whole configuration. [`Config::load`] builds it; [`Config::at`] gives the defaults for a home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Absolute directory of everything the daemon keeps. Not a key of the file, which lies in it.
    pub home: PathBuf,
    /// Path of the socket; none for `run/ccod.sock` in the home.
    pub socket: Option<PathBuf>,
    /// The log.
    pub log: LogConfig,
    /// Limits of the socket and of messages.
    pub limits: Limits,
    /// Limits of items.
    pub items: ItemsConfig,
    /// The store.
    pub store: StoreConfig,
    /// Who may use the socket.
    pub access: AccessConfig,
    /// What counts as found.
    pub search: SearchConfig,
    /// The readers.
    pub readers: ReadersConfig,
    /// The writer.
    pub writer: WriterConfig,
    /// The embedder.
    pub embedder: EmbedderConfig,
    /// Restarts.
    pub supervision: SupervisionConfig,
    /// The end.
    pub shutdown: ShutdownConfig,
}

impl Default for Config {
    /// The defaults, with an empty home: only good as a base to merge into.
    fn default() -> Self {
        Self::at(PathBuf::new())
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Origin {
    /// The default.
    Default,
    /// The configuration file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Line of the value, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A flag of the command line.
    Flag {
        /// Its name, such as `--home`.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File { path, line } => write!(formatter, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(formatter, "environment variable {variable}"),
            Self::Flag { flag } => write!(formatter, "flag {flag}"),
        }
    }
}

/// What the flags of the command line set. They beat every other source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--home`.
    pub home: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--durability`.
    pub durability: Option<String>,
    /// `--log`.
    pub log_level: Option<String>,
    /// `--log-format`.
    pub log_format: Option<String>,
    /// `--set KEY=VALUE`, for every other key, in the order given.
    pub set: Vec<String>,
}

/// A configuration and the origin of each of its values.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration, checked.
    pub config: Config,
    /// Origin of each value by its dotted key.
    pub origins: BTreeMap<String, Origin>,
    /// Path of the configuration file, whether or not it exists.
    pub file: PathBuf,
}

/// Why a configuration was refused. The message says which value, where it was set, and what is accepted.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is no usable home directory.
    #[error("the home directory cannot be used: {reason}; set --home or CCO_HOME to an absolute directory")]
    Home {
        /// Why.
        reason: String,
    },
    /// The file exists and cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// Where it was set.
        origin: Origin,
        /// The key as written.
        key: String,
        /// The nearest key, as the end of a sentence; empty where none is near.
        hint: String,
    },
    /// A value of the wrong type or out of range, or two that contradict each other.
    #[error("{key} ({origin}): {message}")]
    Invalid {
        /// The key.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// What is accepted.
        message: String,
    },
}

impl Config {
    /// The default configuration for `home`, which must be absolute.
    pub fn at(home: impl Into<PathBuf>) -> Self {
        let mut config = Self {
            home: home.into(),
            socket: None,
            log: LogConfig::default(),
            limits: Limits::default(),
            items: ItemsConfig::default(),
            store: StoreConfig::default(),
            access: AccessConfig::default(),
            search: SearchConfig::default(),
            readers: ReadersConfig::default(),
            writer: WriterConfig::default(),
            embedder: EmbedderConfig::default(),
            supervision: SupervisionConfig::default(),
            shutdown: ShutdownConfig::default(),
        };
        config.share_item_limits();
        config
    }

    /// Copies the limits of items to where the socket looks for them: they are set once, in `items`.
    fn share_item_limits(&mut self) {
        let items = &self.items;
        self.limits.max_batch_items = items.store_batch_max as usize;
        self.limits.max_embed_texts = items.store_batch_max as usize;
        self.limits.max_text_bytes = usize::try_from(items.max_text_bytes).unwrap_or(usize::MAX);
        self.limits.max_metadata_bytes = usize::try_from(items.max_metadata_bytes).unwrap_or(usize::MAX);
    }

    /// Merges all sources of this process.
    pub fn load(flags: Overrides) -> Result<Loaded, ConfigError> {
        Self::load_from(flags, std::env::vars_os(), user_home())
    }

    /// Merges `flags`, the variables in `environment` and the file in the home; `user_home` is where `~` points.
    /// Takes its surroundings as arguments so that tests need not change those of the process.
    pub fn load_from(
        flags: Overrides,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        user_home: Option<PathBuf>,
    ) -> Result<Loaded, ConfigError> {
        let schema = Schema::new();
        let environment = environment_settings(&schema, environment)?;
        let flags = flag_settings(&schema, flags)?;

        let home_setting = flags
            .iter()
            .rev()
            .chain(environment.iter())
            .find(|setting| setting.key == "home");
        let (home, home_origin) = match home_setting {
            Some(setting) => (PathBuf::from(&setting.text), setting.origin.clone()),
            None => {
                let user_home = user_home.clone().ok_or_else(|| ConfigError::Home {
                    reason: "this user has no home directory".to_owned(),
                })?;
                (user_home.join(".cco"), Origin::Default)
            }
        };
        let home = absolute(&home, user_home.as_deref())?;
        let file = home.join("ccod.toml");
        let file_settings = file_settings(&schema, &file)?;

        let mut figment = Figment::from(Serialized::defaults(Self::at(home.clone())));
        let mut origins: BTreeMap<String, Origin> =
            schema.keys().map(|key| (key.to_owned(), Origin::Default)).collect();
        // From the weakest to the strongest: each merge overwrites.
        for setting in file_settings.into_iter().chain(environment).chain(flags) {
            if setting.key != "home" {
                origins.insert(setting.key.clone(), setting.origin.clone());
                figment = figment.merge(setting);
            }
        }
        origins.insert("home".to_owned(), home_origin);

        let mut config: Self = figment.extract().map_err(|error| extraction_error(&error, &origins))?;
        config.share_item_limits();
        for (key, path) in [("socket", &mut config.socket), ("log.file", &mut config.log.file)] {
            let Some(path) = path else { continue };
            // A relative path is relative to where it was written: in the file, to the file's directory.
            let written = match origins.get(key) {
                Some(Origin::File { .. }) if !path.starts_with("~") => config.home.join(&*path),
                _ => path.clone(),
            };
            *path = absolute(&written, user_home.as_deref())?;
        }
        if let Err(Problem { key, message }) = config.check() {
            let origin = origins.get(&key).cloned().unwrap_or(Origin::Default);
            return Err(ConfigError::Invalid { key, origin, message });
        }
        Ok(Loaded { config, origins, file })
    }

    /// Checks that the values are possible and fit together. [`Config::load`] has done it; a configuration
    /// built by hand should call it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check().map_err(|Problem { key, message }| ConfigError::Invalid {
            key,
            origin: Origin::Default,
            message,
        })
    }

    /// Path of the socket.
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.default_socket_path())
    }

    /// Path of the socket where nothing else is said.
    pub fn default_socket_path(&self) -> PathBuf {
        self.run_dir().join("ccod.sock")
    }

    /// Directory of the projects' databases.
    pub fn knowledge_dir(&self) -> PathBuf {
        self.home.join("knowledge")
    }

    /// Directory of the socket, the lock and the log.
    pub fn run_dir(&self) -> PathBuf {
        self.home.join("run")
    }

    /// The file whose lock the running daemon holds.
    pub fn lock_path(&self) -> PathBuf {
        self.run_dir().join("ccod.lock")
    }

    /// The file whose lock the daemon holds that writes to the projects.
    pub fn store_lock_path(&self) -> PathBuf {
        self.knowledge_dir().join(STORE_LOCK_FILE)
    }

    /// Log of a daemon in the background.
    pub fn log_path(&self) -> PathBuf {
        self.log.file.clone().unwrap_or_else(|| self.run_dir().join("ccod.log"))
    }

    /// Directory of further models.
    pub fn models_dir(&self) -> PathBuf {
        self.home.join("models")
    }

    /// Every value by its dotted key, sorted.
    pub fn values(&self) -> Vec<(String, serde_json::Value)> {
        let mut values = Vec::new();
        flatten("", &to_json(self), &mut values);
        values.retain(|(key, _)| !SHARED_LIMITS.contains(&key.as_str()));
        values.sort_by(|left, right| left.0.cmp(&right.0));
        values
    }

    fn check(&self) -> Result<(), Problem> {
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

/// A value that cannot be used, before it is known where it was set.
struct Problem {
    key: String,
    message: String,
}

impl Problem {
    fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
        }
    }
}

/// The keys that exist, with their default values, which also tell the type.
struct Schema {
    defaults: BTreeMap<String, serde_json::Value>,
}

impl Schema {
    fn new() -> Self {
        Self {
            defaults: Config::default().values().into_iter().collect(),
        }
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        self.defaults.keys().map(String::as_str)
    }

    fn contains(&self, key: &str) -> bool {
        self.defaults.contains_key(key)
    }

    fn is_section(&self, key: &str) -> bool {
        let prefix = format!("{key}.");
        self.keys().any(|known| known.starts_with(&prefix))
    }

    /// Whether `name` is a section or is meant to be one. What resembles none is another program's.
    fn resembles_section(&self, name: &str) -> bool {
        self.keys()
            .filter_map(|known| known.split_once('.'))
            .any(|(section, _)| strsim::jaro_winkler(name, section) > 0.85)
    }

    /// The end of the message about an unknown key.
    fn hint(&self, key: &str) -> String {
        if let Some((section, _)) = key.rsplit_once('.')
            && self.contains(section)
        {
            return format!("; `{section}` is a value, not a section");
        }
        let leaf = key.rsplit('.').next().unwrap_or(key);
        let nearest = self
            .keys()
            .map(|known| {
                let known_leaf = known.rsplit('.').next().unwrap_or(known);
                // The whole key, or its last part under another section (`retention_days` for
                // `store.retention_days`).
                let likeness = strsim::jaro_winkler(key, known).max(strsim::jaro_winkler(leaf, known_leaf) * 0.98);
                (likeness, known)
            })
            .max_by(|left, right| left.0.total_cmp(&right.0));
        match nearest {
            Some((likeness, known)) if likeness > 0.8 => format!("; did you mean `{known}`?"),
            _ => "; `ccoctl config show` lists all keys".to_owned(),
        }
    }
}

/// One value from one place. Each is a provider of its own, so that figment knows the exact place of each.
#[derive(Clone, Debug)]
struct Setting {
    key: String,
    /// The value as text, for the keys that are paths.
    text: String,
    value: Value,
    origin: Origin,
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.key, self.value.clone());
        let dict = nested
            .into_dict()
            .ok_or_else(|| figment::Error::from(format!("`{}` is not a key", self.key)))?;
        Ok(Profile::Default.collect(dict))
    }
}

/// A text from the environment or a flag, read as the type that the key has.
fn setting_from_text(schema: &Schema, key: &str, text: String, origin: Origin) -> Setting {
    let value = match schema.defaults.get(key) {
        // A number or bool that does not parse stays text, so that the error quotes it. What has no default
        // is a number as well, but for the paths.
        Some(serde_json::Value::Number(_) | serde_json::Value::Null) if !["socket", "log.file"].contains(&key) => text
            .replace('_', "")
            .parse::<u64>()
            .map_or_else(|_| Value::from(text.clone()), Value::from),
        Some(serde_json::Value::Bool(_)) => text
            .parse::<bool>()
            .map_or_else(|_| Value::from(text.clone()), Value::from),
        _ => Value::from(text.clone()),
    };
    Setting {
        key: key.to_owned(),
        text,
        value,
        origin,
    }
}

/// The variables that are ours. Others of the same prefix belong to other parts of CCO and are left alone,
/// unless they name one of our sections.
fn environment_settings(
    schema: &Schema,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Setting>, ConfigError> {
    let mut settings = Vec::new();
    for (variable, text) in environment {
        let Some(variable) = variable.to_str() else {
            continue;
        };
        let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else {
            continue;
        };
        let alias = ENVIRONMENT_ALIASES
            .iter()
            .find(|(alias, _)| *alias == variable)
            .map(|(_, key)| (*key).to_owned());
        let key = alias.unwrap_or_else(|| name.to_lowercase().replace("__", "."));
        let origin = Origin::Environment {
            variable: variable.to_owned(),
        };
        if !schema.contains(&key) {
            let section = key.split('.').next().unwrap_or_default();
            if name.contains("__") && schema.resembles_section(section) {
                return Err(ConfigError::UnknownKey {
                    origin,
                    hint: schema.hint(&key),
                    key,
                });
            }
            continue;
        }
        // An empty variable counts as unset, as it does for most tools.
        if text.is_empty() {
            continue;
        }
        let text = text.into_string().map_err(|_| ConfigError::Invalid {
            key: key.clone(),
            origin: origin.clone(),
            message: "must be valid UTF-8".to_owned(),
        })?;
        settings.push(setting_from_text(schema, &key, text, origin));
    }
    // A nested name beats its short form whatever the order of the environment, so that the result is stable.
    settings.sort_by_key(|setting| match &setting.origin {
        Origin::Environment { variable } => (variable.contains("__"), variable.clone()),
        _ => (false, String::new()),
    });
    Ok(settings)
}

fn flag_settings(schema: &Schema, flags: Overrides) -> Result<Vec<Setting>, ConfigError> {
    let mut settings = Vec::new();
    for assignment in flags.set {
        let origin = Origin::Flag {
            flag: "--set".to_owned(),
        };
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(ConfigError::Invalid {
                key: assignment,
                origin,
                message: "takes the form KEY=VALUE, such as limits.max_connections=64".to_owned(),
            });
        };
        if !schema.contains(key) {
            return Err(ConfigError::UnknownKey {
                origin,
                key: key.to_owned(),
                hint: schema.hint(key),
            });
        }
        settings.push(setting_from_text(schema, key, text.to_owned(), origin));
    }
    let path_text = |path: Option<PathBuf>, key: &str, flag: &str| match path {
        None => Ok(None),
        Some(path) => path
            .into_os_string()
            .into_string()
            .map(Some)
            .map_err(|_| ConfigError::Invalid {
                key: key.to_owned(),
                origin: Origin::Flag { flag: flag.to_owned() },
                message: "must be valid UTF-8".to_owned(),
            }),
    };
    let named = [
        ("home", "--home", path_text(flags.home, "home", "--home")?),
        ("socket", "--socket", path_text(flags.socket, "socket", "--socket")?),
        ("store.durability", "--durability", flags.durability),
        ("log.level", "--log", flags.log_level),
        ("log.format", "--log-format", flags.log_format),
    ];
    for (key, flag, text) in named {
        if let Some(text) = text {
            let origin = Origin::Flag { flag: flag.to_owned() };
            settings.push(setting_from_text(schema, key, text, origin));
        }
    }
    Ok(settings)
}

/// Whether there is no file, also as what should be its directory is none: whoever needs that says so.
fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// The values of the file, each with its line; an absent file has none.
fn file_settings(schema: &Schema, path: &Path) -> Result<Vec<Setting>, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(source) => {
            return Err(ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            });
        }
    };
    // toml_edit rather than figment's own provider, because only it keeps the position of each key.
    let document = toml_edit::ImDocument::parse(text.as_str()).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_at(&text, span.start)),
        message: error.message().replace('\n', ", "),
    })?;
    let mut settings = Vec::new();
    collect_table(schema, path, &text, "", document.as_table(), &mut settings)?;
    Ok(settings)
}

fn collect_table(
    schema: &Schema,
    path: &Path,
    text: &str,
    prefix: &str,
    table: &dyn toml_edit::TableLike,
    settings: &mut Vec<Setting>,
) -> Result<(), ConfigError> {
    for (name, item) in table.iter() {
        let key = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}.{name}")
        };
        let position = table
            .key(name)
            .and_then(toml_edit::Key::span)
            .or_else(|| item.span())
            .map_or(0, |span| span.start);
        let origin = Origin::File {
            path: path.to_owned(),
            line: line_at(text, position),
        };
        if key == "home" {
            return Err(ConfigError::Invalid {
                key,
                origin,
                message: "cannot be set in the file, which is found through it; set --home or CCO_HOME".to_owned(),
            });
        }
        if let Some(section) = item.as_table_like()
            && schema.is_section(&key)
        {
            collect_table(schema, path, text, &key, section, settings)?;
            continue;
        }
        if !schema.contains(&key) {
            if schema.is_section(&key) {
                return Err(ConfigError::Invalid {
                    message: format!("is a section; write [{key}] and its keys below it"),
                    key,
                    origin,
                });
            }
            return Err(ConfigError::UnknownKey {
                origin,
                hint: schema.hint(&key),
                key,
            });
        }
        let Some(value) = item.as_value().and_then(scalar) else {
            return Err(ConfigError::Invalid {
                key,
                origin,
                message: "takes a single value: a number, a text in quotes, true or false".to_owned(),
            });
        };
        let value_text = value.as_str().unwrap_or_default().to_owned();
        settings.push(Setting {
            key,
            text: value_text,
            value,
            origin,
        });
    }
    Ok(())
}

/// The value as figment's, where it is one that a key can have.
fn scalar(value: &toml_edit::Value) -> Option<Value> {
    match value {
        toml_edit::Value::String(text) => Some(Value::from(text.value().clone())),
        toml_edit::Value::Integer(number) => Some(Value::from(*number.value())),
        toml_edit::Value::Float(number) => Some(Value::from(*number.value())),
        toml_edit::Value::Boolean(flag) => Some(Value::from(*flag.value())),
        toml_edit::Value::Datetime(_) | toml_edit::Value::Array(_) | toml_edit::Value::InlineTable(_) => None,
    }
}

fn line_at(text: &str, position: usize) -> usize {
    let before = text.as_bytes().get(..position).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn extraction_error(error: &figment::Error, origins: &BTreeMap<String, Origin>) -> ConfigError {
    let key = error.path.join(".");
    ConfigError::Invalid {
        origin: origins.get(&key).cloned().unwrap_or(Origin::Default),
        key,
        message: error.kind.to_string(),
    }
}

/// `path` made absolute against the current directory, with a leading `~` resolved.
fn absolute(path: &Path, user_home: Option<&Path>) -> Result<PathBuf, ConfigError> {
    let expanded = match (path.strip_prefix("~"), user_home) {
        (Ok(rest), Some(user_home)) => user_home.join(rest),
        _ => path.to_owned(),
    };
    std::path::absolute(&expanded).map_err(|error| ConfigError::Home {
        reason: format!("{}: {error}", expanded.display()),
    })
}

/// `$HOME`, else what the user database says (a service may run without the variable).
fn user_home() -> Option<PathBuf> {
    if let Some(home) = std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        return Some(PathBuf::from(home));
    }
    nix::unistd::User::from_uid(nix::unistd::Uid::effective())
        .ok()
        .flatten()
        .map(|user| user.dir)
}

fn to_json(value: &impl Serialize) -> serde_json::Value {
    // Plain structs of numbers, texts and paths that were made from UTF-8: this cannot fail.
    serde_json::to_value(value).unwrap_or_default()
}

fn flatten(prefix: &str, value: &serde_json::Value, into: &mut Vec<(String, serde_json::Value)>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                let key = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&key, field, into);
            }
        }
        leaf => into.push((prefix.to_owned(), leaf.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(home: &Path, flags: Overrides, environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let home_variable = [(OsString::from("CCO_HOME"), home.as_os_str().to_owned())];
        let environment = environment
            .iter()
            .map(|(name, value)| (OsString::from(*name), OsString::from(*value)))
            .chain(home_variable);
        Config::load_from(flags, environment, None)
    }

    fn home_with(text: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().expect("tempdir");
        std::fs::write(home.path().join("ccod.toml"), text).expect("written");
        home
    }

    fn set(assignments: &[&str]) -> Overrides {
        Overrides {
            set: assignments.iter().map(|assignment| (*assignment).to_owned()).collect(),
            ..Overrides::default()
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        Config::at("/home/someone/.cco").validate().expect("valid");
        let home = tempfile::tempdir().expect("tempdir");
        let loaded = load(home.path(), Overrides::default(), &[]).expect("loads");
        assert_eq!(loaded.config, Config::at(home.path()));
        assert_eq!(loaded.config.socket_path(), home.path().join("run/ccod.sock"));
        assert_eq!(loaded.origins["readers.queue"], Origin::Default);
    }

    #[test]
    fn flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults() {
        let home = home_with(
            "# limits of this machine\n[readers]\nworkers = 2\nqueue = 20\n\n[writer]\nqueue_ops = 21\n[embedder]\nwarm = true\n",
        );
        let loaded = load(
            home.path(),
            set(&["readers.workers=4"]),
            &[("CCO_READERS__WORKERS", "3"), ("CCO_READERS__QUEUE", "30")],
        )
        .expect("loads");
        let config = loaded.config;
        assert_eq!(config.readers.workers, 4);
        assert_eq!(config.readers.queue, 30);
        assert_eq!(config.writer.queue_ops, 21);
        assert!(config.embedder.warm);
        assert_eq!(config.writer.max_group_rows, 1_000);

        let origin = |key: &str| loaded.origins[key].to_string();
        assert_eq!(origin("readers.workers"), "flag --set");
        assert_eq!(origin("readers.queue"), "environment variable CCO_READERS__QUEUE");
        let file = home.path().join("ccod.toml");
        assert_eq!(origin("writer.queue_ops"), format!("{}:7", file.display()));
        assert_eq!(origin("writer.max_group_rows"), "default");
        assert_eq!(origin("home"), "environment variable CCO_HOME");
    }

    #[test]
    fn short_variables_stand_for_nested_keys() {
        let home = tempfile::tempdir().expect("tempdir");
        let loaded = load(
            home.path(),
            Overrides::default(),
            &[
                ("CCO_DURABILITY", "fast"),
                ("CCO_LOG", "debug"),
                ("CCO_LOG_FORMAT", "json"),
                ("CCO_SOCKET", "/tmp/s.sock"),
            ],
        )
        .expect("loads");
        assert_eq!(loaded.config.store.durability, Durability::Fast);
        assert_eq!(loaded.config.log.level, "debug");
        assert_eq!(loaded.config.log.format, LogFormat::Json);
        assert_eq!(loaded.config.socket_path(), Path::new("/tmp/s.sock"));
        assert_eq!(
            loaded.origins["store.durability"],
            Origin::Environment {
                variable: "CCO_DURABILITY".to_owned()
            }
        );
    }

    #[test]
    fn empty_and_foreign_variables_are_left_alone() {
        let home = tempfile::tempdir().expect("tempdir");
        let loaded = load(
            home.path(),
            Overrides::default(),
            &[
                ("CCO_SOCKET", ""),
                ("CCO_PROJECT", "x"),
                ("CCO_UI__THEME", "dark"),
                ("PATH", "/bin"),
            ],
        )
        .expect("loads");
        assert_eq!(loaded.config, Config::at(home.path()));
    }

    #[test]
    fn a_misspelled_variable_of_ours_is_refused() {
        let home = tempfile::tempdir().expect("tempdir");
        let error = load(home.path(), Overrides::default(), &[("CCO_READERS__WORKER", "3")]).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "environment variable CCO_READERS__WORKER: unknown key `readers.worker`; did you mean `readers.workers`?"
        );
        for (variable, key) in [
            ("CCO_LIMITZ__X", "limitz.x"),
            ("CCO_LIMIT__MAX_CONNECTIONS", "limit.max_connections"),
            ("CCO_READER__WORKERS", "reader.workers"),
        ] {
            let error = load(home.path(), Overrides::default(), &[(variable, "3")]).expect_err(variable);
            assert!(error.to_string().contains(&format!("unknown key `{key}`")), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_name() {
        for (text, line, key, nearest) in [
            (
                "[readers]\nqueue = 3\nworkes = 3\n",
                3,
                "readers.workes",
                Some("readers.workers"),
            ),
            (
                "retention_days = 3\n",
                1,
                "retention_days",
                Some("store.retention_days"),
            ),
            ("\n[limit]\nmax_connections = 3\n", 2, "limit", None),
            ("log.level = \"debug\"\nlog.colour = 1\n", 2, "log.colour", None),
            ("x9 = 1\n", 1, "x9", None),
        ] {
            let home = home_with(text);
            let error = load(home.path(), Overrides::default(), &[]).expect_err(text);
            let message = error.to_string();
            let file = home.path().join("ccod.toml");
            assert!(
                message.starts_with(&format!("{}:{line}: unknown key `{key}`; ", file.display())),
                "{message}"
            );
            if let Some(nearest) = nearest {
                assert!(message.ends_with(&format!("did you mean `{nearest}`?")), "{message}");
            }
        }
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_place() {
        let home = home_with("[readers]\nqueue = \"many\"\n");
        let error = load(home.path(), Overrides::default(), &[])
            .expect_err("refused")
            .to_string();
        assert!(error.starts_with("readers.queue ("), "{error}");
        assert!(error.contains("ccod.toml:2)"), "{error}");

        let home = tempfile::tempdir().expect("tempdir");
        let error = load(home.path(), Overrides::default(), &[("CCO_DURABILITY", "maybe")]).expect_err("refused");
        let error = error.to_string();
        assert!(error.contains("CCO_DURABILITY") && error.contains("maybe"), "{error}");
        assert!(error.contains("full") && error.contains("fast"), "{error}");

        let error = load(home.path(), set(&["readers.queue=-1"]), &[])
            .expect_err("refused")
            .to_string();
        assert!(error.starts_with("readers.queue (flag --set)"), "{error}");
    }

    #[test]
    fn limits_of_items_are_set_in_one_place() {
        let home = tempfile::tempdir().expect("tempdir");
        let loaded = load(home.path(), set(&["items.max_text_bytes=5000"]), &[]).expect("loads");
        assert_eq!(loaded.config.limits.max_text_bytes, 5_000);
        let error = load(home.path(), set(&["limits.max_text_bytes=5000"]), &[])
            .expect_err("refused")
            .to_string();
        assert!(error.contains("did you mean `items.max_text_bytes`?"), "{error}");
    }

    #[test]
    fn values_that_contradict_each_other_are_refused() {
        let home = tempfile::tempdir().expect("tempdir");
        for (assignment, key) in [
            ("readers.queue=0", "readers.queue"),
            ("embedder.batch_tokens=100", "embedder.batch_tokens"),
            ("embedder.bulk_queue_tokens=400", "embedder.bulk_queue_tokens"),
            ("embedder.bulk_quantum_tokens=4096", "embedder.bulk_quantum_tokens"),
            ("writer.queue_bytes=4194304", "writer.max_group_bytes"),
            ("items.max_text_bytes=999999999", "items.max_text_bytes"),
            ("limits.max_depth=1000", "limits.max_depth"),
            ("shutdown.grace_ms=1000", "limits.shutdown_grace_ms"),
            ("supervision.backoff_ms=6000", "supervision.backoff_ms"),
            ("limits.max_connections=0", "limits.max_connections"),
            ("store.retention_days=36501", "store.retention_days"),
        ] {
            let error = load(home.path(), set(&[assignment]), &[]).expect_err(assignment);
            assert!(
                error.to_string().starts_with(&format!("{key} (")),
                "{assignment}: {error}"
            );
        }
    }

    #[test]
    fn a_socket_path_that_no_kernel_takes_is_refused() {
        let home = tempfile::tempdir().expect("tempdir");
        let flags = Overrides {
            socket: Some(PathBuf::from(format!("/{}", "s".repeat(120)))),
            ..Overrides::default()
        };
        let error = load(home.path(), flags, &[]).expect_err("refused").to_string();
        assert!(error.starts_with("socket (flag --socket)"), "{error}");
        assert!(error.contains("121 bytes") && error.contains("CCO_SOCKET"), "{error}");
    }

    #[test]
    fn the_file_cannot_name_the_home_it_lies_in() {
        let home = home_with("home = \"/elsewhere\"\n");
        let error = load(home.path(), Overrides::default(), &[])
            .expect_err("refused")
            .to_string();
        assert!(error.contains("CCO_HOME"), "{error}");
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        let home = home_with("[readers]\nqueue = \n");
        let error = load(home.path(), Overrides::default(), &[])
            .expect_err("refused")
            .to_string();
        assert!(error.contains("ccod.toml:2: "), "{error}");
        let home = home_with("readers = 3\n");
        let error = load(home.path(), Overrides::default(), &[])
            .expect_err("refused")
            .to_string();
        assert!(error.contains("write [readers]"), "{error}");
    }

    #[test]
    fn homes_are_made_absolute() {
        let user = tempfile::tempdir().expect("tempdir");
        let default = Config::load_from(Overrides::default(), [], Some(user.path().to_owned())).expect("loads");
        assert_eq!(default.config.home, user.path().join(".cco"));
        let tilde = Overrides {
            home: Some(PathBuf::from("~/other")),
            ..Overrides::default()
        };
        let tilde = Config::load_from(tilde, [], Some(user.path().to_owned())).expect("loads");
        assert_eq!(tilde.config.home, user.path().join("other"));
        let relative = Overrides {
            home: Some(PathBuf::from("here")),
            ..Overrides::default()
        };
        let relative = Config::load_from(relative, [], None).expect("loads");
        assert!(relative.config.home.is_absolute());
        let error = Config::load_from(Overrides::default(), [], None)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("--home"), "{error}");
    }

    #[test]
    fn a_relative_socket_is_relative_to_where_it_was_written() {
        let home = home_with("socket = \"run/other.sock\"\n");
        let loaded = load(home.path(), Overrides::default(), &[]).expect("loads");
        assert_eq!(loaded.config.socket_path(), home.path().join("run/other.sock"));
        let flags = Overrides {
            socket: Some(PathBuf::from("other.sock")),
            ..Overrides::default()
        };
        let loaded = load(home.path(), flags, &[]).expect("loads");
        let here = std::env::current_dir().expect("current directory");
        assert_eq!(loaded.config.socket_path(), here.join("other.sock"));
        assert_eq!(loaded.config.log_path(), home.path().join("run/ccod.log"));
    }

    #[test]
    fn so_is_the_log() {
        let home = home_with("[log]\nfile = \"logs/ccod.log\"\n");
        let loaded = load(home.path(), Overrides::default(), &[]).expect("loads");
        assert_eq!(loaded.config.log_path(), home.path().join("logs/ccod.log"));
        let flags = Overrides {
            set: vec!["log.file=12".to_owned()],
            ..Overrides::default()
        };
        let loaded = load(home.path(), flags, &[]).expect("loads");
        assert_eq!(
            loaded.config.log_path(),
            std::env::current_dir().expect("here").join("12")
        );
    }

    #[test]
    fn every_key_is_documented_with_its_default() {
        let document = include_str!("../docs/configuration.md");
        for (key, value) in Config::default().values() {
            if key == "home" {
                continue;
            }
            let row = document
                .lines()
                .find(|line| line.starts_with(&format!("| `{key}` |")))
                .unwrap_or_else(|| panic!("docs/configuration.md has no row for {key}"));
            let shown = match &value {
                serde_json::Value::Null => continue,
                serde_json::Value::String(text) if text.is_empty() => "`\"\"`".to_owned(),
                serde_json::Value::String(text) => format!("`{text}`"),
                other => format!("`{other}`"),
            };
            assert!(row.contains(&format!("| {shown} |")), "{key} is {shown}: {row}");
        }
    }
}
