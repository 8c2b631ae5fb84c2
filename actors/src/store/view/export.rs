//! Reading all live items of one version, a few at a time, and asking what a version holds already: for
//! exports and imports.

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use lance::dataset::ProjectionRequest;

use crate::domain::StoredItem;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::columns::item_columns;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;
use crate::store::view::filter;
use crate::store::view::{IdentityRow, ProjectView, row_id};

impl ProjectView {
    /// Where the live items stand in this version, in the order of their creation, then of their ids.
    pub async fn item_rows(&self) -> KnowledgeResult<Vec<u64>> {
        self.check_shape()?;
        let predicate = filter::live(None).and(filter::first_passage());
        let mut scanner = self.scan(&[column::ID, column::TIMESTAMP], predicate)?;
        scanner.with_row_id();
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut found: Vec<(DateTime<Utc>, String, u64)> = Vec::new();
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                let id = rows.required_text(column::ID, row)?.to_owned();
                found.push((rows.time(column::TIMESTAMP, row)?, id, row_id(&batch, row)?));
            }
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, _, row)| row).collect())
    }

    /// The items at these places, in their order.
    pub async fn items_at(&self, rows: &[u64]) -> KnowledgeResult<Vec<StoredItem>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let dataset = self.dataset();
        let projection = ProjectionRequest::from_columns(self.present(&item_columns()), dataset.schema());
        let batch = dataset.take_rows(rows, projection).await.map_err(read_error)?;
        if batch.num_rows() != rows.len() {
            return Err(KnowledgeError::internal(format!(
                "{} rows were asked for and {} came back",
                rows.len(),
                batch.num_rows()
            )));
        }
        (0..batch.num_rows()).map(|row| RowReader(&batch).item(row)).collect()
    }

    /// Calls `visit` for every live item.
    pub async fn for_each_live(&self, visit: impl FnMut(IdentityRow)) -> KnowledgeResult<()> {
        self.check_shape()?;
        self.for_each_identity(filter::live(None).and(filter::first_passage()), visit)
            .await
    }
}
