//! What is known of items before they are read: which there are, where their rows lie, and about how large they are.
//!
//! For a write that may concern any number of items. It decides by outlines what it does, and then reads the rows in
//! parts that fit into memory: an outline takes some 200 bytes, however large the item is.

use arrow_array::RecordBatch;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use lance::dataset::ProjectionRequest;
use lancedb::datafusion::logical_expr::Expr;

use crate::domain::Filter;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::{column, vector_dimensions};
use crate::store::view::places::take_addresses;
use crate::store::view::{PlacedRows, ProjectView, filter};

/// Rows of which outlines are made at a time. Of what is read for them only the metadata can be large.
const ROWS_AT_A_TIME: usize = 1_024;
/// The most bytes of a character.
const CHARACTER_BYTES: usize = 4;
/// What a row takes besides its texts, its metadata and its vector: ids, hashes, names, numbers.
const ROW_BYTES: usize = 512;

const COLUMNS: [&str; 8] = [
    column::ID,
    column::REVISION,
    column::PASSAGES,
    column::START,
    column::END,
    column::METADATA,
    column::TIMESTAMP,
    column::UPDATED_AT,
];

/// One revision of an item, as far as it is known before it is read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outline {
    /// The item's id.
    pub(crate) id: String,
    /// The revision.
    pub(crate) revision: i64,
    /// Whether it is what a purge leaves: an id without anything else.
    pub(crate) is_tombstone: bool,
    /// When the item was created.
    pub(crate) timestamp: DateTime<Utc>,
    /// When it was changed last.
    pub(crate) updated_at: DateTime<Utc>,
    /// What its rows take in memory, at most: texts are counted by their characters.
    pub(crate) bytes: usize,
    /// Where its rows lie, in the order of the table. A row that stands there twice, which it must not, counts twice.
    pub(crate) addresses: Vec<u64>,
}

/// Makes outlines of rows as they come.
struct Gathering {
    outlines: Vec<Outline>,
    vector_bytes: usize,
}

impl Gathering {
    fn new(view: &ProjectView) -> Self {
        let schema: arrow_schema::Schema = view.dataset.schema().into();
        let dimensions = vector_dimensions(&schema).and_then(|dimensions| usize::try_from(dimensions).ok());
        Self {
            outlines: Vec::new(),
            vector_bytes: dimensions.unwrap_or(0) * size_of::<f32>(),
        }
    }

    fn add(&mut self, batch: &RecordBatch, addresses: &[u64]) -> KnowledgeResult<()> {
        if batch.num_rows() != addresses.len() {
            return Err(KnowledgeError::internal(format!(
                "{} rows were asked for and {} came back",
                addresses.len(),
                batch.num_rows()
            )));
        }
        let rows = RowReader(batch);
        for (row, address) in addresses.iter().enumerate() {
            let id = rows.required_text(column::ID, row)?;
            let revision = rows.int(column::REVISION, row)?.unwrap_or(1);
            let place = |name| -> KnowledgeResult<usize> {
                Ok(usize::try_from(rows.int(name, row)?.unwrap_or(0)).unwrap_or(0))
            };
            let (start, end) = (place(column::START)?, place(column::END)?);
            let metadata = rows.required_text(column::METADATA, row)?.len();
            // Twice: the metadata is there as terms, too, and the first row of an item has the whole text.
            let own = self.vector_bytes + ROW_BYTES + 2 * metadata + 2 * CHARACTER_BYTES * end.saturating_sub(start);
            match self.outlines.last_mut() {
                Some(last) if last.id == id && last.revision == revision => {
                    last.bytes += own;
                    last.addresses.push(*address);
                }
                _ => self.outlines.push(Outline {
                    id: id.to_owned(),
                    revision,
                    is_tombstone: rows.small_int(column::PASSAGES, row)? == 0,
                    timestamp: rows.time(column::TIMESTAMP, row)?,
                    updated_at: rows.time(column::UPDATED_AT, row)?,
                    bytes: own,
                    addresses: vec![*address],
                }),
            }
        }
        Ok(())
    }

    /// One outline for each revision, in the order of the table.
    fn finish(mut self) -> Vec<Outline> {
        // The rows of a revision are written together and stay together; where they do not, they are still one.
        self.outlines.sort_by(|one, other| {
            (&one.id, one.revision, &one.addresses).cmp(&(&other.id, other.revision, &other.addresses))
        });
        self.outlines.dedup_by(|again, first| {
            let same = again.id == first.id && again.revision == first.revision;
            if same {
                first.bytes += again.bytes;
                first.addresses.append(&mut again.addresses);
            }
            same
        });
        self.outlines.sort_by_key(|outline| outline.addresses.first().copied());
        self.outlines
    }
}

impl ProjectView {
    /// Outlines of the items that are live and pass `filter`, in the order of the table.
    pub(crate) async fn outlines_matching(&self, filter: &Filter) -> KnowledgeResult<Vec<Outline>> {
        let Some(index) = self.index_at_hand() else {
            return self.outlines(filter::matching(filter, None)).await;
        };
        let mut addresses: Vec<u64> = index.matching(filter).addresses().collect();
        addresses.sort_unstable();
        let mut gathering = Gathering::new(self);
        for some in addresses.chunks(ROWS_AT_A_TIME) {
            let projection = ProjectionRequest::from_columns(COLUMNS, self.dataset.schema());
            let batch = self.dataset.take_rows(some, projection).await.map_err(read_error)?;
            gathering.add(&batch, some)?;
        }
        Ok(gathering.finish())
    }

    /// Outlines of the revisions of which a row passes `predicate`, in the order of the table, with the rows that do.
    pub(crate) async fn outlines(&self, predicate: Expr) -> KnowledgeResult<Vec<Outline>> {
        let mut scanner = self.scan(&COLUMNS, predicate)?;
        scanner.with_row_address().batch_size(ROWS_AT_A_TIME);
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut gathering = Gathering::new(self);
        while let Some(mut batch) = stream.try_next().await.map_err(read_error)? {
            let addresses = take_addresses(&mut batch)?;
            gathering.add(&batch, &addresses)?;
        }
        Ok(gathering.finish())
    }

    /// The whole rows of these items, as one batch, and where they lie: in this version, which may be a later one than
    /// that of the outlines, if nothing has moved or changed them since.
    pub(crate) async fn rows_of(&self, items: &[Outline]) -> KnowledgeResult<PlacedRows> {
        let mut addresses: Vec<u64> = items.iter().flat_map(|item| item.addresses.iter().copied()).collect();
        addresses.sort_unstable();
        self.rows_at(addresses).await
    }
}
