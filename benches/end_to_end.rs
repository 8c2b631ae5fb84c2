//! Searches and stores over the socket of a real daemon, at 1, 16 and 64 clients, with 10,000 items.
//!
//! `cargo bench --bench end_to_end [-- ITEMS]`. Prints its setting and its numbers; nothing is asserted.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

#[path = "common/facts.rs"]
mod facts;

use facts::fact;
use support::{Connection, Daemon};

/// Items that the searches run over.
const ITEMS: usize = 10_000;
/// Time for each measurement.
const MEASURE: Duration = Duration::from_secs(8);
const CLIENTS: [usize; 3] = [1, 16, 64];

fn main() {
    let items = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(ITEMS);
    println!(
        "profile: {}",
        if cfg!(debug_assertions) { "dev" } else { "release/dist" }
    );
    println!("cores: {}", std::thread::available_parallelism().map_or(0, usize::from));
    let daemon = Daemon::start();
    let status = daemon.call("admin.status", json!({}));
    println!(
        "durability: {}, model: {}",
        status["durability"], status["model"]["name"]
    );

    let begun = Instant::now();
    let mut connection = daemon.connect();
    for start in (0..items).step_by(500) {
        let batch: Vec<Value> = (start..(start + 500).min(items))
            .map(|n| json!({"text": fact(n)}))
            .collect();
        let stored = connection.call("knowledge.store_batch", json!({"items": batch}));
        assert_eq!(stored["failed"], 0);
    }
    let took = begun.elapsed();
    println!(
        "load: {items} items in {:.1} s ({:.0} items/s, batches of 500)",
        took.as_secs_f64(),
        items as f64 / took.as_secs_f64()
    );

    let counter = AtomicU64::new(0);
    for (name, params) in [
        ("search hybrid, new queries", "hybrid"),
        ("search text, new queries", "text"),
        ("search vector, new queries", "vector"),
    ] {
        for clients in CLIENTS {
            let histogram = measure(&daemon.home.socket(), clients, |connection| {
                let number = counter.fetch_add(1, Ordering::Relaxed) as usize;
                let query = format!(
                    "why does {} handle request {number}",
                    ["billing", "login", "export", "cache"][number % 4]
                );
                let found = connection.call("knowledge.search", json!({"query": query, "mode": params}));
                assert!(found["count"].as_u64().is_some());
            });
            report(name, clients, &histogram);
        }
    }
    for clients in CLIENTS {
        let histogram = measure(&daemon.home.socket(), clients, |connection| {
            connection.call("knowledge.search", json!({"query": "how are backups encrypted"}));
        });
        report("search hybrid, same query", clients, &histogram);
    }
    for clients in CLIENTS {
        let embedded = measure(&daemon.home.socket(), clients, |connection| {
            let number = counter.fetch_add(1, Ordering::Relaxed) as usize;
            connection.call("embedding.embed", json!({"texts": [fact(2_000_000 + number)]}));
        });
        report("embed the same, for comparison", clients, &embedded);
        let commits = daemon.status_number("/actors/writer/counters/commits");
        let histogram = measure(&daemon.home.socket(), clients, |connection| {
            let number = counter.fetch_add(1, Ordering::Relaxed) as usize;
            connection.call(
                "knowledge.store",
                json!({"text": fact(1_000_000 + number), "project_id": "stores"}),
            );
        });
        report("store single", clients, &histogram);
        let commits = daemon.status_number("/actors/writer/counters/commits") - commits;
        println!(
            "    versions per item: {:.3} (1/{:.1}); {:.0} % of what the embedder does alone",
            commits as f64 / histogram.len() as f64,
            histogram.len() as f64 / commits as f64,
            100.0 * histogram.len() as f64 / embedded.len() as f64
        );
    }
    let status = daemon.call("admin.status", json!({}));
    println!(
        "rss: {} MiB",
        status["memory"]["rss_bytes"].as_u64().unwrap_or(0) / 1024 / 1024
    );
    println!("projects: {}", status["projects"]);
}

/// Runs `work` on `clients` connections at once for the time of a measurement.
fn measure(socket: &Path, clients: usize, work: impl Fn(&mut Connection) + Send + Sync) -> Histogram<u64> {
    let gate = Arc::new(Barrier::new(clients));
    let mut total = Histogram::<u64>::new(3).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                let (gate, work) = (Arc::clone(&gate), &work);
                scope.spawn(move || {
                    let mut connection = Connection::open(socket);
                    let mut histogram = Histogram::<u64>::new(3).unwrap();
                    gate.wait();
                    let begun = Instant::now();
                    while begun.elapsed() < MEASURE {
                        let one = Instant::now();
                        work(&mut connection);
                        histogram.record(one.elapsed().as_micros() as u64).unwrap();
                    }
                    histogram
                })
            })
            .collect();
        for thread in threads {
            total.add(thread.join().unwrap()).unwrap();
        }
    });
    total
}

fn report(name: &str, clients: usize, histogram: &Histogram<u64>) {
    println!(
        "{name:32} {clients:3} clients: {:8.1}/s  p50 {:8.2} ms  p99 {:8.2} ms",
        histogram.len() as f64 / MEASURE.as_secs_f64(),
        histogram.value_at_quantile(0.5) as f64 / 1e3,
        histogram.value_at_quantile(0.99) as f64 / 1e3,
    );
}
