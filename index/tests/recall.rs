//! How much of the exact answer the codes find, by themselves and with exact cosines for their candidates, and how much
//! an index finds that has residuals.

use ccod_index::{Builder, Hit, Index, Precision, Row, best_by_item};
use ccod_words::{Filter, KnowledgeType};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const DIMENSIONS: usize = 384;
const ROWS: usize = 10_000;
const QUERIES: usize = 30;
const WANTED: usize = 10;

/// Near to normal: the sum of uniform numbers.
fn normal(random: &mut SmallRng) -> f32 {
    (0..6).map(|_| random.random::<f32>() - 0.5).sum()
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

fn near(center: &[f32], spread: f32, random: &mut SmallRng) -> Vec<f32> {
    unit(center.iter().map(|x| x + spread * normal(random)).collect())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn index_of(vectors: &[Vec<f32>], precision: Precision) -> Index {
    let mut builder = Builder::new(DIMENSIONS, precision);
    for (number, vector) in vectors.iter().enumerate() {
        let row = Row {
            address: number as u64,
            id: &format!("{number:06}"),
            passage: 0,
            passages: 1,
            revision: 1,
            kind: KnowledgeType::General,
            agent: None,
            session: None,
            timestamp_ms: 0,
            updated_ms: 0,
            valid_from: 1,
            metadata_terms: &[],
            vector,
            words: None,
        };
        builder.add(&row).unwrap();
    }
    builder.finish()
}

fn shared(found: &[Hit], exact: &[Hit]) -> usize {
    let is_exact = |hit: &&Hit| exact.iter().any(|other| other.id == hit.id);
    found.iter().filter(is_exact).count()
}

/// The shares of the ten best that the codes find by themselves, with exact cosines for the fifty best, and with
/// residuals.
fn recall(spread: f32) -> [f64; 3] {
    let mut random = SmallRng::seed_from_u64(3);
    let centers: Vec<Vec<f32>> = (0..100)
        .map(|_| unit((0..DIMENSIONS).map(|_| normal(&mut random)).collect()))
        .collect();
    let vectors: Vec<Vec<f32>> = (0..ROWS)
        .map(|row| near(&centers[row % centers.len()], spread, &mut random))
        .collect();
    let index = index_of(&vectors, Precision::Coarse);
    let with_residuals = index_of(&vectors, Precision::Exact);
    let [mut by_codes, mut rescored, mut by_residuals] = [0; 3];
    for query in 0..QUERIES {
        let query = near(&centers[query * 7 % centers.len()], spread, &mut random);
        let all = vectors.iter().enumerate().map(|(number, vector)| Hit {
            address: number as u64,
            id: format!("{number:06}"),
            passage: 0,
            cosine: dot(vector, &query),
        });
        let exact = best_by_item(all.collect(), WANTED);
        let mut candidates = index.search(&query, &Filter::default(), WANTED);
        assert_eq!(candidates.len(), 50);
        by_codes += shared(&candidates[..WANTED], &exact);
        for hit in &mut candidates {
            hit.cosine = dot(&vectors[hit.address as usize], &query);
        }
        rescored += shared(&best_by_item(candidates, WANTED), &exact);
        let found = with_residuals.search(&query, &Filter::default(), WANTED);
        assert_eq!(found.len(), WANTED);
        by_residuals += shared(&found, &exact);
    }
    [by_codes, rescored, by_residuals].map(|found| found as f64 / (QUERIES * WANTED) as f64)
}

#[test]
fn codes_find_nearly_all_and_more_exact_cosines_the_rest() {
    // Cosines between neighbours of 0.85, 0.6 and 0.3.
    for spread in [0.03, 0.06, 0.11] {
        let [by_codes, rescored, by_residuals] = recall(spread);
        println!(
            "recall@10 of {ROWS}, spread {spread}: {by_codes:.3} by codes alone, \
             {rescored:.3} after exact cosines for the best 50, {by_residuals:.3} with residuals"
        );
        assert!(by_codes >= 0.95 && rescored >= 0.99, "{by_codes} {rescored}");
        assert!(by_residuals >= 0.999, "{by_residuals}");
    }
}
