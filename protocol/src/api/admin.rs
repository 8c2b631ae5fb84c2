//! `admin.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::common::is_false;
use super::{Durability, ModelIdentity, Params, ProjectError};

/// Parameters of `admin.health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HealthParams {
    /// Also tests a real write, search and delete, in a project of its own.
    #[serde(skip_serializing_if = "is_false")]
    pub deep: bool,
}

impl Params for HealthParams {}

/// The state of the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// A part of the daemon has not started yet and is being retried; `reasons` names it.
    Starting,
    /// Everything works.
    #[default]
    Ok,
    /// Something does not work; `reasons` says what.
    Degraded,
    /// The daemon finishes what it accepted, and then ends.
    Stopping,
}

/// Result of `admin.health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthResult {
    /// The state of the daemon.
    pub status: HealthStatus,
    /// Why the status is not `ok`.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Milliseconds since the daemon started.
    pub uptime_ms: u64,
}

/// Parameters of `admin.status`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatusParams {}

impl Params for StatusParams {}

/// One actor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ActorStatus {
    /// The state of the actor: running, restarting, degraded, idle, ...
    pub state: String,
    /// How often the actor was restarted.
    pub restarts: u64,
    /// Requests that wait in its queues, by queue.
    pub queue_depth: BTreeMap<String, u64>,
    /// Batches it has run.
    pub batches: u64,
    /// How many of its batches were run, by cause.
    pub flush_causes: BTreeMap<String, u64>,
    /// Other numbers it counts.
    pub counters: BTreeMap<String, u64>,
    /// Why the actor failed the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The model and what runs it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModelStatus {
    /// The name, hash and dimensions of the model.
    #[serde(flatten)]
    pub identity: ModelIdentity,
    /// The engine that runs it.
    pub engine: String,
    /// How exactly the engine computes: `int8` or `exact` (float32).
    pub precision: String,
    /// Whether it is loaded into memory.
    pub loaded: bool,
    /// How long loading took, in milliseconds; null until it is loaded.
    pub load_ms: Option<f64>,
    /// The most tokens of a passage.
    pub max_tokens: u32,
}

/// Memory of the process, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MemoryStatus {
    /// Resident memory now.
    pub rss_bytes: u64,
    /// The most resident memory since the start.
    pub peak_rss_bytes: u64,
}

/// One project in detail.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProjectStatus {
    /// The name of the project.
    pub project_id: String,
    /// Live items.
    pub items: u64,
    /// Rows of its table, including closed ones and further passages.
    pub rows: u64,
    /// Bytes on disk.
    pub bytes_on_disk: u64,
    /// Fragments of its table.
    pub fragments: u64,
    /// Versions on disk.
    pub versions: u64,
    /// Rows that no index covers.
    pub unindexed_rows: u64,
    /// Maintenance that is due, by kind.
    pub maintenance_debt: BTreeMap<String, u64>,
    /// Why the project cannot be used, if so: `needs_migration`, `unreadable` (only its bytes are counted) or
    /// `damaged` (only what can be read is counted).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Result of `admin.status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StatusResult {
    /// The daemon's version.
    pub version: String,
    /// The id of the daemon's process.
    pub pid: u32,
    /// The state of the daemon.
    pub status: HealthStatus,
    /// Why the status is not `ok`.
    pub reasons: Vec<String>,
    /// Milliseconds since the daemon started.
    pub uptime_ms: u64,
    /// The home directory of the daemon.
    pub home: String,
    /// The path of the daemon's socket.
    pub socket: String,
    /// What the acknowledgements of this daemon promise.
    pub durability: Durability,
    /// The actors, by name.
    pub actors: BTreeMap<String, ActorStatus>,
    /// The model.
    pub model: ModelStatus,
    /// The memory of the process.
    pub memory: MemoryStatus,
    /// Its caches: bytes, entries, hits, by cache.
    pub caches: BTreeMap<String, BTreeMap<String, u64>>,
    /// The limits, as configured.
    pub limits: serde_json::Map<String, serde_json::Value>,
    /// Counters of the socket: connections, requests, errors, bytes.
    pub server: serde_json::Map<String, serde_json::Value>,
    /// The projects.
    pub projects: Vec<ProjectStatus>,
    /// Why some projects could not be read, in whole or in part: those whose `state` is `unreadable` or `damaged`, and
    /// what was set aside in the data directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
    /// What the daemon repaired when it started, and what its data directory holds that is not served.
    pub recovery: Vec<String>,
}

/// Parameters of `admin.metrics`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsParams {}

impl Params for MetricsParams {}

/// Result of `admin.metrics`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsResult {
    /// The metrics in Prometheus' text format.
    pub text: String,
}

/// Parameters of `admin.reembed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReembedParams {
    /// The model to change to; if absent, the configured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl Params for ReembedParams {}

/// Result of `admin.reembed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReembedResult {
    /// How many items have a new vector.
    pub reembedded: u64,
    /// The model that made the new vectors.
    pub model: ModelIdentity,
}

/// Parameters of `admin.shutdown`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShutdownParams {}

impl Params for ShutdownParams {}

/// Result of `admin.shutdown`, sent before the daemon ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShutdownResult {
    /// Always true: the daemon is stopping.
    pub stopping: bool,
    /// Milliseconds within which the daemon ends, whatever still runs. Zero if the daemon does not report it.
    #[serde(default)]
    pub grace_ms: u64,
}
