//! What becomes of a store under many single stores of one client: fragments, versions, bytes, memory and the
//! time of a search, each thousand stores; and the same after a thorough compaction.
//!
//! `cargo bench --bench soak [-- STORES]`. Prints its setting and its numbers; nothing is asserted.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[path = "../tests/support/mod.rs"]
#[allow(dead_code)]
mod support;

#[path = "common/facts.rs"]
mod facts;

use facts::fact;
use support::{Connection, Daemon};

/// Single stores, one after the other.
const STORES: usize = 10_000;
/// Searches of a measurement.
const SEARCHES: usize = 200;

fn main() {
    let stores = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(STORES);
    println!(
        "profile: {}",
        if cfg!(debug_assertions) { "dev" } else { "release/dist" }
    );
    println!("cores: {}", std::thread::available_parallelism().map_or(0, usize::from));
    let daemon = Daemon::start();
    println!("durability: {}", daemon.call("admin.status", json!({}))["durability"]);
    let mut connection = daemon.connect();
    let mut most = Most::default();
    let mut first_rss = 0;
    let step = 1_000.min(stores);
    for start in (0..stores).step_by(step) {
        let begun = Instant::now();
        for number in start..start + step {
            connection.call("knowledge.store", json!({"text": fact(number)}));
            if number % 50 == 0 {
                most.look(&daemon);
            }
        }
        let took = begun.elapsed();
        let state = State::of(&daemon);
        if first_rss == 0 {
            first_rss = state.rss;
        }
        println!(
            "{:6} stores: {:5.1}/s, {state}",
            start + step,
            step as f64 / took.as_secs_f64()
        );
    }
    println!(
        "most at any time: {} fragments, {} versions",
        most.fragments, most.versions
    );

    // What the upkeep had to do is done shortly after the last store.
    std::thread::sleep(Duration::from_secs(2));
    let soaked = State::of(&daemon);
    let (hybrid, text, vector) = searches(&mut connection, 0);
    println!("after the soak: {soaked}; search p50 hybrid {hybrid:.2} ms, text {text:.2} ms, vector {vector:.2} ms");
    let optimized = daemon.call("admin.optimize", json!({}));
    println!(
        "optimize: {} bytes freed, steps {}",
        optimized["freed_bytes"], optimized["steps"]
    );
    let fresh = State::of(&daemon);
    let (hybrid_fresh, text_fresh, vector_fresh) = searches(&mut connection, 1);
    println!(
        "freshly compacted: {fresh}; search p50 hybrid {hybrid_fresh:.2} ms, text {text_fresh:.2} ms, vector \
         {vector_fresh:.2} ms"
    );
    println!(
        "soaked / fresh: bytes {:.2}, p50 hybrid {:.2}, text {:.2}, vector {:.2}; rss after all / after the first \
         {step}: {:.2}; open files {}",
        soaked.bytes as f64 / fresh.bytes as f64,
        hybrid / hybrid_fresh,
        text / text_fresh,
        vector / vector_fresh,
        soaked.rss as f64 / first_rss as f64,
        open_files(daemon.pid()),
    );
}

/// The largest numbers that were seen.
#[derive(Default)]
struct Most {
    fragments: usize,
    versions: usize,
}

impl Most {
    fn look(&mut self, daemon: &Daemon) {
        let table = daemon.home.path().join("knowledge/default/orchestra_knowledge.lance");
        let count = |name: &str| std::fs::read_dir(table.join(name)).map_or(0, Iterator::count);
        self.versions = self.versions.max(count("_versions"));
        let status = daemon.call("admin.status", json!({}));
        let fragments = status["projects"][0]["fragments"].as_u64().unwrap_or(0);
        self.fragments = self.fragments.max(fragments as usize);
    }
}

struct State {
    items: u64,
    fragments: u64,
    versions: u64,
    bytes: u64,
    rss: u64,
}

impl State {
    fn of(daemon: &Daemon) -> Self {
        let status = daemon.call("admin.status", json!({}));
        let project = &status["projects"][0];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Self {
            items: number(&project["items"]),
            fragments: number(&project["fragments"]),
            versions: number(&project["versions"]),
            bytes: number(&project["bytes_on_disk"]),
            rss: number(&status["memory"]["rss_bytes"]),
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} items, {} fragments, {} versions, {:.1} MiB on disk ({:.2} KiB an item), rss {} MiB",
            self.items,
            self.fragments,
            self.versions,
            self.bytes as f64 / 1024.0 / 1024.0,
            self.bytes as f64 / 1024.0 / self.items.max(1) as f64,
            self.rss / 1024 / 1024
        )
    }
}

/// Medians of hybrid, keyword and vector searches, in milliseconds. Each `pass` and each mode asks for something
/// new, so that all of them embed their queries.
fn searches(connection: &mut Connection, pass: usize) -> (f64, f64, f64) {
    let mut median = |mode: &str| {
        let mut times: Vec<f64> = (0..SEARCHES)
            .map(|number| {
                let word = ["billing", "login", "export"][number % 3];
                let query = format!("why does {word} queue {mode} {pass} {number}");
                let begun = Instant::now();
                connection.call("knowledge.search", json!({"query": query, "mode": mode}));
                begun.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    (median("hybrid"), median("text"), median("vector"))
}

fn open_files(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
