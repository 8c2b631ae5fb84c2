//! All settings, and the paths that follow from them.

use std::path::PathBuf;

use ccod_protocol::limits::Limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{SHARED_LIMITS, flatten, to_json};
use super::sections::{
    AccessConfig, EmbedderConfig, ItemsConfig, LogConfig, ReadersConfig, SearchConfig, ShutdownConfig, StoreConfig,
    SupervisionConfig, WriterConfig,
};

/// Name of the file in `knowledge/` that the daemon locks, for the command line, which does not know the engine.
const STORE_LOCK_FILE: &str = ".lock";

#[cfg(all(test, feature = "engine"))]
#[test]
fn the_lock_of_the_store_is_where_the_store_has_it() {
    assert_eq!(STORE_LOCK_FILE, ccod_actors::store::lock::LOCK_FILE);
}

/// The whole configuration. [`Config::load`] builds it; [`Config::at`] gives the defaults for a home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Everything the daemon keeps: `knowledge/`, `run/`, `models/`, `ccod.toml`, `projects.json`. Not a key of the
    /// file, which is found through it.
    pub home: PathBuf,
    /// At most 107 bytes on Linux and 103 on macOS, a limit of Unix sockets.
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
    pub(super) fn share_item_limits(&mut self) {
        let items = &self.items;
        self.limits.max_batch_items = items.store_batch_max as usize;
        self.limits.max_embed_texts = items.store_batch_max as usize;
        self.limits.max_text_bytes = usize::try_from(items.max_text_bytes).unwrap_or(usize::MAX);
        self.limits.max_metadata_bytes = usize::try_from(items.max_metadata_bytes).unwrap_or(usize::MAX);
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
}
