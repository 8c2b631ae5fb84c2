//! The vector leg by way of the vector index on disk, where a project is too large for the index in memory.
//!
//! The index knows nothing of what is live and of filters. To tell it the rows that pass means to read the columns of
//! the filter of the whole table for every query (measured: 50 ns a row, so 50 ms for a million). So it is asked for
//! more than is wanted, and what does not pass is left out; only where too little is left does it get the rows.
//! Candidates are found by their codes; what is answered are exact cosines, read from the table, of those that were
//! found and of all rows that no segment of the index covers yet.

use std::collections::HashSet;

use arrow_array::Float32Array;
use lance::index::DatasetIndexExt;
use lancedb::datafusion::logical_expr::{Expr, lit};
use lancedb::expr::col;

use crate::error::KnowledgeResult;
use crate::store::error::read_error;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;
use crate::store::table::vector_index::{PARTITIONS_SEARCHED, VECTOR_INDEX};
use crate::store::view::fusion::LegHit;
use crate::store::view::leg_queries::{DISTANCE, sort_best_first};
use crate::store::view::legs::LegPage;
use crate::store::view::{ProjectView, SearchRequest, filter, row_id};

/// Candidates that the codes have to name besides those that are wanted, for each of these in halves. With one and a
/// half more, of the hundred nearest all but one or two are among them, also if every fifth row is closed
/// (docs/performance.md).
const SPARE_HALVES: usize = 3;
/// Most of these: who reads deep into a long list does not need the last one of it.
const MOST_SPARE: usize = 2_000;
/// Candidates that are asked for without telling which rows pass. The vector of each is read: of more, that takes
/// longer than to read which rows of a large table pass.
const MOST_UNFILTERED: usize = 2_000;

/// What the index has found, best first.
struct Candidates {
    hits: Vec<LegHit>,
    /// Whether further ones would be below the limit.
    is_below_limit: bool,
    /// Rows that passed the filter.
    num_rows: usize,
}

/// How many candidates are asked for if so many are wanted.
fn with_spare(wanted: usize) -> usize {
    wanted.saturating_add((wanted.saturating_mul(SPARE_HALVES) / 2).min(MOST_SPARE))
}

impl ProjectView {
    /// Whether this version has a vector index that can be used.
    pub(super) async fn has_vector_index(&self) -> KnowledgeResult<bool> {
        // Lance does not leave fragments out where the filter comes last.
        if self.damage.vector_index.is_some() || !self.damage.fragments.is_empty() {
            return Ok(false);
        }
        let segments = self
            .dataset
            .load_indices_by_name(VECTOR_INDEX)
            .await
            .map_err(read_error)?;
        Ok(!segments.is_empty())
    }

    /// The passages nearest to `vector`, nearest first, as the vector index finds them: `passages` of items that are
    /// not `known`, unless there are fewer.
    pub(super) async fn indexed_vector_leg(
        &self,
        vector: &[f32],
        request: &SearchRequest,
        known: &HashSet<String>,
        passages: usize,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        let matching = filter::matching(&request.filter, request.at);
        let limit = request.min_similarity;
        // Those of the items that are known are the nearest.
        let mut asked = with_spare(known.len().saturating_add(passages));
        while asked <= MOST_UNFILTERED {
            let mut found = self
                .candidates(vector, matching.clone(), asked, limit, source, false)
                .await?;
            let passed = found.num_rows;
            found.hits.retain(|hit| !known.contains(&hit.id));
            if found.hits.len() >= passages || found.is_below_limit {
                return Ok(found.page(passages));
            }
            // As many as it takes if the next ones pass as often as these.
            asked = asked.saturating_mul(asked) / passed.max(1);
            asked = asked.saturating_mul(2);
        }
        let unknown = match known.is_empty() {
            true => matching,
            false => {
                let known = known.iter().map(|id| lit(id.as_str())).collect();
                matching.and(col(column::ID).in_list(known, true))
            }
        };
        let asked = with_spare(passages);
        let mut found = self.candidates(vector, unknown, asked, limit, source, true).await?;
        // Lance reads all of the index before it answers fewer than it was asked for.
        found.is_below_limit |= found.num_rows < asked;
        Ok(found.page(passages))
    }

    /// The rows that pass `predicate` of the `asked` that are nearest by their codes, with exact cosines; or with
    /// `filter_first` as many of those that pass.
    async fn candidates(
        &self,
        vector: &[f32],
        predicate: Expr,
        asked: usize,
        min_similarity: f32,
        source: usize,
        filter_first: bool,
    ) -> KnowledgeResult<Candidates> {
        let mut scanner = self.scan(&[column::ID, DISTANCE], predicate)?;
        let key = Float32Array::from(vector.to_vec());
        scanner
            .prefilter(filter_first)
            .nearest(column::VECTOR, &key, asked)
            .map_err(read_error)?
            .distance_metric(lancedb::DistanceType::Cosine.into())
            .minimum_nprobes(PARTITIONS_SEARCHED)
            // Exact, of those that are asked for.
            .refine(1)
            .with_row_id();
        let (mut hits, mut num_rows) = (Vec::new(), 0);
        for batch in Self::collect(&scanner).await? {
            num_rows += batch.num_rows();
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                // A zero vector has no direction: it is like nothing.
                let similarity = rows.float(DISTANCE, row).map(|distance| 1.0 - distance);
                if similarity.is_some_and(|similarity| similarity >= min_similarity) {
                    hits.push(LegHit {
                        source,
                        id: rows.required_text(column::ID, row)?.to_owned(),
                        row_id: row_id(&batch, row)?,
                        similarity,
                        bm25: None,
                    });
                }
            }
        }
        sort_best_first(&mut hits, |hit| hit.similarity);
        Ok(Candidates {
            // One that the codes take for better than it is does not end the leg.
            is_below_limit: num_rows - hits.len() > asked / 2,
            hits,
            num_rows,
        })
    }
}

impl Candidates {
    fn page(mut self, passages: usize) -> LegPage {
        let is_last = self.is_below_limit && self.hits.len() <= passages;
        self.hits.truncate(passages);
        LegPage {
            hits: self.hits,
            is_last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_candidates_are_in_proportion_up_to_a_bound() {
        assert_eq!(with_spare(0), 0);
        assert_eq!(with_spare(100), 250);
        assert_eq!(with_spare(6_400), 8_400);
        assert_eq!(with_spare(usize::MAX), usize::MAX);
    }
}
