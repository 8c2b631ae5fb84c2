//! Fusion of the two legs of a search. Pure.
//!
//! A convex combination (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", TOIS
//! 2023): `W * cosine + (1 - W) * bm25 / best bm25`. The cosine has a scale of its own and stays as it is; BM25
//! has none, for it grows with the rarity of the words, and is measured against the best match of the same
//! search. Unlike a sum of reciprocal ranks, the score falls where neither leg is sure, so a threshold means
//! something. On the Cranfield collection it ranks better as well (docs/performance.md).

use std::collections::HashMap;

use crate::domain::SearchMode;

/// Weight of the cosine: the best of 0.6, 0.65, 0.7 and 0.75 on Cranfield, where they differ by 2 %.
pub const VECTOR_WEIGHT: f32 = 0.7;

/// One passage that a leg found. Legs are ordered, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct LegHit {
    /// Which of the searched projects it is in: ids are unique only within one.
    pub source: usize,
    /// The item.
    pub id: String,
    /// The passage's row in this version.
    pub row_id: u64,
    /// Cosine to the query, where it is known.
    pub similarity: Option<f32>,
    /// BM25, in the keyword leg.
    pub bm25: Option<f32>,
}

/// An item with its fused score.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedItem {
    /// Which of the searched projects it is in.
    pub source: usize,
    /// The item.
    pub id: String,
    /// The row of its best passage.
    pub row_id: u64,
    /// 0 to 1.
    pub score: f32,
    /// Cosine of the best passage.
    pub similarity: Option<f32>,
    /// BM25 of the best passage.
    pub bm25: Option<f32>,
    /// Rank among the items of the vector leg, from 1.
    pub vector_rank: Option<usize>,
    /// Rank among the items of the keyword leg, from 1.
    pub text_rank: Option<usize>,
}

/// Fuses the legs into items, best first. An item stands at the rank of its best passage in each leg. In a
/// mode of one leg the score is that leg's own: the cosine (not below 0), or BM25 mapped into 0..1 by
/// `bm25 / (bm25 + 1)`, which keeps its order.
pub fn fuse(vector_leg: &[LegHit], text_leg: &[LegHit], mode: SearchMode) -> Vec<RankedItem> {
    let mut items: HashMap<(usize, &str), RankedItem> = HashMap::new();
    rank_leg(
        &mut items,
        vector_leg,
        |item, rank| item.vector_rank = Some(rank),
        |item| item.vector_rank.is_some(),
    );
    rank_leg(
        &mut items,
        text_leg,
        |item, rank| item.text_rank = Some(rank),
        |item| item.text_rank.is_some(),
    );

    let best_bm25 = text_leg.iter().filter_map(|hit| hit.bm25).fold(0.0, f32::max);
    let mut ranked: Vec<RankedItem> = items.into_values().collect();
    for item in &mut ranked {
        item.score = match mode {
            SearchMode::Hybrid => hybrid_score(item.similarity, item.bm25, best_bm25),
            SearchMode::Vector => item.similarity.unwrap_or(0.0).clamp(0.0, 1.0),
            SearchMode::Text => item.bm25.map_or(0.0, |bm25| bm25.max(0.0) / (bm25.max(0.0) + 1.0)),
        };
    }
    // Of equal scores the nearer meaning goes first, then the id, so that the order is the same every time.
    ranked.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| b.similarity.unwrap_or(-1.0).total_cmp(&a.similarity.unwrap_or(-1.0)))
            .then_with(|| (a.source, &a.id).cmp(&(b.source, &b.id)))
    });
    ranked
}

