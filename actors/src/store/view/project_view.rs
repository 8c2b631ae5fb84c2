//! What a reader sees: one immutable version of a project's table.
//!
//! The writer publishes a new view before it answers a write, so an acknowledged write is in the view that
//! the next request takes. All steps of one request read one view. A view can only be queried: nothing here
//! writes, and the dataset inside is not given out of the store.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use ccod_index::Index;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::scanner::Scanner;
use lancedb::datafusion::common::tree_node::{Transformed, TreeNode};
use lancedb::datafusion::logical_expr::{Expr, lit};
use lancedb::datafusion::scalar::ScalarValue;
use tokio::sync::OnceCell;

use crate::domain::{Filter, ItemStats, ProjectName, SearchMode};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::index::ViewIndex;
use crate::store::table::columns::Column;
use crate::store::table::schema::{TableShape, may_be_missing};
use crate::store::table::table_damage::TableDamage;
use crate::store::table::written::WrittenFragment;
use crate::store::view::{KeywordsAhead, filter};

/// Column of the row's address in this version.
const ROW_ID: &str = "_rowid";

/// One version of one project's table. Cheap to share; see the module.
#[derive(Debug)]
pub struct ProjectView {
    pub(super) project: ProjectName,
    pub(super) dataset: Arc<Dataset>,
    pub(super) shape: TableShape,
    pub(super) sequence: i64,
    pub(super) damage: Arc<TableDamage>,
    pub(super) stats: OnceCell<Arc<ItemStats>>,
    pub(super) index: ViewIndex,
}

/// A search, checked and embedded.
#[derive(Clone, Debug)]
pub struct SearchRequest {
    /// The words.
    pub query: String,
    /// Their embedding; none in text mode or while the embedder is unavailable.
    pub vector: Option<Arc<[f32]>>,
    /// Which legs run.
    pub mode: SearchMode,
    /// Which items are searched; applied before the best are taken.
    pub filter: Filter,
    /// Results wanted.
    pub limit: usize,
    /// Results skipped.
    pub offset: usize,
    /// Least fused score.
    pub threshold: Option<f32>,
    /// Cosine below which a passage does not count as found by its meaning.
    pub min_similarity: f32,
    /// Search the items as they were then.
    pub at: Option<filter::AsOf>,
    /// An item that is not a result of its own.
    pub except: Option<String>,
    /// Bytes of text that the results may have together; those that do not fit are left out, but for the first.
    pub text_budget: Option<usize>,
    /// What the answer may take.
    pub max_answer_bytes: usize,
    /// What was found of the words before the vector was there.
    pub keywords_ahead: Option<Arc<KeywordsAhead>>,
}

impl ProjectView {
    pub(crate) fn new(
        project: ProjectName,
        dataset: Arc<Dataset>,
        shape: TableShape,
        sequence: i64,
        damage: Arc<TableDamage>,
        index: ViewIndex,
    ) -> Self {
        Self {
            project,
            dataset,
            shape,
            sequence,
            damage,
            stats: OnceCell::new(),
            index,
        }
    }

    /// The project.
    pub fn project(&self) -> &ProjectName {
        &self.project
    }

    /// The number of the last commit in it.
    pub fn sequence(&self) -> i64 {
        self.sequence
    }

    /// What the table is.
    pub fn shape(&self) -> &TableShape {
        &self.shape
    }

    /// Lance's own version, which also counts maintenance.
    pub fn lance_version(&self) -> u64 {
        self.dataset.version().version
    }

    /// Fragments of the table.
    pub fn fragments(&self) -> usize {
        self.dataset.get_fragments().len()
    }

    /// Rows of the table, closed ones too.
    pub async fn row_count(&self) -> KnowledgeResult<usize> {
        self.dataset.count_rows(None).await.map_err(read_error)
    }

    /// What of the table cannot be read: scans leave it out.
    pub fn damage(&self) -> &Arc<TableDamage> {
        &self.damage
    }

    /// Why a search finds less than was stored, if so.
    pub fn degraded(&self) -> Option<String> {
        let found = self.damage.describe();
        (!found.is_empty()).then(|| format!("project {}: {}", self.project, found.join("; ")))
    }

    /// The live rows in memory; none where there are too many of them, or where the table is of another shape.
    ///
    /// # Errors
    /// Where they have to be read and cannot be.
    pub(crate) async fn index(&self) -> KnowledgeResult<Option<Index>> {
        match self.shape {
            TableShape::Current { .. } => self.index.get(&self.dataset, &self.damage).await,
            TableShape::Foreign { .. } => Ok(None),
        }
    }

    /// As [`ProjectView::index`], if it need not be read.
    pub(crate) fn index_at_hand(&self) -> Option<Index> {
        self.index.at_hand(&self.dataset, &self.damage)
    }

