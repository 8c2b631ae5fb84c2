//! The vector index on disk, for projects that are too large for the index in memory.
//!
//! **Which.** `IVF_RQ` with 2 bits for each component, as measured in docs/performance.md: product quantisation finds
//! no more and takes ten times as long to build; one byte for each component (`IVF_SQ`) names the nearest without spare
//! candidates, in three times the bytes, and falls behind as soon as the index is larger than its cache; one bit needs
//! more spare candidates for the same recall, and candidates are what a query spends its time with, for their vectors
//! are read from the table. What is answered are exact cosines always.
//!
//! **Segments.** The index is made of segments, each over some fragments of the table, with directions and codes of its
//! own. A step of upkeep makes one, of a bounded number of rows: those that no segment covers yet, together with the
//! segments that are small beside them, which it replaces. So no step takes long, whatever the size of the table, and
//! the directions are never those of a table that was much smaller.

use std::sync::Arc;

use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_table::format::IndexMetadata;

use crate::store::guarded::guarded;

/// Name of the vector index.
pub(crate) const VECTOR_INDEX: &str = "vector_idx";
/// Bits of a code for each component.
const CODE_BITS: u8 = 2;
/// Rows of a partition: what Lance takes for such indices.
const PARTITION_ROWS: usize = 4_096;
/// Partitions of each segment that are looked at, at least; more where they have too few rows that pass a filter. Of 4,
/// 8, 16 and 32 all find the same; of an index that is larger than its cache, each has to be read from disk.
pub(crate) const PARTITIONS_SEARCHED: usize = 8;

/// How a segment of so many rows is built.
pub(crate) fn segment_params(rows: usize) -> VectorIndexParams {
    let partitions = (rows / PARTITION_ROWS).max(1);
    VectorIndexParams::ivf_rq(partitions, CODE_BITS, lancedb::DistanceType::Cosine.into())
}

/// Bytes of an index on disk, as far as its segments say.
fn bytes_of(segments: &[IndexMetadata]) -> u64 {
    let files = segments.iter().flat_map(|segment| segment.files.iter().flatten());
    files.map(|file| file.size_bytes).sum()
}

/// Reads the index of a table into its session's cache, behind the caller's back, if it does not take more than half of
/// that. Of a larger one, the first searches read what they need.
pub(crate) async fn prewarm(dataset: &Arc<Dataset>, cache_bytes: u64) {
    let segments = match dataset.load_indices_by_name(VECTOR_INDEX).await {
        Ok(segments) if !segments.is_empty() => segments,
        _ => return, // What cannot be read is found out by who needs it.
    };
    if bytes_of(&segments) > cache_bytes / 2 {
        return;
    }
    let dataset = Arc::clone(dataset);
    // Nobody waits for it.
    drop(guarded(async move {
        if let Err(error) = dataset.prewarm_index(VECTOR_INDEX).await {
            tracing::debug!(%error, "a vector index could not be read beforehand");
        }
    }));
}
