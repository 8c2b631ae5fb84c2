//! Whether the vector index of a version can be read.

use std::sync::Arc;

use lance::Dataset;
use lance::index::DatasetIndexExt;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::damage::open_again;
use crate::store::error::read_error;
use crate::store::guarded::{finding, guarded};
use crate::store::table::vector_index::VECTOR_INDEX;
use crate::store::view::ProjectView;

/// Reads the vector index from end to end, if there is one. The inner error says why it cannot be read.
pub(crate) async fn read_vector_index(dataset: &Arc<Dataset>) -> KnowledgeResult<Result<(), String>> {
    let segments = dataset.load_indices_by_name(VECTOR_INDEX).await.map_err(read_error)?;
    if segments.is_empty() {
        return Ok(Ok(()));
    }
    let dataset = Arc::clone(dataset);
    finding(guarded(async move { dataset.prewarm_index(VECTOR_INDEX).await }).await)
}

/// Why the vector index of a view cannot be used, if there is one and it cannot. None where that could not be found
/// out.
pub(crate) async fn vector_index_damage(view: &ProjectView) -> Option<String> {
    let look = async {
        let dataset = open_again(view).await?;
        Ok::<_, KnowledgeError>(read_vector_index(&dataset).await?.err())
    };
    look.await.unwrap_or_else(|error| {
        tracing::warn!(project = %view.project(), %error, "the vector index could not be examined");
        None
    })
}
