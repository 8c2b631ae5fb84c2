//! What readers are asked for and what they answer.

use std::sync::Arc;

use crate::domain::{ItemStats, ProjectName, StoredItem};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::upkeep::Debt;
use crate::store::view::replay::{Replay, ReplayedChanges};
use crate::store::view::search::PageVersion;
use crate::store::{Counts, Lineage, Project};

/// Which projects a search concerns.
#[derive(Clone, Debug)]
pub enum Projects {
    /// These.
    Named(Vec<ProjectName>),
    /// All that can be searched.
    All,
    /// These, as they were when the search that is paged began.
    At(Vec<PageVersion>),
}

/// What was read of a project.
#[derive(Clone, Debug, Default)]
pub struct Seen<T> {
    /// What was found.
    pub found: T,
    /// Why it may be less than was stored, if so: a part of the project cannot be read.
    pub degraded: Option<String>,
}

/// Counts of one project.
#[derive(Clone, Debug)]
pub struct ProjectStats {
    /// Its name.
    pub project: String,
    /// Its items.
    pub items: Arc<ItemStats>,
    /// Its rows, closed ones and further passages included.
    pub rows: u64,
    /// Bytes on disk.
    pub bytes_on_disk: u64,
    /// Upkeep that is still to be done, as far as its files show; nothing where that was not asked for.
    pub debt: Debt,
    /// Its newest commit.
    pub version: i64,
    /// Model of its vectors; none where the table has another shape.
    pub model: Option<String>,
    /// What is in the way of searching and writing it, if something is.
    pub needs_migration: Option<String>,
    /// What of it cannot be read and so is not counted, if something is.
    pub degraded: Option<String>,
}

impl ProjectStats {
    /// What was counted, with what its directory takes now.
    pub(super) async fn of(project: &Project, counts: Counts, degraded: Option<String>) -> KnowledgeResult<Self> {
        Ok(Self {
            project: project.name().to_string(),
            items: counts.items,
            rows: counts.rows,
            bytes_on_disk: project.bytes_on_disk().await?,
            debt: counts.debt,
            version: counts.version,
            model: counts.model,
            needs_migration: counts.needs_migration,
            degraded,
        })
    }
}

/// Counts of several projects: one that cannot be read does not hide the others.
#[derive(Clone, Debug, Default)]
pub struct StatsReport {
    /// Those that could be counted, by name.
    pub projects: Vec<ProjectStats>,
    /// Those that could not be.
    pub failed: Vec<FailedProject>,
}

/// A project that could not be read.
#[derive(Clone, Debug)]
pub struct FailedProject {
    /// Its name.
    pub project: String,
    /// Whether it is a project, and not something that lies beside one.
    pub is_project: bool,
    /// Bytes on disk, as far as they can be counted.
    pub bytes_on_disk: u64,
    /// Why.
    pub error: KnowledgeError,
}

/// Items by id.
#[derive(Clone, Debug, Default)]
pub struct FoundItems {
    /// Those that were found, in no particular order.
    pub items: Vec<StoredItem>,
    /// The project's newest commit.
    pub version: i64,
}

/// Items that a delete would delete.
#[derive(Clone, Debug, Default)]
pub struct MatchingItems {
    /// Their ids, sorted.
    pub ids: Vec<String>,
    /// The project's newest commit.
    pub version: i64,
}

/// How much matches a filter.
#[derive(Clone, Copy, Debug, Default)]
pub struct MatchingSize {
    /// Items.
    pub items: u64,
    /// Bytes of their texts and vectors.
    pub bytes: u64,
}

/// What is read for an answer, and how many bytes that may take: reading stops where it would be more.
#[derive(Clone, Debug)]
pub struct Within<T> {
    /// What is read.
    pub wanted: T,
    /// What the answer may take.
    pub max_answer_bytes: usize,
}

/// A part of a project's changes.
#[derive(Clone, Debug, Default)]
pub struct ChangePage {
    /// The changes, without their texts.
    pub found: ReplayedChanges,
    /// Has the texts, and what follows.
    pub replay: Option<Arc<Replay>>,
    /// The project's newest commit.
    pub newest: i64,
    /// The last commit that is no longer kept whole: changes before it may be missing.
    pub forgotten: Option<i64>,
    /// The history that these numbers are of.
    pub lineage: Lineage,
    /// Whether some of the commits up to the one that was asked for may be lost: what was made of them must be rebuilt.
    pub lost: bool,
}
