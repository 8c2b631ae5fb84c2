//! Both engines, one after the other: a short query, and texts by the batch.
//!
//! `cargo bench -p ccod-model --bench embed [-- SECONDS]`, with the time for each measurement; `--profile dist` for the
//! shipped profile. Prints its setting and its numbers; nothing is asserted.

use std::error::Error;
use std::time::{Duration, Instant};

use ccod_model::tokenize::{TextTokenizer, TokenizedText};
use ccod_model::{EmbedEngine, ModelCell, PrecisionChoice};

/// Prose of a software project, cycled to make texts of any length.
const WORDS: &str = "We keep the connection pool small because the database server has few cores and each \
    idle connection costs memory. The probe agent batches checks and uploads them once a minute, with retries \
    and full jitter. Errors are reported with a code, a sentence and what to do about them.";

/// Tokens of a text, special ones included, and texts of a batch.
const CASES: [(usize, usize); 10] = [
    (12, 1),
    (15, 32),
    (45, 1),
    (45, 8),
    (45, 32),
    (187, 1),
    (187, 2),
    (187, 8),
    (256, 1),
    (256, 8),
];

/// Multiplications and additions of one token in the layers' products with weights, of MiniLM: 6 layers with queries,
/// keys and values, the output of attention, and two matrices of 4 times the width.
const FLOPS_PER_TOKEN: f64 = 2.0 * 6.0 * 12.0 * 384.0 * 384.0;
/// The same in attention, for each token that a token looks at.
const FLOPS_PER_PAIR: f64 = 2.0 * 6.0 * 2.0 * 384.0;

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo adds `--bench`.
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let limit = Duration::from_secs_f64(seconds.unwrap_or(2.0));
    println!(
        "{} threads, profile {}",
        std::thread::available_parallelism()?,
        if cfg!(debug_assertions) { "dev" } else { "release/dist" },
    );
    let mut medians: Vec<Vec<f64>> = Vec::new();
    for choice in [PrecisionChoice::Exact, PrecisionChoice::Int8] {
        let cell = ModelCell::bundled()?.with_precision(choice);
        let start = Instant::now();
        let tokenizer = cell.tokenizer()?;
        let tokenizer_ms = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        let mut engine = cell.build_engine()?;
        println!(
            "\n{}: {}, loaded in {:.0} ms (tokenizer {tokenizer_ms:.0} ms)",
            cell.precision(),
            cell.engine_name(),
            start.elapsed().as_secs_f64() * 1e3,
        );
        println!(
            "{:>7} {:>6} {:>10} {:>10} {:>10} {:>10} {:>9}",
            "tokens", "texts", "median ms", "best ms", "texts/s", "tokens/s", "GFLOP/s"
        );
        let mut own = Vec::new();
        for (tokens, batch_size) in CASES {
            let text = text_of(&tokenizer, tokens);
            let batch = vec![&text; batch_size];
            let (median, best) = measure(engine.as_mut(), &batch, limit)?;
            own.push(median);
            let per_second = batch_size as f64 / median;
            let tokens = text.len() as f64;
            let flops = tokens * (FLOPS_PER_TOKEN + tokens * FLOPS_PER_PAIR);
            println!(
                "{tokens:>7} {batch_size:>6} {:>10.2} {:>10.2} {per_second:>10.1} {:>10.0} {:>9.0}",
                median * 1e3,
                best * 1e3,
                per_second * tokens,
                per_second * flops / 1e9,
            );
        }
        medians.push(own);
    }
    println!("\n{:>7} {:>6} {:>14}", "tokens", "texts", "int8 / exact");
    for (index, (tokens, batch_size)) in CASES.iter().enumerate() {
        let ratio = medians[0][index] / medians[1][index];
        println!("{tokens:>7} {batch_size:>6} {ratio:>13.2}x");
    }
    Ok(())
}

/// A text of at most `tokens` tokens, special ones included.
fn text_of(tokenizer: &TextTokenizer, tokens: usize) -> TokenizedText {
    let mut text = String::new();
    for word in WORDS.split_whitespace().cycle() {
        let longer = format!("{text} {word}");
        let encoded = tokenizer.encode_query(&longer);
        if encoded.len() > tokens || encoded.truncated() {
            break;
        }
        text = longer;
    }
    tokenizer.encode_query(&text)
}

/// Median and best time of one pass in seconds, over as many as fit into `limit`.
fn measure(
    engine: &mut dyn EmbedEngine,
    batch: &[&TokenizedText],
    limit: Duration,
) -> Result<(f64, f64), Box<dyn Error>> {
    for _ in 0..3 {
        engine.embed(batch)?;
    }
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < limit || times.len() < 3 {
        let pass = Instant::now();
        engine.embed(batch)?;
        times.push(pass.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[0]))
}
