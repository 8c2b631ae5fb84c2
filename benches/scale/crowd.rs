//! Many clients at once, in one thread: it takes little of the processors that the daemon runs on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Barrier;
use tokio::task::LocalSet;

use crate::daemon::{Daemon, PATIENCE, Program, request};
use crate::homes::{ITEMS, id};
use crate::size::Queries;
use crate::table::{Table, number, quantile, spread};

/// Clients of the first part.
const CLIENTS: usize = 64;
/// Queries that they ask, again and again.
const QUERIES: usize = 256;
/// How long each mode is measured, twice.
const SECONDS: f64 = 5.0;

/// Connections of the second part, and what each sends at once.
const CONNECTIONS: usize = 200;
const AT_ONCE: usize = 10;

/// Runs something on this thread.
fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, work)
}

/// 64 clients, each with one search at a time, of queries whose vectors are known. Answers the rows of the table.
pub(crate) fn clients(program: &Program, home: &Path, rows: usize, idle: Duration, table: &mut Table) {
    let daemon = Daemon::start(program, home);
    let queries = Queries::new(31).take(QUERIES);
    let mut client = daemon.client();
    client.embed(&queries);
    client.call("knowledge.search", &search(&queries[0], "hybrid"));
    daemon.wait_until_quiet();
    for (mode, name) in [("vector", "by meaning"), ("hybrid", "hybrid"), ("text", "by words")] {
        let lines: Vec<Vec<u8>> = queries
            .iter()
            .map(|query| request(1, "knowledge.search", &search(query, mode)))
            .collect();
        let mut rates = Vec::new();
        let mut times = Vec::new();
        for _ in 0..2 {
            let found = on_this_thread(repeat(daemon.socket(), Rc::new(lines.clone())));
            rates.push(found.len() as f64 / SECONDS);
            times.extend(found);
        }
        let cells = format!(
            "{} | {} | {}",
            number(rates[0].max(rates[1])),
            spread(&times),
            daemon.memory()
        );
        table.row(format!("{rows} passages, {name}"), cells);
    }
    drop(client);
    std::thread::sleep(idle);
    let title = format!("{rows} passages, {} s after the last call", idle.as_secs());
    table.row(title, format!("| | {}", daemon.memory()));
    daemon.stop();
}

fn search(query: &str, mode: &str) -> Value {
    json!({"query": query, "mode": mode, "limit": 10, "project_id": ITEMS})
}

/// The milliseconds of all calls.
async fn repeat(socket: PathBuf, lines: Rc<Vec<Vec<u8>>>) -> Vec<f64> {
    let gate = Rc::new(Barrier::new(CLIENTS));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (socket, lines, gate) = (socket.clone(), Rc::clone(&lines), Rc::clone(&gate));
            tokio::task::spawn_local(async move {
                let (reader, mut writer) = UnixStream::connect(socket).await.unwrap().into_split();
                let mut reader = BufReader::with_capacity(1 << 16, reader);
                let (mut line, mut times) = (Vec::new(), Vec::new());
                gate.wait().await;
                let begun = Instant::now();
                // Not the same order for all.
                for place in (number..).step_by(7) {
                    let one = Instant::now();
                    writer.write_all(&lines[place % lines.len()]).await.unwrap();
                    line.clear();
                    reader.read_until(b'\n', &mut line).await.unwrap();
                    if begun.elapsed().as_secs_f64() > SECONDS {
                        break;
                    }
                    let beginning = &line[..line.len().min(100)];
                    let failed = beginning.windows(7).any(|part| part == b"\"error\"");
                    assert!(!failed && !line.is_empty(), "{}", String::from_utf8_lossy(&line));
                    times.push(one.elapsed().as_secs_f64() * 1e3);
                }
                times
            })
        })
        .collect();
    let mut all = Vec::new();
    for client in clients {
        all.extend(client.await.unwrap());
    }
    all
}

/// What became of requests that were sent at once.
#[derive(Default)]
struct Outcome {
    answered: usize,
    /// By what they say.
    refused: BTreeMap<String, usize>,
    /// Neither answered nor refused.
    lost: usize,
    /// Milliseconds from the first request to each answer.
    times: Vec<f64>,
}

