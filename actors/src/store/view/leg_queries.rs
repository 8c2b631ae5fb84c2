//! The two legs of a search as LanceDB runs them: nearest vectors and keywords.

use arrow_array::Float32Array;
use lance::dataset::scanner::Scanner;
use lance_index::scalar::FullTextSearchQuery;
use lancedb::datafusion::logical_expr::{Expr, lit};
use lancedb::expr::col;

use crate::domain::SearchMode;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::keyword_index;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;
use crate::store::view::fusion::LegHit;
use crate::store::view::legs::{LegKind, LegPage};
use crate::store::view::{ProjectView, SearchRequest, filter, row_id};
use std::collections::HashSet;

/// Column of the cosine distance (1 - cosine) in the vector leg's results.
pub(super) const DISTANCE: &str = "_distance";
/// Column of BM25 in the keyword leg's results.
pub(super) const BM25: &str = "_score";

impl ProjectView {
    /// The best passages of one leg, if the mode asks for it: `passages` of them at most, without those of the
    /// items that are `known`. `source` marks the hits.
    pub(crate) async fn leg_page(
        &self,
        kind: LegKind,
        request: &SearchRequest,
        known: &HashSet<String>,
        passages: usize,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        let nothing = LegPage {
            hits: Vec::new(),
            is_last: true,
        };
        // What is live now is in memory; how things were at some time is not.
        let index = match request.at {
            None => self.index().await?,
            Some(_) => None,
        };
        let matching = index.map(|index| index.matching(&request.filter));
        // Only where LanceDB is asked.
        let predicate = || {
            let matching = filter::matching(&request.filter, request.at);
            if known.is_empty() {
                return matching;
            }
            let known = known.iter().map(|id| lit(id.as_str())).collect();
            matching.and(col(column::ID).in_list(known, true))
        };
        match (kind, request.mode, &request.vector) {
            (LegKind::Vector, SearchMode::Hybrid | SearchMode::Vector, Some(vector)) => match &matching {
                Some(matching) => {
                    self.vector_leg_from(matching, vector, request, known, passages, source)
                        .await
                }
                None if self.has_vector_index().await? => {
                    self.indexed_vector_leg(vector, request, known, passages, source).await
                }
                None => {
                    self.vector_leg(vector, predicate(), passages, request.min_similarity, source)
                        .await
                }
            },
            (LegKind::Vector, _, _) | (LegKind::Text, SearchMode::Vector, _) => Ok(nothing),
            (LegKind::Text, SearchMode::Hybrid | SearchMode::Text, vector) => match &self.damage.keyword_index {
                // By meaning alone, which `degraded` says.
                Some(_) if request.mode == SearchMode::Hybrid && vector.is_some() => Ok(nothing),
                Some(reason) => Err(KnowledgeError::Unavailable {
                    part: "keyword index",
                    reason: format!("{reason}; it is rebuilt with the next store"),
                }),
                None => match &matching {
                    Some(matching) => self.text_leg_from(matching, request, known, passages, source).await,
                    None => {
                        self.text_leg(&request.query, predicate(), passages, vector.as_deref(), source)
                            .await
                    }
                },
            },
        }
    }

    /// The passages nearest to `vector`, nearest first, exactly: reads all vectors.
    async fn vector_leg(
        &self,
        vector: &[f32],
        predicate: Expr,
        passages: usize,
        min_similarity: f32,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        let mut scanner = self.scan(&[column::ID, DISTANCE], predicate)?;
        let key = Float32Array::from(vector.to_vec());
        scanner
            .nearest(column::VECTOR, &key, passages)
            .map_err(read_error)?
            // Always stated: the default of a table without an index is L2.
            .distance_metric(lancedb::DistanceType::Cosine.into())
            .use_index(false)
            .with_row_id();
        let (mut hits, mut num_rows) = (Vec::new(), 0);
        for batch in Self::collect(&scanner).await? {
            num_rows += batch.num_rows();
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                // A zero vector has no direction and a NaN distance: it is like nothing.
                let similarity = rows.float(DISTANCE, row).map(|distance| 1.0 - distance);
                let Some(similarity) = similarity.filter(|similarity| *similarity >= min_similarity) else {
                    continue;
                };
                hits.push(LegHit {
                    source,
                    id: rows.required_text(column::ID, row)?.to_owned(),
                    row_id: row_id(&batch, row)?,
                    similarity: Some(similarity),
                    bm25: None,
                });
            }
        }
        sort_best_first(&mut hits, |hit| hit.similarity);
        Ok(LegPage {
            // What is below the limit is last, so there is nothing behind it either.
            is_last: num_rows < passages || hits.len() < num_rows,
            hits,
        })
    }

    /// The passages that hold words of `query`, best BM25 first, with their cosine where there is a vector.
    async fn text_leg(
        &self,
        query: &str,
        predicate: Expr,
        passages: usize,
        vector: Option<&[f32]>,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        if keyword_index::query_words(query)?.is_empty() {
            return Ok(LegPage {
                hits: Vec::new(),
                is_last: true,
            });
        }
        let columns: &[&str] = match vector {
            Some(_) => &[column::ID, column::VECTOR, BM25],
            None => &[column::ID, BM25],
        };
        let mut scanner = self.scan(columns, predicate)?;
        keyword_query(scanner.with_row_id(), query, passages)?;
        let mut hits = Vec::new();
        for batch in Self::collect(&scanner).await? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                let similarity = match vector {
                    Some(query_vector) => Some(cosine(query_vector, &rows.vector(row)?)),
                    None => None,
                };
                hits.push(LegHit {
                    source,
                    id: rows.required_text(column::ID, row)?.to_owned(),
                    row_id: row_id(&batch, row)?,
                    similarity,
                    bm25: rows.float(BM25, row),
                });
            }
        }
        sort_best_first(&mut hits, |hit| hit.bm25);
        Ok(LegPage {
            is_last: hits.len() < passages,
            hits,
        })
    }
}

/// Makes a scan one for the passages that hold words of `query`, `passages` of them at most.
pub(super) fn keyword_query(scanner: &mut Scanner, query: &str, passages: usize) -> KnowledgeResult<()> {
    let limit = i64::try_from(passages).map_err(KnowledgeError::internal)?;
    let search = FullTextSearchQuery::new(query.to_owned())
        .with_column(column::PASSAGE_TEXT.to_owned())
        .map_err(read_error)?
        .limit(Some(limit));
    scanner
        .full_text_search(search)
        .map_err(read_error)?
        .limit(Some(limit), None)
        .map_err(read_error)?;
    Ok(())
}

/// Best first; of equals in the order of the table, so that it is the same every time.
pub(super) fn sort_best_first(hits: &mut [LegHit], score: impl Fn(&LegHit) -> Option<f32>) {
    hits.sort_by(|a, b| {
        let by_score = score(b).partial_cmp(&score(a)).unwrap_or(std::cmp::Ordering::Equal);
        by_score.then(a.row_id.cmp(&b.row_id))
    });
}

/// Cosine of two vectors; 0 where one of them has no direction.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let (mut dot, mut norm_a, mut norm_b) = (0.0_f32, 0.0_f32, 0.0_f32);
    for (x, y) in a.iter().zip(b) {
        dot += x * y;
        norm_a += x * x;
        norm_b += y * y;
    }
    let norms = (norm_a * norm_b).sqrt();
    if norms > 0.0 { dot / norms } else { 0.0 }
}
