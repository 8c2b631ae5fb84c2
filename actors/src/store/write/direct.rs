//! The writer's commits: rows that come into the table and rows that leave it, as one version.
//!
//! They go past LanceDB, which would plan a query for a batch that is ready, and join a change with the keys of the
//! whole table to find the rows that it replaces. The writer has just read those rows and knows where they lie. So a
//! commit costs what it writes, however large the table is, and the rows of the new fragment are in the order in which
//! they were given. Lance commits as for LanceDB, through the handler with which the table was opened (`durable.rs`); what
//! a small commit writes stays in memory until then (`pending.rs`).

use std::sync::Arc;

use arrow_array::RecordBatch;
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction, UpdateMode};
use lance::dataset::{CommitBuilder, InsertBuilder, WriteDestination, WriteMode, WriteParams};
use lance_table::format::Fragment;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::write_error;
use crate::store::table::pending::{PendingCommit, PendingFiles};
use crate::store::table::written::WrittenFragment;
use crate::store::view::RowPlaces;
use crate::store::write::{WriteTable, current_dataset};

/// Bytes of the rows that come into the table with a commit that is put together in memory, and rows that leave it with
/// one: all single writes and most groups. What is larger goes to disk as it is made.
const SMALL_BYTES: usize = 1 << 20;
const SMALL_ROWS: usize = 4_096;

/// What of the table's fragments is other without the rows that leave it.
#[derive(Default)]
struct Remaining {
    /// Fragments with fewer rows.
    updated: Vec<Fragment>,
    /// Those that have none left.
    removed: Vec<u64>,
}

impl WriteTable {
    /// Takes rows out of the table and adds others, as one version. Answers what those have become, where they are one
    /// fragment.
    pub(super) async fn exchange(
        &mut self,
        leaving: &RowPlaces,
        entering: RecordBatch,
    ) -> KnowledgeResult<Option<WrittenFragment>> {
        let current = current_dataset(&self.table).await?;
        let small = entering.get_array_memory_size() <= SMALL_BYTES && leaving.len() <= SMALL_ROWS;
        let (dataset, pending) = match small {
            true => {
                let (dataset, pending) = PendingFiles::over(&current).await.map_err(write_error)?;
                (dataset, Some(pending))
            }
            false => (Arc::clone(&current), None),
        };
        // The small files first: where the disk is full, little of what is in vain stays until the next pruning.
        let Remaining { updated, removed } = without(&dataset, leaving).await?;
        let fragments = if entering.num_rows() > 0 {
            written(&dataset, entering.clone()).await?
        } else {
            Vec::new()
        };
        let operation = match (leaving.is_empty(), fragments.is_empty()) {
            // To answer that something was stored that was not is the worst that could be done.
            (true, true) => return Err(KnowledgeError::internal("a commit would write nothing")),
            (true, false) => Operation::Append {
                fragments: fragments.clone(),
            },
            (false, true) => Operation::Delete {
                updated_fragments: updated,
                deleted_fragment_ids: removed,
                // For the record only: the rows were chosen by their places.
                predicate: "false".to_owned(),
            },
            // As Lance's own merge has it for whole rows: no index covers the new fragment before it is indexed.
            (false, false) => Operation::Update {
                removed_fragment_ids: removed,
                updated_fragments: updated,
                new_fragments: fragments.clone(),
                fields_modified: Vec::new(),
                compacted_sstables: Vec::new(),
                fields_for_preserving_frag_bitmap: every_field(&dataset),
                update_mode: Some(UpdateMode::RewriteRows),
                inserted_rows_filter: None,
                updated_fragment_offsets: None,
            },
        };
        let transaction = Transaction::new(dataset.manifest().version, operation, None);
        let is_pending = pending.is_some();
        let mut builder = CommitBuilder::new(dataset);
        if let Some(files) = pending {
            let handler = Arc::clone(&self.handler);
            builder = builder.with_commit_handler(Arc::new(PendingCommit { handler, files }));
        }
        let mut committed = builder.execute(transaction).await.map_err(write_error)?;
        if is_pending {
            let disk = current.object_store(None).await.map_err(write_error)?;
            committed = committed.with_object_store(disk, None);
        }
        self.take_over_commit(committed)?;
        Ok(WrittenFragment::of(&fragments, entering))
    }
}

/// Writes which rows of each fragment are deleted once `leaving` are. No version says so yet.
async fn without(dataset: &Arc<Dataset>, leaving: &RowPlaces) -> KnowledgeResult<Remaining> {
    let mut remaining = Remaining::default();
    for (fragment, numbers) in leaving.within(dataset)? {
        let id = fragment.metadata().id;
        match fragment.extend_deletions(numbers).await.map_err(write_error)? {
            Some(smaller) => remaining.updated.push(smaller.metadata().clone()),
            None => remaining.removed.push(id),
        }
    }
    Ok(remaining)
}

/// Writes rows into a file of the format that the table has. No version names it yet.
async fn written(dataset: &Arc<Dataset>, rows: RecordBatch) -> KnowledgeResult<Vec<Fragment>> {
    let params = WriteParams {
        mode: WriteMode::Append,
        ..WriteParams::default()
    };
    let planned = InsertBuilder::new(WriteDestination::Dataset(Arc::clone(dataset)))
        .with_params(&params)
        .execute_uncommitted(vec![rows])
        .await
        .map_err(write_error)?;
    match planned.operation {
        Operation::Append { fragments } if !fragments.is_empty() => Ok(fragments),
        _ => Err(KnowledgeError::internal("appending rows planned another operation")),
    }
}

/// Every field of the table, with those in lists: a row that is written again may differ in any of them.
fn every_field(dataset: &Dataset) -> Vec<u32> {
    let fields = dataset.schema().fields_pre_order();
    fields.filter_map(|field| u32::try_from(field.id).ok()).collect()
}
