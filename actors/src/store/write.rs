//! The table as the writer holds it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use lance::Dataset;
use lance::dataset::WriteParams;
use lance::session::Session;
use lancedb::index::Index;
use lancedb::table::WriteOptions;
use lancedb::{Connection, Table};

use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::durable::DurableCommitHandler;
use crate::store::error::{read_error, write_error};
use crate::store::identity::{IdentityKind, SeenIdentities};
use crate::store::rows::{NewRevision, build_batch};
use crate::store::schema::{TABLE_NAME, TableShape, column, table_schema};
use crate::store::view::{IdentityRow, ProjectView};
use crate::store::{ModelIdentity, dataset_shape, filter, fulltext};

/// Name of the keyword index.
pub(crate) const TEXT_INDEX: &str = "passage_text_idx";

/// A project's table, opened for writing. Only the holder of a project's lock has one.
pub struct WriteTable {
    project: ProjectName,
    table: Table,
    schema: SchemaRef,
    shape: TableShape,
    last_sequence: i64,
    seen: SeenIdentities,
    /// Lance versions that readers may still hold, oldest first: what they need is not pruned.
    published: VecDeque<(u64, Weak<ProjectView>)>,
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
    /// Takes over a table that was found on disk.
    pub(crate) async fn opened(project: ProjectName, table: Table) -> KnowledgeResult<Self> {
        let schema = table.schema().await.map_err(read_error)?;
        let dataset = current_dataset(&table).await?;
        let shape = dataset_shape(&dataset);
        let mut opened = Self {
            project,
            table,
            schema,
            shape,
            last_sequence: 0,
            seen: SeenIdentities::default(),
            published: VecDeque::new(),
        };
        if let TableShape::Current { .. } = opened.shape {
            opened.load_identities(dataset).await?;
            // A crash between a table's creation and its index leaves it without one, and keyword search
            // would then compare cases and know no stems.
            opened.ensure_text_index().await?;
        }
        Ok(opened)
    }

    async fn load_identities(&mut self, dataset: Arc<Dataset>) -> KnowledgeResult<()> {
        let view = ProjectView::new(self.project.clone(), dataset, self.shape.clone(), 0);
        let mut last_sequence = 0;
        let mut seen = SeenIdentities::default();
        view.for_each_identity(filter::first_passage(), |row| {
            last_sequence = last_sequence.max(row.valid_from).max(row.valid_to.unwrap_or(0));
            remember(&mut seen, &row.id, &row.content_hash, row.idempotency_key.as_deref());
        })
        .await?;
        self.last_sequence = last_sequence;
        self.seen = seen;
        Ok(())
    }

    async fn ensure_text_index(&self) -> KnowledgeResult<()> {
        let indices = self.table.list_indices().await.map_err(read_error)?;
        if indices.iter().any(|index| index.name == TEXT_INDEX) {
            return Ok(());
        }
        self.table
            .create_index(&[column::PASSAGE_TEXT], Index::FTS(fulltext::index_params()))
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

    /// What the table is.
    pub fn shape(&self) -> &TableShape {
        &self.shape
    }

    /// The number that the next commit will have.
    pub fn next_sequence(&self) -> i64 {
        self.last_sequence + 1
    }

    /// The table as it stands, for readers.
    pub(crate) async fn view(&mut self) -> KnowledgeResult<Arc<ProjectView>> {
        let dataset = current_dataset(&self.table).await?;
        let version = dataset.version().version;
        let view = Arc::new(ProjectView::new(
            self.project.clone(),
            dataset,
            self.shape.clone(),
            self.last_sequence,
        ));
        self.published.retain(|(_, held)| held.strong_count() > 0);
        self.published.push_back((version, Arc::downgrade(&view)));
        Ok(view)
    }

    /// The oldest version that a reader may still read.
    pub(crate) fn oldest_held_version(&self) -> Option<u64> {
        self.published
            .iter()
            .find(|(_, held)| held.strong_count() > 0)
            .map(|(version, _)| *version)
    }

    /// The rows that hold any of these identities. Those that were never seen cost nothing.
    pub async fn find_identities(
        &self,
        ids: Vec<&str>,
        hashes: Vec<&str>,
        keys: Vec<&str>,
    ) -> KnowledgeResult<Vec<IdentityRow>> {
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
        let dataset = current_dataset(&self.table).await?;
        let view = ProjectView::new(self.project.clone(), dataset, self.shape.clone(), self.last_sequence);
        view.identities(&ids, &hashes, &keys).await
    }

    /// Appends revisions as one batch, one fragment, one version. When it returns, they are as durable as the
    /// store is set to be. The commit's number must be [`WriteTable::next_sequence`].
    pub async fn append(&mut self, revisions: &[NewRevision<'_>]) -> KnowledgeResult<Written> {
        let sequence = self.next_sequence();
        debug_assert!(revisions.iter().all(|revision| revision.valid_from == sequence));
        let batch = build_batch(&self.schema, self.project.as_str(), revisions)?;
        let rows = batch.num_rows();
        self.add(batch).await?;
        self.last_sequence = sequence;
        for revision in revisions {
            let key = revision.item.idempotency_key.as_deref();
            remember(&mut self.seen, revision.id, revision.content_hash, key);
        }
        Ok(Written { sequence, rows })
    }

    async fn add(&self, batch: RecordBatch) -> KnowledgeResult<()> {
        self.table
            .add(batch)
            .write_parallelism(1)
            .execute()
            .await
            .map(drop)
            .map_err(write_error)
    }

    pub(crate) fn lancedb(&self) -> &Table {
        &self.table
    }
}

fn remember(seen: &mut SeenIdentities, id: &str, content_hash: &str, key: Option<&str>) {
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
