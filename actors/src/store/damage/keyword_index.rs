//! Whether the keyword index of a version can be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::index::DatasetIndexExt;
use lance::session::Session;
use lance_index::scalar::FullTextSearchQuery;
use lance_index::{FtsPrewarmOptions, PrewarmOptions};
use lance_io::local::to_local_path;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::damage::files::index_damage;
use crate::store::error::read_error;
use crate::store::guarded::{finding, guarded};
use crate::store::table::checked_reads;
use crate::store::table::schema::column;
use crate::store::view::{ProjectView, filter};
use crate::store::write::TEXT_INDEX;

/// Caches of the second opening: enough for the metadata of one file at a time and a chunk of the index.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The view's version with caches of its own.
pub(crate) async fn open_again(view: &ProjectView) -> KnowledgeResult<Arc<Dataset>> {
    let registry = Arc::new(lancedb::ObjectStoreRegistry::default());
    let session = Arc::new(Session::new(CACHE_BYTES, CACHE_BYTES, registry));
    let builder = DatasetBuilder::from_uri(view.dataset().uri())
        .with_read_params(checked_reads())
        .with_version(view.lance_version())
        .with_session(session);
    match guarded(async move { builder.load().await }).await {
        Ok(Ok(dataset)) => Ok(Arc::new(dataset)),
        Ok(Err(error)) => Err(read_error(error)),
        Err(unfinished) => Err(KnowledgeError::unreadable(format_args!(
            "project {} cannot be opened: {unfinished}",
            view.project()
        ))),
    }
}

/// Where a table lies.
pub(crate) fn table_path(dataset: &Dataset) -> PathBuf {
    // `<table>/_versions/<manifest>`
    let manifest = PathBuf::from(to_local_path(&dataset.manifest_location().path));
    manifest.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default()
}

/// Reads the keyword index from end to end. The inner error says why it cannot be read.
pub(crate) async fn read_keyword_index(dataset: &Arc<Dataset>) -> KnowledgeResult<Result<(), String>> {
    let dataset = Arc::clone(dataset);
    let read = guarded(async move {
        // To read it whole is the point; what does not fit into the cache need not stay.
        let options = PrewarmOptions::Fts(FtsPrewarmOptions::new().best_effort());
        dataset.prewarm_index_with_options(TEXT_INDEX, &options).await
    });
    finding(read.await)
}

/// Searches for the words of `query` among the rows that pass `predicate` and can be read; how many were found, one
/// at most. The inner error says why it failed.
pub(crate) async fn look_up(
    view: &ProjectView,
    dataset: &Arc<Dataset>,
    query: &str,
    predicate: lancedb::datafusion::logical_expr::Expr,
) -> KnowledgeResult<Result<usize, String>> {
    let damaged = &view.damage().fragments;
    let readable = dataset
        .fragments()
        .iter()
        .filter(|fragment| !damaged.contains_key(&fragment.id));
    let search = FullTextSearchQuery::new(query.to_owned())
        .with_column(column::PASSAGE_TEXT.to_owned())
        .map_err(read_error)?
        .limit(Some(1));
    let mut scanner = dataset.scan();
    // Else Lance logs a warning about the columns for each row that is looked up.
    scanner.disable_scoring_autoprojection();
    scanner
        .with_fragments(readable.cloned().collect())
        .project(&[column::ROW_KEY])
        .map_err(read_error)?
        .filter_expr(predicate)
        .prefilter(true)
        .full_text_search(search)
        .map_err(read_error)?
        .limit(Some(1), None)
        .map_err(read_error)?;
    let read = guarded(async move {
        let batches: Vec<RecordBatch> = scanner.try_into_stream().await?.try_collect().await?;
        Ok(batches.iter().map(RecordBatch::num_rows).sum())
    });
    finding(read.await)
}

/// Why the keyword index of a view cannot be used, if it cannot: reads it, and searches for the words that a search
/// has failed on. None where that could not be found out.
pub(crate) async fn keyword_index_damage(view: &ProjectView, query: Option<&str>) -> Option<String> {
    let look = async {
        let dataset = open_again(view).await?;
        let indices = dataset.load_indices().await.map_err(read_error)?;
        let table = table_path(&dataset);
        let own = indices.iter().filter(|index| index.name == TEXT_INDEX);
        let plain = own.clone().find_map(|index| index_damage(index, &table));
        if plain.is_some() || own.count() == 0 {
            return Ok(plain);
        }
        if let Err(reason) = read_keyword_index(&dataset).await? {
            return Ok(Some(reason));
        }
        let Some(query) = query else { return Ok(None) };
        Ok::<_, KnowledgeError>(look_up(view, &dataset, query, filter::live(None)).await?.err())
    };
    look.await.unwrap_or_else(|error| {
        tracing::warn!(project = %view.project(), %error, "the keyword index could not be examined");
        None
    })
}
