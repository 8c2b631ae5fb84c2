//! The items whose vectors are nearest to a query's.

use std::collections::HashMap;

use ccod_words::Filter;

use crate::best::{Best, Candidates, Collect, Scored};
use crate::block::{Block, ROWS};
use crate::codes::PreparedQuery;
use crate::scan::Scan;
use crate::signs::FROM_ROWS;
use crate::{Index, Matching, Precision};

/// How many candidates a search with [`Precision::Coarse`] returns for each item that is asked for. Of the ten nearest
/// of 10,000 rows with 384 components, the ten best by codes are 0.96 to 0.99 (the nearer all are to each other, the
/// fewer), and the fifty best have all of them (`tests/recall.rs`).
pub const RESCORE: usize = 5;

/// Of at least [`FROM_ROWS`] rows, one in so many goes on from signs to codes,
const SIGNS_SHARE: usize = 100;

/// and at least so many for each candidate.
const SIGNS_PER_WANTED: usize = 40;

/// How many candidates ahead of the one that is read the next are asked for.
const CANDIDATES_AHEAD: usize = 6;

/// A passage that is near to the query.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Where Lance has the row.
    pub address: u64,
    /// The item's id.
    pub id: String,
    /// Which passage of the item it is, from 0.
    pub passage: u32,
    /// The cosine of the angle between passage and query, as exact as [`Precision`] says.
    pub cosine: f32,
}

impl Index {
    /// The `k` items nearest to `query`, a vector of length 1, among those that pass `filter`; fewer if there are not
    /// so many. An item is as near as its nearest passage. Best first, ids deciding between equals. Nothing where `query`
    /// has not as many components as the vectors. What is answered depends on [`Self::precision`].
    ///
    /// **[`Precision::Exact`]:** that answer: one hit for each item, with the first of its nearest passages. It is what
    /// [`Self::cosine`] of every row would give: rows are passed over only where the bound of what the codes leave open
    /// shows that they cannot be in it. So the first 100 of 300 are what 100 are asked for.
    ///
    /// **[`Precision::Coarse`]:** candidates for it, the [`RESCORE`] times `k` best items by approximate cosines. Where
    /// the codes cannot tell which passage of an item is the nearest, the item has several hits, one after the other;
    /// so an item's exact cosine is always that of one of its hits. To get the exact answer, put exact cosines into the
    /// hits and call [`best_by_item`].
    ///
    /// O(n), bound by memory: 1 byte is read for each component of each row that passes the filter. With
    /// [`Precision::Coarse`], from 200,000 such rows on it is 1 bit, and then 1 byte for the hundredth part of the rows
    /// that is nearest by these bits. Of a million rows around 100 directions that lost none of the ten best
    /// (`benches/scan.rs`); where nothing is near to anything, it loses a few in a hundred. With [`Precision::Exact`],
    /// a row whose cosine is less than 0.016 below that of the `k`-th item costs some 0.15 us more: all rows where all
    /// vectors are nearly the same.
    #[must_use]
    pub fn search(&self, query: &[f32], filter: &Filter, k: usize) -> Vec<Hit> {
        self.matching(filter).search(&PreparedQuery::new(query), k)
    }
}

impl Matching {
    /// As [`Index::search`], among these rows: a filter and a query that several legs of a search share are made ready
    /// once.
    #[must_use]
    pub fn search(&self, query: &PreparedQuery, k: usize) -> Vec<Hit> {
        let state = self.index().state();
        if query.dimensions() != state.dimensions || k == 0 {
            return Vec::new();
        }
        let blocks: Vec<&Block> = state.blocks.iter().collect();
        let scan = Scan {
            blocks: &blocks,
            masks: self.masks(),
            query,
        };
        match state.precision {
            Precision::Exact => self.exact(&scan, k),
            Precision::Coarse => self.coarse(&scan, k),
        }
    }

