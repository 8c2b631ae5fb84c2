//! What a reader sees: one immutable version of a project's table.
//!
//! The writer publishes a new view before it answers a write, so an acknowledged write is in the view that
//! the next request takes. All steps of one request read one view. A view can only be queried: nothing here
//! writes, and the dataset inside is not given out of the store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow_array::{Float32Array, RecordBatch};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use lance::dataset::scanner::{ColumnOrdering, Scanner};
use lance_index::scalar::FullTextSearchQuery;
use lancedb::datafusion::common::tree_node::{Transformed, TreeNode};
use lancedb::datafusion::logical_expr::{Expr, lit};
use lancedb::datafusion::scalar::ScalarValue;
use lancedb::expr::col;
use tokio::sync::OnceCell;

use crate::domain::{ItemFilter, ItemStats, ProjectName, SearchHit, SearchMode, StoredItem};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::columns::Column;
use crate::store::error::read_error;
use crate::store::filter;
use crate::store::fusion::{LegHit, RankedItem};
use crate::store::legs::{LegKind, LegPage};
use crate::store::recovery::Condition;
use crate::store::rows::{ITEM_COLUMNS, RowReader, row_key};
use crate::store::schema::{TableShape, column, may_be_missing};

/// Column of the cosine distance (1 - cosine) in the vector leg's results.
const DISTANCE: &str = "_distance";
/// Column of BM25 in the keyword leg's results.
const BM25: &str = "_score";
/// Column of the row's address in this version.
const ROW_ID: &str = "_rowid";

/// One version of one project's table. Cheap to share; see the module.
#[derive(Debug)]
pub struct ProjectView {
    project: ProjectName,
    dataset: Arc<Dataset>,
    shape: TableShape,
    sequence: i64,
    condition: Arc<Condition>,
    stats: OnceCell<Arc<ItemStats>>,
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
    pub filter: ItemFilter,
    /// Results wanted.
    pub limit: usize,
    /// Results skipped.
    pub offset: usize,
    /// Least fused score.
    pub threshold: Option<f32>,
    /// Cosine below which a passage does not count as found by its meaning.
    pub min_similarity: f32,
    /// Search the items as they were then.
    pub at: Option<filter::Moment>,
    /// An item that is no result of its own.
    pub except: Option<String>,
    /// Bytes of text that the results may have together; those that do not fit are left out, but for the first.
    pub text_budget: Option<usize>,
    /// What the answer may take.
    pub max_answer_bytes: usize,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// Which items.
    pub filter: ItemFilter,
    /// Newest first, or oldest first.
    pub newest_first: bool,
    /// Items wanted.
    pub limit: usize,
    /// Where the page before ended: its last item's creation and id.
    pub after: Option<(DateTime<Utc>, String)>,
    /// What the answer may take.
    pub max_answer_bytes: usize,
}

/// What [`ProjectView::list`] found.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// The items, in order.
    pub items: Vec<StoredItem>,
    /// How many match in all.
    pub total: u64,
    /// Whether there are more.
    pub more: bool,
}

/// Where a project's history begins: rows that were closed up to here have been removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// The commit.
    pub sequence: i64,
    /// Its time.
    pub at: DateTime<Utc>,
}

impl Horizon {
    const SEQUENCE_KEY: &str = "ccod.horizon_sequence";
    const TIME_KEY: &str = "ccod.horizon_ms";

    /// As the table's configuration tells; none where nothing was ever forgotten.
    ///
    /// # Errors
    /// [`KnowledgeError::Unreadable`] where what it says is no horizon.
    pub(crate) fn of(config: &HashMap<String, String>) -> KnowledgeResult<Option<Self>> {
        let sequence = config_number(config, Self::SEQUENCE_KEY)?;
        let milliseconds = config_number(config, Self::TIME_KEY)?;
        let (Some(sequence), Some(milliseconds)) = (sequence, milliseconds) else {
            return match sequence.or(milliseconds) {
                None => Ok(None),
                Some(_) => Err(damaged_config(
                    Self::SEQUENCE_KEY,
                    "stands there without its time, or the other way",
                )),
            };
        };
        let at = DateTime::from_timestamp_millis(milliseconds)
            .ok_or_else(|| damaged_config(Self::TIME_KEY, "is no time"))?;
        Ok(Some(Self { sequence, at }))
    }

