//! How well the daemon finds: nDCG@10 on the Cranfield collection, by meaning, by keyword and by both, through
//! the socket.
//!
//! `cargo bench --bench retrieval`. Prints its numbers; nothing is asserted. The collection (1,400 abstracts on
//! aerodynamics, 225 questions, judged relevance) lies in `benches/data/cranfield`.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::{Value, json};

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

use support::Daemon;

const DEPTH: usize = 10;

fn lines(name: &str) -> Vec<Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("benches/data/cranfield")
        .join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Relevance by question, then document.
fn judgements() -> HashMap<String, HashMap<String, f64>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/data/cranfield/qrels.tsv");
    let mut judged: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        judged
            .entry(fields[0].to_owned())
            .or_default()
            .insert(fields[1].to_owned(), fields[2].parse().unwrap());
    }
    judged
}

/// Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002), with the relevance as the gain.
fn ndcg(found: &[String], relevance: &HashMap<String, f64>) -> Option<f64> {
    let discounted = |gains: &mut dyn Iterator<Item = f64>| -> f64 {
        gains
            .take(DEPTH)
            .enumerate()
            .map(|(rank, gain)| gain / (rank as f64 + 2.0).log2())
            .sum()
    };
    let mut best: Vec<f64> = relevance.values().copied().collect();
    best.sort_by(|a, b| b.total_cmp(a));
    let ideal = discounted(&mut best.into_iter());
    let reached = discounted(&mut found.iter().map(|id| relevance.get(id).copied().unwrap_or(0.0)));
    (ideal > 0.0).then_some(reached / ideal)
}

fn main() {
    let documents = lines("corpus.jsonl");
    let questions = lines("queries.jsonl");
    let judged = judgements();
    let daemon = Daemon::start();
    let mut connection = daemon.connect();
    let items: Vec<Value> = documents
        .iter()
        .filter(|document| !document["text"].as_str().unwrap().trim().is_empty())
        .map(|document| json!({"text": document["text"], "id": document["id"]}))
        .collect();
    let begun = Instant::now();
    for batch in items.chunks(200) {
        let stored = connection.call("knowledge.store_batch", json!({"items": batch}));
        assert_eq!(stored["failed"], 0, "{stored}");
    }
    let stats = connection.call("knowledge.stats", json!({}));
    println!(
        "{} items, {} passages, stored in {:.1} s",
        stats["total"],
        stats["passages"],
        begun.elapsed().as_secs_f64()
    );
    for mode in ["vector", "text", "hybrid"] {
        let scores: Vec<f64> = questions
            .iter()
            .filter_map(|question| {
                let params = json!({"query": question["text"], "mode": mode, "limit": DEPTH});
                let found = support::ids(&connection.call("knowledge.search", params));
                ndcg(&found, judged.get(question["id"].as_str().unwrap())?)
            })
            .collect();
        println!(
            "{mode:8} nDCG@10 {:.4} over {} questions",
            scores.iter().sum::<f64>() / scores.len() as f64,
            scores.len()
        );
    }
}
