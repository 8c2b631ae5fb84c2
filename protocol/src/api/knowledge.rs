//! `knowledge.*`, `embedding.*` and `sql.*`.

use schemars::JsonSchema;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use super::common::{is_false, out_of_range, yes};
use super::{
    AsOf, Durability, FILTER_VALUES_MAX, Filter, Item, KnowledgeType, OneOrMany, Order, Params, ProjectError,
    ProjectName, Revision, SearchHit, SearchMode, StoreParams, UpdateParams,
};
use crate::error::WireError;
use ccod_words::check_key;

/// The longest query in bytes. The model reads its first 256 tokens (about 1 KB); the rest are keywords, and
/// each costs a look into the index.
pub const QUERY_BYTES_MAX: usize = 16 << 10;
/// The most hits that one search gives.
pub const SEARCH_LIMIT_MAX: u32 = 100;
/// The most items that one page of a listing holds.
pub const LIST_LIMIT_MAX: u32 = 1_000;
/// The most rows that one SQL query gives.
pub const SQL_LIMIT_MAX: u32 = 10_000;

fn check_limit(limit: u32, max: u32) -> Result<(), WireError> {
    if (1..=max).contains(&limit) {
        Ok(())
    } else {
        Err(out_of_range("limit", format!("from 1 to {max}")))
    }
}

fn check_keys<const N: usize>(keys: [(&str, &Option<String>); N]) -> Result<(), WireError> {
    for (parameter, key) in keys {
        if let Some(key) = key {
            check_key(key, parameter)?;
        }
    }
    Ok(())
}

fn check_text(parameter: &str, text: &str) -> Result<(), WireError> {
    if text.trim().is_empty() {
        Err(out_of_range(parameter, "a text that is not blank"))
    } else {
        Ok(())
    }
}

fn one_of_id_or_ids(id: Option<&String>, ids: Option<&Vec<String>>) -> Result<(), WireError> {
    match (id, ids) {
        (None, None) => Err(WireError::invalid_params("id", "give `id` or `ids`")),
        (Some(_), Some(_)) => Err(WireError::invalid_params("ids", "give `id` or `ids`, not both")),
        (_, Some(ids)) if ids.is_empty() => Err(out_of_range("ids", "a list of at least one id")),
        _ => Ok(()),
    }
}

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
    pub items: Vec<BatchItem>,
}

impl Params for StoreBatchParams {
    fn check(&self) -> Result<(), WireError> {
        if self.items.is_empty() {
            Err(out_of_range("items", "a list of at least one item"))
        } else {
            Ok(())
        }
    }
}

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

/// Parameters of `knowledge.search`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchParams {
    /// What to look for, in words.
    pub query: String,
    /// At most this many hits, 1 to 100.
    #[serde(default = "default_search_limit")]
    pub limit: u32,
    /// Hits to leave out at the start.
    #[serde(default)]
    pub offset: u32,
    /// Which evidence to use.
    #[serde(default)]
    pub mode: SearchMode,
    /// Leaves out hits whose fused score is below this, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// Conditions that hits must meet.
    #[serde(flatten)]
    pub filters: Filter,
    /// At most this many tokens of text in all; always at least one hit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u32>,
    /// Searches these projects instead of one; `"*"` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projects: Option<OneOrMany<String>>,
    /// Searches the past.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<AsOf>,
    /// Adds to each hit how its score came about.
    #[serde(default, skip_serializing_if = "is_false")]
    pub explain: bool,
    /// Goes on where a page ended: its `next_cursor`, with the same parameters but `limit`, and without `offset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

