//! Reading the rows that an answer shows.

use ccod_index::{Entry, Index};
use chrono::DateTime;
use lance::dataset::ProjectionRequest;

use crate::domain::{Item, StoredItem};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::index::ShownRow;
use crate::store::table::columns::{item_columns, read_item_but};
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;
use crate::store::table::written::WrittenFragment;
use crate::store::view::ProjectView;

/// Rows of a commit that are kept at once. More are a bulk load, which would push out what is read.
const KEPT_OF_A_COMMIT: usize = 64;

/// Columns of a live row that the index knows: each column that is not read makes reading a row quicker.
const IN_THE_INDEX: [&str; 13] = [
    column::ID,
    column::REVISION,
    column::PASSAGE,
    column::PASSAGES,
    column::TYPE,
    column::AGENT,
    column::SESSION_ID,
    // The name of the project whose table it is.
    column::PROJECT_ID,
    column::TIMESTAMP,
    column::UPDATED_AT,
    column::VALID_FROM,
    // What is live has none.
    column::VALID_TO,
    column::CLOSED_AT,
];

impl ProjectView {
    /// The rows at these places, in their order: those that were shown lately from memory, the others from the table.
    pub(super) async fn shown_rows(&self, places: &[u64]) -> KnowledgeResult<Vec<ShownRow>> {
        let index = self.index_at_hand();
        // What is not live is not in the index, and is read.
        let entry = |place: u64| index.as_ref().and_then(|index| index.at(place));
        let mut rows: Vec<Option<ShownRow>> = places
            .iter()
            .map(|place| entry(*place).and_then(|entry| self.index.shown(&entry)))
            .collect();
        let missing: Vec<usize> = (0..places.len()).filter(|place| rows[*place].is_none()).collect();
        let wanted: Vec<u64> = missing.iter().map(|place| places[*place]).collect();
        for (place, row) in missing.into_iter().zip(self.read_rows(&wanted, index.as_ref()).await?) {
            if let Some(entry) = entry(places[place]) {
                self.index.keep_shown(&entry, &row);
            }
            rows[place] = Some(row);
        }
        Ok(rows.into_iter().flatten().collect())
    }

    /// The items whose first passages are at these places, in their order.
    pub(super) async fn shown_items(&self, places: &[u64]) -> KnowledgeResult<Vec<StoredItem>> {
        let rows = self.shown_rows(places).await?;
        Ok(rows.into_iter().map(|row| row.stored).collect())
    }

    /// Keeps what the writer has just written, and still has at hand, as if it had been shown: it is often asked for
    /// next.
    pub(crate) fn keep_written(&self, written: &[WrittenFragment]) {
        let Some(index) = self.index_at_hand() else { return };
        let few = written
            .iter()
            .filter(|written| written.rows.num_rows() <= KEPT_OF_A_COMMIT);
        for written in few {
            let rows = RowReader(&written.rows);
            for row in 0..written.rows.num_rows() {
                // What cannot be read here is read when it is asked for.
                let (Ok(stored), Ok(passage)) = (rows.item(row), rows.passage(row)) else {
                    return;
                };
                let entries = index.get(&stored.item.id).into_iter();
                let is_of = |entry: &Entry<'_>| entry.passage == passage.index && entry.valid_from == stored.valid_from;
                if stored.valid_to.is_none()
                    && let Some(entry) = entries.into_iter().find(is_of)
                {
                    self.index.keep_shown(&entry, &ShownRow { stored, passage });
                }
            }
        }
    }

    async fn read_rows(&self, places: &[u64], index: Option<&Index>) -> KnowledgeResult<Vec<ShownRow>> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let entries: Option<Vec<Entry<'_>>> =
            index.and_then(|index| places.iter().map(|place| index.at(*place)).collect());
        let known: &[&str] = if entries.is_some() { &IN_THE_INDEX } else { &[] };
        let mut columns = item_columns();
        columns.retain(|column| !known.contains(column));
        let projection = ProjectionRequest::from_columns(self.present(&columns), self.dataset.schema());
        let batch = self.dataset.take_rows(places, projection).await.map_err(read_error)?;
        if batch.num_rows() != places.len() {
            return Err(KnowledgeError::internal(format!(
                "{} rows were asked for and {} came back",
                places.len(),
                batch.num_rows()
            )));
        }
        let rows = RowReader(&batch);
        (0..batch.num_rows())
            .map(|row| {
                let entry = entries.as_ref().and_then(|entries| entries.get(row));
                let mut stored = entry.map_or_else(|| Ok(StoredItem::default()), |entry| self.known_of(entry))?;
                read_item_but(known, &rows, row, &mut stored)?;
                let index = match entry {
                    Some(entry) => entry.passage,
                    None => u32::try_from(rows.small_int(column::PASSAGE, row)?).map_err(KnowledgeError::internal)?,
                };
                let passage = rows.passage_of(row, index)?;
                Ok(ShownRow { stored, passage })
            })
            .collect()
    }

    /// What the index knows of an item: what [`IN_THE_INDEX`] names.
    fn known_of(&self, entry: &Entry<'_>) -> KnowledgeResult<StoredItem> {
        let time = |ms: i64| {
            DateTime::from_timestamp_millis(ms)
                .ok_or_else(|| KnowledgeError::internal("the index holds an impossible time"))
        };
        Ok(StoredItem {
            item: Item {
                id: entry.id.to_owned(),
                knowledge_type: entry.kind,
                project_id: self.project.to_string(),
                session_id: entry.session.map(str::to_owned),
                agent: entry.agent.map(str::to_owned),
                timestamp: time(entry.timestamp_ms)?,
                updated_at: time(entry.updated_ms)?,
                passages: entry.passages,
                ..Item::default()
            },
            revision: entry.revision,
            valid_from: entry.valid_from,
            ..StoredItem::default()
        })
    }
}