/// 2,000 requests in flight on 200 connections. `home` is changed.
pub(crate) fn flood(program: &Program, home: &Path, rows: usize, table: &mut Table) {
    let daemon = Daemon::start(program, home);
    let mut queries = Queries::new(41);
    let known = queries.take(QUERIES);
    let mut client = daemon.client();
    client.embed(&known);
    client.call("knowledge.search", &search(&known[0], "hybrid"));
    daemon.wait_until_quiet();
    let total = CONNECTIONS * AT_ONCE;
    let known_search = |number: usize, mode: &str| ("knowledge.search", search(&known[number % QUERIES], mode));
    let new = queries.take(total);
    let get = |number: usize| {
        (
            "knowledge.get",
            json!({"id": id(number * 7_919 % rows), "project_id": ITEMS}),
        )
    };
    let stores = queries.take(2 * total);
    let store = |number: usize| {
        (
            "knowledge.store",
            json!({"text": stores[number], "project_id": "stores"}),
        )
    };
    let mixed = |number: usize| match number % 20 {
        0 => store(total + number),
        1 => ("knowledge.list", json!({"limit": 20, "project_id": ITEMS})),
        2..6 => get(number),
        6..8 => ("knowledge.search", search(&format!("{} again", new[number]), "hybrid")),
        _ => known_search(number, "hybrid"),
    };
    type Call<'a> = &'a dyn Fn(usize) -> (&'static str, Value);
    let kinds: [(&str, Call<'_>); 6] = [
        ("get", &get),
        ("by meaning, vector known", &|number| known_search(number, "vector")),
        ("hybrid, vector known", &|number| known_search(number, "hybrid")),
        ("hybrid, new query", &|number| {
            ("knowledge.search", search(&new[number], "hybrid"))
        }),
        ("store", &store),
        ("of 20: 12 known and 2 new hybrid, 4 gets, 1 list, 1 store", &mixed),
    ];
    let mut stored = 0;
    for (title, call) in kinds {
        // New queries may have taken their places in the daemon's cache.
        client.embed(&known);
        let calls: Vec<Vec<(&str, Value)>> = (0..CONNECTIONS)
            .map(|connection| (0..AT_ONCE).map(|place| call(connection * AT_ONCE + place)).collect())
            .collect();
        let outcome = on_this_thread(at_once(daemon.socket(), calls));
        if title == "store" {
            stored = outcome.answered;
            let there = client.call("knowledge.stats", &json!({"project_id": "stores"}));
            assert_eq!(there["total"], stored, "what was answered is there, and no more");
        }
        let refused: Vec<String> = outcome
            .refused
            .iter()
            .map(|(message, count)| format!("{count} \"{message}\""))
            .collect();
        let cells = format!(
            "{} | {} | {} | {} / {}",
            outcome.answered,
            refused.join(", "),
            outcome.lost,
            number(quantile(&outcome.times, 0.5)),
            number(quantile(&outcome.times, 1.0)),
        );
        table.row(title, cells);
        daemon.wait_until_quiet();
    }
    assert!(stored > 0, "nothing was stored");
    eprintln!("after the flood: {} open files", daemon.open_files());
    daemon.stop();
}

async fn at_once(socket: PathBuf, calls: Vec<Vec<(&'static str, Value)>>) -> Outcome {
    let gate = Rc::new(Barrier::new(calls.len()));
    let connections: Vec<_> = calls
        .into_iter()
        .map(|calls| {
            let (socket, gate) = (socket.clone(), Rc::clone(&gate));
            tokio::task::spawn_local(async move { one_connection(socket, &gate, &calls).await })
        })
        .collect();
    let mut all = Outcome::default();
    for connection in connections {
        let one = connection.await.unwrap();
        all.answered += one.answered;
        all.lost += one.lost;
        all.times.extend(one.times);
        for (message, count) in one.refused {
            *all.refused.entry(message).or_default() += count;
        }
    }
    all
}

async fn one_connection(socket: PathBuf, gate: &Barrier, calls: &[(&str, Value)]) -> Outcome {
    let lines: Vec<u8> = calls
        .iter()
        .enumerate()
        .flat_map(|(id, (method, params))| request(id as u64, method, params))
        .collect();
    let (reader, mut writer) = UnixStream::connect(socket).await.unwrap().into_split();
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    let mut outcome = Outcome::default();
    let mut open: Vec<bool> = vec![true; calls.len()];
    gate.wait().await;
    let begun = Instant::now();
    let sending = tokio::task::spawn_local(async move {
        writer.write_all(&lines).await.ok();
        writer
    });
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut line = Vec::new();
    while open.contains(&true) {
        line.clear();
        let read = tokio::time::timeout_at(deadline, reader.read_until(b'\n', &mut line)).await;
        if !matches!(read, Ok(Ok(1..))) {
            break;
        }
        let answer: Value = serde_json::from_slice(&line).unwrap();
        match answer["id"].as_u64().and_then(|id| open.get_mut(id as usize)) {
            Some(is_open) => assert!(std::mem::take(is_open), "answered twice: {answer}"),
            // A connection that is refused as a whole.
            None => {
                *outcome.refused.entry(refusal(&answer)).or_default() += 1;
                continue;
            }
        }
        outcome.times.push(begun.elapsed().as_secs_f64() * 1e3);
        if answer.get("result").is_some() {
            outcome.answered += 1;
        } else {
            *outcome.refused.entry(refusal(&answer)).or_default() += 1;
        }
    }
    outcome.lost = open.into_iter().filter(|is_open| *is_open).count();
    drop(sending.await);
    outcome
}

/// What a refusal says, without the numbers in which one differs from the other.
fn refusal(answer: &Value) -> String {
    let message = answer["error"]["message"].as_str().unwrap_or("no message");
    let kind = answer["error"]["data"]["kind"].as_str().unwrap_or("no kind");
    let digits = |c: char| if c.is_ascii_digit() { '#' } else { c };
    let message: String = message.chars().map(digits).collect();
    format!("{kind}: {message}")
}