fn rank_leg<'a>(
    items: &mut HashMap<(usize, &'a str), RankedItem>,
    leg: &'a [LegHit],
    set_rank: impl Fn(&mut RankedItem, usize),
    has_rank: impl Fn(&RankedItem) -> bool,
) {
    let mut rank = 0;
    for hit in leg {
        let item = items.entry((hit.source, &hit.id)).or_insert_with(|| RankedItem {
            source: hit.source,
            id: hit.id.clone(),
            row_id: hit.row_id,
            score: 0.0,
            similarity: hit.similarity,
            bm25: hit.bm25,
            vector_rank: None,
            text_rank: None,
        });
        if has_rank(item) {
            continue; // A lesser passage of an item that stands already.
        }
        rank += 1;
        set_rank(item, rank);
        item.bm25 = item.bm25.or(hit.bm25);
    }
}

/// See the module. Without a cosine (vectors of another model) the words alone count.
fn hybrid_score(similarity: Option<f32>, bm25: Option<f32>, best_bm25: f32) -> f32 {
    let words = match bm25 {
        Some(bm25) if best_bm25 > 0.0 => (bm25 / best_bm25).clamp(0.0, 1.0),
        _ => 0.0,
    };
    let meaning = similarity.unwrap_or(0.0).clamp(0.0, 1.0);
    VECTOR_WEIGHT * meaning + (1.0 - VECTOR_WEIGHT) * words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(id: &str, row_id: u64, similarity: Option<f32>, bm25: Option<f32>) -> LegHit {
        LegHit {
            source: 0,
            id: id.to_owned(),
            row_id,
            similarity,
            bm25,
        }
    }

    #[test]
    fn meaning_and_words_add_up() {
        let vector = [hit("a", 1, Some(0.9), None), hit("b", 2, Some(0.8), None)];
        let text = [hit("a", 1, Some(0.9), Some(8.0)), hit("c", 3, Some(0.1), Some(4.0))];
        let fused = fuse(&vector, &text, SearchMode::Hybrid);
        let order: Vec<&str> = fused.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(order, ["a", "b", "c"]);
        let expected = [0.7 * 0.9 + 0.3, 0.7 * 0.8, 0.7 * 0.1 + 0.3 * 0.5];
        for (item, expected) in fused.iter().zip(expected) {
            assert!((item.score - expected).abs() < 1e-6, "{item:?}");
        }
        assert_eq!((fused[0].vector_rank, fused[0].text_rank), (Some(1), Some(1)));
        assert_eq!((fused[0].bm25, fused[1].bm25), (Some(8.0), None));
    }

    #[test]
    fn scores_stay_between_nothing_and_one() {
        let odd = [
            hit("a", 1, Some(1.000_1), None),
            hit("b", 2, Some(-0.4), None),
            hit("c", 3, None, Some(0.0)),
        ];
        for mode in [SearchMode::Hybrid, SearchMode::Vector, SearchMode::Text] {
            for item in fuse(&odd, &odd, mode) {
                assert!((0.0..=1.0).contains(&item.score), "{mode:?} {item:?}");
            }
        }
    }

    #[test]
    fn an_item_counts_once_with_its_best_passage() {
        let vector = [
            hit("a", 1, Some(0.9), None),
            hit("a", 2, Some(0.8), None),
            hit("b", 3, Some(0.7), None),
        ];
        let fused = fuse(&vector, &[], SearchMode::Hybrid);
        assert_eq!(fused.len(), 2);
        assert_eq!(fused[0].row_id, 1);
        assert_eq!(fused[1].vector_rank, Some(2));
    }

    #[test]
    fn one_leg_keeps_its_own_scale() {
        let vector = [hit("a", 1, Some(0.5), None), hit("b", 2, Some(-0.1), None)];
        let fused = fuse(&vector, &[], SearchMode::Vector);
        assert_eq!((fused[0].score, fused[1].score), (0.5, 0.0));
        let text = [hit("a", 1, None, Some(3.0)), hit("b", 2, None, Some(1.0))];
        let fused = fuse(&[], &text, SearchMode::Text);
        assert_eq!((fused[0].score, fused[1].score), (0.75, 0.5));
    }
}
