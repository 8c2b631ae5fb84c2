//! Removing items for good: every revision out of the table, then out of its files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lancedb::datafusion::logical_expr::lit;
use lancedb::expr::col;

use crate::domain::now_ms;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::disk;
use crate::store::error::{read_error, write_error};
use crate::store::table::rows::tombstone_batch;
use crate::store::table::schema::column;
use crate::store::view::filter;
use crate::store::write::WriteTable;

/// Name of the file in a project's directory that stands there while a purge is under way.
pub(crate) const ERASING_MARK: &str = "purge-unfinished";

impl WriteTable {
    /// Whether any revision of these items is there, or the tombstone of a purged one.
    pub(crate) async fn holds_any(&self, ids: &[String]) -> KnowledgeResult<bool> {
        let Some(wanted) = filter::any_of(column::ID, ids) else {
            return Ok(false);
        };
        let mut found = false;
        let view = self.snapshot().await?;
        view.for_each_identity(wanted, |_| found = true).await?;
        Ok(found)
    }

    /// Removes every row of these items and leaves a tombstone for each, as one version. Gives back the ids that
    /// were found. What was removed stays in the files until [`WriteTable::erase_removed`] and then
    /// [`WriteTable::finish_erasing`] have run, which [`WriteTable::is_erasing`] reports, also after a crash.
    pub(crate) async fn purge(&mut self, ids: &[String]) -> KnowledgeResult<Vec<String>> {
        let Some(wanted) = filter::any_of(column::ID, ids) else {
            return Ok(Vec::new());
        };
        // Each id with its last revision, and whether that is all that is left of it.
        let mut found = BTreeMap::<String, (i64, bool)>::new();
        let view = self.snapshot().await?;
        view.for_each_identity(wanted.clone(), |row| {
            let (last, purged) = found.entry(row.id).or_insert((0, true));
            *last = row.revision.max(*last);
            *purged &= row.passages == 0;
        })
        .await?;
        let content = wanted.and(col(column::PASSAGES).gt(lit(0_i32)));
        let removed = view.row_places(content).await?;
        drop(view);
        // They may hold what is to go.
        self.written.clear();
        if !found.is_empty() {
            // Also for those that are gone already: who asks again wants to be sure.
            self.keeper.forget_shown();
            self.begin_erasing().await?;
        }
        if !removed.is_empty() {
            let tombstones: Vec<(String, i64)> = found
                .iter()
                .filter(|(_, (_, purged))| !purged)
                .map(|(id, (last, _))| (id.clone(), last + 1))
                .collect();
            self.grow().await?;
            let sequence = self.next_sequence();
            let at = now_ms();
            let tombstones = tombstone_batch(&self.schema, self.project.as_str(), &tombstones, sequence, at)?;
            fail::fail_point!("write::before_purge_commit");
            self.exchange(&removed, tombstones).await?;
            self.last_sequence = sequence;
            self.oldest_closed = Some(self.oldest_closed.map_or(at, |oldest| oldest.min(at)));
        }
        Ok(found.into_keys().collect())
    }

    /// Rewrites all that held removed rows: the data, and the keyword index, whose dictionary keeps words. The vector
    /// index goes: rows that leave a table stay in its codes. Upkeep makes it again, which takes longer than who
    /// purges should wait. The versions before still hold them.
    pub(crate) async fn erase_removed(&mut self) -> KnowledgeResult<()> {
        fail::fail_point!("write::before_erasing", |_| Err(KnowledgeError::internal(
            "failpoint write::before_erasing"
        )));
        self.drop_vector_index().await?;
        self.drop_text_index().await?;
        self.rewrite_deletions(0.0).await?;
        self.ensure_text_index().await
    }

    /// Removes the versions before the present one, whoever still reads them after `patience`, and notes that
    /// nothing is left to erase.
    pub(crate) async fn finish_erasing(&self, patience: Duration) -> KnowledgeResult<()> {
        self.await_readers(patience).await?;
        self.prune_all().await?;
        // Of one that was still read: it cannot be read any more.
        self.release_pages();
        match std::fs::remove_file(self.erasing_mark().await?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(write_error(error)),
            _ => Ok(()),
        }
    }

    /// Whether a purge was begun and what it removed may still be in the files.
    pub(crate) async fn is_erasing(&self) -> KnowledgeResult<bool> {
        disk::exists(&self.erasing_mark().await?)
    }

    /// Notes durably that a purge begins. If it is cut short before anything is removed, erasing finds nothing.
    async fn begin_erasing(&self) -> KnowledgeResult<()> {
        let mark = self.erasing_mark().await?;
        tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            std::fs::File::create(&mark)?.sync_all()?;
            mark.parent().map_or(Ok(()), disk::fsync_directory)
        })
        .await
        .map_err(KnowledgeError::internal)?
        .map_err(write_error)
    }

    async fn erasing_mark(&self) -> KnowledgeResult<PathBuf> {
        let table = PathBuf::from(self.table.uri().await.map_err(read_error)?);
        let directory = table
            .parent()
            .ok_or_else(|| KnowledgeError::internal("the table is in no directory"))?;
        Ok(directory.join(ERASING_MARK))
    }
}