    /// For the table's configuration.
    pub(crate) fn entries(self) -> [(String, String); 2] {
        [
            (Self::SEQUENCE_KEY.to_owned(), self.sequence.to_string()),
            (Self::TIME_KEY.to_owned(), self.at.timestamp_millis().to_string()),
        ]
    }
}

/// A number in a table's configuration; none where it does not stand there.
///
/// # Errors
/// [`KnowledgeError::Unreadable`] where what stands there is no number.
pub(crate) fn config_number(config: &HashMap<String, String>, key: &str) -> KnowledgeResult<Option<i64>> {
    match config.get(key).map(|number| number.parse()) {
        None => Ok(None),
        Some(Ok(number)) if number >= 0 => Ok(Some(number)),
        Some(_) => Err(damaged_config(key, "is no number")),
    }
}

fn damaged_config(key: &str, what: &str) -> KnowledgeError {
    KnowledgeError::Unreadable {
        message: format!(
            "the configuration of the table is damaged: {key} {what}. It says where commit numbers and the history go \
             on, so nothing is written until it is put right: restore the project from a backup"
        ),
    }
}

/// The live item that holds an identity. See [`ProjectView::identities`].
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityRow {
    /// Its id.
    pub id: String,
    /// SHA-256 of its content.
    pub content_hash: String,
    /// The key that it was stored with.
    pub idempotency_key: Option<String>,
    /// The content hash with which the item was first stored, where it is known.
    pub key_hash: Option<String>,
    /// Its revision.
    pub revision: i64,
    /// Its creation.
    pub timestamp: DateTime<Utc>,
    /// Number of its passages.
    pub passages: u32,
    /// The commit that wrote it.
    pub valid_from: i64,
    /// The commit that closed it, if it was; a closed item's id keeps its revision numbers.
    pub valid_to: Option<i64>,
    /// When it was closed.
    pub closed_at: Option<DateTime<Utc>>,
}

