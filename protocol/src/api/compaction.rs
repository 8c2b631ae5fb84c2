//! `knowledge.pre_compaction` and `post_compaction`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::search::default_search_limit;
use super::*;

/// A conversation: a text, or its parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text, or a list of texts or of {role, content}")]
pub enum Conversation {
    /// The whole conversation as one text.
    Text(String),
    /// The conversation in parts.
    Parts(Vec<ConversationPart>),
}

/// A part of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ConversationPart {
    /// What was said.
    Text(String),
    /// What was said, and by whom.
    Message {
        /// Who said it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// What was said.
        content: String,
    },
}

/// Parameters of `knowledge.pre_compaction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PreCompactionParams {
    /// The conversation that is about to be compacted.
    pub conversation: Conversation,
    /// The session of the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

impl Params for PreCompactionParams {}

/// Parts of a conversation that were not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// The reason: short, duplicate or noise.
    pub reason: String,
    /// How many parts were skipped for it.
    pub count: u64,
}

/// Result of `knowledge.pre_compaction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PreCompactionResult {
    /// Whether everything worth keeping was stored.
    pub success: bool,
    /// How many items were stored.
    pub count: u64,
    /// Ids of the stored items.
    pub ids: Vec<String>,
    /// How many parts were not kept, by reason.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
}

/// Parameters of `knowledge.post_compaction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PostCompactionParams {
    /// What the agent is working on.
    #[schemars(length(min = 1))]
    pub current_task: String,
    /// At most this many hits, 1 to 100.
    #[schemars(range(min = 1, max = SEARCH_LIMIT_MAX))]
    #[serde(default = "default_search_limit")]
    pub limit: u32,
    /// At most this many tokens of text in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u32>,
}

impl Params for PostCompactionParams {}

/// A project at a glance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompactionSummary {
    /// Live items.
    pub total_items: u64,
    /// Live items by type.
    pub by_type: BTreeMap<String, u64>,
    /// Live items by agent.
    pub by_agent: BTreeMap<String, u64>,
    /// The decisions that matter most.
    pub top_decisions: Vec<Item>,
    /// The items that were changed last.
    pub recent_activity: Vec<Item>,
}

/// Result of `knowledge.post_compaction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PostCompactionResult {
    /// The items that matter for the task.
    pub search_results: Vec<SearchHit>,
    /// The newest items.
    pub recent_knowledge: Vec<Item>,
    /// The project at a glance.
    pub summary: CompactionSummary,
}
