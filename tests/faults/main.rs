//! Faults injected into the real parts (`fail` points): who gets which answer, that the daemon goes on, and
//! that the data is whole. Fail points are global to a process, so the daemon runs inside this one and the
//! tests run one after another.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ccod::config::Config;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

mod clock;
mod effect;
mod idle;
mod lanes;
mod panics;
mod parts;
mod purge;
mod stop;
#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;
mod transfer;

use support::Connection;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A daemon in this process, with prompt restarts so that the tests need not wait.
struct Inside {
    home: TempDir,
    runtime: Option<tokio::runtime::Runtime>,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<bool>>,
    change: fn(&mut Config),
    _scenario: fail::FailScenario<'static>,
    _turn: MutexGuard<'static, ()>,
}

impl Inside {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// With a configuration that `change` changes.
    fn start_with(change: fn(&mut Config)) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let scenario = fail::FailScenario::setup();
        let home = tempfile::Builder::new().prefix("cco").tempdir_in("/tmp").unwrap();
        let mut inside = Self {
            home,
            runtime: None,
            stop: CancellationToken::new(),
            task: None,
            change,
            _scenario: scenario,
            _turn: turn,
        };
        inside.boot();
        inside
    }

    fn boot(&mut self) {
        let mut config = Config::at(self.home.path().join("home"));
        config.readers.workers = 2;
        config.supervision.backoff_ms = 20;
        config.supervision.backoff_cap_ms = 40;
        config.supervision.degraded_retry_ms = 1_000;
        (self.change)(&mut config);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            // As the daemon has it: what holds them all shows.
            .max_blocking_threads(16)
            .enable_all()
            .build()
            .unwrap();
        self.stop = CancellationToken::new();
        let stop = self.stop.clone();
        self.task = Some(runtime.spawn(async move { ccod::daemon::run_until(config, stop).await.unwrap() }));
        self.runtime = Some(runtime);
        let begun = std::time::Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(begun.elapsed() < support::PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn shut_down(&mut self) -> bool {
        self.stop.cancel();
        let task = self.task.take().unwrap();
        let runtime = self.runtime.take().unwrap();
        runtime.block_on(task).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("home/run/ccod.sock")
    }

    fn connect(&self) -> Connection {
        Connection::open(&self.socket())
    }

    fn call(&self, method: &str, params: Value) -> Value {
        self.connect().call(method, params)
    }

    fn call_error(&self, method: &str, params: Value) -> Value {
        self.connect().call_error(method, params)
    }

    /// Repeats a call until it succeeds: what a client does with retryable errors.
    fn call_retrying(&self, method: &str, params: &Value) -> Value {
        let begun = std::time::Instant::now();
        loop {
            let mut response = self.connect().request(method, params.clone());
            let Some(error) = response.get("error") else {
                return response["result"].take();
            };
            assert_eq!(error["data"]["retryable"], true, "{method}: {error}");
            assert!(begun.elapsed() < support::PATIENCE, "{method}: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn actor(&self, part: &str) -> Value {
        self.call("admin.status", json!({}))["actors"][part].clone()
    }

    fn count(&self) -> u64 {
        self.call("knowledge.stats", json!({}))["total"].as_u64().unwrap()
    }

    fn wait_for_health(&self, wanted: &str) -> Value {
        let begun = std::time::Instant::now();
        loop {
            let health = self.call("admin.health", json!({}));
            if health["status"] == wanted {
                return health;
            }
            assert!(begun.elapsed() < support::PATIENCE, "{health}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

#[test]
fn a_panic_in_a_reader_costs_one_answer() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "readers may fall"}));
    fail::cfg("reader::handle", "1*panic(injected)").unwrap();
    let error = daemon.call_error("knowledge.search", json!({"query": "readers", "mode": "text"}));
    assert_eq!(
        (&error["code"], &error["data"]["retryable"]),
        (&json!(-32051), &json!(true)),
        "{error}"
    );
    for _ in 0..8 {
        assert_eq!(
            daemon.call_retrying("knowledge.search", &json!({"query": "readers", "mode": "text"}))["count"],
            1
        );
    }
    daemon.wait_for_health("ok");
    assert_eq!(daemon.actor("readers")["restarts"], 1);
    assert_eq!(daemon.actor("writer")["restarts"], 0);
}

#[test]
fn a_panic_in_the_engine_costs_its_batch_and_is_counted() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "the engine works"}));
    fail::cfg("engine::forward", "1*panic(injected)").unwrap();
    let error = daemon.call_error("knowledge.store", json!({"text": "the engine falls"}));
    assert_eq!(
        (&error["code"], &error["data"]["retryable"]),
        (&json!(-32051), &json!(true)),
        "{error}"
    );
    let stored = daemon.call_retrying("knowledge.store", &json!({"text": "the engine falls"}));
    assert_eq!(stored["status"], "stored");
    assert_eq!(daemon.actor("embedder")["counters"]["engine_panics"], 1);
    assert_eq!(daemon.count(), 2);
    // Two in a row end the actor, and the supervisor starts a new one.
    fail::cfg("engine::forward", "2*panic(injected)").unwrap();
    for text in ["one", "two"] {
        daemon.call_error("knowledge.store", json!({"text": text}));
    }
    daemon.call_retrying("knowledge.store", &json!({"text": "three"}));
    assert_eq!(daemon.actor("embedder")["restarts"], 1);
    assert_eq!(daemon.count(), 3);
}