impl ProjectView {
    pub(crate) fn new(
        project: ProjectName,
        dataset: Arc<Dataset>,
        shape: TableShape,
        sequence: i64,
        condition: Arc<Condition>,
    ) -> Self {
        Self {
            project,
            dataset,
            shape,
            sequence,
            condition,
            stats: OnceCell::new(),
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
    pub fn condition(&self) -> &Arc<Condition> {
        &self.condition
    }

    /// Why a search finds less than was stored, if so.
    pub fn degraded(&self) -> Option<String> {
        let found = self.condition.describe();
        (!found.is_empty()).then(|| format!("project {}: {}", self.project, found.join("; ")))
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
    fn scanner(&self) -> Scanner {
        let mut scanner = self.dataset.scan();
        if !self.condition.fragments.is_empty() {
            let fragments = self.dataset.fragments().iter();
            let readable = fragments.filter(|fragment| !self.condition.fragments.contains_key(&fragment.id));
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
    fn without_missing(&self, predicate: Expr) -> KnowledgeResult<Expr> {
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

    async fn collect(scanner: &Scanner) -> KnowledgeResult<Vec<RecordBatch>> {
        let stream = scanner.try_into_stream().await.map_err(read_error)?;
        stream.try_collect().await.map_err(read_error)
    }

    /// Refuses what cannot be searched at this moment of its history.
    pub(crate) fn check_searchable(&self, at: Option<filter::Moment>) -> KnowledgeResult<()> {
        self.check_shape()?;
        self.check_moment(at)
    }

    /// The best passages of one leg, if the mode asks for it: `passages` of them at most, without those of the
    /// items that are `known`. `source` marks the hits.
    pub(crate) async fn leg_page(
        &self,
        kind: LegKind,
        request: &SearchRequest,
        known: &HashSet<String>,
        passages: usize,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        let nothing = LegPage {
            hits: Vec::new(),
            is_last: true,
        };
        let mut predicate = filter::matching(&request.filter, request.at);
        if !known.is_empty() {
            let known = known.iter().map(|id| lit(id.as_str())).collect();
            predicate = predicate.and(col(column::ID).in_list(known, true));
        }
        match (kind, request.mode, &request.vector) {
            (LegKind::Vector, SearchMode::Hybrid | SearchMode::Vector, Some(vector)) => {
                self.vector_leg(vector, predicate, passages, request.min_similarity, source)
                    .await
            }
            (LegKind::Vector, _, _) | (LegKind::Text, SearchMode::Vector, _) => Ok(nothing),
            (LegKind::Text, SearchMode::Hybrid | SearchMode::Text, vector) => match &self.condition.keyword_index {
                // By meaning alone, which `degraded` says.
                Some(_) if request.mode == SearchMode::Hybrid && vector.is_some() => Ok(nothing),
                Some(reason) => Err(KnowledgeError::Unavailable {
                    part: "keyword index",
                    reason: format!("{reason}; it is made anew with the next store"),
                }),
                None => {
                    self.text_leg(&request.query, predicate, passages, vector.as_deref(), source)
                        .await
                }
            },
        }
    }

    /// The passages nearest to `vector`, nearest first.
    async fn vector_leg(
        &self,
        vector: &[f32],
        predicate: Expr,
        passages: usize,
        min_similarity: f32,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        let mut scanner = self.scan(&[column::ID, DISTANCE], predicate)?;
        let key = Float32Array::from(vector.to_vec());
        scanner
            .nearest(column::VECTOR, &key, passages)
            .map_err(read_error)?
            // Always stated: the default of a table without an index is L2.
            .distance_metric(lancedb::DistanceType::Cosine.into())
            .with_row_id();
        let (mut hits, mut num_rows) = (Vec::new(), 0);
        for batch in Self::collect(&scanner).await? {
            num_rows += batch.num_rows();
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                // A zero vector has no direction and a NaN distance: it is like nothing.
                let similarity = rows.float(DISTANCE, row).map(|distance| 1.0 - distance);
                let Some(similarity) = similarity.filter(|similarity| *similarity >= min_similarity) else {
                    continue;
                };
                hits.push(LegHit {
                    source,
                    id: rows.required_text(column::ID, row)?.to_owned(),
                    row_id: row_id(&batch, row)?,
                    similarity: Some(similarity),
                    bm25: None,
                });
            }
        }
        sort_best_first(&mut hits, |hit| hit.similarity);
        Ok(LegPage {
            // What is below the limit is last, so there is nothing behind it either.
            is_last: num_rows < passages || hits.len() < num_rows,
            hits,
        })
    }

    /// The passages that hold words of `query`, best BM25 first, with their cosine where there is a vector.
    async fn text_leg(
        &self,
        query: &str,
        predicate: Expr,
        passages: usize,
        vector: Option<&[f32]>,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        if !super::fulltext::has_terms(query)? {
            return Ok(LegPage {
                hits: Vec::new(),
                is_last: true,
            });
        }
        let columns: &[&str] = match vector {
            Some(_) => &[column::ID, column::VECTOR, BM25],
            None => &[column::ID, BM25],
        };
        let mut scanner = self.scan(columns, predicate)?;
        let search = FullTextSearchQuery::new(query.to_owned())
            .with_column(column::PASSAGE_TEXT.to_owned())
            .map_err(read_error)?
            .limit(Some(passages as i64));
        scanner
            .full_text_search(search)
            .map_err(read_error)?
            .limit(Some(passages as i64), None)
            .map_err(read_error)?
            .with_row_id();
        let mut hits = Vec::new();
        for batch in Self::collect(&scanner).await? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                let similarity = match vector {
                    Some(query_vector) => Some(cosine(query_vector, &rows.vector(row)?)),
                    None => None,
                };
                hits.push(LegHit {
                    source,
                    id: rows.required_text(column::ID, row)?.to_owned(),
                    row_id: row_id(&batch, row)?,
                    similarity,
                    bm25: rows.float(BM25, row),
                });
            }
        }
        sort_best_first(&mut hits, |hit| hit.bm25);
        Ok(LegPage {
            is_last: hits.len() < passages,
            hits,
        })
    }

    /// Loads the items of a page of results, in its order. An item whose text cannot be read any more is none.
    pub(crate) async fn load_hits(&self, page: &[RankedItem]) -> KnowledgeResult<Vec<Option<SearchHit>>> {
        if page.is_empty() {
            return Ok(Vec::new());
        }
        let row_ids: Vec<u64> = page.iter().map(|item| item.row_id).collect();
        let projection = ProjectionRequest::from_columns(self.present(&ITEM_COLUMNS), self.dataset.schema());
        let batch = self.dataset.take_rows(&row_ids, projection).await.map_err(read_error)?;
        if batch.num_rows() != page.len() {
            return Err(KnowledgeError::internal(format!(
                "{} rows were asked for and {} came back",
                page.len(),
                batch.num_rows()
            )));
        }
        let rows = RowReader(&batch);

        // The whole text stands in passage 0; where another passage matched, it is fetched as well.
        let mut first_rows = Vec::new();
        for row in 0..batch.num_rows() {
            if rows.small_int(column::PASSAGE, row)? != 0 {
                let revision = rows.int(column::REVISION, row)?.unwrap_or(1);
                first_rows.push(row_key(rows.required_text(column::ID, row)?, revision, 0));
            }
        }
        let mut first_items: HashMap<String, StoredItem> = HashMap::new();
        if let Some(predicate) = filter::any_of(column::ROW_KEY, &first_rows) {
            for batch in Self::collect(&self.scan(&ITEM_COLUMNS, predicate)?).await? {
                for row in 0..batch.num_rows() {
                    let item = RowReader(&batch).item(row)?;
                    first_items.insert(item.id.clone(), item);
                }
            }
        }

        let mut hits = Vec::with_capacity(page.len());
        for (row, ranked) in page.iter().enumerate() {
            let mut item = rows.item(row)?;
            if rows.small_int(column::PASSAGE, row)? != 0 {
                let Some(first) = first_items.get(&item.id) else {
                    // Its first passage was in a fragment that is damaged; admin.verify names it.
                    tracing::warn!(project = %self.project, id = item.id, "an item has lost its first passage");
                    hits.push(None);
                    continue;
                };
                item = first.clone();
            }
            let passage = rows.passage(row)?.in_bytes_of(&item.text);
            hits.push(Some(SearchHit {
                item,
                passage,
                score: ranked.score,
                similarity: ranked.similarity,
                bm25: ranked.bm25,
                vector_rank: ranked.vector_rank,
                text_rank: ranked.text_rank,
            }));
        }
        Ok(hits)
    }

    /// Lists items by creation, then id.
    ///
    /// # Errors
    /// [`KnowledgeError::AnswerTooLarge`] where the page is larger than an answer may be.
    pub async fn list(&self, request: &ListRequest) -> KnowledgeResult<ListPage> {
        self.check_shape()?;
        let matching = filter::matching(&request.filter, None).and(filter::first_passage());
        let total = self.count(matching.clone()).await?;
        let predicate = match &request.after {
            None => matching,
            Some((time, id)) => {
                let timestamp = || col(column::TIMESTAMP);
                let same_time = timestamp().eq(filter::time_literal(*time));
                let same_time_later_id = same_time.and(col(column::ID).gt(lit(id.as_str())));
                let beyond = if request.newest_first {
                    timestamp().lt(filter::time_literal(*time))
                } else {
                    timestamp().gt(filter::time_literal(*time))
                };
                matching.and(beyond.or(same_time_later_id))
            }
        };
        let mut scanner = self.scan(&[column::ID, column::TIMESTAMP], predicate)?;
        let by_time = if request.newest_first {
            ColumnOrdering::desc_nulls_last(column::TIMESTAMP.to_owned())
        } else {
            ColumnOrdering::asc_nulls_last(column::TIMESTAMP.to_owned())
        };
        scanner
            .order_by(Some(vec![
                by_time,
                ColumnOrdering::asc_nulls_last(column::ID.to_owned()),
            ]))
            .map_err(read_error)?
            .limit(Some(request.limit as i64 + 1), None)
            .map_err(read_error)?
            .with_row_id();
        let mut places = Vec::with_capacity(request.limit + 1);
        for batch in Self::collect(&scanner).await? {
            for row in 0..batch.num_rows() {
                places.push(row_id(&batch, row)?);
            }
        }
        let more = places.len() > request.limit;
        places.truncate(request.limit);
        let items = self.items_within(&places, request.max_answer_bytes).await?;
        Ok(ListPage { items, total, more })
    }

    async fn count(&self, predicate: Expr) -> KnowledgeResult<u64> {
        let mut scanner = self.scanner();
        scanner
            .project::<&str>(&[])
            .map_err(read_error)?
            .with_row_id()
            .filter_expr(self.without_missing(predicate)?);
        scanner.count_rows().await.map_err(read_error)
    }

    /// How many live items pass `filter`, and the bytes of their texts and vectors.
    pub async fn matching_size(&self, filter: &ItemFilter) -> KnowledgeResult<(u64, u64)> {
        self.check_shape()?;
        let columns = [column::PASSAGE, column::PASSAGE_TEXT];
        let vector_bytes = self.vector_bytes();
        let scanner = self.scan(&columns, filter::matching(filter, None))?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let (mut items, mut bytes) = (0, 0);
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                // A text stands in the row twice: whole, and in its passages.
                bytes += 2 * rows.required_text(column::PASSAGE_TEXT, row)?.len() as u64 + vector_bytes;
                items += u64::from(rows.small_int(column::PASSAGE, row)? == 0);
            }
        }
        Ok((items, bytes))
    }

    fn vector_bytes(&self) -> u64 {
        let dimensions = match self
            .dataset
            .schema()
            .field(column::VECTOR)
            .map(|field| field.data_type())
        {
            Some(arrow_schema::DataType::FixedSizeList(_, dimensions)) => dimensions,
            _ => 0,
        };
        u64::try_from(dimensions).unwrap_or(0) * size_of::<f32>() as u64
    }

    /// The direction of a live item: the mean of its passages' vectors.
    pub async fn item_vector(&self, id: &str) -> KnowledgeResult<Option<Arc<[f32]>>> {
        self.check_shape()?;
        let predicate = col(column::ID).eq(lit(id)).and(filter::live(None));
        let mut sum: Vec<f32> = Vec::new();
        for batch in Self::collect(&self.scan(&[column::VECTOR], predicate)?).await? {
            for row in 0..batch.num_rows() {
                let vector = RowReader(&batch).vector(row)?;
                sum.resize(vector.len(), 0.0);
                for (total, component) in sum.iter_mut().zip(vector) {
                    *total += component;
                }
            }
        }
        // The cosine does not see the length, so the sum is as good as the mean.
        Ok((!sum.is_empty()).then(|| sum.into()))
    }

    /// Whole rows, in the table's schema, as one batch.
    pub(crate) async fn rows(&self, predicate: Expr) -> KnowledgeResult<RecordBatch> {
        let schema: arrow_schema::Schema = self.dataset.schema().into();
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let batches = Self::collect(&self.scan(&columns, predicate)?).await?;
        arrow_select::concat::concat_batches(&Arc::new(schema), &batches).map_err(KnowledgeError::internal)
    }

    /// The table's configuration.
    pub(crate) fn config(&self) -> &HashMap<String, String> {
        self.dataset.config()
    }

    /// What was forgotten: the last commit of which closed rows were removed, and when they were closed.
    ///
    /// # Errors
    /// [`KnowledgeError::Unreadable`] where the table's configuration is damaged.
    pub fn horizon(&self) -> KnowledgeResult<Option<Horizon>> {
        Horizon::of(self.dataset.config())
    }

    /// Refuses a moment of which rows have been removed since.
    pub(crate) fn check_moment(&self, at: Option<filter::Moment>) -> KnowledgeResult<()> {
        let Some(at) = at else { return Ok(()) };
        let Some(horizon) = self.horizon()? else {
            return Ok(());
        };
        let forgotten = match at {
            filter::Moment::Commit(sequence) => sequence < horizon.sequence,
            filter::Moment::Time(time) => time < horizon.at,
        };
        if forgotten {
            Err(KnowledgeError::Expired {
                what: format!(
                    "the history of project {} before version {} ({}), which is older than retention_days,",
                    self.project,
                    horizon.sequence,
                    crate::domain::format_time(horizon.at)
                ),
            })
        } else {
            Ok(())
        }
    }

    /// Counts the live items. Computed once for each view.
    pub async fn stats(&self) -> KnowledgeResult<Arc<ItemStats>> {
        self.stats
            .get_or_try_init(|| async { self.compute_stats().await.map(Arc::new) })
            .await
            .cloned()
    }

    async fn compute_stats(&self) -> KnowledgeResult<ItemStats> {
        if let TableShape::Foreign { .. } = self.shape {
            return Ok(ItemStats {
                total: self.row_count().await? as u64,
                ..ItemStats::default()
            });
        }
        let columns = [column::PASSAGE, column::TYPE, column::AGENT, column::TIMESTAMP];
        let mut stats = ItemStats::default();
        let mut by_kind: BTreeMap<String, u64> = BTreeMap::new();
        let mut by_agent: BTreeMap<String, u64> = BTreeMap::new();
        for batch in Self::collect(&self.scan(&columns, filter::live(None))?).await? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                stats.passages += 1;
                if rows.small_int(column::PASSAGE, row)? != 0 {
                    continue;
                }
                stats.total += 1;
                *by_kind
                    .entry(rows.required_text(column::TYPE, row)?.to_owned())
                    .or_default() += 1;
                *by_agent
                    .entry(rows.text(column::AGENT, row)?.unwrap_or_default().to_owned())
                    .or_default() += 1;
                let time = rows.time(column::TIMESTAMP, row)?;
                stats.oldest = Some(stats.oldest.map_or(time, |oldest| oldest.min(time)));
                stats.newest = Some(stats.newest.map_or(time, |newest| newest.max(time)));
            }
        }
        stats.by_kind = by_kind;
        stats.by_agent = by_agent;
        Ok(stats)
    }

    /// The items, live or closed, that hold any of these ids, content hashes or idempotency keys.
    pub(crate) async fn identities(
        &self,
        ids: &[String],
        hashes: &[String],
        keys: &[String],
    ) -> KnowledgeResult<Vec<IdentityRow>> {
        let any = [
            filter::any_of(column::ID, ids),
            filter::any_of(column::CONTENT_HASH, hashes),
            filter::any_of(column::IDEMPOTENCY_KEY, keys),
        ];
        let Some(any) = any.into_iter().flatten().reduce(Expr::or) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        self.for_each_identity(any.and(filter::first_passage()), |row| found.push(row))
            .await?;
        Ok(found)
    }

    /// The keys of the rows that match, of all passages and revisions.
    pub(crate) async fn row_keys(&self, predicate: Expr) -> KnowledgeResult<Vec<String>> {
        let scanner = self.scan(&[column::ROW_KEY], predicate)?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut keys = Vec::new();
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                keys.push(rows.required_text(column::ROW_KEY, row)?.to_owned());
            }
        }
        Ok(keys)
    }

    /// Calls `visit` for every item of the table, live or closed.
    pub(crate) async fn for_each_identity(
        &self,
        predicate: Expr,
        mut visit: impl FnMut(IdentityRow),
    ) -> KnowledgeResult<()> {
        let columns = [
            column::ID,
            column::CONTENT_HASH,
            column::IDEMPOTENCY_KEY,
            column::KEY_HASH,
            column::REVISION,
            column::TIMESTAMP,
            column::PASSAGES,
            column::VALID_FROM,
            column::VALID_TO,
            column::CLOSED_AT,
        ];
        let scanner = self.scan(&columns, predicate)?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                visit(IdentityRow {
                    id: rows.required_text(column::ID, row)?.to_owned(),
                    content_hash: rows.required_text(column::CONTENT_HASH, row)?.to_owned(),
                    idempotency_key: rows.text(column::IDEMPOTENCY_KEY, row)?.map(str::to_owned),
                    key_hash: rows.key_hash(row)?.map(str::to_owned),
                    revision: rows.int(column::REVISION, row)?.unwrap_or(1),
                    timestamp: rows.time(column::TIMESTAMP, row)?,
                    passages: u32::try_from(rows.small_int(column::PASSAGES, row)?).unwrap_or(1),
                    valid_from: rows.int(column::VALID_FROM, row)?.unwrap_or(0),
                    valid_to: rows.int(column::VALID_TO, row)?,
                    closed_at: rows.optional_time(column::CLOSED_AT, row)?,
                });
            }
        }
        Ok(())
    }
}

/// Best first; of equals in the order of the table, so that it is the same every time.
fn sort_best_first(hits: &mut [LegHit], score: impl Fn(&LegHit) -> Option<f32>) {
    hits.sort_by(|a, b| {
        let by_score = score(b).partial_cmp(&score(a)).unwrap_or(std::cmp::Ordering::Equal);
        by_score.then(a.row_id.cmp(&b.row_id))
    });
}

pub(crate) fn row_id(batch: &RecordBatch, row: usize) -> KnowledgeResult<u64> {
    use arrow_array::cast::AsArray;
    batch
        .column_by_name(ROW_ID)
        .and_then(|array| array.as_primitive_opt::<arrow_array::types::UInt64Type>())
        .map(|array| array.value(row))
        .ok_or_else(|| KnowledgeError::internal("the query returned no row ids"))
}

/// Cosine of two vectors; 0 where one of them has no direction.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let (mut dot, mut norm_a, mut norm_b) = (0.0_f32, 0.0_f32, 0.0_f32);
    for (x, y) in a.iter().zip(b) {
        dot += x * y;
        norm_a += x * x;
        norm_b += y * y;
    }
    let norms = (norm_a * norm_b).sqrt();
    if norms > 0.0 { dot / norms } else { 0.0 }
}