    fn exact(&self, scan: &Scan<'_>, k: usize) -> Vec<Hit> {
        let state = self.index().state();
        let mut candidates = Candidates::new(state, k);
        scan.all(&mut candidates);
        let mut candidates = candidates.finish();
        // The best of them first: their exact scores show that most others need not be looked at.
        let first = candidates.len().min(k.saturating_mul(2));
        if first < candidates.len() {
            candidates.select_nth_unstable_by(first, |a, b| (b.score + b.bound).total_cmp(&(a.score + a.bound)));
        }
        let mut best = Best::new(state, k);
        for (number, candidate) in candidates.iter().enumerate() {
            if let Some(next) = candidates.get(number + CANDIDATES_AHEAD) {
                scan.ask_for_digits(next.place as usize);
            }
            if number == first {
                best.sort_out();
            }
            if candidate.score + candidate.bound < best.threshold() {
                continue;
            }
            let place = candidate.place as usize;
            let score = scan.blocks[place / ROWS].product(place % ROWS, scan.query);
            if score >= best.threshold() {
                best.push(Scored { score, ..*candidate });
            }
        }
        let hits = best.finish().into_iter().map(|scored| Hit {
            address: state.address(scored.place as usize),
            id: state.ids.text(scored.item).unwrap_or_default().to_owned(),
            passage: scored.passage,
            cosine: scored.score,
        });
        hits.collect()
    }

    fn coarse(&self, scan: &Scan<'_>, k: usize) -> Vec<Hit> {
        let state = self.index().state();
        let wanted = k.saturating_mul(RESCORE);
        let mut best = Best::new(state, wanted);
        let rows: usize = scan.masks.iter().map(|mask| mask.count_ones() as usize).sum();
        let enough = wanted.saturating_mul(SIGNS_PER_WANTED).max(rows / SIGNS_SHARE);
        if rows < FROM_ROWS || enough > rows / 4 {
            scan.all(&mut best);
        } else {
            scan.near(rows, enough, &mut best);
        }
        let mut hits = Vec::new();
        for scored in best.finish() {
            self.push_hits(&mut hits, &scored, scan.query);
        }
        hits
    }

    /// The best passage of an item, and the others that may be better.
    fn push_hits(&self, hits: &mut Vec<Hit>, best: &Scored, query: &PreparedQuery) {
        let (state, masks) = (self.index().state(), self.masks());
        let id = state.ids.text(best.item).unwrap_or_default();
        let mut hit = |place: usize, cosine: f32| {
            let block = state.blocks.get(place / ROWS);
            hits.push(Hit {
                address: state.address(place),
                id: id.to_owned(),
                passage: block.passages[place % ROWS],
                cosine,
            });
        };
        let bound = |place: usize| {
            let scale = state.blocks.get(place / ROWS).scales[place % ROWS];
            query.error_bound(scale, state.dimensions)
        };
        let best_place = best.place as usize;
        hit(best_place, best.score);
        let mut others: Vec<(usize, f32)> = Vec::new();
        for place in state.places_of_item(best.item) {
            if place == best_place || masks[place / ROWS] >> (place % ROWS) & 1 == 0 {
                continue;
            }
            let block = state.blocks.get(place / ROWS);
            let mut scores = [0.0; ROWS];
            query.scores(&block.codes, &block.scales, 1 << (place % ROWS), &mut scores);
            let score = scores[place % ROWS];
            if score + bound(place) >= best.score - bound(best_place) {
                others.push((place, score));
            }
        }
        others.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (place, score) in others {
            hit(place, score);
        }
    }
}

/// One hit for each item, its best, and of these the `k` best: best first, then by id. Of passages that are equally
/// near the first counts.
#[must_use]
pub fn best_by_item(hits: Vec<Hit>, k: usize) -> Vec<Hit> {
    let mut places: HashMap<String, usize> = HashMap::with_capacity(hits.len());
    let mut best: Vec<Hit> = Vec::with_capacity(hits.len());
    for hit in hits {
        match places.get(&hit.id) {
            None => {
                places.insert(hit.id.clone(), best.len());
                best.push(hit);
            }
            Some(place) => {
                let known = &mut best[*place];
                let order = hit
                    .cosine
                    .total_cmp(&known.cosine)
                    .then(known.passage.cmp(&hit.passage));
                if order.is_gt() {
                    *known = hit;
                }
            }
        }
    }
    best.sort_unstable_by(|a, b| b.cosine.total_cmp(&a.cosine).then_with(|| a.id.cmp(&b.id)));
    best.truncate(k);
    best
}

