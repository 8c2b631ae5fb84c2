//! The table as the writer holds it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_schema::SchemaRef;
use arrow_select::concat::concat_batches;
use chrono::{DateTime, TimeDelta, Utc};
use lance::Dataset;
use lance::dataset::WriteParams;
use lance::index::DatasetIndexExt;
use lance::session::Session;
use lancedb::index::Index;
use lancedb::table::{NativeTable, WriteOptions};
use lancedb::{Connection, Table};

use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::{read_error, write_error};
use crate::store::index::{Keeper, ViewIndex};
use crate::store::table::durable::DurableCommitHandler;
use crate::store::table::identity::{IdentityKind, SeenIdentities};
use crate::store::table::rows::{NewRevision, build_batch, close_rows, conform, refuse_nan, share_a_key};
use crate::store::table::schema::ModelIdentity;
use crate::store::table::schema::{TABLE_NAME, TableShape, column, table_schema};
use crate::store::table::table_damage::TableDamage;
use crate::store::table::written::{WrittenFragment, keep_written};
use crate::store::table::{dataset_shape, keyword_index};
use crate::store::view::held::HeldVersions;
use crate::store::view::recent::RecentChanges;
use crate::store::view::{Horizon, IdentityRow, PlacedRows, ProjectView, RowPlaces, config_number};

/// Name of the keyword index.
pub(crate) const TEXT_INDEX: &str = "passage_text_idx";

/// Key of the last commit's number in the table's configuration; written when rows are forgotten.
pub(super) const SEQUENCE_KEY: &str = "ccod.last_sequence";
/// Pause between looks at whether a purge's readers are done.
const READER_POLL: Duration = Duration::from_millis(20);

/// A project's table, opened for writing. Only the holder of a project's lock has one.
pub struct WriteTable {
    pub(super) project: ProjectName,
    pub(super) table: Table,
    /// Through which its commits go.
    pub(super) handler: Arc<DurableCommitHandler>,
    pub(super) schema: SchemaRef,
    pub(super) shape: TableShape,
    pub(super) last_sequence: i64,
    pub(super) seen: SeenIdentities,
    /// How long closed rows are kept.
    pub(super) retention: TimeDelta,
    /// When the oldest of the closed rows was closed: from when on there is something to forget.
    pub(super) oldest_closed: Option<DateTime<Utc>>,
    /// Lance versions that readers may still hold, oldest first: what they need is not pruned.
    pub(super) held: HeldVersions,
    /// What the last commits have changed, for the feeds.
    pub(super) recent: RecentChanges,
    /// Makes and keeps the index of what is live.
    pub(super) keeper: Arc<Keeper>,
    /// What of it cannot be read. Views leave it out.
    pub(super) damage: Arc<TableDamage>,
    /// What was mended, for `admin.status`.
    pub(super) notes: Vec<String>,
    /// What the last commits have written, for the index; see [`WriteTable::take_written`].
    pub(super) written: Vec<WrittenFragment>,
}

/// What one commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its number in the project.
    pub sequence: i64,
    /// Rows written.
    pub rows: usize,
}

impl std::fmt::Debug for WriteTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("WriteTable")
            .field("project", &self.project)
            .field("last_sequence", &self.last_sequence)
            .finish_non_exhaustive()
    }
}

