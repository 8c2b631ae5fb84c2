//! `knowledge.subscribe`, `unsubscribe` and what they notify of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::*;
use super::*;
use crate::error::WireError;

/// Parameters of `knowledge.subscribe`; `project_id` may be `"*"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeParams {
    /// Resumes after this change; if absent, the feed begins now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Whether changes carry the text.
    #[serde(default = "yes")]
    pub with_text: bool,
}

impl Default for SubscribeParams {
    fn default() -> Self {
        Self {
            cursor: None,
            with_text: true,
        }
    }
}

impl Params for SubscribeParams {
    fn check(&self) -> Result<(), WireError> {
        // An empty cursor is a lost one: it must not mean all changes that there ever were.
        match self.cursor.as_deref() {
            Some("") => Err(out_of_range(
                "cursor",
                "one that a feed has given; leave it out to begin now",
            )),
            _ => Ok(()),
        }
    }
}

/// Result of `knowledge.subscribe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeResult {
    /// Names the subscription on this connection.
    pub subscription: String,
    /// Where the feed begins.
    pub cursor: String,
}

/// Parameters of `knowledge.unsubscribe`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnsubscribeParams {
    /// The `subscription` that `knowledge.subscribe` returned.
    pub subscription: String,
}

impl Params for UnsubscribeParams {}

/// What happened to an item, or to the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeOp {
    /// An item was stored.
    Store,
    /// An item changed.
    Update,
    /// An item was deleted.
    Delete,
    /// A deleted item was restored.
    Undelete,
    /// An item was removed for good.
    Purge,
    /// Changes were left out: resume from `cursor`, or reread everything if `resync` is true.
    Lagged,
}

/// One change of the feed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Where the feed stands after this change. Opaque.
    pub cursor: String,
    /// What happened.
    pub op: ChangeOp,
    /// The item's id; absent if the feed lagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The item's project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// The item's type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub knowledge_type: Option<KnowledgeType>,
    /// The item's agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The item's text, if `with_text` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The project's version that contains the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// When the change happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// The cursor is older than the retention: everything must be reread.
    #[serde(default, skip_serializing_if = "is_false")]
    pub resync: bool,
}

/// Parameters of the notification `knowledge.changed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedNotification {
    /// The subscription it belongs to.
    pub subscription: String,
    /// The change.
    pub result: Change,
}