#[test]
fn a_panic_before_the_commit_leaves_nothing_and_a_retry_stores_once() {
    panic_around_the_commit("writer::before_commit", "stored");
}

#[test]
fn a_panic_after_the_commit_leaves_the_item_and_a_retry_is_a_duplicate() {
    panic_around_the_commit("writer::after_commit", "duplicate");
}

fn panic_around_the_commit(point: &str, status_of_retry: &str) {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "first"}));
    fail::cfg(point, "1*panic(injected)").unwrap();
    let request = json!({"text": "second", "idempotency_key": "k"});
    let error = daemon.call_error("knowledge.store", request.clone());
    assert_eq!(
        (&error["code"], &error["data"]["kind"]),
        (&json!(-32052), &json!("outcome_unknown")),
        "{error}"
    );
    assert_eq!(error["data"]["retryable"], true);
    let stored = daemon.call_retrying("knowledge.store", &request);
    assert_eq!(stored["status"], status_of_retry);
    daemon.wait_for_health("ok");
    // It costs the project's lane a pause, and the writer nothing.
    let writer = daemon.actor("writer");
    assert_eq!(
        (&writer["restarts"], &writer["counters"]["lane_panics"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(daemon.count(), 2);
    let found = daemon.call("knowledge.search", json!({"query": "second", "limit": 1}));
    assert_eq!(found["results"][0]["id"], stored["id"]);
}

#[test]
fn a_panic_in_the_writer_itself_is_survived() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "first"}));
    fail::cfg("writer::handle", "1*panic(injected)").unwrap();
    let error = daemon.call_error("knowledge.store", json!({"text": "second"}));
    assert_eq!(
        (&error["code"], &error["data"]["retryable"]),
        (&json!(-32052), &json!(true)),
        "{error}"
    );
    assert_eq!(
        daemon.call_retrying("knowledge.store", &json!({"text": "second"}))["status"],
        "stored"
    );
    assert_eq!(daemon.actor("writer")["restarts"], 1);
    assert_eq!(daemon.count(), 2);
}

#[test]
fn a_commit_that_fails_is_an_error_and_the_next_one_works() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "first"}));
    // After the manifest is out: Lance reads back that it was ours, and the store is acknowledged.
    fail::cfg("commit::after", "1*return").unwrap();
    daemon.call("knowledge.store", json!({"text": "second"}));
    // Before: nothing is stored, and the error says so.
    fail::cfg("commit::before", "return").unwrap();
    let error = daemon.call_error("knowledge.store", json!({"text": "third"}));
    assert_eq!(error["code"], -32603, "{error}");
    fail::remove("commit::before");
    assert_eq!(daemon.count(), 2);
    assert_eq!(
        daemon.call("knowledge.store", json!({"text": "third"}))["status"],
        "stored"
    );
    assert_eq!(daemon.count(), 3);
    assert_eq!(daemon.actor("writer")["restarts"], 0);
}