impl WriteTable {
    /// Takes over a table that was found on disk, with the handler that it was opened with, and with this damage.
    pub(crate) async fn opened(
        project: ProjectName,
        (table, handler): (Table, Arc<DurableCommitHandler>),
        retention: TimeDelta,
        damage: TableDamage,
        held: HeldVersions,
        recent: RecentChanges,
        keeper: Arc<Keeper>,
    ) -> KnowledgeResult<Self> {
        let schema = table.schema().await.map_err(read_error)?;
        let dataset = current_dataset(&table).await?;
        let shape = dataset_shape(&dataset);
        let mut opened = Self {
            project,
            table,
            handler,
            schema,
            shape,
            last_sequence: 0,
            seen: SeenIdentities::default(),
            retention,
            oldest_closed: None,
            held,
            recent,
            keeper,
            damage: Arc::new(damage),
            notes: Vec::new(),
            written: Vec::new(),
        };
        if let TableShape::Current { .. } = opened.shape {
            opened.load_numbers(dataset).await?;
            // A crash between a table's creation and its index leaves it without one, and keyword search
            // would then compare cases and know no stems.
            if opened.damage.configuration.is_none()
                && let Err(error) = opened.mend_text_index().await
            {
                if matches!(error, KnowledgeError::NoDescriptors) {
                    return Err(error); // There may be one.
                }
                // Everything else can be read; the writer tries again before its next commit.
                tracing::error!(project = %opened.project, %error, "the keyword index cannot be made");
            }
        }
        Ok(opened)
    }

    async fn load_numbers(&mut self, dataset: Arc<Dataset>) -> KnowledgeResult<()> {
        let view = self.view_of(dataset, 0);
        // Rows that were forgotten no longer count, their commits do.
        let before = match sequence_in(view.config()) {
            Ok(number) => number,
            // Nothing is written then, so no number is given.
            Err(_) if self.damage.configuration.is_some() => 0,
            Err(error) => return Err(error),
        };
        let last = view.last_numbers().await?;
        self.last_sequence = before.max(last.sequence);
        self.oldest_closed = last.oldest_closed;
        Ok(())
    }

    /// Reads the identities that the table holds, before the first write: who only reads does not wait for it.
    async fn load_identities(&self) -> KnowledgeResult<()> {
        let seen = &self.seen;
        let load = async {
            let view = self.snapshot().await?;
            view.for_each_known(|id, content_hash, key| remember(seen, id, content_hash, key))
                .await
        };
        seen.load_once(load).await
    }

    /// Builds the keyword index where there is none, and rebuilds a damaged one. A failure is kept in the table's
    /// damage as well: searches go on by meaning and say so.
    pub(crate) async fn mend_text_index(&mut self) -> KnowledgeResult<()> {
        let damage = self.damage.keyword_index.clone();
        let mended = async {
            if damage.is_some() {
                match self.table.drop_index(TEXT_INDEX).await {
                    Ok(()) => {}
                    // Dropped by the attempt before, which then failed to make the new one.
                    Err(lancedb::Error::Lance {
                        source: lance::Error::IndexNotFound { .. },
                    }) => {}
                    Err(error) => return Err(write_error(error)),
                }
            }
            self.ensure_text_index().await
        }
        .await;
        if let (Ok(()), Some(reason)) = (&mended, &damage) {
            tracing::warn!(project = %self.project, %reason, "the keyword index was damaged and was rebuilt");
            self.notes
                .push(format!("the keyword index was damaged and was rebuilt: {reason}"));
        }
        if matches!(mended, Err(KnowledgeError::NoDescriptors)) {
            return mended; // Says nothing about the index.
        }
        self.set_damage(TableDamage {
            keyword_index: mended.as_ref().err().map(ToString::to_string),
            ..(*self.damage).clone()
        });
        mended
    }

    pub(super) async fn ensure_text_index(&self) -> KnowledgeResult<()> {
        let dataset = current_dataset(&self.table).await?;
        // By the manifest alone: LanceDB's list opens each index to describe it.
        let segments = dataset.load_indices_by_name(TEXT_INDEX).await.map_err(read_error)?;
        if !segments.is_empty() {
            return Ok(());
        }
        self.table
            .create_index(&[column::PASSAGE_TEXT], Index::FTS(keyword_index::index_params()))
            .name(TEXT_INDEX.to_owned())
            .execute()
            .await
            .map_err(write_error)
    }

