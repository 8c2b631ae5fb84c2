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
    /// An item of the same identity and content was stored before; `id` is that item's.
    Duplicate,
}

/// How often a detector found a secret in a field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Redaction {
    /// The detector that found it.
    pub detector: String,
    /// The field: `text`, or a path in the metadata.
    pub field: String,
    /// How many secrets were replaced.
    pub count: u64,
}

/// Result of `knowledge.store`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoreResult {
    /// The item's id.
    pub id: String,
    /// The item's project.
    pub project_id: String,
    /// Whether the item is new.
    pub status: StoreStatus,
    /// When the item was created.
    pub timestamp: String,
    /// How many passages its text was split into.
    pub passages: u32,
    /// Secrets that were replaced before storing.
    #[serde(default)]
    pub redactions: Vec<Redaction>,
    /// The project's version that contains the item.
    pub version: u64,
    /// What this acknowledgement promises.
    pub durability: Durability,
}

/// One item of a batch: decoded, or the reason why it cannot be stored. A bad item fails alone, so its error is
/// a value here and not the failure of the whole request.
#[derive(Clone, Debug)]
pub enum BatchItem {
    /// An item that can be stored.
    Valid(Box<StoreParams>),
    /// An item that cannot be stored; its error goes into the result's `errors`.
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
    /// The place of the item in `items`, from 0.
    pub index: usize,
    /// The error code that a store of this item alone would have got.
    pub code: i32,
    /// The message of that error.
    pub message: String,
}

/// Result of `knowledge.store_batch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoreBatchResult {
    /// One id per item, in their order; null for an item that failed.
    pub ids: Vec<Option<String>>,
    /// How many items are new.
    pub stored: u64,
    /// How many items were stored before.
    pub duplicates: u64,
    /// How many items failed.
    pub failed: u64,
    /// Why items failed.
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
    /// Whether the newest or the oldest item comes first.
    #[serde(default)]
    pub order: Order,
    /// At most this many items, 1 to 1,000.
    #[schemars(range(min = 1, max = LIST_LIMIT_MAX))]
    #[serde(default = "default_list_limit")]
    pub limit: u32,
    /// Continues after a page: the `next_cursor` of that page.
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
    /// Cursor of the next page; null on the last page.
    pub next_cursor: Option<String>,
    /// Why the result may be incomplete, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.get`: `id` or `ids`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GetParams {
    /// The id of one item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The ids of several items, at most 1,000.
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
        /// The items that exist, in the order of `ids`.
        results: Vec<Item>,
        /// The ids that no item has.
        missing: Vec<String>,
        /// Why an item that was stored may be missing, if so: a part of the project cannot be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        degraded: Option<String>,
    },
}

/// Parameters of `knowledge.stats`: none; without `project_id` it means all projects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatsParams {}

impl Params for StatsParams {}

/// The model that made the vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelIdentity {
    /// The name of the model.
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
    /// When the oldest live item was created.
    pub oldest: Option<String>,
    /// When the newest live item was created.
    pub newest: Option<String>,
    /// Bytes on disk.
    pub bytes_on_disk: u64,
    /// Passages of live items.
    pub passages: u64,
    /// The model of the vectors.
    pub model: ModelIdentity,
    /// Projects that could not be read; they are not counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
    /// Why less may be counted than was stored, if so: what `errors` says of each project, in one text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.projects`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectsParams {}

impl Params for ProjectsParams {}

/// One project.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectSummary {
    /// The name of the project.
    pub project_id: String,
    /// Live items.
    pub total: u64,
    /// Bytes on disk.
    pub bytes_on_disk: u64,
    /// When its newest item was created.
    pub newest: Option<String>,
    /// Why the project cannot be used, if so: `needs_migration`, `unreadable` (its items are not counted) or `damaged`
    /// (items that cannot be read are not counted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// Result of `knowledge.projects`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectsResult {
    /// The projects, by name.
    pub projects: Vec<ProjectSummary>,
    /// Why some projects could not be read, in whole or in part: those whose `state` is `unreadable` or `damaged`, and
    /// what was set aside in the data directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ProjectError>,
}
