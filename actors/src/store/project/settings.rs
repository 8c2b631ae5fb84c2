//! What of a project never changes while the daemon runs.

use std::path::PathBuf;
use std::sync::Arc;

use chrono::TimeDelta;

use crate::domain::ProjectName;
use crate::store::caches::ProjectCaches;
use crate::store::index::Budget;
use crate::store::lock::StoreLock;
use crate::store::table::durable::Durability;
use crate::store::table::schema::ModelIdentity;

/// What a project is called, where it lies and how it is written.
pub(in crate::store) struct ProjectSettings {
    pub(in crate::store) name: ProjectName,
    pub(in crate::store) directory: PathBuf,
    /// The lock of the store, which whoever changes something on disk asks first.
    pub(in crate::store) lock: StoreLock,
    pub(in crate::store) durability: Durability,
    /// The model that a new table is made for.
    pub(in crate::store) model: ModelIdentity,
    /// How long closed rows are kept.
    pub(in crate::store) retention: TimeDelta,
    /// What it has in the caches, which all projects share.
    pub(in crate::store) caches: ProjectCaches,
    /// The bound on the indexes in memory, which all projects share.
    pub(in crate::store) resident: Arc<Budget>,
}
