//! `knowledge.subscribe`, `unsubscribe` and what they notify of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::*;
use super::*;
use crate::error::WireError;

/// Parameters of `knowledge.subscribe`; `project_id` may be `"*"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeParams {
    /// Goes on after this change; without it, from now.
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
        // Whoever has lost a cursor does not ask for everything that there ever was.
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
    /// What `knowledge.subscribe` answered.
    pub subscription: String,
}

impl Params for UnsubscribeParams {}

/// What happened to an item, or to the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeOp {
    /// An item came to be.
    Store,
    /// An item changed.
    Update,
    /// An item was deleted.
    Delete,
    /// A deleted item is back.
    Undelete,
    /// An item is gone for good.
    Purge,
    /// Changes were left out: resume from `cursor`, or read everything anew if `resync` says so.
    Lagged,
}

/// One change of the feed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Where the feed stands after this change. Opaque.
    pub cursor: String,
    /// What happened.
    pub op: ChangeOp,
    /// To which item; absent if the feed lagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In which project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// The item's type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub knowledge_type: Option<KnowledgeType>,
    /// The item's agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The item's text, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The project's version that contains the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// The cursor was older than the retention: what is known must be read anew.
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
