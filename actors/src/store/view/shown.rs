//! Reading the rows that an answer shows.

use lance::dataset::ProjectionRequest;

use crate::domain::StoredItem;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::index::ShownRow;
use crate::store::table::columns::item_columns;
use crate::store::table::rows::RowReader;
use crate::store::view::ProjectView;

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
        for (place, row) in missing.into_iter().zip(self.read_rows(&wanted).await?) {
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

    async fn read_rows(&self, places: &[u64]) -> KnowledgeResult<Vec<ShownRow>> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let projection = ProjectionRequest::from_columns(self.present(&item_columns()), self.dataset.schema());
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
                Ok(ShownRow {
                    stored: rows.item(row)?,
                    passage: rows.passage(row)?,
                })
            })
            .collect()
    }
}