    /// Creates the table on disk; the caller opens it afterwards as any other.
    pub(crate) async fn create(
        connection: &Connection,
        model: &ModelIdentity,
        handler: Arc<DurableCommitHandler>,
        session: Arc<Session>,
    ) -> KnowledgeResult<()> {
        let params = WriteParams {
            commit_handler: Some(handler),
            session: Some(session),
            ..WriteParams::default()
        };
        connection
            .create_empty_table(TABLE_NAME, table_schema(model.dimensions, &model.name))
            .write_options(WriteOptions {
                lance_write_params: Some(params),
            })
            .execute()
            .await
            .map(drop)
            .map_err(write_error)
    }

    /// The project.
    pub fn project(&self) -> &ProjectName {
        &self.project
    }

    /// The table's schema.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Takes over a version that was committed past LanceDB, with the schema that it has.
    pub(crate) fn take_over_commit(&mut self, committed: Dataset) -> KnowledgeResult<()> {
        let schema: arrow_schema::Schema = committed.schema().into();
        let wrapper = self
            .table
            .dataset()
            .ok_or_else(|| KnowledgeError::internal("the table is not stored on this machine"))?;
        wrapper.update(committed);
        self.schema = Arc::new(schema);
        Ok(())
    }

    /// What the table is.
    pub fn shape(&self) -> &TableShape {
        &self.shape
    }

    /// The number that the next commit will have.
    pub fn next_sequence(&self) -> i64 {
        self.last_sequence + 1
    }

    /// Numbers the next commits above `sequence`: a table that replaces another goes on where that one was.
    pub(crate) fn continue_after(&mut self, sequence: i64) {
        self.last_sequence = self.last_sequence.max(sequence);
    }

    /// The table as it stands, for readers.
    pub(crate) async fn view(&mut self) -> KnowledgeResult<Arc<ProjectView>> {
        let dataset = current_dataset(&self.table).await?;
        let version = dataset.version().version;
        let view = Arc::new(self.view_of(dataset, self.last_sequence));
        let written = self.take_written();
        view.follow(&written).await;
        view.keep_written(&written);
        self.recent.follow(self.last_sequence, &self.damage, &written);
        self.held.add(version, &view);
        Ok(view)
    }

    fn view_of(&self, dataset: Arc<Dataset>, sequence: i64) -> ProjectView {
        let damage = Arc::clone(&self.damage);
        let index = ViewIndex::of(&self.keeper);
        ProjectView::new(
            self.project.clone(),
            dataset,
            self.shape.clone(),
            sequence,
            damage,
            index,
        )
    }

    /// What of the table cannot be read.
    pub(crate) fn damage(&self) -> &Arc<TableDamage> {
        &self.damage
    }

    /// What was mended since this was last asked.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Notes what was mended, for `admin.status`.
    pub(crate) fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    /// The fragments that commits have written since this was last asked, oldest first, as far as they are still in
    /// memory. Whoever needs a fragment that is not among them reads it from disk.
    pub(crate) fn take_written(&mut self) -> Vec<WrittenFragment> {
        std::mem::take(&mut self.written)
    }

    /// Sets what of the table cannot be read, and numbers the next commit after all that were lost.
    pub(crate) fn set_damage(&mut self, damage: TableDamage) {
        self.last_sequence = self.last_sequence.max(damage.floor());
        self.damage = Arc::new(damage);
    }

    /// The oldest version that a reader may still read.
    pub(crate) fn oldest_held_version(&self) -> Option<u64> {
        self.held.oldest()
    }

    /// Lets go of the versions that are kept for the pages of searches: what they hold is wanted gone, and their
    /// cursors expire.
    pub(crate) fn release_pages(&self) {
        self.held.release_pages();
    }

    /// Waits until no reader holds a version before the present one, for `patience` at most.
    pub(crate) async fn await_readers(&self, patience: Duration) -> KnowledgeResult<()> {
        let current = current_dataset(&self.table).await?.version().version;
        let begun = Instant::now();
        loop {
            // Each time: a search that ends may keep its version for the next page.
            self.release_pages();
            let is_read = self.oldest_held_version().is_some_and(|held| held < current);
            if !is_read || begun.elapsed() >= patience {
                return Ok(());
            }
            tokio::time::sleep(READER_POLL).await;
        }
    }

