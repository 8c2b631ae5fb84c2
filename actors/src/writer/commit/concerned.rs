//! What the changes of a group find in the table.

use std::collections::HashMap;

use arrow_array::RecordBatch;
use lancedb::expr::col;

use super::ops::{DeleteTarget, UndeleteTarget, WriteOp};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::table::rows::{StoredRevision, revisions};
use crate::store::table::schema::column;
use crate::store::view::{PlacedRows, ProjectView, filter};

/// The live items and deleted revisions that the changes of a group concern, read in one go.
#[derive(Default)]
pub(super) struct Concerned {
    /// Whole rows of the live revisions, and where they lie.
    pub(super) live_rows: Option<PlacedRows>,
    /// The live revisions, by id.
    pub(super) live: HashMap<String, StoredRevision>,
    /// The newest closed revision of items that are to be undeleted, by id.
    pub(super) closed: HashMap<String, StoredRevision>,
}

impl Concerned {
    pub(super) async fn read(view: &ProjectView, group: &[WriteOp]) -> KnowledgeResult<Self> {
        let mut concerned = Self::default();
        let mut live_ids: Vec<String> = Vec::new();
        let mut undeleted_ids: Vec<String> = Vec::new();
        for op in group {
            match op {
                WriteOp::Store(_) => {}
                WriteOp::Update(update) => live_ids.push(update.change.id.clone()),
                WriteOp::Delete(DeleteTarget::Ids(ids), _) => live_ids.extend(ids.iter().cloned()),
                WriteOp::Undelete(UndeleteTarget::Ids(ids)) => undeleted_ids.extend(ids.iter().cloned()),
                // Alone in their groups (see `lane`), and cut into parts.
                WriteOp::Delete(DeleteTarget::Matching(_), _) | WriteOp::Undelete(UndeleteTarget::Deletion(_)) => {
                    return Err(not_alone());
                }
            }
        }
        if let Some(ids) = filter::any_of(column::ID, &undeleted_ids) {
            let rows = view.rows(ids.and(col(column::VALID_TO).is_not_null())).await?;
            concerned.add_closed(&rows)?;
        }
        // What is live is not deleted, and its rows cannot be opened again.
        live_ids.extend(undeleted_ids);
        live_ids.extend(concerned.closed.keys().cloned());
        if !live_ids.is_empty() {
            let rows = view.live_rows(&live_ids).await?;
            for ((id, _), revision) in revisions(&rows.rows)? {
                concerned.live.insert(id, revision);
            }
            concerned.live_rows = Some(rows);
        }
        Ok(concerned)
    }

    fn add_closed(&mut self, rows: &RecordBatch) -> KnowledgeResult<()> {
        // In the order of the revisions: the last one stays.
        for ((id, _), revision) in revisions(rows)? {
            if revision.stored.is_tombstone() {
                self.closed.remove(&id);
            } else {
                self.closed.insert(id, revision);
            }
        }
        Ok(())
    }
}

/// Why a group cannot be planned: it has something in it that may concern any item, and another write.
pub(super) fn not_alone() -> KnowledgeError {
    KnowledgeError::internal("a write that may concern any item is in a group with others")
}
