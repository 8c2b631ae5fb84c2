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

#[path = "../integration/support.rs"]
#[allow(dead_code, unused_imports)]
mod support;

use support::Connection;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A daemon in this process, with prompt restarts so that the tests need not wait.
struct Inside {
    home: TempDir,
    runtime: Option<tokio::runtime::Runtime>,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<bool>>,
    _scenario: fail::FailScenario<'static>,
    _turn: MutexGuard<'static, ()>,
}

impl Inside {
    fn start() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let scenario = fail::FailScenario::setup();
        let home = tempfile::Builder::new().prefix("cco").tempdir_in("/tmp").unwrap();
        let mut inside = Self {
            home,
            runtime: None,
            stop: CancellationToken::new(),
            task: None,
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
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
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
    assert_eq!(daemon.actor("writer")["restarts"], 1);
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
                // A batch tells of each item.
                None => (
                    &response["result"]["errors"][0]["code"],
                    &response["result"]["errors"][0]["message"],
                ),
            };
            assert_eq!(code, -32024, "{response}");
            let told = message.as_str().unwrap();
            assert!(told.contains(word) && told.contains("knowledge/default"), "{told}");
        }
        let found = daemon.call("knowledge.search", json!({"query": "readable"}));
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

/// Clients store while parts fall at random places; each request is answered exactly once, and what was
/// acknowledged is there, once, also after a shutdown and a new start.
#[test]
fn random_faults_lose_and_double_nothing() {
    let seed: u64 = std::env::var("CCOD_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("CCOD_TEST_SEED={seed}");
    use rand::{Rng, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "warm up"}));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..6)
        .map(|client| {
            let (socket, stop) = (daemon.socket(), std::sync::Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                for item in 0.. {
                    if stop.load(std::sync::atomic::Ordering::SeqCst) {
                        break;
                    }
                    let text = format!("client {client} item {item}");
                    let mut connection = Connection::open(&socket);
                    let response = if item % 3 == 2 {
                        connection.request("knowledge.search", json!({"query": text, "limit": 3}))
                    } else {
                        connection.request("knowledge.store", json!({"text": text, "idempotency_key": text}))
                    };
                    if response.get("result").is_some() && item % 3 != 2 {
                        acknowledged.push(text);
                    } else if let Some(error) = response.get("error") {
                        assert_eq!(error["data"]["retryable"], true, "{error}");
                    }
                }
                acknowledged
            })
        })
        .collect();
    let points = [
        "reader::handle",
        "engine::forward",
        "writer::before_commit",
        "writer::after_commit",
    ];
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(random.random_range(50..400)));
        let point = points[random.random_range(0..points.len())];
        fail::cfg(point, "1*panic(injected)").unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    for point in points {
        fail::remove(point);
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let acknowledged: Vec<String> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert!(daemon.shut_down(), "everything that was accepted is finished");
    daemon.boot();

    let listed = daemon.call("knowledge.list", json!({"limit": 1000}));
    let texts: Vec<&str> = listed["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["text"].as_str().unwrap())
        .collect();
    let unique: std::collections::BTreeSet<&&str> = texts.iter().collect();
    assert_eq!(unique.len(), texts.len(), "nothing is doubled (seed {seed})");
    for text in &acknowledged {
        assert!(
            texts.contains(&text.as_str()),
            "{text} was acknowledged and is gone (seed {seed})"
        );
    }
    assert!(!acknowledged.is_empty());
}
