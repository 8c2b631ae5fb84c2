//! Purges that are cut short: an item is there whole or gone at once, and what is gone leaves the files without
//! being asked again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Inside;
use crate::support::{PATIENCE, files_with};

const SECRET: &str = "xqzzyv7731";

/// A project with an item of several passages and an old revision, and a neighbour.
fn stored(daemon: &Inside) -> Value {
    let long = format!("{} The passphrase is {SECRET}.", "Nobody may know. ".repeat(200));
    let id = daemon.call("knowledge.store", json!({"text": long}))["id"].clone();
    daemon.call("knowledge.update", json!({"id": id, "metadata": {"note": SECRET}}));
    daemon.call("knowledge.store", json!({"text": "A neighbour that stays"}));
    assert!(!files(daemon).is_empty());
    id
}

fn project(daemon: &Inside) -> PathBuf {
    daemon.home.path().join("home/knowledge/default")
}

fn files(daemon: &Inside) -> Vec<String> {
    files_with(&project(daemon), SECRET.as_bytes())
}

fn wait_until_finished(daemon: &Inside) {
    let begun = Instant::now();
    while project(daemon).join("purge-unfinished").exists() {
        assert!(begun.elapsed() < PATIENCE, "the purge is not finished");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn purge(daemon: &Inside, id: &Value) -> Value {
    daemon.call_error("knowledge.purge", json!({"id": id, "confirm": true}))
}

#[test]
fn a_purge_that_panics_while_it_erases_is_finished_unasked() {
    let daemon = Inside::start();
    let id = stored(&daemon);
    fail::cfg("write::before_erasing", "1*panic").unwrap();
    let error = purge(&daemon, &id);
    assert_eq!(error["data"]["executed"], "unknown", "{error}");

    wait_until_finished(&daemon);
    assert_eq!(files(&daemon), Vec::<String>::new());
    assert_eq!(daemon.call_error("knowledge.get", json!({"id": id}))["code"], -32020);
    assert_eq!(daemon.count(), 1);
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

#[test]
fn a_purge_whose_erasing_panics_again_and_again_is_finished_unasked_and_writes_go_on() {
    let daemon = Inside::start();
    let id = stored(&daemon);
    // Once in the purge itself, then in the upkeep that tries to finish it.
    fail::cfg("write::before_erasing", "3*panic").unwrap();
    let error = purge(&daemon, &id);
    assert_eq!(error["data"]["executed"], "unknown", "{error}");
    for number in 0..5 {
        daemon.call("knowledge.store", json!({"text": format!("meanwhile {number}")}));
    }
    wait_until_finished(&daemon);
    assert_eq!(files(&daemon), Vec::<String>::new());
    assert_eq!(daemon.count(), 6);
    assert_eq!(daemon.actor("writer")["restarts"], 0);
}

#[test]
fn a_purge_that_a_crash_interrupts_is_finished_at_the_next_start() {
    let mut daemon = Inside::start();
    let id = stored(&daemon);
    fail::cfg("write::before_erasing", "return").unwrap();
    let error = purge(&daemon, &id);
    assert!(error["message"].as_str().unwrap().contains("erasing"), "{error}");
    // The items are gone, and the erasing is not done: neither "nothing happened" nor "all is done".
    assert_eq!(error["data"]["executed"], "unknown", "{error}");
    assert!(error["message"].as_str().unwrap().contains("removed"), "{error}");
    assert!(!files(&daemon).is_empty());
    assert_eq!(daemon.call_error("knowledge.get", json!({"id": id}))["code"], -32020);
    assert!(daemon.shut_down());
    assert!(project(&daemon).join("purge-unfinished").exists());

    fail::remove("write::before_erasing");
    daemon.boot();
    wait_until_finished(&daemon);
    assert_eq!(files(&daemon), Vec::<String>::new());
    assert_eq!(daemon.count(), 1);
    assert_eq!(
        daemon.call_error("knowledge.history", json!({"id": id}))["code"],
        -32020
    );
    let found = daemon.call("knowledge.search", json!({"query": "neighbour", "mode": "text"}));
    assert_eq!(found["results"].as_array().unwrap().len(), 1);
}

#[test]
fn a_purge_that_is_cut_short_before_its_commit_changes_nothing() {
    let daemon = Inside::start();
    let id = stored(&daemon);
    fail::cfg("write::before_purge_commit", "1*panic").unwrap();
    purge(&daemon, &id);

    wait_until_finished(&daemon);
    let item = daemon.call("knowledge.get", json!({"id": id}));
    assert_eq!(item["metadata"]["note"], SECRET);
    let history = daemon.call("knowledge.history", json!({"id": id}));
    assert_eq!(history["revisions"].as_array().unwrap().len(), 2, "{history}");
    assert_eq!(daemon.count(), 2);
    let found = daemon.call("knowledge.search", json!({"query": SECRET, "mode": "text"}));
    assert_eq!(found["results"][0]["id"], id);
    // Asked once more it is done.
    daemon.call("knowledge.purge", json!({"id": id, "confirm": true}));
    assert_eq!(files(&daemon), Vec::<String>::new());
}
