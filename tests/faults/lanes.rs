//! What goes wrong in one project, or in the middle of a change: it costs that project, and what was done is said.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Inside;
use crate::support::{Connection, PATIENCE};

/// A project with a fail point of its own, `writer::before_commit/<project>`.
const FALLING: &str = "falling";

fn store_in(daemon: &Inside, project: &str, text: &str) -> Value {
    daemon.connect().request(
        "knowledge.store",
        json!({"project_id": project, "text": text, "idempotency_key": text}),
    )
}

pub(crate) fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until so many commits are under way and so many writes wait.
pub(crate) fn wait_for_queue(daemon: &Inside, busy: u64, queued: u64) {
    wait_for("the writer's queue", || {
        let depth = daemon.actor("writer")["queue_depth"].clone();
        (depth["busy_lanes"].as_u64(), depth["queued_items"].as_u64()) == (Some(busy), Some(queued))
    });
}

/// Sends a request, and leaves its answer to be read later.
pub(crate) fn begin(daemon: &Inside, method: &str, params: &Value) -> Connection {
    let mut connection = daemon.connect();
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    connection.send(format!("{request}\n"));
    connection
}

/// The answer to what [`begin`] has sent.
pub(crate) fn answer(connection: &mut Connection) -> Value {
    loop {
        let line = connection.receive().expect("an answer");
        if line["id"] == 1 {
            return line;
        }
    }
}

#[test]
fn a_project_whose_commits_panic_costs_the_others_nothing_and_heals() {
    let daemon = Inside::start();
    for project in ["default", "other", FALLING] {
        assert!(store_in(&daemon, project, "before").get("result").is_some());
    }
    fail::cfg("writer::before_commit/falling", "panic(injected)").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others: Vec<_> = ["default", "other"]
            .into_iter()
            .map(|project| {
                let (daemon, stop) = (&daemon, &stop);
                scope.spawn(move || {
                    let mut stored = 0;
                    while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                        let answer = store_in(daemon, project, &format!("meanwhile {stored}"));
                        assert!(answer.get("result").is_some(), "{project}: {answer}");
                        stored += 1;
                    }
                    stored
                })
            })
            .collect();
        // First the outcome is not known, and after some of that nothing is tried any more.
        let mut unknown = 0;
        let refused = loop {
            let error = store_in(&daemon, FALLING, "lost")["error"].clone();
            assert_eq!(error["data"]["retryable"], true, "{error}");
            if error["code"] != -32052 {
                break error;
            }
            assert_eq!(error["data"]["executed"], "unknown");
            unknown += 1;
        };
        assert_eq!((unknown, &refused["code"]), (4, &json!(-32024)), "{refused}");
        assert_eq!(refused["data"]["executed"], false);
        assert!(refused["message"].as_str().unwrap().contains(FALLING), "{refused}");
        assert!(
            !refused.to_string().contains("injected"),
            "what a panic said stays inside"
        );
        let health = daemon.call("admin.health", json!({}));
        assert_eq!(health["status"], "degraded");
        assert!(health["reasons"].to_string().contains("project falling"), "{health}");
        // What is there can be read.
        let listed = daemon.call("knowledge.list", json!({"project_id": FALLING}));
        assert_eq!(listed["total"], 1);
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        for other in others {
            assert!(other.join().unwrap() > 0);
        }
    });
    fail::remove("writer::before_commit/falling");
    let request = json!({"project_id": FALLING, "text": "lost", "idempotency_key": "lost"});
    assert_eq!(daemon.call_retrying("knowledge.store", &request)["status"], "stored");
    daemon.wait_for_health("ok");
    let writer = daemon.actor("writer");
    assert_eq!(
        (&writer["restarts"], &writer["counters"]["lane_panics"]),
        (&json!(0), &json!(4))
    );
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

