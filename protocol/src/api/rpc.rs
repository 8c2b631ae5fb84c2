//! `rpc.*`: the wire about itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Params;

/// The version of this contract, as `rpc.version` names it. It changes when something that worked would
/// no longer work; additions leave it alone.
pub const API_VERSION: &str = "1";

/// The name of the notification that a change feed sends.
pub const KNOWLEDGE_CHANGED: &str = "knowledge.changed";
/// The name of the notification that long calls send.
pub const RPC_PROGRESS: &str = "rpc.progress";

/// Parameters of `rpc.discover`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiscoverParams {}

impl Params for DiscoverParams {}

/// Parameters of `rpc.version`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionParams {}

impl Params for VersionParams {}

/// Result of `rpc.version`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VersionResult {
    /// The daemon's version.
    pub version: String,
    /// The version of the contract: [`API_VERSION`].
    pub api: String,
    /// What this daemon can do: the names of the methods that it serves.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The limits by name, as configured.
    #[serde(default)]
    pub limits: serde_json::Map<String, serde_json::Value>,
}

/// Parameters of `rpc.cancel`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CancelParams {
    /// The id of the request to cancel, as it was sent.
    pub id: serde_json::Value,
}

impl Params for CancelParams {}

/// Result of `rpc.cancel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelResult {
    /// How many requests in flight had that id; 0 if the request was answered already.
    pub cancelled: u64,
}

/// Parameters of the notification `rpc.progress`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgressNotification {
    /// The request it belongs to.
    pub request_id: serde_json::Value,
    /// How much is done.
    pub done: u64,
    /// How much there is to do; null if unknown.
    pub total: Option<u64>,
    /// What is being done.
    #[serde(default)]
    pub message: String,
}
