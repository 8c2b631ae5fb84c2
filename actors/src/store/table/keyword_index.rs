//! The keyword index: how text becomes words.

use lance_index::scalar::inverted::InvertedIndexParams;

use crate::error::{KnowledgeError, KnowledgeResult};

/// Memory that one build of the keyword index may take, in MiB; the default of 2 GiB is for servers.
const BUILD_MEMORY_MB: u64 = 256;

/// The analyser of passages and queries: words in lower case, folded to ASCII, stemmed, without English stop
/// words. Identifiers such as `fooBar` and `E0277` stay whole words. Queries may be long and odd, so words are
/// cut at 40 bytes as the index does by default.
pub(crate) fn index_params() -> InvertedIndexParams {
    InvertedIndexParams::default()
        .memory_limit_mb(BUILD_MEMORY_MB)
        .num_workers(1)
}

/// Whether anything of `query` is left to search for after analysis: a query of stop words matches nothing.
pub(crate) fn has_terms(query: &str) -> KnowledgeResult<bool> {
    let tokens = lancedb::table::tokenize(query, &index_params()).map_err(KnowledgeError::internal)?;
    Ok(!tokens.is_empty())
}
