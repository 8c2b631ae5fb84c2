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
    /// Proves it by a real write, search and delete in a project of its own.
    #[serde(skip_serializing_if = "is_false")]
    pub deep: bool,
}

impl Params for HealthParams {}

/// How the daemon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// A part has not come up yet since the start, and is being tried again; `reasons` say which.
    Starting,
    /// Everything works.
    #[default]
    Ok,
    /// Something does not; `reasons` say what.
    Degraded,
    /// It is finishing what it accepted.
    Stopping,
}

/// Result of `admin.health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthResult {
    /// How the daemon is.
    pub status: HealthStatus,
    /// Why it is not ok.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Milliseconds since it started.
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
    /// What it does: running, restarting, degraded, idle, ...
    pub state: String,
    /// How often it was restarted.
    pub restarts: u64,
    /// Requests that wait in its queues, by queue.
    pub queue_depth: BTreeMap<String, u64>,
    /// Batches it has run.
    pub batches: u64,
    /// Why its batches were run, by cause.
    pub flush_causes: BTreeMap<String, u64>,
    /// Other numbers it counts.
    pub counters: BTreeMap<String, u64>,
    /// Why it last failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The model and what runs it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModelStatus {
    /// Which model.
    #[serde(flatten)]
    pub identity: ModelIdentity,
    /// What runs it.
    pub engine: String,
    /// Whether it is in memory.
    pub loaded: bool,
    /// How long loading took, in milliseconds; null before that.
    pub load_ms: Option<f64>,
    /// The most tokens of a passage.
    pub max_tokens: u32,
}

/// Memory of the process, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MemoryStatus {
    /// In memory now.
    pub rss_bytes: u64,
    /// The most it ever was.
    pub peak_rss_bytes: u64,
}

/// One project in detail.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProjectStatus {
    /// Its name.
    pub project_id: String,
    /// Live items.
    pub items: u64,
    /// Rows, closed ones and further passages included.
    pub rows: u64,
    /// Space on disk.
    pub bytes_on_disk: u64,
    /// Fragments of its table.
    pub fragments: u64,
    /// Versions on disk.
    pub versions: u64,
    /// Rows that no index covers.
    pub unindexed_rows: u64,
    /// Maintenance that is due, by kind.
    pub maintenance_debt: BTreeMap<String, u64>,
    /// Why it cannot be used, if it cannot: `needs_migration`, `unreadable` (then only its bytes are counted), or
    /// `damaged` (then what of it can be read is counted).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Result of `admin.status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StatusResult {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How it is.
    pub status: HealthStatus,
    /// Why it is not ok.
    pub reasons: Vec<String>,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Its home directory.
    pub home: String,
    /// Its socket.
    pub socket: String,
    /// What its acknowledgements promise.
    pub durability: Durability,
    /// Its actors, by name.
    pub actors: BTreeMap<String, ActorStatus>,
    /// The model.
    pub model: ModelStatus,
    /// Its memory.
    pub memory: MemoryStatus,
    /// Its caches: bytes, entries, hits, by cache.
    pub caches: BTreeMap<String, BTreeMap<String, u64>>,
    /// Its limits, as configured.
    pub limits: serde_json::Map<String, serde_json::Value>,
    /// What the socket has seen: connections, requests, errors, bytes.
    pub server: serde_json::Map<String, serde_json::Value>,
    /// Its projects.
    pub projects: Vec<ProjectStatus>,
    /// Why some of them could not be read, as a whole or in part: those whose `state` is `unreadable` or `damaged`, and
    /// what is left aside in the data directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
    /// What it had to repair at its start, and what lies in its data directory and is not served.
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
    /// The model to change to; the configured one if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl Params for ReembedParams {}

/// Result of `admin.reembed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReembedResult {
    /// Items that have a new vector.
    pub reembedded: u64,
    /// The model they have it from.
    pub model: ModelIdentity,
}

/// Parameters of `admin.shutdown`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShutdownParams {}

impl Params for ShutdownParams {}

/// Result of `admin.shutdown`, sent before the daemon ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShutdownResult {
    /// Always true: it is stopping.
    pub stopping: bool,
    /// Milliseconds within which it ends, whatever still runs. Zero from daemons that do not say.
    #[serde(default)]
    pub grace_ms: u64,
}
