//! What happens to an item after it was stored: `knowledge.update`, `history`, `delete`, `undelete`, `purge` and
//! `cleanup`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::*;
use super::*;
use crate::error::WireError;

/// The most days that a cleanup looks back: a hundred years.
pub const OLDER_THAN_DAYS_MAX: u32 = 36_500;

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
    /// When the item changed.
    pub updated_at: String,
    /// What this acknowledgement promises.
    pub durability: Durability,
}

/// Parameters of `knowledge.history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryParams {
    /// The id of the item.
    pub id: String,
}

impl Params for HistoryParams {}

/// Result of `knowledge.history`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryResult {
    /// The revisions, newest first.
    pub revisions: Vec<Revision>,
    /// Why the result may be incomplete, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.delete`: `id`, `ids` or at least one filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteParams {
    /// The id of one item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The ids of several items, at most 1,000.
    #[schemars(length(min = 1, max = LIST_LIMIT_MAX))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// All items that meet these conditions.
    #[serde(flatten)]
    pub filters: Filter,
    /// Only counts; deletes nothing.
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
    /// How many items were deleted, or would be in a dry run.
    pub deleted: u64,
    /// Ids of the deleted items, or of those that would be.
    pub ids: Vec<String>,
    /// The token with which `knowledge.undelete` restores the items; null if nothing was deleted.
    pub undo_token: Option<String>,
    /// The project's version without the items.
    pub version: u64,
    /// Why the result may be incomplete, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.undelete`: `undo_token` or `ids`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UndeleteParams {
    /// The `undo_token` that a deletion returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo_token: Option<String>,
    /// The ids of the items to restore, at most 1,000.
    #[schemars(length(min = 1, max = LIST_LIMIT_MAX))]
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
    /// How many items were restored.
    pub restored: u64,
    /// Ids of the restored items.
    pub ids: Vec<String>,
    /// Ids of items that exist already: never deleted, or restored by the same call before.
    pub present: Vec<String>,
    /// Ids that cannot be restored: never stored, no longer kept, or used by another item now.
    pub missing: Vec<String>,
    /// The project's version with the restored items.
    pub version: u64,
    /// Why an item that could be restored may be missing, if so: a part of the project cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.purge`: `id`, `ids` or `secrets`, and `confirm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PurgeParams {
    /// The id of one item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The ids of several items, at most 1,000.
    #[schemars(length(min = 1, max = LIST_LIMIT_MAX))]
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
    /// How many items were removed for good.
    pub purged: u64,
    /// Ids of the removed items.
    pub ids: Vec<String>,
    /// Backups that may still hold the removed items.
    #[serde(default)]
    pub backups: Vec<String>,
    /// What else of the project may still hold the items, if so: a part that cannot be read, or that was set aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}

/// Parameters of `knowledge.cleanup`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CleanupParams {
    /// Items created longer ago than this many days, at most 36,500.
    #[schemars(range(min = 0, max = OLDER_THAN_DAYS_MAX))]
    #[serde(default = "default_older_than_days")]
    pub older_than_days: u32,
    /// Conditions that items must meet as well.
    #[serde(flatten)]
    pub filters: Filter,
    /// Only counts; deletes nothing.
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
    /// How many items were deleted, or would be in a dry run.
    pub deleted: u64,
    /// Bytes that were freed, or would be in a dry run.
    pub freed_bytes: u64,
    /// Whether this was a dry run, which only counts.
    pub dry_run: bool,
    /// The token with which `knowledge.undelete` restores the items; null after a dry run.
    pub undo_token: Option<String>,
    /// What failed although the items are deleted, such as freeing their space.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Why the result may be incomplete, if so: a part of the project cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
}