fn default_search_limit() -> u32 {
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
        check_text("query", &self.query)?;
        if self.query.len() > QUERY_BYTES_MAX {
            return Err(out_of_range(
                "query",
                format!("at most {QUERY_BYTES_MAX} bytes, this one has {}", self.query.len()),
            ));
        }
        let projects = self.projects.as_ref().map_or(0, |projects| projects.as_slice().len());
        if projects > FILTER_VALUES_MAX {
            return Err(out_of_range(
                "projects",
                format!("at most {FILTER_VALUES_MAX} projects, or \"*\""),
            ));
        }
        check_limit(self.limit, SEARCH_LIMIT_MAX)?;
        if self
            .threshold
            .is_some_and(|threshold| !(0.0..=1.0).contains(&threshold))
        {
            return Err(out_of_range("threshold", "from 0 to 1"));
        }
        if self.budget_tokens == Some(0) {
            return Err(out_of_range("budget_tokens", "1 or more"));
        }
        if self.cursor.is_some() && self.offset > 0 {
            return Err(WireError::invalid_params(
                "offset",
                "give `cursor` or `offset`, not both; a cursor knows where it goes on",
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
    /// How many they are.
    pub count: u64,
    /// Matches left out by `budget_tokens`.
    #[serde(default)]
    pub omitted: u64,
    /// For the next page, which reads the same versions; null at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
    /// The mode that was really used.
    pub mode: SearchMode,
    /// Why the mode is less than was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// The version that was searched (one project; 0 if it does not exist).
    #[serde(default)]
    pub version: u64,
    /// The versions that were searched, by project, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: BTreeMap<String, u64>,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
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
        check_limit(self.limit, LIST_LIMIT_MAX)?;
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
    /// Several items.
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

impl Params for UpdateParams {
    fn check(&self) -> Result<(), WireError> {
        if self.is_empty() {
            return Err(WireError::invalid_params(
                "text",
                "give at least one of `text`, `type`, `agent`, `session_id`, `metadata` to change",
            ));
        }
        if let Some(text) = &self.text {
            check_text("text", text)?;
        }
        check_keys([("agent", &self.agent), ("session_id", &self.session_id)])
    }
}

/// Result of `knowledge.update`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateResult {
    /// The item's id.
    pub id: String,
    /// The project's version that contains the change.
    pub version: u64,
    /// When it changed.
    pub updated_at: String,
    /// What this acknowledgement promises.
    pub durability: Durability,
}

/// Parameters of `knowledge.history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryParams {
    /// Which item.
    pub id: String,
}

impl Params for HistoryParams {}

/// Result of `knowledge.history`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryResult {
    /// The revisions, newest first.
    pub revisions: Vec<Revision>,
    /// Why it may be less than was stored, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.delete`: `id`, `ids` or at least one filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteParams {
    /// One item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Several items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// All items that meet these conditions.
    #[serde(flatten)]
    pub filters: Filter,
    /// Counts, but deletes nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub dry_run: bool,
}

impl Params for DeleteParams {
    fn check(&self) -> Result<(), WireError> {
        if self.filters.is_empty() {
            one_of_id_or_ids(self.id.as_ref(), self.ids.as_ref()).map_err(|error| match error.data.parameter {
                Some(ref name) if name == "id" => WireError::invalid_params(
                    "id",
                    "give `id`, `ids` or at least one filter; nothing means nothing, not all",
                ),
                _ => error,
            })
        } else if self.id.is_some() || self.ids.is_some() {
            let name = if self.id.is_some() { "id" } else { "ids" };
            Err(WireError::invalid_params(
                name,
                format!("give `{name}` or filters, not both"),
            ))
        } else {
            Ok(self.filters.check()?)
        }
    }
}

/// Result of `knowledge.delete`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteResult {
    /// How many were deleted, or would be.
    pub deleted: u64,
    /// Which.
    pub ids: Vec<String>,
    /// Restores them with `knowledge.undelete`; null if nothing was deleted.
    pub undo_token: Option<String>,
    /// The project's version without them.
    pub version: u64,
    /// Why it may be less than was stored, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.undelete`: `undo_token` or `ids`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UndeleteParams {
    /// What a deletion answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo_token: Option<String>,
    /// Which items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
}

impl Params for UndeleteParams {
    fn check(&self) -> Result<(), WireError> {
        match (&self.undo_token, &self.ids) {
            (None, None) => Err(WireError::invalid_params("undo_token", "give `undo_token` or `ids`")),
            (Some(_), Some(_)) => Err(WireError::invalid_params("ids", "give `undo_token` or `ids`, not both")),
            _ => Ok(()),
        }
    }
}

/// Result of `knowledge.undelete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UndeleteResult {
    /// How many items are back.
    pub restored: u64,
    /// Which.
    pub ids: Vec<String>,
    /// Those that are there already: never deleted, or brought back by the same call before.
    pub present: Vec<String>,
    /// Those that were asked for and are not there: never stored, no longer kept, or another item has the id by now.
    pub missing: Vec<String>,
    /// The project's version with them.
    pub version: u64,
    /// Why an item may be missing that could be brought back, if so: a part of the project cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.purge`: `id`, `ids` or `secrets`, and `confirm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PurgeParams {
    /// One item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Several items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// Every item in which a secret is found.
    #[serde(skip_serializing_if = "is_false")]
    pub secrets: bool,
    /// Must be true: a purge cannot be undone.
    pub confirm: bool,
}

impl Params for PurgeParams {
    fn check(&self) -> Result<(), WireError> {
        if !self.confirm {
            return Err(WireError::invalid_params(
                "confirm",
                "`confirm` must be true, for a purge cannot be undone",
            ));
        }
        if self.secrets {
            return match (&self.id, &self.ids) {
                (None, None) => Ok(()),
                (id, _) => {
                    let name = if id.is_some() { "id" } else { "ids" };
                    Err(WireError::invalid_params(
                        name,
                        format!("give `{name}` or `secrets`, not both"),
                    ))
                }
            };
        }
        one_of_id_or_ids(self.id.as_ref(), self.ids.as_ref())
    }
}

