//! Measures the engine by itself: texts per second by batch size and length, an idle query, loading.
//!
//! `cargo run --release -p ccod-actors --example bench_embed [-- SECONDS_PER_CASE]`

use std::error::Error;
use std::time::{Duration, Instant};

use ccod_model::tokenize::{TextTokenizer, TokenizedText};
use ccod_model::{EmbedEngine, ModelCell};

/// Prose of a software project, cycled to make texts of any length.
const WORDS: &str = "We keep the connection pool small because the database server has few cores and each \
    idle connection costs memory. The probe agent batches checks and uploads them once a minute, with retries \
    and full jitter. Errors are reported with a code, a sentence and what to do about them.";

fn main() -> Result<(), Box<dyn Error>> {
    let seconds: f64 = match std::env::args().nth(1) {
        Some(argument) => argument.parse()?,
        None => 2.0,
    };
    let limit = Duration::from_secs_f64(seconds);
    let cell = ModelCell::bundled()?;
    let start = Instant::now();
    let tokenizer = cell.tokenizer()?;
    println!("tokenizer loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let start = Instant::now();
    let mut engine = cell.build_engine()?;
    println!("model loaded in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    println!("{} threads", std::thread::available_parallelism()?);

    let query = text_of(&tokenizer, 12);
    measure(engine.as_mut(), &[&query], Duration::from_millis(200))?;
    println!(
        "{:>8} {:>6} {:>10} {:>10} {:>10} {:>10}",
        "tokens", "batch", "median ms", "best ms", "texts/s", "tokens/s"
    );
    for tokens in [12, 40, 128, 256] {
        let text = text_of(&tokenizer, tokens);
        for batch_size in [1, 2, 4, 8, 16, 32] {
            if tokens * batch_size > 8192 {
                continue;
            }
            let batch = vec![&text; batch_size];
            let (median, best) = measure(engine.as_mut(), &batch, limit)?;
            let per_second = batch_size as f64 / median.as_secs_f64();
            println!(
                "{:>8} {batch_size:>6} {:>10.2} {:>10.2} {per_second:>10.1} {:>10.0}",
                text.len(),
                median.as_secs_f64() * 1e3,
                best.as_secs_f64() * 1e3,
                per_second * text.len() as f64,
            );
        }
    }
    Ok(())
}

/// A text of exactly `tokens` tokens, special ones included.
fn text_of(tokenizer: &TextTokenizer, tokens: usize) -> TokenizedText {
    let mut text = String::new();
    for word in WORDS.split_whitespace().cycle() {
        let longer = format!("{text} {word}");
        if tokenizer.encode_query(&longer).len() > tokens || tokenizer.encode_query(&longer).truncated() {
            break;
        }
        text = longer;
    }
    tokenizer.encode_query(&text)
}

/// Median and best time of one pass, over as many as fit into `limit`.
fn measure(
    engine: &mut dyn EmbedEngine,
    batch: &[&TokenizedText],
    limit: Duration,
) -> Result<(Duration, Duration), Box<dyn Error>> {
    engine.embed(batch)?;
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < limit || times.len() < 3 {
        let pass = Instant::now();
        engine.embed(batch)?;
        times.push(pass.elapsed());
    }
    times.sort();
    Ok((times[times.len() / 2], times[0]))
}
