//! An index with residuals: how exact its cosines are, and that its searches are those of a loop over all rows.

use ccod_index::{Builder, Change, Hit, Index, Precision, PreparedQuery, Row, best_by_item};
use ccod_words::{Filter, KnowledgeType, OneOrMany};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const DIMENSIONS: usize = 384;

/// Near to normal: the sum of uniform numbers.
fn normal(random: &mut SmallRng) -> f32 {
    (0..6).map(|_| random.random::<f32>() - 0.5).sum()
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

fn random_unit(random: &mut SmallRng) -> Vec<f32> {
    unit((0..DIMENSIONS).map(|_| normal(random)).collect())
}

fn near(center: &[f32], spread: f32, random: &mut SmallRng) -> Vec<f32> {
    unit(center.iter().map(|x| x + spread * normal(random)).collect())
}

/// In 64 bits.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn row<'a>(number: usize, passages: usize, id: &'a str, vector: &'a [f32]) -> Row<'a> {
    Row {
        address: number as u64,
        id,
        passage: (number % passages) as u32,
        passages: passages as u32,
        revision: 1,
        kind: KnowledgeType::ALL[number / passages % 2],
        agent: None,
        session: None,
        timestamp_ms: 0,
        updated_ms: 0,
        valid_from: 1,
        metadata_terms: &[],
        vector,
        words: None,
    }
}

/// Ids that do not go up with the places of the rows.
fn id(number: usize, passages: usize) -> String {
    format!(
        "{:08x}",
        ((number / passages) as u32).wrapping_mul(0x9e37_79b9).rotate_left(7)
    )
}

fn index_of(vectors: &[Vec<f32>], passages: usize, precision: Precision) -> Index {
    let mut builder = Builder::new(vectors[0].len(), precision);
    for (number, vector) in vectors.iter().enumerate() {
        builder
            .add(&row(number, passages, &id(number, passages), vector))
            .unwrap();
    }
    builder.finish()
}

/// Kinds of vectors, all of length 1.
fn kinds(count: usize) -> Vec<(&'static str, Vec<Vec<f32>>)> {
    let mut random = SmallRng::seed_from_u64(11);
    let random = &mut random;
    let centers: Vec<Vec<f32>> = (0..8).map(|_| random_unit(random)).collect();
    let of = |vector: &mut dyn FnMut(usize) -> Vec<f32>| (0..count).map(vector).collect();
    let sparse = |large: usize, noise: f32, random: &mut SmallRng| {
        let mut vector: Vec<f32> = (0..DIMENSIONS).map(|_| noise * normal(random)).collect();
        for _ in 0..large {
            // Among the same few places, so that they meet.
            vector[random.random_range(0..10)] += normal(random);
        }
        vector[3] += 1e-3;
        unit(vector)
    };
    vec![
        ("random", of(&mut |_| random_unit(random))),
        ("clustered", of(&mut |number| near(&centers[number % 8], 0.05, random))),
        ("close", of(&mut |number| near(&centers[number % 8], 0.003, random))),
        (
            "one-hot",
            of(&mut |number| (0..DIMENSIONS).map(|at| f32::from(at == number % 10)).collect()),
        ),
        ("few components", of(&mut |_| sparse(4, 0.0, random))),
        ("few large components", of(&mut |_| sparse(3, 0.02, random))),
        ("one large component", of(&mut |_| sparse(1, 0.01, random))),
    ]
}

#[test]
fn cosines_are_exact() {
    let kinds = kinds(150);
    let queries: Vec<&Vec<f32>> = kinds.iter().flat_map(|(_, vectors)| &vectors[..12]).collect();
    for (name, vectors) in &kinds {
        let index = index_of(vectors, 1, Precision::Exact);
        let (mut worst, mut component, mut squares) = (0.0_f64, 0.0_f32, 0.0);
        for query in &queries {
            let prepared = PreparedQuery::new(query);
            for (number, vector) in vectors.iter().enumerate() {
                let error = f64::from(index.cosine(number as u64, &prepared).unwrap()) - dot(vector, query);
                worst = worst.max(error.abs());
                squares += error * error;
            }
        }
        for (number, vector) in vectors.iter().enumerate() {
            let found = index.vector(number as u64).unwrap();
            let largest = vector.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let errors = found.iter().zip(vector).map(|(a, b)| (a - b).abs() / largest);
            component = errors.fold(component, f32::max);
        }
        let deviation = (squares / (queries.len() * vectors.len()) as f64).sqrt();
        println!("{name}: cosines off by {worst:.1e} at most, {deviation:.1e} usually; components by {component:.1e}");
        assert!(worst < 1e-5, "{name}: {worst}");
        assert!(component < 1.0 / 64_000.0, "{name}: {component}");
    }
}

#[test]
fn products_of_any_length_are_as_exact_as_their_lengths_allow() {
    let mut random = SmallRng::seed_from_u64(12);
    for length in [1e-12, 0.01, 30.0, 1e12_f32] {
        let vectors: Vec<Vec<f32>> = (0..100)
            .map(|_| random_unit(&mut random).iter().map(|x| x * length).collect())
            .collect();
        let index = index_of(&vectors, 1, Precision::Exact);
        let prepared = PreparedQuery::new(&vectors[7]);
        for (number, vector) in vectors.iter().enumerate() {
            let error = f64::from(index.cosine(number as u64, &prepared).unwrap()) - dot(vector, &vectors[7]);
            // With a large scale there are second residuals, with a small one as few as of unit vectors.
            assert!(error.abs() < 1e-5 * f64::from(length).powi(2), "{length}: {error}");
        }
        assert_eq!(searched(&index, &vectors[7], 100), all(&index, 1, &vectors[7], 100));
    }
}