    /// What is wrong with the index of this version, if it is at hand and something is; it is made again then.
    pub(crate) async fn check_index(&self) -> KnowledgeResult<Option<String>> {
        self.index.check(&self.dataset, &self.damage).await
    }

    /// Makes the index of this version out of that of one before, if there is one, and of what was `written` since.
    pub(crate) async fn follow(&self, written: &[WrittenFragment]) {
        if let TableShape::Current { .. } = self.shape {
            self.index.follow(&self.dataset, &self.damage, written).await;
        }
    }

    /// Puts another index in the place of the right one.
    #[cfg(test)]
    pub(crate) fn replace_index(&self, index: Index) {
        self.index.replace(index);
    }

    /// The same version, asked as if there were no index.
    #[cfg(test)]
    pub(crate) fn without_index(&self) -> Self {
        Self::new(
            self.project.clone(),
            Arc::clone(&self.dataset),
            self.shape.clone(),
            self.sequence,
            Arc::clone(&self.damage),
            ViewIndex::default(),
        )
    }

    pub(crate) fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// Refuses a table of another shape.
    pub fn check_shape(&self) -> KnowledgeResult<()> {
        match &self.shape {
            TableShape::Current { .. } => Ok(()),
            TableShape::Foreign { detail } => Err(KnowledgeError::NeedsMigration {
                project: self.project.to_string(),
                detail: detail.clone(),
            }),
        }
    }

    /// Refuses vectors of another model than `running`.
    pub fn check_model(&self, running: &str) -> KnowledgeResult<()> {
        match &self.shape {
            TableShape::Current { model } if model != running => Err(KnowledgeError::ModelMismatch {
                project: self.project.to_string(),
                stored: model.clone(),
                running: running.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// A scan over everything that can be read.
    pub(super) fn scanner(&self) -> Scanner {
        let mut scanner = self.dataset.scan();
        if !self.damage.fragments.is_empty() {
            let fragments = self.dataset.fragments().iter();
            let readable = fragments.filter(|fragment| !self.damage.fragments.contains_key(&fragment.id));
            scanner.with_fragments(readable.cloned().collect());
        }
        scanner
    }

    /// A scan of `columns` over the rows that pass `predicate`. A column that this version of the table is without
    /// is null: absent from what is read (see [`RowReader`]), and null in the predicate.
    pub(crate) fn scan(&self, columns: &[&str], predicate: Expr) -> KnowledgeResult<Scanner> {
        let mut scanner = self.scanner();
        scanner.project(&self.present(columns)).map_err(read_error)?;
        scanner.filter_expr(self.without_missing(predicate)?).prefilter(true);
        Ok(scanner)
    }

    /// `columns`, without those that this version of the table need not have and does not have.
    pub(crate) fn present<'a>(&self, columns: &[&'a str]) -> Vec<&'a str> {
        let schema = self.dataset.schema();
        let there = |name: &&str| !may_be_missing(name) || schema.field(name).is_some();
        columns.iter().copied().filter(there).collect()
    }

    /// `predicate`, with null in place of columns that this version of the table is without.
    pub(super) fn without_missing(&self, predicate: Expr) -> KnowledgeResult<Expr> {
        let schema = self.dataset.schema();
        let replaced = predicate.transform(|part| {
            let missing = match &part {
                Expr::Column(named) if may_be_missing(&named.name) && schema.field(&named.name).is_none() => {
                    Column::find(&named.name)
                }
                _ => None,
            };
            Ok(match missing {
                Some(column) => Transformed::yes(lit(ScalarValue::try_from(&column.data_type(0))?)),
                None => Transformed::no(part),
            })
        });
        replaced.map(|replaced| replaced.data).map_err(KnowledgeError::internal)
    }

    pub(super) async fn collect(scanner: &Scanner) -> KnowledgeResult<Vec<RecordBatch>> {
        let stream = scanner.try_into_stream().await.map_err(read_error)?;
        stream.try_collect().await.map_err(read_error)
    }

    /// Refuses what cannot be searched at this point of its history.
    pub(crate) fn check_searchable(&self, at: Option<filter::AsOf>) -> KnowledgeResult<()> {
        self.check_shape()?;
        self.check_as_of(at)
    }

    /// The table's configuration.
    pub(crate) fn config(&self) -> &HashMap<String, String> {
        self.dataset.config()
    }
}

pub(crate) fn row_id(batch: &RecordBatch, row: usize) -> KnowledgeResult<u64> {
    use arrow_array::cast::AsArray;
    batch
        .column_by_name(ROW_ID)
        .and_then(|array| array.as_primitive_opt::<arrow_array::types::UInt64Type>())
        .map(|array| array.value(row))
        .ok_or_else(|| KnowledgeError::internal("the query returned no row ids"))
}
