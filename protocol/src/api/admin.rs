//! `admin.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::common::{is_false, out_of_range};
use super::{Durability, ModelIdentity, Params, ProjectError};
use crate::error::WireError;

/// What every `path` must be. Nobody names a file on purpose so that no line can show it, and a newline at the end of
/// what a shell has put together would name another one.
fn check_path(path: &str) -> Result<(), WireError> {
    if path.contains(char::is_control) {
        return Err(WireError::invalid_params(
            "path",
            "`path` holds a control character (such as a newline, a tab or NUL); leave it out",
        ));
    }
    if !path.starts_with('/') {
        return Err(out_of_range(
            "path",
            "an absolute path, for the daemon does not know your working directory",
        ));
    }
    Ok(())
}

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

/// Parameters of `admin.optimize`: none; without `project_id` it means all projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OptimizeParams {}

impl Params for OptimizeParams {}

/// Result of `admin.optimize`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OptimizeResult {
    /// The projects that were worked on.
    pub projects: Vec<String>,
    /// Space that was freed.
    pub freed_bytes: u64,
    /// What was done, by kind.
    pub steps: BTreeMap<String, u64>,
    /// Projects that could not be worked on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
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

/// Parameters of `admin.backup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackupParams {
    /// Where to, absolute.
    pub path: String,
}

impl Params for BackupParams {
    fn check(&self) -> Result<(), WireError> {
        check_path(&self.path)
    }
}

/// Result of `admin.backup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BackupResult {
    /// Where it is.
    pub path: String,
    /// The projects in it.
    pub projects: Vec<String>,
    /// Items in it.
    pub items: u64,
    /// Its size.
    pub bytes: u64,
    /// Projects that are not in it, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What of those that are in it was lost before, so that only an older backup holds it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<String>,
}

/// Parameters of `admin.restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreParams {
    /// Where from, absolute.
    pub path: String,
}

impl Params for RestoreParams {
    fn check(&self) -> Result<(), WireError> {
        check_path(&self.path)
    }
}

/// Result of `admin.restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RestoreResult {
    /// The projects that were replaced or added.
    pub projects: Vec<String>,
    /// Items in them.
    pub items: u64,
    /// Where the old ones are kept.
    pub kept_aside: Vec<String>,
    /// What has to be done before some of them can be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Parameters of `admin.verify`: none; without `project_id` it means all projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyParams {}

impl Params for VerifyParams {}

/// Something that a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Finding {
    /// Where.
    pub project_id: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// Result of `admin.verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct VerifyResult {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// The projects that were read.
    pub projects: Vec<String>,
    /// Rows that were read.
    pub rows: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Parameters of `admin.import`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportParams {
    /// Where from, absolute.
    pub path: String,
    /// Counts, but imports nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

impl Params for ImportParams {
    fn check(&self) -> Result<(), WireError> {
        check_path(&self.path)
    }
}

/// Result of `admin.import`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImportResult {
    /// Items that were imported, or would be.
    pub imported: u64,
    /// Items that were there already.
    pub duplicates: u64,
    /// Items that were left out, by reason: `unreadable`, or the `kind` of the error that `knowledge.store` would
    /// have answered (`invalid_params`, `already_exists`, ...).
    pub skipped: BTreeMap<String, u64>,
    /// The first of those that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ImportProblem>,
    /// Whether it only counted.
    pub dry_run: bool,
}

/// An item that was not imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ImportProblem {
    /// Where it begins in the file, in lines from 1.
    pub line: u64,
    /// Its id, if it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Why, and what to do.
    pub message: String,
}

/// Parameters of `admin.export`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExportParams {
    /// Where to, absolute.
    pub path: String,
    /// In which format: `jsonl` or `markdown`. If absent, a path that ends in `.md` means `markdown`, any other
    /// `jsonl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

impl Params for ExportParams {
    fn check(&self) -> Result<(), WireError> {
        check_path(&self.path)?;
        match self.format.as_deref() {
            None | Some("jsonl" | "markdown") => Ok(()),
            Some(_) => Err(out_of_range("format", "`jsonl` or `markdown`")),
        }
    }
}

/// Result of `admin.export`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExportResult {
    /// Where it is.
    pub path: String,
    /// In which format it is.
    pub format: String,
    /// Items in it.
    pub items: u64,
    /// Its size.
    pub bytes: u64,
    /// Why it may be less than was stored, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
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
