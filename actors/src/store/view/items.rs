//! Items of a view: by id, listed, counted, and those that a search has ranked.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use ccod_index::Precision;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use lance::dataset::scanner::ColumnOrdering;
use lancedb::datafusion::logical_expr::{Expr, lit};
use lancedb::expr::col;

use crate::domain::{Filter, Hit, StoredItem};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::columns::item_columns;
use crate::store::table::rows::{RowReader, row_key};
use crate::store::table::schema::column;
use crate::store::view::fusion::RankedItem;
use crate::store::view::{ProjectView, filter, resident, row_id};

/// A page of a list.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// Which items.
    pub filter: Filter,
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

impl ProjectView {
    /// Loads the items of a page of results, in its order. An item whose text cannot be read any more is none.
    pub(crate) async fn load_hits(&self, page: &[RankedItem]) -> KnowledgeResult<Vec<Option<Hit>>> {
        if page.is_empty() {
            return Ok(Vec::new());
        }
        let mut places: Vec<u64> = page.iter().map(|item| item.row_id).collect();
        // The whole text stands in passage 0; where another passage matched, it is fetched as well.
        let index = self.index_at_hand();
        for item in page {
            places.extend(
                index
                    .as_ref()
                    .and_then(|index| resident::other_first_place(index, item.row_id)),
            );
        }
        let rows = self.shown_rows(&places).await?;
        let (rows, others) = rows.split_at(page.len());
        let mut first_items: HashMap<String, StoredItem> = others
            .iter()
            .map(|row| (row.stored.item.id.clone(), row.stored.clone()))
            .collect();
        // Those that are not live now are not in the index.
        let first_rows: Vec<String> = rows
            .iter()
            .filter(|row| row.passage.index != 0 && !first_items.contains_key(&row.stored.item.id))
            .map(|row| row_key(&row.stored.item.id, row.stored.revision, 0))
            .collect();
        if let Some(predicate) = filter::any_of(column::ROW_KEY, &first_rows) {
            for batch in Self::collect(&self.scan(&item_columns(), predicate)?).await? {
                for row in 0..batch.num_rows() {
                    let item = RowReader(&batch).item(row)?;
                    first_items.insert(item.item.id.clone(), item);
                }
            }
        }

        let mut hits = Vec::with_capacity(page.len());
        for (row, ranked) in rows.iter().zip(page) {
            let stored = match row.passage.index {
                0 => Some(&row.stored),
                _ => first_items.get(&row.stored.item.id),
            };
            let Some(stored) = stored else {
                // Its first passage was in a fragment that is damaged; admin.verify names it.
                tracing::warn!(project = %self.project, id = row.stored.item.id, "an item has lost its first passage");
                hits.push(None);
                continue;
            };
            hits.push(Some(Hit {
                stored: stored.clone(),
                passage: row.passage.clone().in_bytes_of(&stored.item.text),
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
        if let Some(index) = self.index().await? {
            return self.list_from(&index, request).await;
        }
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
    pub async fn matching_size(&self, filter: &Filter) -> KnowledgeResult<(u64, u64)> {
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
        if let Some(index) = self.index().await?
            && index.precision() == Precision::Exact
        {
            return Ok(resident::direction(&index, id));
        }
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
}
