//! `knowledge.search` and `similar`, and `embedding.embed`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::*;
use super::*;
use crate::error::WireError;

/// The longest query in bytes. The model reads its first 256 tokens (about 1 KB); the rest are keywords, each of which
/// costs a lookup in the index.
pub const QUERY_BYTES_MAX: usize = 16 << 10;
/// The most hits that one search gives.
pub const SEARCH_LIMIT_MAX: u32 = 100;
/// The most hits that may be skipped, by offset or cursor: each is found and ranked again for every page.
pub const OFFSET_MAX: u32 = 10_000;

/// Parameters of `knowledge.search`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchParams {
    /// What to look for, in words, at most 16 KB.
    #[schemars(length(min = 1, max = QUERY_BYTES_MAX))]
    pub query: String,
    /// At most this many hits, 1 to 100.
    #[schemars(range(min = 1, max = SEARCH_LIMIT_MAX))]
    #[serde(default = "default_search_limit")]
    pub limit: u32,
    /// Hits to leave out at the start, at most 10,000: narrow the search by filters instead of going deeper.
    #[schemars(range(min = 0, max = OFFSET_MAX))]
    #[serde(default)]
    pub offset: u32,
    /// Whether to search by meaning, by keywords or by both.
    #[serde(default)]
    pub mode: SearchMode,
    /// Leaves out hits whose fused score is below this, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// Conditions that hits must meet.
    #[serde(flatten)]
    pub filters: Filter,
    /// At most this many tokens of text in all; always at least one hit.
    #[schemars(range(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u32>,
    /// Searches these projects instead of one; `"*"` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projects: Option<OneOrMany<String>>,
    /// Searches the project as it was at this version or time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<AsOf>,
    /// Adds to each hit how its score was computed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub explain: bool,
    /// Continues after a page: the `next_cursor` of that page. `offset` must be absent, and all other parameters but
    /// `limit` the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

pub(super) fn default_search_limit() -> u32 {
    10
}

impl Default for SearchParams {
    fn default() -> Self {
        Self {
            query: String::new(),
            limit: default_search_limit(),
            offset: 0,
            mode: SearchMode::default(),
            threshold: None,
            filters: Filter::default(),
            budget_tokens: None,
            projects: None,
            as_of: None,
            explain: false,
            cursor: None,
        }
    }
}

impl Params for SearchParams {
    fn check(&self) -> Result<(), WireError> {
        if self.cursor.is_some() && self.offset > 0 {
            return Err(WireError::invalid_params(
                "offset",
                "give `cursor` or `offset`, not both; the cursor says where its page begins",
            ));
        }
        for name in self.projects.iter().flat_map(OneOrMany::as_slice) {
            if name != "*" {
                ProjectName::parse(name, "projects")?;
            }
        }
        Ok(self.filters.check()?)
    }
}

/// Result of `knowledge.search` and `knowledge.similar`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchResult {
    /// The hits, best first.
    pub results: Vec<SearchHit>,
    /// How many hits `results` holds.
    pub count: u64,
    /// Matches left out by `budget_tokens`.
    #[serde(default)]
    pub omitted: u64,
    /// Cursor of the next page, which reads the same versions; null on the last page.
    #[serde(default)]
    pub next_cursor: Option<String>,
    /// The mode that was used.
    pub mode: SearchMode,
    /// Why the search did less than was asked for, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// The version that was searched, if it was one project; 0 if the project does not exist.
    #[serde(default)]
    pub version: u64,
    /// The versions that were searched, by project, if there were several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, u64>,
    /// How long the search took, in milliseconds.
    pub took_ms: f64,
}

/// Parameters of `knowledge.similar`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SimilarParams {
    /// The id of the item to compare with.
    pub id: String,
    /// At most this many hits, 1 to 100.
    #[schemars(range(min = 1, max = SEARCH_LIMIT_MAX))]
    #[serde(default = "default_search_limit")]
    pub limit: u32,
}

impl Params for SimilarParams {}

/// Parameters of `embedding.embed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmbedParams {
    /// What to embed. Empty texts have an embedding too.
    #[schemars(length(min = 1))]
    pub texts: Vec<String>,
}

impl Params for EmbedParams {}

/// Result of `embedding.embed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbedResult {
    /// One vector per text, of unit length.
    pub embeddings: Vec<Vec<f32>>,
    /// The name of the model.
    pub model: String,
    /// The length of the vectors.
    pub dimensions: u32,
    /// The places in `texts` of those that are longer than the model takes; only their beginning counts.
    #[serde(default)]
    pub truncated: Vec<usize>,
}