#[cfg(test)]
mod tests {
    use ccod_words::KnowledgeType;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::signs::Signs;
    use crate::{Builder, Change, Row};

    const DIMENSIONS: usize = 256;

    fn near(center: &[f32], spread: f32, random: &mut SmallRng) -> Vec<f32> {
        let vector: Vec<f32> = center
            .iter()
            .map(|x| x + (random.random::<f32>() - 0.5) * spread)
            .collect();
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter().map(|x| x / length).collect()
    }

    fn index(rows: usize, centers: &[Vec<f32>], spread: f32, random: &mut SmallRng) -> Index {
        let mut builder = Builder::new(DIMENSIONS, Precision::Coarse);
        for number in 0..rows {
            let row = Row {
                address: number as u64,
                id: &format!("item {}", number / 2),
                passage: (number % 2) as u32,
                passages: 2,
                revision: 1,
                kind: KnowledgeType::General,
                agent: None,
                session: None,
                timestamp_ms: 0,
                updated_ms: 0,
                valid_from: 0,
                metadata_terms: &[],
                // Neighbours are alike, as the rows of one import are: no sample of blocks is a fair one.
                vector: &near(&centers[number * centers.len() / rows], spread, random),
                words: None,
            };
            builder.add(&row).unwrap();
        }
        builder.finish()
    }

    fn centers(random: &mut SmallRng) -> Vec<Vec<f32>> {
        (0..40).map(|_| near(&[0.0; DIMENSIONS], 1.0, random)).collect()
    }

    /// How many of the ten best by codes are found among the best 5 % by signs.
    fn kept_by_signs(spread: f32) -> f64 {
        let mut random = SmallRng::seed_from_u64(5);
        let centers = centers(&mut random);
        let index = index(20_000, &centers, spread, &mut random);
        let state = index.state();
        let blocks: Vec<&Block> = state.blocks.iter().collect();
        let masks: Vec<u64> = blocks
            .iter()
            .map(|block| block.live() & !0x8000_0000_0000_0001)
            .collect();
        let rows: usize = masks.iter().map(|mask| mask.count_ones() as usize).sum();
        let mut kept = 0;
        for center in &centers {
            let query = PreparedQuery::new(&near(center, spread, &mut random));
            let scan = Scan {
                blocks: &blocks,
                masks: &masks,
                query: &query,
            };
            let (mut all, mut by_signs) = (Best::new(state, 50), Best::new(state, 50));
            scan.all(&mut all);
            scan.near(rows, 1_000, &mut by_signs);
            let (all, by_signs) = (all.finish(), by_signs.finish());
            assert_eq!(by_signs.len(), 50);
            for scored in &by_signs {
                let place = scored.place as usize;
                assert_eq!(masks[place / ROWS] >> (place % ROWS) & 1, 1);
            }
            let is_kept = |scored: &&Scored| by_signs.iter().any(|other| other.place == scored.place);
            kept += all[..10].iter().filter(is_kept).count();
        }
        kept as f64 / (10 * centers.len()) as f64
    }

    #[test]
    fn signs_pass_over_far_rows_only() {
        let kept = [0.1, 1.0].map(kept_by_signs);
        println!(
            "kept by signs: {:.3} in clusters, {:.3} of vectors without any",
            kept[0], kept[1]
        );
        // The second is what no embedding of texts is like: nothing is near to anything.
        assert!(kept[0] >= 0.99 && kept[1] >= 0.97, "{kept:?}");
    }

    #[test]
    fn signs_stay_those_of_the_codes() {
        let mut random = SmallRng::seed_from_u64(6);
        let centers = centers(&mut random);
        let full = index(300, &centers, 1.0, &mut random);
        let removed: Vec<u64> = (0..250).map(|number| number * 7 % 300).collect();
        let change = Change {
            removed: &removed,
            ..Change::default()
        };
        let index = full.apply(&change).unwrap();
        let block = index.state().blocks.get(0);
        let mut expected = Signs::new();
        for (row, codes) in block.codes.chunks_exact(DIMENSIONS).enumerate() {
            expected.set(row, codes);
        }
        assert_eq!(block.codes.len(), 50 * DIMENSIONS);
        assert_eq!(block.signs.words(), expected.words());
    }
}
