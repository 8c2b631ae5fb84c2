//! What becomes of a project that nobody writes to: the clock is set on, and nothing is asked but to look.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Inside;
use crate::support::PATIENCE;

fn project(daemon: &Inside) -> Value {
    daemon.call("admin.status", json!({}))["projects"][0].clone()
}

fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A project with one live item, one that was deleted, and an old revision. Gives back the deleted id and its token.
fn with_closed_rows(daemon: &Inside) -> (Value, Value) {
    let kept = daemon.call("knowledge.store", json!({"text": "what stays"}))["id"].clone();
    daemon.call(
        "knowledge.update",
        json!({"id": kept, "text": "what stays, in other words"}),
    );
    let gone = daemon.call("knowledge.store", json!({"text": "what goes"}))["id"].clone();
    let deleted = daemon.call("knowledge.delete", json!({"id": gone}));
    assert_eq!(project(daemon)["rows"], 3, "closed rows count as rows");
    (gone, deleted["undo_token"].clone())
}

fn assert_forgotten(daemon: &Inside, (gone, token): &(Value, Value)) {
    wait_until("closed rows stay", || project(daemon)["rows"] == 1);
    assert_eq!(
        daemon.call_error("knowledge.history", json!({"id": gone}))["code"],
        -32020
    );
    let undone = daemon
        .connect()
        .request("knowledge.undelete", json!({"undo_token": token}));
    assert!(
        undone["error"]["code"] == -32028 || undone["result"]["restored"] == 0,
        "{undone}"
    );
    assert_eq!(daemon.count(), 1);
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

#[test]
fn what_was_deleted_is_forgotten_in_time_though_nobody_writes_any_more() {
    let daemon = Inside::start();
    fail::cfg("writer::hasten", "return").unwrap();
    let closed = with_closed_rows(&daemon);
    // Not before its time.
    fail::cfg("clock::days_ahead", "return(6)").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(project(&daemon)["rows"], 3);
    fail::cfg("clock::days_ahead", "return(8)").unwrap();
    assert_forgotten(&daemon, &closed);
}

#[test]
fn what_expires_while_the_daemon_is_down_is_forgotten_at_the_next_start() {
    let mut daemon = Inside::start();
    let closed = with_closed_rows(&daemon);
    assert!(daemon.shut_down());
    fail::cfg("writer::hasten", "return").unwrap();
    fail::cfg("clock::days_ahead", "return(8)").unwrap();
    daemon.boot();
    assert_forgotten(&daemon, &closed);
}

#[test]
fn what_expires_later_is_known_from_the_start() {
    let mut daemon = Inside::start();
    let closed = with_closed_rows(&daemon);
    assert!(daemon.shut_down());
    fail::cfg("writer::hasten", "return").unwrap();
    daemon.boot();
    // The look at the start finds nothing due; afterwards only the clock goes on.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(project(&daemon)["rows"], 3);
    fail::cfg("clock::days_ahead", "return(8)").unwrap();
    assert_forgotten(&daemon, &closed);
}

#[test]
fn small_debts_that_an_earlier_process_has_left_are_paid_unasked() {
    let mut daemon = Inside::start();
    for number in 0..6 {
        daemon.call("knowledge.store", json!({"text": format!("note {number}")}));
    }
    // Before the pause is over after which a quiet project is looked at.
    assert!(daemon.shut_down());
    fail::cfg("writer::hasten", "return").unwrap();
    daemon.boot();
    wait_until("rows stay outside the index", || {
        project(&daemon)["unindexed_rows"] == 0
    });
    assert_eq!(daemon.count(), 6);
}

#[test]
fn a_purge_whose_erasing_failed_is_finished_though_nobody_writes_any_more() {
    let daemon = Inside::start();
    let id = daemon.call("knowledge.store", json!({"text": "to be removed"}))["id"].clone();
    daemon.call("knowledge.store", json!({"text": "what stays"}));
    fail::cfg("writer::hasten", "return").unwrap();
    fail::cfg("write::before_erasing", "2*return").unwrap();
    daemon.call_error("knowledge.purge", json!({"id": id, "confirm": true}));
    let mark = daemon.home.path().join("home/knowledge/default/purge-unfinished");
    assert!(mark.exists());
    wait_until("the purge is not finished", || !mark.exists());
    assert_eq!(daemon.count(), 1);
}

#[test]
fn upkeep_comes_to_rest_while_a_backup_holds_an_old_version() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "before the backup"}));
    let place = tempfile::tempdir().unwrap();
    fail::cfg("backup::file", "pause").unwrap();
    let mut connection = daemon.connect();
    let path = place.path().join("backup");
    let backup = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.backup", "params": {"path": path}});
    connection.send(format!("{backup}\n"));
    wait_until("the backup does not begin", || {
        std::fs::read_dir(place.path()).unwrap().count() > 0
    });
    for number in 0..80 {
        daemon.call("knowledge.store", json!({"text": format!("note {number}")}));
    }
    assert!(project(&daemon)["versions"].as_u64().unwrap() > 64);
    // Less is due than what a quiet second leaves; then nothing moves any more.
    let steps = || daemon.actor("writer")["counters"]["upkeep_steps"].as_u64().unwrap();
    let mut before = steps();
    let mut still = 0;
    wait_until("upkeep goes on and on", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = steps();
        still = if now == before { still + 1 } else { 0 };
        before = now;
        still >= 10
    });
    fail::remove("backup::file");
    loop {
        let line = connection.receive().unwrap();
        if line["id"] == 1 {
            assert!(line.get("error").is_none(), "{line}");
            break;
        }
    }
    // The next write brings its upkeep along, and what the backup held goes.
    daemon.call("knowledge.store", json!({"text": "afterwards"}));
    wait_until("old versions stay", || {
        project(&daemon)["versions"].as_u64().unwrap() < 64
    });
    assert_eq!(daemon.count(), 82);
}