    /// The rows that hold any of these identities. Those that were never seen cost nothing.
    pub async fn find_identities(
        &self,
        ids: Vec<&str>,
        hashes: Vec<&str>,
        keys: Vec<&str>,
    ) -> KnowledgeResult<Vec<IdentityRow>> {
        if ids.is_empty() && hashes.is_empty() && keys.is_empty() {
            return Ok(Vec::new());
        }
        self.load_identities().await?;
        let known = |kind: IdentityKind, values: Vec<&str>| -> Vec<String> {
            values
                .into_iter()
                .filter(|value| self.seen.may_contain(kind, value))
                .map(str::to_owned)
                .collect()
        };
        let ids = known(IdentityKind::Id, ids);
        let hashes = known(IdentityKind::Content, hashes);
        let keys = known(IdentityKind::Key, keys);
        if ids.is_empty() && hashes.is_empty() && keys.is_empty() {
            return Ok(Vec::new());
        }
        self.snapshot().await?.identities(&ids, &hashes, &keys).await
    }

    /// Whether the table may hold this id, in a live item or a deleted one. False: it certainly does not. What the table
    /// held is known once [`WriteTable::find_identities`] was asked.
    pub fn may_hold(&self, id: &str) -> bool {
        self.seen.may_contain(IdentityKind::Id, id)
    }

    /// The table as it stands, for the writer's own queries; not published.
    pub(crate) async fn snapshot(&self) -> KnowledgeResult<ProjectView> {
        let dataset = current_dataset(&self.table).await?;
        Ok(self.view_of(dataset, self.last_sequence))
    }

