//! What the changes of a group find in the table.

use std::collections::HashMap;

use arrow_array::RecordBatch;
use lancedb::expr::col;

use super::ops::{DeleteTarget, UndeleteTarget, WriteOp};
use crate::domain::Filter;
use crate::error::KnowledgeResult;
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
        let mut matching: Option<&Filter> = None;
        for op in group {
            match op {
                WriteOp::Store(_) => {}
                WriteOp::Update(update) => live_ids.push(update.change.id.clone()),
                WriteOp::Delete(DeleteTarget::Ids(ids), _) => live_ids.extend(ids.iter().cloned()),
                // Alone in its group, see `lane`.
                WriteOp::Delete(DeleteTarget::Matching(filter), _) => matching = Some(filter),
                WriteOp::Undelete(UndeleteTarget::Ids(ids)) => undeleted_ids.extend(ids.iter().cloned()),
                WriteOp::Undelete(UndeleteTarget::Deletion(deletion)) => {
                    let rows = view.rows(filter::closed_by(deletion.sequence, deletion.at)).await?;
                    concerned.add_closed(&rows)?;
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
        let rows = match matching {
            Some(filter) => Some(view.matching_rows(filter).await?),
            None if live_ids.is_empty() => None,
            None => Some(view.live_rows(&live_ids).await?),
        };
        if let Some(rows) = rows {
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
