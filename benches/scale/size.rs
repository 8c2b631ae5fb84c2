//! One client, and a project of so many rows.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::daemon::{Client, Daemon, Program};
use crate::homes::{AGENTS, ITEMS, id, vocabulary};
use crate::table::{Table, number, quantile, spread};
use crate::texts::Texts;

/// Calls are made in so many rounds, each of all kinds, so that a busy machine hits all alike.
const ROUNDS: usize = 4;
/// Starts of the daemon for the time that opening takes.
const STARTS: usize = 5;

/// Where queries come from: none comes twice.
pub(crate) struct Queries {
    texts: Texts,
    random: StdRng,
}

impl Queries {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            texts: vocabulary(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    pub(crate) fn take(&mut self, count: usize) -> Vec<String> {
        (0..count)
            .map(|_| {
                format!(
                    "{} {}",
                    self.texts.query(&mut self.random),
                    self.random.random_range(0..1_000_000)
                )
            })
            .collect()
    }
}

/// Times of one kind of call.
#[derive(Default)]
struct Times {
    /// Seen by the client.
    client: Vec<f64>,
    /// What the daemon says of its searches.
    daemon: Vec<f64>,
    /// Milliseconds of processors, all calls together.
    cpu: f64,
}

/// What was measured of one size.
pub(crate) struct Size {
    rows: usize,
    times: BTreeMap<usize, (String, Times)>,
    memory: Vec<(&'static str, crate::daemon::Memory)>,
    hits: usize,
}

/// Searches and other reads of a project of so many rows.
pub(crate) fn measure(program: &Program, home: &Path, rows: usize, calls: usize, idle: Duration) -> Size {
    let daemon = Daemon::start(program, home);
    let mut size = Size {
        rows,
        times: BTreeMap::new(),
        memory: Vec::new(),
        hits: 0,
    };
    let mut client = daemon.client();
    client.call("admin.health", &json!({}));
    size.memory.push(("started", daemon.memory()));
    let mut queries = Queries::new(21);
    client.embed(&queries.take(1));
    size.memory.push(("with the model", daemon.memory()));
    client.call("knowledge.search", &search(&queries.take(1)[0], "hybrid"));
    size.memory.push(("opened", daemon.memory()));
    daemon.wait_until_quiet();
    size.memory.push(("with all words", daemon.memory()));
    let mut random = StdRng::seed_from_u64(rows as u64);
    for _ in 0..ROUNDS {
        size.round(&daemon, &mut client, &mut queries, &mut random, calls.div_ceil(ROUNDS));
    }
    assert!(size.hits > 0, "nothing was found");
    size.memory.push(("after the calls", daemon.memory()));
    drop(client);
    std::thread::sleep(idle);
    size.memory.push(("idle", daemon.memory()));
    daemon.stop();
    size
}

fn search(query: &str, mode: &str) -> Value {
    json!({"query": query, "mode": mode, "limit": 10, "project_id": ITEMS})
}

impl Size {
    fn round(
        &mut self,
        daemon: &Daemon,
        client: &mut Client,
        queries: &mut Queries,
        random: &mut StdRng,
        calls: usize,
    ) {
        let mut place = 0;
        let mut all = |size: &mut Self, client: &mut Client, title: &str, method: &str, params: &[Value]| {
            let (_, times) = size
                .times
                .entry(place)
                .or_insert_with(|| (title.to_owned(), Times::default()));
            place += 1;
            let cpu = daemon.cpu();
            for params in params {
                let (answer, took) = client.timed(method, params);
                times.client.push(took);
                times.daemon.extend(answer["took_ms"].as_f64());
                size.hits += answer["count"].as_u64().unwrap_or(0) as usize;
            }
            times.cpu += daemon.cpu().saturating_sub(cpu).as_secs_f64() * 1e3;
        };
        let of = |queries: &[String], mode: &str| -> Vec<Value> {
            queries.iter().map(|query| search(query, mode)).collect()
        };
        for (mode, name) in [("hybrid", "hybrid"), ("vector", "by meaning"), ("text", "by words")] {
            if mode != "text" {
                let new = of(&queries.take(calls), mode);
                all(self, client, &format!("{name}, new query"), "knowledge.search", &new);
            }
            let known = queries.take(calls);
            client.embed(&known);
            let searches = of(&known, mode);
            let title = if mode == "text" { "new query" } else { "vector known" };
            all(self, client, &format!("{name}, {title}"), "knowledge.search", &searches);
            all(
                self,
                client,
                &format!("{name}, the same again"),
                "knowledge.search",
                &searches,
            );
            let known = queries.take(calls);
            client.embed(&known);
            let mut filtered = of(&known, mode);
            for search in &mut filtered {
                search["agent"] = json!(format!("agent{}", random.random_range(0..AGENTS)));
            }
            let title = format!("{name}, {title}, 1 % pass a filter");
            all(self, client, &title, "knowledge.search", &filtered);
        }
        let gets: Vec<Value> = (0..calls)
            .map(|_| json!({"id": id(random.random_range(0..self.rows)), "project_id": ITEMS}))
            .collect();
        all(self, client, "get", "knowledge.get", &gets);
        all(self, client, "get, the same again", "knowledge.get", &gets);
        let lists = vec![json!({"limit": 20, "project_id": ITEMS}); calls];
        all(self, client, "list of 20", "knowledge.list", &lists);
        let stats = vec![json!({"project_id": ITEMS}); calls];
        all(self, client, "stats", "knowledge.stats", &stats);
    }
}

/// Starts the daemon again and again: the time of the first search of the project, by a query whose vector is known,
/// from a request to its answer.
pub(crate) fn opening(program: &Program, home: &Path) -> Vec<f64> {
    let mut times = Vec::new();
    for start in 0..STARTS {
        let daemon = Daemon::start(program, home);
        let mut client = daemon.client();
        let query = Queries::new(100 + start as u64).take(1);
        client.embed(&query);
        times.push(client.timed("knowledge.search", &search(&query[0], "hybrid")).1);
        daemon.stop();
    }
    times
}

/// The tables of all sizes.
pub(crate) fn print(sizes: &[Size], mut table: Table, idle: Duration) {
    let places: Vec<(usize, &str)> = sizes
        .iter()
        .flat_map(|size| &size.times)
        .map(|(place, (title, _))| (*place, title.as_str()))
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .collect();
    for (place, title) in places {
        let cells: Vec<String> = sizes
            .iter()
            .map(|size| {
                let times = &size.times[&place].1;
                let inside = match times.daemon.is_empty() {
                    true => String::new(),
                    false => format!("; in it {}", number(quantile(&times.daemon, 0.5))),
                };
                let least = number(quantile(&times.client, 0.05));
                let cpu = number(times.cpu / times.client.len() as f64);
                format!("{least} / {}{inside}; cpu {cpu}", spread(&times.client))
            })
            .collect();
        table.row(title, cells.join(" | "));
    }
    table.print();

    let columns = ["resident", "anonymous", "of files", "the most so far"].map(str::to_owned);
    let mut table = Table::new("Memory of the same daemons, MiB.", &columns);
    for size in sizes {
        for (title, memory) in &size.memory {
            let title = match *title {
                "idle" => format!("{} s after the last call", idle.as_secs()),
                other => other.to_owned(),
            };
            table.row(format!("{} passages, {title}", size.rows), memory);
        }
    }
    table.print();
}
