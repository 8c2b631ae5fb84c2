//! The model alone: texts per second at batch 1, 8 and 32, for texts of about 40 and of 256 tokens.
//!
//! `cargo bench --bench embed`. Prints its setting and its numbers; nothing is asserted.

#![recursion_limit = "256"]

use std::time::{Duration, Instant};

use ccod_actors::embedder::ModelCell;
use ccod_actors::embedder::model::tokenize::TokenizedText;

/// Time for each measurement.
const MEASURE: Duration = Duration::from_secs(5);

fn main() {
    println!(
        "profile: {}",
        if cfg!(debug_assertions) { "dev" } else { "release/dist" }
    );
    println!("cores: {}", std::thread::available_parallelism().map_or(0, usize::from));
    let begun = Instant::now();
    let model = ModelCell::bundled().unwrap();
    let tokenizer = model.tokenizer().unwrap();
    println!("tokenizer: {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);
    let mut engine = model.build_engine().unwrap();
    println!(
        "model {} loaded in {:?}",
        model.identity(),
        model.load_time().unwrap_or_default()
    );

    let sentence = "The billing service retries a failed charge three times with exponential backoff before it gives up and tells the operator about it in the audit log of the day. ";
    for (name, repeats) in [("about 40 tokens", 1), ("256 tokens", 12)] {
        for batch in [1, 8, 32] {
            let texts: Vec<TokenizedText> = (0..batch)
                .map(|number| tokenizer.encode_query(&format!("{number} {}", sentence.repeat(repeats))))
                .collect();
            let references: Vec<&TokenizedText> = texts.iter().collect();
            engine.embed(&references).unwrap();
            let begun = Instant::now();
            let mut passes = 0_u32;
            while begun.elapsed() < MEASURE {
                engine.embed(&references).unwrap();
                passes += 1;
            }
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "{name:16} ({} tokens) batch {batch:2}: {:8.1} texts/s, {:8.2} ms a pass",
                texts[0].len(),
                f64::from(passes) * batch as f64 / seconds,
                seconds * 1e3 / f64::from(passes),
            );
        }
    }
}