/// Result of `knowledge.purge`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PurgeResult {
    /// How many items are gone for good.
    pub purged: u64,
    /// Which.
    pub ids: Vec<String>,
    /// Backups that may still hold them.
    #[serde(default)]
    pub backups: Vec<String>,
    /// What else of the project may hold them, if something does: a part of it cannot be read, or was set aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.cleanup`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CleanupParams {
    /// Items created longer ago than this many days.
    #[serde(default = "default_older_than_days")]
    pub older_than_days: u32,
    /// Conditions that items must meet as well.
    #[serde(flatten)]
    pub filters: Filter,
    /// Counts, but deletes nothing.
    #[serde(default = "yes")]
    pub dry_run: bool,
}

fn default_older_than_days() -> u32 {
    90
}

impl Default for CleanupParams {
    fn default() -> Self {
        Self {
            older_than_days: default_older_than_days(),
            filters: Filter::default(),
            dry_run: true,
        }
    }
}

impl Params for CleanupParams {
    fn check(&self) -> Result<(), WireError> {
        Ok(self.filters.check()?)
    }
}

/// Result of `knowledge.cleanup`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CleanupResult {
    /// How many were deleted, or would be.
    pub deleted: u64,
    /// How much space that freed, or would.
    pub freed_bytes: u64,
    /// Whether it only counted.
    pub dry_run: bool,
    /// Restores them with `knowledge.undelete`; null after a dry run.
    pub undo_token: Option<String>,
    /// What could not be done though the items are deleted, such as freeing their space.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why it may be less than was stored, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.similar`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SimilarParams {
    /// The item to compare with.
    pub id: String,
    /// At most this many hits, 1 to 100.
    #[serde(default = "default_search_limit")]
    pub limit: u32,
}

impl Params for SimilarParams {
    fn check(&self) -> Result<(), WireError> {
        check_limit(self.limit, SEARCH_LIMIT_MAX)
    }
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

/// A conversation: a text, or its parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text, or a list of texts or of {role, content}")]
pub enum Conversation {
    /// All in one.
    Text(String),
    /// Part by part.
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
    /// What is about to be compacted.
    pub conversation: Conversation,
    /// Its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

impl Params for PreCompactionParams {}

/// Parts of a conversation that were not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// Why: short, duplicate or noise.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Result of `knowledge.pre_compaction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PreCompactionResult {
    /// Whether everything worth keeping was stored.
    pub success: bool,
    /// How many items were stored.
    pub count: u64,
    /// Which.
    pub ids: Vec<String>,
    /// What was not kept.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
}

/// Parameters of `knowledge.post_compaction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PostCompactionParams {
    /// What the agent is doing.
    pub current_task: String,
    /// At most this many hits, 1 to 100.
    #[serde(default = "default_search_limit")]
    pub limit: u32,
    /// At most this many tokens of text in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_tokens: Option<u32>,
}

impl Params for PostCompactionParams {
    fn check(&self) -> Result<(), WireError> {
        check_text("current_task", &self.current_task)?;
        check_limit(self.limit, SEARCH_LIMIT_MAX)
    }
}

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
    /// What happened last.
    pub recent_activity: Vec<Item>,
}

/// Result of `knowledge.post_compaction`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PostCompactionResult {
    /// What matters for the task.
    pub search_results: Vec<SearchHit>,
    /// What was learned last.
    pub recent_knowledge: Vec<Item>,
    /// The project at a glance.
    pub summary: CompactionSummary,
}

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

/// Parameters of `embedding.embed`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmbedParams {
    /// What to embed. Empty texts have an embedding too.
    pub texts: Vec<String>,
}

impl Params for EmbedParams {
    fn check(&self) -> Result<(), WireError> {
        if self.texts.is_empty() {
            Err(out_of_range("texts", "a list of at least one text"))
        } else {
            Ok(())
        }
    }
}

/// Result of `embedding.embed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbedResult {
    /// One vector per text, of unit length.
    pub embeddings: Vec<Vec<f32>>,
    /// The model's name.
    pub model: String,
    /// The vectors' length.
    pub dimensions: u32,
    /// The texts longer than the model takes, of which only the beginning counts.
    #[serde(default)]
    pub truncated: Vec<usize>,
}

/// Parameters of `sql.query`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SqlParams {
    /// One SELECT over `knowledge`.
    pub sql: String,
    /// At most this many rows, 1 to 10,000.
    #[serde(default = "default_sql_limit")]
    pub limit: u32,
}

fn default_sql_limit() -> u32 {
    1_000
}

impl Params for SqlParams {
    fn check(&self) -> Result<(), WireError> {
        check_text("sql", &self.sql)?;
        check_limit(self.limit, SQL_LIMIT_MAX)
    }
}

/// Result of `sql.query`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SqlResult {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows, each with one value per column.
    pub rows: Vec<Vec<serde_json::Value>>,
    /// Whether `limit` cut rows off.
    pub truncated: bool,
}