#[test]
fn an_update_that_another_one_overtakes_keeps_text_and_vectors_together() {
    let daemon = Inside::start();
    let (first, second) = ("Penguins huddle in the cold.", "The invoice is due in March.");
    let id = daemon.call("knowledge.store", json!({"text": first}))["id"].clone();
    // No upkeep is under way: what is from here on is what the test begins.
    wait_for_queue(&daemon, 0, 0);
    fail::cfg("writer::hold_commit", "return").unwrap();
    // Both see the first text. The one that changes it is in its commit; the other, which does not and so has
    // embedded nothing, waits behind it.
    let mut changes = begin(&daemon, "knowledge.update", &json!({"id": id, "text": second}));
    wait_for_queue(&daemon, 1, 0);
    let mut keeps = begin(
        &daemon,
        "knowledge.update",
        &json!({"id": id, "text": first, "type": "issue"}),
    );
    wait_for_queue(&daemon, 1, 1);
    fail::remove("writer::hold_commit");
    for connection in [&mut changes, &mut keeps] {
        let answer = answer(connection);
        assert!(answer.get("result").is_some(), "{answer}");
    }
    // Where upkeep was what kept the lane busy, the other update may have come first: then its text is the last.
    let item = daemon.call("knowledge.get", json!({"id": id}));
    assert_eq!(item["type"], "issue");
    let text = &item["text"];
    assert!([first, second].iter().any(|known| text == known), "{item}");
    let found = daemon.call("knowledge.search", json!({"query": text, "mode": "vector", "limit": 1}));
    assert_eq!(&found["results"][0]["passage"]["text"], text);
    assert!(found["results"][0]["similarity"].as_f64().unwrap() > 0.99, "{found}");
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

#[test]
fn a_cleanup_that_cannot_free_the_space_still_gives_its_undo_token() {
    let daemon = Inside::start();
    let cleanup = json!({"older_than_days": 0, "dry_run": false});
    let cleaned = |answer: &Value| {
        let result = &answer["result"];
        assert_eq!(
            (&result["deleted"], &result["freed_bytes"]),
            (&json!(1), &json!(0)),
            "{answer}"
        );
        assert!(result["warnings"][0].as_str().unwrap().contains("deleted"), "{answer}");
        assert_eq!(daemon.count(), 0);
        let undone = daemon.call("knowledge.undelete", json!({"undo_token": result["undo_token"]}));
        assert_eq!(undone["restored"], 1);
    };
    daemon.call("knowledge.store", json!({"text": "to be cleaned up"}));
    fail::cfg("writer::before_exclusive", "return").unwrap();
    cleaned(&answer(&mut begin(&daemon, "knowledge.cleanup", &cleanup)));
    fail::remove("writer::before_exclusive");
    // The same where the caller, or the deadline, does not wait for the space.
    for params in [
        cleanup.clone(),
        json!({"older_than_days": 0, "dry_run": false, "timeout_ms": 2_000}),
    ] {
        fail::cfg("writer::hold_exclusive", "return").unwrap();
        let mut connection = begin(&daemon, "knowledge.cleanup", &params);
        wait_for("the deletion", || daemon.count() == 0);
        if params.get("timeout_ms").is_none() {
            let cancel = json!({"jsonrpc": "2.0", "id": 2, "method": "rpc.cancel", "params": {"id": 1}});
            connection.send(format!("{cancel}\n"));
        }
        let answer = answer(&mut connection);
        fail::remove("writer::hold_exclusive");
        cleaned(&answer);
    }
}

#[test]
fn a_cancelled_import_says_that_a_group_was_handed_over() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "warm up"}));
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("items.jsonl");
    let lines: Vec<String> = (0..3)
        .map(|number| json!({"text": format!("imported {number}")}).to_string())
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    // No upkeep is under way: what is from here on is what the test begins.
    wait_for_queue(&daemon, 0, 0);
    fail::cfg("writer::hold_commit", "return").unwrap();
    let mut connection = begin(&daemon, "admin.import", &json!({"path": file}));
    wait_for_queue(&daemon, 1, 0);
    let cancel = json!({"jsonrpc": "2.0", "id": 2, "method": "rpc.cancel", "params": {"id": 1}});
    connection.send(format!("{cancel}\n"));
    let error = answer(&mut connection)["error"].clone();
    fail::remove("writer::hold_commit");
    assert_eq!(
        (&error["code"], &error["data"]["executed"], &error["data"]["imported"]),
        (&json!(-32027), &json!("unknown"), &json!(0)),
        "{error}"
    );
    wait_for("the group that was handed over", || daemon.count() == 4);
    let mut again = begin(&daemon, "admin.import", &json!({"path": file}));
    assert_eq!(answer(&mut again)["result"]["duplicates"], 3);
}

#[test]
fn a_store_does_not_wait_for_all_steps_of_an_optimize() {
    let daemon = Inside::start();
    for number in 0..6 {
        daemon.call(
            "knowledge.store",
            json!({"text": format!("a fragment of its own {number}")}),
        );
    }
    // No upkeep is under way: what is from here on is what the test begins.
    wait_for_queue(&daemon, 0, 0);
    fail::cfg("writer::hold_exclusive", "return").unwrap();
    fail::cfg("writer::hold_next_step", "return").unwrap();
    let mut optimize = begin(&daemon, "admin.optimize", &json!({"project_id": "default"}));
    wait_for_queue(&daemon, 1, 0);
    let mut store = begin(&daemon, "knowledge.store", &json!({"text": "behind the first step"}));
    wait_for_queue(&daemon, 1, 1);
    fail::remove("writer::hold_exclusive");
    let stored = answer(&mut store);
    assert!(stored.get("result").is_some(), "{stored}");
    // The next step is held, so that it has not been done before the store.
    assert_eq!(daemon.count(), 7);
    fail::remove("writer::hold_next_step");
    let optimized = answer(&mut optimize);
    let steps = &optimized["result"]["steps"];
    assert!(steps.as_object().is_some_and(|steps| steps.len() >= 2), "{optimized}");
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}