fn searched(index: &Index, query: &[f32], k: usize) -> Vec<Hit> {
    index.search(query, &Filter::default(), k)
}

/// The answer by a loop over all rows that have a cosine.
fn all(index: &Index, passages: usize, query: &[f32], k: usize) -> Vec<Hit> {
    let prepared = PreparedQuery::new(query);
    let hits = (0..index.len()).map(|number| Hit {
        address: number as u64,
        id: id(number, passages),
        passage: (number % passages) as u32,
        cosine: index.cosine(number as u64, &prepared).unwrap(),
    });
    best_by_item(hits.collect(), k)
}

#[test]
fn searches_are_those_of_a_loop_over_all_rows() {
    for (name, mut vectors) in kinds(2_000) {
        // Neighbours are alike, as in an import; and some rows are the same.
        vectors.sort_by(|a, b| a[0].total_cmp(&b[0]));
        for number in 0..100 {
            vectors[number * 13 + 500] = vectors[number % 9].clone();
        }
        for passages in [1, 3] {
            let index = index_of(&vectors, passages, Precision::Exact);
            let mut random = SmallRng::seed_from_u64(13);
            for query in 0..4 {
                let query = match query % 3 {
                    0 => vectors[query * 397].clone(),
                    1 => near(&vectors[query * 397], 0.03, &mut random),
                    _ => random_unit(&mut random),
                };
                let everything = all(&index, passages, &query, usize::MAX);
                for k in [1, 10, 100, 300, 5_000] {
                    let found = searched(&index, &query, k);
                    assert_eq!(found, everything[..k.min(everything.len())], "{name}, {k}");
                }
                // Beside the vectors themselves: the same order, but where cosines are the same for most purposes.
                for hit in everything.iter().take(100) {
                    let cosine = dot(&vectors[hit.address as usize], &query);
                    assert!((cosine - f64::from(hit.cosine)).abs() < 1e-5);
                }
            }
        }
    }
}

#[test]
fn filters_and_odd_rows_change_nothing() {
    let mut random = SmallRng::seed_from_u64(14);
    let mut vectors: Vec<Vec<f32>> = (0..700).map(|_| random_unit(&mut random)).collect();
    // Some have no direction, some are longer than others, and the last ones of these take the places of others below.
    vectors[5] = vec![0.0; DIMENSIONS];
    vectors[6][9] = f32::NAN;
    vectors[7][9] = f32::INFINITY;
    vectors[698].iter_mut().for_each(|x| *x *= 40.0);
    vectors[699] = (0..DIMENSIONS).map(|at| f32::from(at == 0)).collect();
    let whole = index_of(&vectors, 1, Precision::Exact);
    let change = Change {
        removed: &[100, 300, 500],
        ..Change::default()
    };
    let index = whole.apply(&change).unwrap();
    assert_eq!(index.precision(), Precision::Exact);
    let filter = Filter {
        knowledge_type: Some(OneOrMany::One(KnowledgeType::ALL[1])),
        ..Filter::default()
    };
    for query in [&vectors[1], &vectors[699], &vectors[5], &vectors[6]] {
        let prepared = PreparedQuery::new(query);
        for filter in [Filter::default(), filter.clone()] {
            let matching = index.matching(&filter);
            let hits = matching.addresses().map(|address| Hit {
                address,
                id: id(address as usize, 1),
                passage: 0,
                cosine: index.cosine(address, &prepared).unwrap(),
            });
            let expected = best_by_item(hits.collect(), usize::MAX);
            for k in [1, 20, 1_000] {
                assert_eq!(matching.search(&prepared, k), expected[..k.min(expected.len())]);
            }
        }
    }
    let other = PreparedQuery::new(&[1.0; 12]);
    assert_eq!(index.matching(&filter).search(&other, 3), []);
    assert_eq!(index.cosine(1, &other), None);
}

#[test]
fn a_coarse_index_knows_less_and_takes_less() {
    let mut random = SmallRng::seed_from_u64(15);
    let vectors: Vec<Vec<f32>> = (0..640).map(|_| random_unit(&mut random)).collect();
    let [exact, coarse] = [Precision::Exact, Precision::Coarse].map(|precision| index_of(&vectors, 1, precision));
    // A byte of each component, less the bit that its sign would be, and where it ends.
    let more = (exact.bytes() - coarse.bytes()) / 640;
    assert!(more.abs_diff(DIMENSIONS - DIMENSIONS / 8) < 16, "{more} bytes a row");
    let query = PreparedQuery::new(&vectors[8]);
    for (number, vector) in vectors.iter().enumerate() {
        let cosine = f64::from(coarse.cosine(number as u64, &query).unwrap());
        assert!((cosine - dot(vector, &vectors[8])).abs() < 0.005);
        let found = coarse.vector(number as u64).unwrap();
        assert!(found.iter().zip(vector).all(|(a, b)| (a - b).abs() < 0.001));
    }
    assert_eq!(coarse.matching(&Filter::default()).search(&query, 4).len(), 20);
}