/// The system's errors for a disk without room or a directory without permission, where the commit meets them.
#[test]
fn a_commit_without_room_or_permission_is_read_only_and_heals() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "still readable"}));
    let words = [
        (nix::errno::Errno::ENOSPC, "disk is full"),
        (nix::errno::Errno::EDQUOT, "quota"),
        (nix::errno::Errno::EROFS, "mounted read-only"),
        (nix::errno::Errno::EACCES, "writable"),
        (nix::errno::Errno::EPERM, "writable"),
    ];
    for (errno, word) in words {
        fail::cfg("commit::before", &format!("return({})", errno as i32)).unwrap();
        for method in ["knowledge.store", "knowledge.store_batch"] {
            let item = json!({"text": "not now"});
            let params = if method == "knowledge.store" {
                item
            } else {
                json!({"items": [item]})
            };
            let response = daemon.connect().request(method, params);
            let (code, message) = match response.get("error") {
                Some(error) => {
                    assert_eq!(error["data"]["retryable"], true, "{error}");
                    (&error["code"], &error["message"])
                }
                // A batch reports each item.
                None => (
                    &response["result"]["errors"][0]["code"],
                    &response["result"]["errors"][0]["message"],
                ),
            };
            assert_eq!(code, -32024, "{response}");
            let told = message.as_str().unwrap();
            assert!(told.contains(word) && told.contains("knowledge/default"), "{told}");
        }
        let found = daemon.call("knowledge.search", json!({"query": "readable", "mode": "text"}));
        assert_eq!(found["count"], 1, "reads go on");
        fail::remove("commit::before");
        // The place can be written, so the health check need not wait for a write.
        assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
        let stored = daemon.call("knowledge.store", json!({"text": format!("after {errno}")}));
        assert_eq!(stored["status"], "stored");
    }
    // What the failed commits had written is nobody's, and no harm.
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
    assert_eq!(daemon.count(), 6);
    assert_eq!(daemon.actor("writer")["restarts"], 0);
}

#[test]
fn without_a_writer_the_daemon_is_read_only_and_heals() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "still readable"}));
    fail::cfg("writer::pre_start", "return").unwrap();
    fail::cfg("writer::handle", "1*panic(injected)").unwrap();
    daemon.call_error("knowledge.store", json!({"text": "lost"}));
    let begun = std::time::Instant::now();
    let error = loop {
        let error = daemon.call_error("knowledge.store", json!({"text": "lost"}));
        if error["code"] == -32024 {
            break error;
        }
        assert_eq!(error["data"]["retryable"], true, "{error}");
        assert!(begun.elapsed() < support::PATIENCE, "{error}");
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(error["data"]["kind"], "read_only");
    let health = daemon.wait_for_health("degraded");
    assert!(health["reasons"][0].as_str().unwrap().contains("writer"), "{health}");
    assert_eq!(
        daemon.call("knowledge.search", json!({"query": "readable"}))["count"],
        1
    );
    fail::remove("writer::pre_start");
    assert_eq!(
        daemon.call_retrying("knowledge.store", &json!({"text": "back again"}))["status"],
        "stored"
    );
    daemon.wait_for_health("ok");
    assert_eq!(daemon.count(), 2);
}

#[test]
fn without_an_embedder_keywords_still_work_and_the_caller_is_told() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "keywords still work"}));
    fail::cfg("embedder::pre_start", "return").unwrap();
    fail::cfg("engine::forward", "2*panic(injected)").unwrap();
    for text in ["a", "b"] {
        daemon.call_error("knowledge.store", json!({"text": text}));
    }
    let health = daemon.wait_for_health("degraded");
    assert!(health["reasons"][0].as_str().unwrap().contains("embedder"), "{health}");
    let found = daemon.call("knowledge.search", json!({"query": "keywords"}));
    assert_eq!((&found["count"], &found["mode"]), (&json!(1), &json!("text")));
    assert!(found["degraded"].as_str().unwrap().contains("embedder"), "{found}");
    let error = daemon.call_error("knowledge.search", json!({"query": "keywords", "mode": "vector"}));
    assert_eq!(error["code"], -32051);
    assert_eq!(
        daemon.call_error("knowledge.store", json!({"text": "c"}))["code"],
        -32051
    );
    fail::remove("embedder::pre_start");
    fail::remove("engine::forward");
    assert_eq!(
        daemon.call_retrying("knowledge.search", &json!({"query": "keywords", "mode": "vector"}))["mode"],
        "vector"
    );
    daemon.wait_for_health("ok");
}

