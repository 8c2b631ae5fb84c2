//! Interactive searches of one client, with nothing else going on and while another floods bulk stores.
//!
//! `cargo bench --bench fairness`. Prints p50 and p99 of both and their ratio; nothing is asserted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

use support::{Connection, Daemon};

/// Time for each measurement.
const MEASURE: Duration = Duration::from_secs(15);
/// Items there before.
const ITEMS: usize = 2_000;

fn main() {
    println!(
        "profile: {}",
        if cfg!(debug_assertions) { "dev" } else { "release/dist" }
    );
    println!("cores: {}", std::thread::available_parallelism().map_or(0, usize::from));
    let daemon = Daemon::start();
    let mut connection = daemon.connect();
    for start in (0..ITEMS).step_by(500) {
        let items: Vec<Value> = (start..start + 500)
            .map(|n| json!({"text": format!("fact number {n} about the service")}))
            .collect();
        connection.call("knowledge.store_batch", json!({"items": items}));
    }
    let idle = searches(&daemon, 0);
    report("searches alone", &idle);

    let stop = AtomicBool::new(false);
    let stored = AtomicU64::new(0);
    let refused = AtomicU64::new(0);
    let loaded = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut flood = Connection::open(&daemon.home.socket());
            let words =
                "the deployment of the service was rolled back because of an error in the configuration ".repeat(6);
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let items: Vec<Value> = (0..100)
                    .map(|_| {
                        number += 1;
                        json!({"text": format!("{number} {words}")})
                    })
                    .collect();
                let response = flood.request("knowledge.store_batch", json!({"items": items, "project_id": "bulk"}));
                if response.get("result").is_some() {
                    stored.fetch_add(100, Ordering::Relaxed);
                } else {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        std::thread::sleep(Duration::from_secs(1));
        let loaded = searches(&daemon, 1_000_000);
        stop.store(true, Ordering::Relaxed);
        loaded
    });
    report("searches during bulk stores", &loaded);
    println!(
        "ratio: p50 {:.2}, p99 {:.2}; {} items stored meanwhile, {} batches refused",
        loaded.value_at_quantile(0.5) as f64 / idle.value_at_quantile(0.5) as f64,
        loaded.value_at_quantile(0.99) as f64 / idle.value_at_quantile(0.99) as f64,
        stored.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed),
    );
}

/// New queries one after another, each embedded.
fn searches(daemon: &Daemon, offset: u64) -> Histogram<u64> {
    let mut connection = daemon.connect();
    let mut histogram = Histogram::<u64>::new(3).unwrap();
    let begun = Instant::now();
    let mut number = offset;
    while begun.elapsed() < MEASURE {
        number += 1;
        let one = Instant::now();
        connection.call(
            "knowledge.search",
            json!({"query": format!("what is known about fact {number}")}),
        );
        histogram.record(one.elapsed().as_micros() as u64).unwrap();
    }
    histogram
}

fn report(name: &str, histogram: &Histogram<u64>) {
    println!(
        "{name:32} {:8.1}/s  p50 {:8.2} ms  p99 {:8.2} ms",
        histogram.len() as f64 / MEASURE.as_secs_f64(),
        histogram.value_at_quantile(0.5) as f64 / 1e3,
        histogram.value_at_quantile(0.99) as f64 / 1e3,
    );
}