    /// Closes whole rows and writes revisions, in one commit: all passages of all items change together or not
    /// at all. `closing` holds the rows as they are and `closed_at` a time for each; the commit's number must be
    /// [`WriteTable::next_sequence`]. The rows that are closed come first in the new fragment, then those that are
    /// opened, each in the order in which they were given.
    pub async fn change(
        &mut self,
        closing: &PlacedRows,
        closed_at: &[DateTime<Utc>],
        revisions: &[NewRevision<'_>],
    ) -> KnowledgeResult<Written> {
        let Some(first_closed) = closed_at.iter().min().copied() else {
            return self.append(revisions).await;
        };
        let sequence = self.next_sequence();
        debug_assert!(revisions.iter().all(|revision| revision.valid_from == sequence));
        self.grow().await?;
        // They may have been read before the table grew.
        let closed = close_rows(&conform(&closing.rows, &self.schema)?, sequence, closed_at)?;
        let opened = build_batch(&self.schema, self.project.as_str(), revisions)?;
        // What is opened has a revision that its item never had: no row that stays in the table has its key either.
        debug_assert!(!share_a_key(&closed, &opened));
        let entering = if opened.num_rows() == 0 {
            closed // Of a delete of very much there is no copy more than there has to be.
        } else {
            concat_batches(&self.schema, [&closed, &opened]).map_err(KnowledgeError::internal)?
        };
        let rows = entering.num_rows();
        let written = self.exchange(&closing.places, entering).await?;
        self.committed(sequence, revisions, written);
        self.oldest_closed = self.oldest_closed.into_iter().chain([first_closed]).min();
        Ok(Written { sequence, rows })
    }

    fn committed(&mut self, sequence: i64, revisions: &[NewRevision<'_>], written: Option<WrittenFragment>) {
        self.last_sequence = sequence;
        if let Some(written) = written {
            keep_written(&mut self.written, written);
        }
        for revision in revisions {
            let key = revision.item.idempotency_key.as_deref();
            remember(&self.seen, revision.id, revision.content_hash, key);
        }
    }

    pub(super) async fn drop_text_index(&self) -> KnowledgeResult<()> {
        let indices = self.table.list_indices().await.map_err(read_error)?;
        if indices.iter().any(|index| index.name == TEXT_INDEX) {
            self.table.drop_index(TEXT_INDEX).await.map_err(write_error)?;
        }
        Ok(())
    }

    pub(super) fn native(&self) -> KnowledgeResult<&NativeTable> {
        self.table
            .as_native()
            .ok_or_else(|| KnowledgeError::internal("the table is not stored on this machine"))
    }

    /// Appends revisions as one batch, one fragment, one version. When it returns, they are as durable as the
    /// store is set to be. The commit's number must be [`WriteTable::next_sequence`].
    pub async fn append(&mut self, revisions: &[NewRevision<'_>]) -> KnowledgeResult<Written> {
        let sequence = self.next_sequence();
        debug_assert!(revisions.iter().all(|revision| revision.valid_from == sequence));
        self.grow().await?;
        let batch = build_batch(&self.schema, self.project.as_str(), revisions)?;
        refuse_nan(&batch)?;
        let rows = batch.num_rows();
        let written = self.exchange(&RowPlaces::default(), batch).await?;
        self.committed(sequence, revisions, written);
        Ok(Written { sequence, rows })
    }

    pub(crate) fn lancedb(&self) -> &Table {
        &self.table
    }
}

/// The last commit before rows were forgotten, as the table's configuration tells.
fn sequence_in(config: &HashMap<String, String>) -> KnowledgeResult<i64> {
    Ok(config_number(config, SEQUENCE_KEY)?.unwrap_or(0))
}

/// What is wrong with a table's configuration, where it says how its commits and its history go on.
pub(crate) fn configuration_damage(config: &HashMap<String, String>) -> Option<String> {
    let horizon = Horizon::of(config).map(drop);
    let damage = sequence_in(config).map(drop).and(horizon).err()?;
    Some(damage.to_string())
}

fn remember(seen: &SeenIdentities, id: &str, content_hash: &str, key: Option<&str>) {
    seen.insert(IdentityKind::Id, id);
    seen.insert(IdentityKind::Content, content_hash);
    if let Some(key) = key {
        seen.insert(IdentityKind::Key, key);
    }
}

/// The dataset behind a LanceDB table, at the version of its last commit. No I/O.
pub(crate) async fn current_dataset(table: &Table) -> KnowledgeResult<Arc<Dataset>> {
    let wrapper = table
        .dataset()
        .ok_or_else(|| KnowledgeError::internal("the table is not stored on this machine"))?;
    wrapper.get().await.map_err(read_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_be_read_is_no_beginning() {
        let config = |entries: &[(&str, &str)]| -> HashMap<String, String> {
            let owned = entries
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            owned.collect()
        };
        let (sequence, horizon, time) = (SEQUENCE_KEY, "ccod.horizon_sequence", "ccod.horizon_ms");
        for sound in [
            config(&[]),
            config(&[("other", "x")]),
            config(&[(sequence, "7")]),
            config(&[(sequence, "7"), (horizon, "3"), (time, "1795362864593")]),
        ] {
            assert_eq!(configuration_damage(&sound), None);
        }
        for damaged in [
            config(&[(sequence, "")]),
            config(&[(sequence, "7x")]),
            config(&[(sequence, "-7")]),
            config(&[(sequence, "99999999999999999999")]),
            config(&[(sequence, "7"), (horizon, "3")]),
            config(&[(sequence, "7"), (horizon, "3"), (time, "\0\0")]),
            config(&[(sequence, "7"), (horizon, "3"), (time, "9223372036854775807")]),
            config(&[(sequence, "7"), (horizon, "x"), (time, "1795362864593")]),
        ] {
            assert!(configuration_damage(&damaged).is_some(), "{damaged:?}");
        }
    }
}