/// A part falls, and falls again each time it is restarted: whoever asks meanwhile is answered once, with an
/// error that says to retry, and in the end all is well.
#[test]
fn a_part_that_falls_while_it_starts_is_started_again() {
    for (part, fall, start, method) in [
        ("writer", "writer::handle", "writer::pre_start", "knowledge.store"),
        ("embedder", "engine::forward", "embedder::pre_start", "knowledge.store"),
        ("readers", "reader::handle", "reader::pre_start", "knowledge.search"),
    ] {
        let daemon = Inside::start();
        daemon.call("knowledge.store", json!({"text": "there before"}));
        // The engine's thread survives one panic; two in a row end its actor.
        let falls = if part == "embedder" { 2 } else { 1 };
        fail::cfg(start, "2*return").unwrap();
        fail::cfg(fall, &format!("{falls}*panic(injected)")).unwrap();
        let asking: Vec<_> = (0..8)
            .map(|client| {
                let socket = daemon.socket();
                std::thread::spawn(move || {
                    let begun = std::time::Instant::now();
                    loop {
                        let params = match method {
                            "knowledge.store" => json!({"text": format!("item of client {client}")}),
                            _ => json!({"query": "there before", "mode": "text"}),
                        };
                        let mut connection = Connection::open(&socket);
                        let response = connection.request(method, params);
                        // Answered once: nothing more comes before the end of input.
                        connection.finish_writing();
                        assert!(connection.receive().is_none());
                        match response.get("error") {
                            None => return,
                            Some(error) => assert_eq!(error["data"]["retryable"], true, "{part}: {error}"),
                        }
                        assert!(begun.elapsed() < support::PATIENCE);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                })
            })
            .collect();
        for client in asking {
            client.join().unwrap();
        }
        daemon.wait_for_health("ok");
        assert_eq!(daemon.actor(part)["restarts"], 3, "{part}");
        let stored = if method == "knowledge.store" { 9 } else { 1 };
        assert_eq!(
            daemon.count(),
            stored,
            "{part}: each item once, whatever its retries met"
        );
    }
}

/// What the clients of the stress test have been promised.
#[derive(Default)]
struct Promises {
    /// Texts whose store was acknowledged.
    stored: Vec<String>,
    /// Texts that were sent, answered or not.
    sent: std::collections::BTreeSet<String>,
    /// Requests that were answered by a result, by an error, and not at all (the daemon was shutting down, or the
    /// client left first).
    results: u64,
    errors: u64,
    unanswered: u64,
}

/// Clients store, search, cancel and leave while parts fall at random places and the daemon is shut down and
/// started again in the middle. Each request is answered exactly once as long as its client stays, and what was
/// acknowledged is there, once, in the end.
#[test]
fn random_faults_lose_and_double_nothing() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use rand::{Rng, SeedableRng};
    let seed: u64 = std::env::var("CCOD_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("CCOD_TEST_SEED={seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "warm up"}));
    let stop = Arc::new(AtomicBool::new(false));
    // Odd while the daemon is down.
    let epoch = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..6_u64)
        .map(|client| {
            let (socket, stop, epoch) = (daemon.socket(), Arc::clone(&stop), Arc::clone(&epoch));
            let random = rand::rngs::StdRng::seed_from_u64(seed ^ (client + 1));
            std::thread::spawn(move || stress_client(client, &socket, &stop, &epoch, random))
        })
        .collect();
    let points = [
        "reader::handle",
        "engine::forward",
        "writer::before_commit",
        "writer::after_commit",
    ];
    for round in 0..16 {
        std::thread::sleep(Duration::from_millis(random.random_range(50..300)));
        let point = points[random.random_range(0..points.len())];
        fail::cfg(point, "1*panic(injected)").unwrap();
        if round == 8 {
            epoch.fetch_add(1, Ordering::SeqCst);
            assert!(
                daemon.shut_down(),
                "everything that was accepted is finished (seed {seed})"
            );
            daemon.boot();
            epoch.fetch_add(1, Ordering::SeqCst);
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    for point in points {
        fail::remove(point);
    }
    stop.store(true, Ordering::SeqCst);
    let mut promises = Promises::default();
    for client in clients {
        let one = client.join().unwrap();
        promises.stored.extend(one.stored);
        promises.sent.extend(one.sent);
        promises.results += one.results;
        promises.errors += one.errors;
        promises.unanswered += one.unanswered;
    }
    daemon.wait_for_health("ok");
    assert!(
        daemon.shut_down(),
        "everything that was accepted is finished (seed {seed})"
    );
    daemon.boot();

    let mut items: Vec<Value> = Vec::new();
    let mut page = json!({"limit": 1000});
    loop {
        let listed = daemon.call("knowledge.list", page);
        items.extend(listed["results"].as_array().unwrap().iter().cloned());
        if listed["next_cursor"].is_null() {
            break;
        }
        page = json!({"limit": 1000, "cursor": listed["next_cursor"]});
    }
    let texts = items.iter().map(|item| item["text"].as_str().unwrap());
    let texts: Vec<&str> = texts.filter(|text| *text != "warm up").collect();
    let unique: std::collections::BTreeSet<&&str> = texts.iter().collect();
    assert_eq!(unique.len(), texts.len(), "nothing is doubled (seed {seed})");
    for text in &promises.stored {
        assert!(
            texts.contains(&text.as_str()),
            "{text} was acknowledged and is gone (seed {seed})"
        );
    }
    for text in &texts {
        assert!(promises.sent.contains(*text), "nobody stored {text} (seed {seed})");
    }
    println!(
        "{} results, {} errors, {} unanswered; {} items acknowledged, {} there",
        promises.results,
        promises.errors,
        promises.unanswered,
        promises.stored.len(),
        texts.len()
    );
    assert!(promises.stored.len() > 10 && promises.errors > 0, "seed {seed}");
}

fn stress_client(
    client: u64,
    socket: &std::path::Path,
    stop: &std::sync::atomic::AtomicBool,
    epoch: &std::sync::atomic::AtomicU64,
    mut random: rand::rngs::StdRng,
) -> Promises {
    use std::sync::atomic::Ordering;

    use rand::Rng;
    let mut promises = Promises::default();
    for round in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let before = epoch.load(Ordering::SeqCst);
        // Down for a short time: the next round finds it up again.
        if std::os::unix::net::UnixStream::connect(socket).is_err() {
            assert!(before != 0, "the daemon is down and should not be");
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        let Some(mut connection) = Connection::try_open(socket) else {
            continue;
        };
        // A few requests at once, then the end of input: every answer comes before the end of output.
        let mut waiting: std::collections::BTreeMap<u64, Option<String>> = std::collections::BTreeMap::new();
        let mut lines = String::new();
        for id in 0..random.random_range(1..4_u64) {
            let text = format!("client {client} round {round} item {id}");
            let request = if random.random_ratio(1, 3) {
                waiting.insert(id, None);
                json!({"jsonrpc": "2.0", "id": id, "method": "knowledge.search", "params": {"query": text}})
            } else {
                promises.sent.insert(text.clone());
                waiting.insert(id, Some(text.clone()));
                let params = json!({"text": text, "idempotency_key": text});
                json!({"jsonrpc": "2.0", "id": id, "method": "knowledge.store", "params": params})
            };
            lines.push_str(&format!("{request}\n"));
            if random.random_ratio(1, 4) {
                waiting.insert(100 + id, None);
                let cancel = json!({"jsonrpc": "2.0", "id": 100 + id, "method": "rpc.cancel", "params": {"id": id}});
                lines.push_str(&format!("{cancel}\n"));
            }
        }
        let sent = connection.try_send(lines.as_bytes()).is_ok();
        if !sent || random.random_ratio(1, 8) {
            promises.unanswered += waiting.len() as u64;
            continue; // Leaves without waiting.
        }
        connection.finish_writing_if_open();
        while let Some(response) = connection.try_receive() {
            let id = response["id"].as_u64().expect("an id of ours");
            let text = waiting
                .remove(&id)
                .expect("an answer to something that was asked, and only one");
            match response.get("error") {
                None => {
                    promises.results += 1;
                    promises.stored.extend(text);
                }
                Some(error) => {
                    promises.errors += 1;
                    // A cancel that comes too late finds nothing to cancel.
                    assert!(id >= 100 || error["data"]["retryable"] == true, "{error}");
                }
            }
        }
        promises.unanswered += waiting.len() as u64;
        let undisturbed = before.is_multiple_of(2) && before == epoch.load(Ordering::SeqCst);
        assert!(!undisturbed || waiting.is_empty(), "unanswered: {waiting:?}");
    }
    promises
}
