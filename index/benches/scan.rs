//! What the index costs: scans with and without a filter, words, changes, lists, gets, memory.
//!
//! `cargo bench -p ccod-index`, or with counts of rows: `cargo bench -p ccod-index -- 10000 100000`; each with both
//! precisions. One thread; vectors of 384 components around 100 directions, one passage for each item; medians.

use std::hint::black_box;
use std::time::Instant;

use ccod_index::{Builder, Change, Index, Precision, PreparedQuery, PreparedWords, Row, Tokens, best_by_item};
use ccod_words::{Filter, KnowledgeType, OneOrMany, Order};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const DIMENSIONS: usize = 384;

/// Near to normal, with a deviation of 1.
fn normal(random: &mut SmallRng) -> f32 {
    (random.random::<f32>() + random.random::<f32>() - 1.0) * 2.449_49
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

/// Directions, and vectors around them: with cosines to their direction from 0.55 to 0.9.
struct Vectors {
    random: SmallRng,
    directions: Vec<Vec<f32>>,
}

impl Vectors {
    fn new() -> Self {
        let mut random = SmallRng::seed_from_u64(7);
        let directions = (0..100)
            .map(|_| unit((0..DIMENSIONS).map(|_| normal(&mut random)).collect()))
            .collect();
        Self { random, directions }
    }

    fn next(&mut self) -> Vec<f32> {
        let direction = &self.directions[self.random.random_range(0..self.directions.len())];
        let spread = self.random.random_range(0.5..1.5) / (DIMENSIONS as f32).sqrt();
        let random = &mut self.random;
        unit(direction.iter().map(|x| x + spread * normal(random)).collect())
    }
}

fn id(number: usize) -> String {
    format!("01JABCDEFGHJKMNPQR{number:08}")
}

fn with_row<T>(number: usize, vector: &[f32], use_row: impl FnOnce(&Row<'_>) -> T) -> T {
    let id = id(number);
    let agent = format!("agent-{}", number % 7);
    let session = format!("session-{}", number % 100);
    let terms = [
        format!("project=\"p{}\"", number % 5),
        format!("file=\"src/{}.rs\"", number % 1_000),
    ];
    use_row(&Row {
        address: ((number / 1_000) as u64) << 32 | (number % 1_000) as u64,
        id: &id,
        passage: 0,
        passages: 1,
        revision: 1,
        kind: KnowledgeType::ALL[number % KnowledgeType::ALL.len()],
        agent: Some(&agent),
        session: Some(&session),
        timestamp_ms: 1_700_000_000_000 + number as i64 * 1_000,
        updated_ms: 1_700_000_000_000,
        valid_from: 1,
        metadata_terms: &terms,
        vector,
        words: None,
    })
}

/// Words by Zipf's law over so many, as `benches/common/texts.rs` has them.
const VOCABULARY: usize = 14_060;
/// Words of a row, without those that an analyser leaves out.
const ROW_WORDS: usize = 40;

struct Words {
    random: SmallRng,
    sums: Vec<f64>,
}

impl Words {
    fn new() -> Self {
        let mut sum = 0.0;
        let frequencies = (1..=VOCABULARY).map(|rank| 1.0 / (rank as f64 + 2.7));
        let sums = frequencies.map(|frequency| {
            sum += frequency;
            sum
        });
        Self {
            random: SmallRng::seed_from_u64(8),
            sums: sums.collect(),
        }
    }

    /// Some words; the sixty most frequent are left out, as an analyser does.
    fn next(&mut self, count: usize) -> Tokens {
        let (from, to) = (self.sums[59], self.sums[VOCABULARY - 1]);
        let words: Vec<String> = (0..count)
            .map(|_| {
                let part = self.random.random_range(from..to);
                format!("word{}", self.sums.partition_point(|sum| *sum <= part))
            })
            .collect();
        words.iter().map(String::as_str).collect()
    }
}

/// Words come last, as in a large project; then searches, and changes of rows that have words.
fn measure_words(index: &Index, vectors: &mut Vectors) {
    let mut words = Words::new();
    let (mut filled, mut took) = (index.clone(), 0.0);
    while filled.unread_words() > 0 {
        let rows: Vec<(u64, Tokens)> = filled
            .addresses_without_words(512)
            .into_iter()
            .map(|address| (address, words.next(ROW_WORDS)))
            .collect();
        let begin = Instant::now();
        filled = filled
            .with_words(rows.iter().map(|(address, words)| (*address, words)))
            .expect("fits");
        took += begin.elapsed().as_secs_f64();
    }
    let rows = filled.len();
    println!(
        "  words of all rows    {:8.1} ms, {:.1} us and {:.0} bytes a row",
        took * 1e3,
        took * 1e6 / rows as f64,
        (filled.bytes() - index.bytes()) as f64 / rows as f64
    );
    let queries: Vec<PreparedWords> = (0..64).map(|_| PreparedWords::new(&words.next(6))).collect();
    let everything = filled.matching(&Filter::default());
    let session_id = Some(OneOrMany::One("session-7".to_owned()));
    let few = filled.matching(&Filter {
        session_id,
        ..Filter::default()
    });
    for (name, matching) in [("all", everything), ("1 %", few)] {
        let search = median(|call| drop(black_box(matching.search_words(&queries[call % 64], 100))));
        println!("  search 6 words, {name:<8} {search:5.3} ms");
    }
    let (vector, tokens) = (vectors.next(), words.next(ROW_WORDS));
    let mut current = filled.clone();
    let update = median(|call| {
        let number = call * 7 % rows;
        let address = ((number / 1_000) as u64) << 32 | (number % 1_000) as u64;
        current = with_row(rows + call, &vector, |row| {
            let row = Row {
                words: Some(&tokens),
                ..*row
            };
            let change = Change {
                removed: &[address],
                added: &[row],
                moved: &[],
            };
            current.apply(&change).expect("fits")
        });
    });
    println!("  apply, one row with words replaced {:.1} us", update * 1e3);
}

/// What the process has in memory, in bytes; 0 where the system does not say.
fn resident() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0
}

/// The median time of a call, in milliseconds.
fn median(mut call: impl FnMut(usize)) -> f64 {
    let mut times: Vec<f64> = Vec::new();
    let start = Instant::now();
    while times.len() < 11 || (times.len() < 500 && start.elapsed().as_secs_f64() < 1.0) {
        let begin = Instant::now();
        call(times.len());
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn build(rows: usize, precision: Precision, vectors: &mut Vectors) -> Index {
    let resident_before = resident();
    let mut builder = Builder::new(DIMENSIONS, precision);
    let mut took = 0.0;
    for start in (0..rows).step_by(1_000) {
        // Generating is not what is measured.
        let vectors: Vec<Vec<f32>> = (0..1_000).map(|_| vectors.next()).collect();
        let begin = Instant::now();
        for (offset, vector) in vectors.iter().enumerate() {
            with_row(start + offset, vector, |row| builder.add(row)).expect("fits");
        }
        took += begin.elapsed().as_secs_f64();
    }
    let index = builder.finish();
    let bytes = index.bytes();
    println!(
        "  build {:8.1} ms, {:.0} rows/s; {:.1} MB, {:.0} bytes a row; the process grew by {:.1} MB",
        took * 1e3,
        rows as f64 / took,
        bytes as f64 / 1e6,
        bytes as f64 / rows as f64,
        (resident() - resident_before) / 1e6
    );
    index
}

/// Compares a search of all rows with searches of parts that are so small that signs are not used.
fn kept_by_signs(index: &Index, queries: &[Vec<f32>]) -> String {
    let mut kept = [(10, 0), (50, 0)];
    for query in queries {
        let found = index.search(query, &Filter::default(), 10);
        let parts = (0..100).step_by(10).flat_map(|part| {
            let sessions = (part..part + 10).map(|session| format!("session-{session}"));
            let session_id = Some(OneOrMany::Many(sessions.collect()));
            let filter = Filter {
                session_id,
                ..Filter::default()
            };
            index.search(query, &filter, 10)
        });
        let all = best_by_item(parts.collect(), 50);
        for (depth, kept) in &mut kept {
            let best = all.iter().take(*depth);
            *kept += best.filter(|hit| found.iter().any(|other| other.id == hit.id)).count();
        }
    }
    let share = |(depth, kept): (usize, usize)| kept as f64 / (depth * queries.len()) as f64;
    format!("{:.3} of 10 and {:.3} of 50", share(kept[0]), share(kept[1]))
}

fn measure(rows: usize, precision: Precision) {
    println!("{rows} rows, {precision:?}");
    let mut vectors = Vectors::new();
    let index = build(rows, precision, &mut vectors);
    let queries: Vec<Vec<f32>> = (0..16).map(|_| vectors.next()).collect();
    let read = |rows: usize| (rows * DIMENSIONS) as f64 / 1e6;

    let everything = Filter::default();
    let scan = median(|call| drop(black_box(index.search(&queries[call % 16], &everything, 10))));
    let signs_first = precision == Precision::Coarse && rows >= 200_000;
    if !signs_first {
        println!("  search               {scan:8.3} ms, {:.1} GB/s", read(rows) / scan);
    } else {
        // An eighth of the size in signs, then the codes of one row in a hundred.
        let bytes = read(rows) / 8.0 + read(rows) / 100.0;
        println!("  search, signs first  {scan:8.3} ms, {:.1} GB/s", bytes / scan);
    }
    for k in [100, 300] {
        let deep = median(|call| drop(black_box(index.search(&queries[call % 16], &everything, k))));
        println!("  search, the best {k} {deep:8.3} ms");
    }
    if signs_first {
        println!("  of the best by codes, signs keep {}", kept_by_signs(&index, &queries));
    }
    let filters = [
        ("session, 1 %", {
            let session_id = Some(OneOrMany::One("session-7".to_owned()));
            Filter {
                session_id,
                ..Filter::default()
            }
        }),
        ("metadata, 0.1 %", {
            let metadata = [("file".to_owned(), "src/7.rs".into())].into_iter().collect();
            Filter {
                metadata,
                ..Filter::default()
            }
        }),
        (
            "type, 11 %",
            Filter {
                knowledge_type: Some(OneOrMany::One(KnowledgeType::Issue)),
                ..Filter::default()
            },
        ),
    ];
    for (name, filter) in &filters {
        let scan = median(|call| drop(black_box(index.search(&queries[call % 16], filter, 10))));
        let masks = median(|_| drop(black_box(index.matching(filter))));
        println!("  search, {name:<16} {scan:5.3} ms, of which filter {masks:.3} ms");
    }
    let list = median(|_| drop(black_box(index.list(&everything, Order::Newest, None, 20))));
    let filtered = median(|_| drop(black_box(index.list(&filters[0].1, Order::Oldest, None, 20))));
    println!("  list 20              {list:8.3} ms, of 1 % {filtered:.3} ms");
    let get = median(|call| drop(black_box(index.get(&id(call * 7_919 % rows)))));
    let counts = median(|_| drop(black_box(index.counts())));
    println!(
        "  get                  {:8.3} us, counts {:.1} us",
        get * 1e3,
        counts * 1e3
    );
    let query = PreparedQuery::new(&queries[0]);
    let prepare = median(|call| drop(black_box(PreparedQuery::new(&queries[call % 16]))));
    let cosine = median(|call| {
        let number = call * 7_919 % rows;
        black_box(index.cosine(((number / 1_000) as u64) << 32 | (number % 1_000) as u64, &query));
    });
    println!(
        "  cosine               {:8.3} us, prepare {:.1} us",
        cosine * 1e3,
        prepare * 1e3
    );
    let fragment = median(|call| {
        let fragment = (call % rows.div_ceil(1_000)) as u64;
        drop(black_box(index.addresses_in(fragment << 32..(fragment + 1) << 32)));
    });
    println!("  addresses in 1,000   {fragment:8.3} ms");

    if precision == Precision::Exact {
        measure_words(&index, &mut vectors);
    }
    let vector = vectors.next();
    let mut current = index.clone();
    let store = median(|call| {
        current = with_row(rows + call, &vector, |row| {
            let change = Change {
                added: &[*row],
                ..Change::default()
            };
            current.apply(&change).expect("fits")
        });
    });
    current = index.clone();
    let delete = median(|call| {
        let number = call * 7 % rows;
        let address = ((number / 1_000) as u64) << 32 | (number % 1_000) as u64;
        let change = Change {
            removed: &[address],
            ..Change::default()
        };
        current = current.apply(&change).expect("fits");
    });
    println!(
        "  apply, one row added {:8.1} us, removed {:.1} us",
        store * 1e3,
        delete * 1e3
    );
    let matching = index.matching(&everything);
    let moved: Vec<(u64, u64)> = matching
        .addresses()
        .map(|address| (address, address | 1 << 60))
        .collect();
    drop(matching);
    let begin = Instant::now();
    let change = Change {
        moved: &moved,
        ..Change::default()
    };
    let compacted = index.apply(&change).expect("fits");
    println!("  apply, all rows moved {:7.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    drop((index, compacted));
    let begin = Instant::now();
    drop(current);
    println!("  drop                 {:8.1} ms", begin.elapsed().as_secs_f64() * 1e3);
}

fn main() {
    let given: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let counts = if given.is_empty() {
        vec![10_000, 100_000, 1_000_000]
    } else {
        given
    };
    for rows in counts {
        for precision in [Precision::Exact, Precision::Coarse] {
            measure(rows, precision);
        }
    }
}
