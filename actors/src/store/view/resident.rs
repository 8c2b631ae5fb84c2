//! What a view answers from the index in memory, without a query: counts, lists, gets, and both legs of a search.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use ccod_index::{Hit, Index, Matching, Precision, PreparedQuery, PreparedWords, best_by_item};
use chrono::{DateTime, Utc};
use lance::dataset::ProjectionRequest;
use lance::dataset::scanner::{RowAddrMask, RowAddrTreeMap};

use crate::domain::{Filter, ItemStats, Order};
use crate::error::KnowledgeResult;
use crate::store::error::read_error;
use crate::store::index::{rows_of, unit};
use crate::store::table::keyword_index;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;
use crate::store::view::fusion::LegHit;
use crate::store::view::gather::AnswerBudget;
use crate::store::view::items::{ListPage, ListRequest};
use crate::store::view::leg_queries::{BM25, cosine, keyword_query, sort_best_first};
use crate::store::view::legs::LegPage;
use crate::store::view::{ProjectView, SearchRequest, row_id};

/// Below one part in so many of a table's rows, those that match are named to the keyword index.
const FEW_PART: u64 = 8;
/// How many times more passages the keyword index is asked for when too few of them matched.
const ASKED_MORE: usize = 4;
/// Passages that it is asked for at most to have all that are equally good.
const MOST_ASKED: usize = 10_000;

/// Counts of the live items.
pub(super) fn stats(index: &Index) -> ItemStats {
    let counts = index.counts();
    let time = |ms: Option<i64>| ms.and_then(DateTime::<Utc>::from_timestamp_millis);
    let by_kind: BTreeMap<String, u64> = counts
        .by_kind
        .into_iter()
        .map(|(kind, items)| (kind.as_str().to_owned(), items))
        .collect();
    ItemStats {
        total: counts.items,
        passages: counts.passages,
        by_kind,
        by_agent: counts.by_agent,
        oldest: time(counts.oldest_ms),
        newest: time(counts.newest_ms),
    }
}

