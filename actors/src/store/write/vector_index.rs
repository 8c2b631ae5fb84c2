//! Making segments of the vector index, and dropping it. See `store/table/vector_index.rs`.

use std::collections::HashSet;
use std::sync::Arc;

use lance::Dataset;
use lance::index::{CreateIndexBuilder, DatasetIndexExt};
use lance_index::IndexType;
use lance_table::format::Fragment;
use lancedb::datafusion::logical_expr::lit;
use lancedb::expr::col;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::{read_error, write_error};
use crate::store::index::Residence;
use crate::store::table::schema::column;
use crate::store::table::vector_index::{VECTOR_INDEX, segment_params};
use crate::store::write::{WriteTable, current_dataset};

impl WriteTable {
    /// Makes one segment of the vector index over these fragments, in one commit. It takes the place of the segments
    /// that cover some of them, of which it has to cover all that is left.
    pub(crate) async fn index_vectors(&mut self, fragments: &[u64]) -> KnowledgeResult<()> {
        let mut dataset = Dataset::clone(&*current_dataset(self.lancedb()).await?);
        let named: HashSet<u64> = fragments.iter().copied().collect();
        let covered = dataset
            .fragments()
            .iter()
            .filter(|fragment| named.contains(&fragment.id));
        let covered: Vec<Fragment> = covered.cloned().collect();
        let ids = covered.iter().map(|fragment| fragment.id as u32).collect();
        let rows = rows_with_direction(&dataset, covered).await?;
        if rows == 0 {
            return Ok(());
        }
        let params = segment_params(rows);
        let segment = CreateIndexBuilder::new(&mut dataset, &[column::VECTOR], IndexType::IvfRq, &params)
            .name(VECTOR_INDEX.to_owned())
            // Of others of this name there may be some. What is replaced is decided by the commit.
            .replace(true)
            .fragments(ids)
            .execute_uncommitted()
            .await
            .map_err(write_error)?;
        dataset
            .commit_existing_index_segments(VECTOR_INDEX, column::VECTOR, vec![segment])
            .await
            .map_err(write_error)?;
        self.take_over_commit(dataset)
    }

    /// Whether the table belongs into memory.
    pub(crate) fn residence(&self, dataset: &Dataset) -> Residence {
        self.keeper.residence(dataset).unwrap_or_default()
    }

    /// Drops the vector index, if there is one: its files go with the versions before.
    pub(crate) async fn drop_vector_index(&mut self) -> KnowledgeResult<()> {
        let dataset: Arc<Dataset> = current_dataset(self.lancedb()).await?;
        let indices = dataset.load_indices_by_name(VECTOR_INDEX).await.map_err(read_error)?;
        if indices.is_empty() {
            return Ok(());
        }
        self.lancedb().drop_index(VECTOR_INDEX).await.map_err(write_error)
    }
}

/// Rows of these fragments of which the vector says something: what stands for a purged item has none.
async fn rows_with_direction(dataset: &Dataset, fragments: Vec<Fragment>) -> KnowledgeResult<usize> {
    if fragments.is_empty() {
        return Ok(0);
    }
    let mut scanner = dataset.scan();
    scanner
        .with_fragments(fragments)
        .filter_expr(col(column::PASSAGES).gt(lit(0_i32)));
    let rows = scanner.count_rows().await.map_err(read_error)?;
    usize::try_from(rows).map_err(KnowledgeError::internal)
}
