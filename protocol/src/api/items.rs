//! `knowledge.store`, `store_batch`, `list`, `get`, `stats` and `projects`.

use serde::de::Deserializer;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::*;
use super::*;
use crate::error::WireError;

/// The most items that one page of a listing holds, and that one call names by their ids.
pub const LIST_LIMIT_MAX: u32 = 1_000;

impl Params for StoreParams {
    fn check(&self) -> Result<(), WireError> {
        check_text("text", &self.text)?;
        check_keys([
            ("agent", &self.agent),
            ("session_id", &self.session_id),
            ("id", &self.id),
            ("idempotency_key", &self.idempotency_key),
        ])
    }
}

/// Whether a store added something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StoreStatus {
    /// A new item.
    Stored,
    /// The same identity and content was there; `id` is the first item's.
    Duplicate,
}

/// How often a detector found a secret in a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Redaction {
    /// The detector that found it.
    pub detector: String,
    /// Where: `text` or a path in the metadata.
    pub field: String,
    /// How many were replaced.
    pub count: u64,
}

/// Result of `knowledge.store`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoreResult {
    /// The item's id.
    pub id: String,
    /// Its project.
    pub project_id: String,
    /// Whether it is new.
    pub status: StoreStatus,
    /// When it was created.
    pub timestamp: String,
    /// Into how many passages its text was split.
    pub passages: u32,
    /// Secrets that were replaced before storing.
    #[serde(default)]
    pub redactions: Vec<Redaction>,
    /// The project's version that contains it.
    pub version: u64,
    /// What this acknowledgement promises.
    pub durability: Durability,
}

/// One item of a batch: decoded, or the reason why it is not one. A bad item fails alone, so its error is
/// a value here and not the failure of the whole request.
#[derive(Clone, Debug)]
pub enum BatchItem {
    /// An item that can be stored.
    Valid(Box<StoreParams>),
    /// An item that cannot; goes into the result's `errors`.
    Invalid(WireError),
}

impl From<StoreParams> for BatchItem {
    fn from(item: StoreParams) -> Self {
        Self::Valid(Box::new(item))
    }
}

impl Serialize for BatchItem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Valid(item) => item.serialize(serializer),
            Self::Invalid(error) => Err(serde::ser::Error::custom(&error.message)),
        }
    }
}

impl<'de> Deserialize<'de> for BatchItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(crate::params::decode_item(&raw).map_or_else(Self::Invalid, Self::from))
    }
}

impl JsonSchema for BatchItem {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        StoreParams::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        StoreParams::schema_id()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        StoreParams::json_schema(generator)
    }
}

/// Parameters of `knowledge.store_batch`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StoreBatchParams {
    /// The items, each as in `knowledge.store`; at most 1,000 unless configured otherwise.
    #[schemars(length(min = 1))]
    pub items: Vec<BatchItem>,
}

impl Params for StoreBatchParams {}

/// Why one item of a batch was not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchItemError {
    /// Its place in `items`, from 0.
    pub index: usize,
    /// The code it would have got alone.
    pub code: i32,
    /// The message it would have got alone.
    pub message: String,
}

/// Result of `knowledge.store_batch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoreBatchResult {
    /// One entry per item in their order; null where it failed.
    pub ids: Vec<Option<String>>,
    /// How many are new.
    pub stored: u64,
    /// How many were there already.
    pub duplicates: u64,
    /// How many failed.
    pub failed: u64,
    /// Why they failed.
    #[serde(default)]
    pub errors: Vec<BatchItemError>,
    /// The project's version that contains the items.
    pub version: u64,
    /// What this acknowledgement promises.
    pub durability: Durability,
}

/// Parameters of `knowledge.list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListParams {
    /// Conditions that items must meet.
    #[serde(flatten)]
    pub filters: Filter,
    /// Newest or oldest first.
    #[serde(default)]
    pub order: Order,
    /// At most this many items, 1 to 1,000.
    #[schemars(range(min = 1, max = LIST_LIMIT_MAX))]
    #[serde(default = "default_list_limit")]
    pub limit: u32,
    /// Goes on where a page ended: its `next_cursor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

fn default_list_limit() -> u32 {
    20
}

impl Default for ListParams {
    fn default() -> Self {
        Self {
            filters: Filter::default(),
            order: Order::default(),
            limit: default_list_limit(),
            cursor: None,
        }
    }
}

impl Params for ListParams {
    fn check(&self) -> Result<(), WireError> {
        Ok(self.filters.check()?)
    }
}

/// Result of `knowledge.list`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListResult {
    /// The items.
    pub results: Vec<Item>,
    /// How many items meet the filters in all.
    pub total: u64,
    /// For the next page; null at the end.
    pub next_cursor: Option<String>,
    /// Why it may be less than was stored, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.get`: `id` or `ids`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GetParams {
    /// One item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Several items, at most 1,000.
    #[schemars(length(min = 1, max = LIST_LIMIT_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
}

impl Params for GetParams {
    fn check(&self) -> Result<(), WireError> {
        one_of_id_or_ids(self.id.as_ref(), self.ids.as_ref())
    }
}

/// Result of `knowledge.get`: the item of `id`, or those of `ids`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum GetResult {
    /// The item that was asked for.
    One(Box<Item>),
    /// The items that were asked for.
    Many {
        /// Those that exist, in the order asked.
        results: Vec<Item>,
        /// The ids of those that do not.
        missing: Vec<String>,
        /// Why one may be missing that was stored, if so: a part of the project cannot be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        degraded: Option<String>,
    },
}

/// Parameters of `knowledge.stats`: none; without `project_id` it means all projects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatsParams {}

impl Params for StatsParams {}

/// Which model made the vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelIdentity {
    /// Its name.
    pub name: String,
    /// Hash of its weights.
    pub hash: String,
    /// Length of its vectors.
    pub dimensions: u32,
}

/// Result of `knowledge.stats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatsResult {
    /// Live items.
    pub total: u64,
    /// Live items by type.
    pub by_type: BTreeMap<String, u64>,
    /// Live items by agent.
    pub by_agent: BTreeMap<String, u64>,
    /// Live items by project.
    pub by_project: BTreeMap<String, u64>,
    /// When the oldest was created.
    pub oldest: Option<String>,
    /// When the newest was created.
    pub newest: Option<String>,
    /// Space on disk.
    pub bytes_on_disk: u64,
    /// Passages of live items.
    pub passages: u64,
    /// The model of the vectors.
    pub model: ModelIdentity,
    /// Projects that could not be read; the numbers are without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
}

/// Parameters of `knowledge.projects`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectsParams {}

impl Params for ProjectsParams {}

/// One project.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectSummary {
    /// Its name.
    pub project_id: String,
    /// Live items.
    pub total: u64,
    /// Space on disk.
    pub bytes_on_disk: u64,
    /// When its newest item was created.
    pub newest: Option<String>,
    /// Why it cannot be used, if it cannot: `needs_migration`, `unreadable` (then its items are not counted), or
    /// `damaged` (then those that cannot be read are not).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Result of `knowledge.projects`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectsResult {
    /// The projects, by name.
    pub projects: Vec<ProjectSummary>,
    /// Why some of them could not be read, as a whole or in part: those whose `state` is `unreadable` or `damaged`, and
    /// what is left aside in the data directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
}