/// Where the first passages of the live items with these ids stand, in the order of the table.
pub(super) fn places_of(index: &Index, ids: &[String]) -> Vec<u64> {
    let first = |id: &String| {
        index
            .get(id)
            .first()
            .filter(|entry| entry.passage == 0)
            .map(|entry| entry.address)
    };
    let mut places: Vec<u64> = ids.iter().filter_map(first).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// Where all passages of the live items with these ids stand, in the order of the table.
pub(super) fn all_places_of(index: &Index, ids: &[String]) -> Vec<u64> {
    let mut places: Vec<u64> = ids
        .iter()
        .flat_map(|id| index.get(id).into_iter().map(|entry| entry.address))
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// Where the first passage of the item stands of which another passage stands here; none where this is the first.
pub(super) fn other_first_place(index: &Index, place: u64) -> Option<u64> {
    let entry = index.at(place).filter(|entry| entry.passage != 0)?;
    let first = index.get(entry.id).into_iter().find(|entry| entry.passage == 0);
    first.map(|first| first.address)
}

/// The sum of the vectors of an item's passages.
pub(super) fn direction(index: &Index, id: &str) -> Option<Arc<[f32]>> {
    let vectors = index
        .get(id)
        .into_iter()
        .filter_map(|entry| index.vector(entry.address));
    let sum = vectors.reduce(|mut sum, vector| {
        for (total, component) in sum.iter_mut().zip(vector) {
            *total += component;
        }
        sum
    });
    sum.map(Arc::from)
}

/// The ids of the live items that are in `ids`, sorted, if an answer of `limit_bytes` may hold them.
pub(super) fn live_ids(index: &Index, ids: &[String], limit_bytes: usize) -> KnowledgeResult<Vec<String>> {
    let mut budget = AnswerBudget::new(limit_bytes);
    let mut live: Vec<String> = ids.iter().filter(|id| index.contains(id)).cloned().collect();
    live.sort_unstable();
    live.dedup();
    for id in &live {
        budget.take(id.len() + "\"\"".len())?;
    }
    Ok(live)
}

/// The ids of the items that pass `filter`, sorted, if an answer of `limit_bytes` may hold them.
pub(super) fn matching_ids(index: &Index, filter: &Filter, limit_bytes: usize) -> KnowledgeResult<Vec<String>> {
    let mut budget = AnswerBudget::new(limit_bytes);
    let mut ids = Vec::new();
    for listed in index.list(filter, Order::Oldest, None, usize::MAX).items {
        budget.take(listed.id.len() + "\"\"".len())?;
        ids.push(listed.id);
    }
    ids.sort_unstable();
    Ok(ids)
}

impl ProjectView {
    /// The nearest items that are not `known`, nearest first: `items` of them, unless there are fewer.
    pub(super) async fn vector_leg_from(
        &self,
        matching: &Matching,
        vector: &[f32],
        request: &SearchRequest,
        known: &HashSet<String>,
        items: usize,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        let wanted = known.len().saturating_add(items);
        let found = self.nearest(matching, vector, wanted).await?;
        let mut page = LegPage {
            hits: Vec::with_capacity(items),
            is_last: found.len() < wanted,
        };
        for hit in found {
            if hit.cosine < request.min_similarity {
                // What is below the limit is last, so there is nothing behind it either.
                page.is_last = true;
                break;
            }
            if !known.contains(&hit.id) {
                page.hits.push(LegHit {
                    source,
                    id: hit.id,
                    row_id: hit.address,
                    similarity: Some(hit.cosine),
                    bm25: None,
                });
            }
        }
        Ok(page)
    }

    /// The `k` nearest items with their cosines, nearest first.
    async fn nearest(&self, matching: &Matching, vector: &[f32], k: usize) -> KnowledgeResult<Vec<Hit>> {
        let mut found = matching.search(&PreparedQuery::new(&unit(vector)), k);
        if matching.index().precision() == Precision::Exact {
            return Ok(found);
        }
        let places: Vec<u64> = found.iter().map(|hit| hit.address).collect();
        let cosines = self.cosines_at(matching.index(), &places, vector).await?;
        for (hit, cosine) in found.iter_mut().zip(cosines) {
            hit.cosine = cosine;
        }
        Ok(best_by_item(found, k))
    }

    /// The cosines of a vector with those of these rows, from memory or, where there they are not exact, from the table.
    async fn cosines_at(&self, index: &Index, places: &[u64], vector: &[f32]) -> KnowledgeResult<Vec<f32>> {
        if index.precision() == Precision::Exact {
            let query = PreparedQuery::new(&unit(vector));
            let cosine = |place: &u64| index.cosine(*place, &query).unwrap_or(0.0);
            return Ok(places.iter().map(cosine).collect());
        }
        let projection = ProjectionRequest::from_columns([column::VECTOR], self.dataset.schema());
        let batch = self.dataset.take_rows(places, projection).await.map_err(read_error)?;
        let rows = RowReader(&batch);
        (0..batch.num_rows())
            .map(|row| Ok(cosine(vector, &rows.vector(row)?)))
            .collect()
    }

    /// The passages that hold words of `query` and match, best BM25 first, with their cosine where there is a vector.
    ///
    /// While the words of some rows are not in memory, LanceDB's keyword index is asked. It knows nothing of what is
    /// live and of filters. So it is asked for more than is wanted, and what does not match is left out; only where
    /// little matches is it given the rows to look at, which it then checks one by one.
    pub(super) async fn text_leg_from(
        &self,
        matching: &Matching,
        request: &SearchRequest,
        known: &HashSet<String>,
        passages: usize,
        source: usize,
    ) -> KnowledgeResult<LegPage> {
        let ahead = request.keywords_ahead.as_ref().filter(|_| known.is_empty());
        let mut page = match ahead.and_then(|ahead| ahead.page_of(self, passages)) {
            Some(page) => page,
            None => self.keyword_page(matching, &request.query, known, passages).await?,
        };
        page.hits.iter_mut().for_each(|hit| hit.source = source);
        if let Some(vector) = &request.vector {
            let places: Vec<u64> = page.hits.iter().map(|hit| hit.row_id).collect();
            let cosines = self.cosines_at(matching.index(), &places, vector).await?;
            for (hit, cosine) in page.hits.iter_mut().zip(cosines) {
                hit.similarity = Some(cosine);
            }
        }
        Ok(page)
    }

    /// The passages of [`ProjectView::text_leg_from`] without their cosines, and of no source yet.
    pub(super) async fn keyword_page(
        &self,
        matching: &Matching,
        query: &str,
        known: &HashSet<String>,
        passages: usize,
    ) -> KnowledgeResult<LegPage> {
        let nothing = LegPage {
            hits: Vec::new(),
            is_last: true,
        };
        let matches = matching.rows();
        let words = keyword_index::query_words(query)?;
        if matches == 0 || words.is_empty() {
            return Ok(nothing);
        }
        let wanted = known.len().saturating_add(passages);
        if let Some(found) = matching.search_words(&PreparedWords::new(&words), wanted) {
            let is_last = found.len() < wanted;
            let new = found.into_iter().filter(|hit| !known.contains(&hit.id));
            let hits = new.map(|hit| LegHit {
                source: 0,
                id: hit.id,
                row_id: hit.address,
                similarity: None,
                bm25: Some(hit.bm25),
            });
            return Ok(LegPage {
                hits: hits.collect(),
                is_last,
            });
        }
        let index = matching.index();
        let rows = rows_of(&self.dataset);
        let is_among_few = matches.saturating_mul(FEW_PART) < rows;
        let all_match = matches == rows && known.is_empty();
        let mut asked = match all_match {
            true => passages + passages / 2,
            false => (passages + known.len()).saturating_mul(2),
        };
        loop {
            let mut scanner = self.scanner();
            scanner.project(&[BM25]).map_err(read_error)?.with_row_id();
            if is_among_few {
                let allowed = RowAddrTreeMap::from_iter(matching.addresses());
                scanner.with_row_id_prefilter(RowAddrMask::from_allowed(allowed));
            }
            keyword_query(&mut scanner, query, asked)?;
            let (mut hits, mut found, mut least) = (Vec::new(), 0, f32::INFINITY);
            for batch in Self::collect(&scanner).await? {
                found += batch.num_rows();
                let scores = RowReader(&batch);
                for row in 0..batch.num_rows() {
                    let address = row_id(&batch, row)?;
                    let score = scores.float(BM25, row);
                    least = least.min(score.unwrap_or(0.0));
                    let entry = index.at(address).filter(|_| matching.is_live_and_matches(address));
                    if let Some(entry) = entry.filter(|entry| !known.contains(entry.id)) {
                        hits.push(LegHit {
                            source: 0,
                            id: entry.id.to_owned(),
                            row_id: address,
                            similarity: None,
                            bm25: score,
                        });
                    }
                }
            }
            let is_last = found < asked;
            sort_best_first(&mut hits, |hit| hit.bm25);
            let Some(last) = passages.checked_sub(1).and_then(|last| hits.get(last)) else {
                if is_last {
                    return Ok(LegPage { hits, is_last });
                }
                asked = asked.saturating_mul(ASKED_MORE);
                continue;
            };
            // Which of equally good passages come where not all of them are asked for is up to chance. With all of them
            // here, the order of the table decides.
            if last.bm25.unwrap_or(0.0) <= least && !is_last && asked < MOST_ASKED {
                asked = asked.saturating_mul(ASKED_MORE).min(MOST_ASKED);
                continue;
            }
            let is_last = is_last && hits.len() <= passages;
            hits.truncate(passages);
            return Ok(LegPage { hits, is_last });
        }
    }

    /// A page of a list.
    pub(super) async fn list_from(&self, index: &Index, request: &ListRequest) -> KnowledgeResult<ListPage> {
        let order = if request.newest_first {
            Order::Newest
        } else {
            Order::Oldest
        };
        let after = request.after.as_ref();
        let after = after.map(|(time, id)| (time.timestamp_millis(), id.as_str()));
        let page = index.list(&request.filter, order, after, request.limit);
        let places: Vec<u64> = page.items.iter().map(|listed| listed.address).collect();
        Ok(ListPage {
            items: self.items_within(&places, request.max_answer_bytes).await?,
            total: page.total,
            more: page.more,
        })
    }
}
