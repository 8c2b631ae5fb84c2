//! Backup and restore that are cut short.

use std::time::Duration;

use serde_json::json;

use crate::{Inside, support};

#[test]
fn a_backup_that_is_cancelled_midway_leaves_nothing() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "to be copied"}));
    let place = tempfile::tempdir().unwrap();
    let entries = || std::fs::read_dir(place.path()).unwrap().count();
    let wait_for_entries = |wanted: usize| {
        let begun = std::time::Instant::now();
        while entries() != wanted {
            assert!(begun.elapsed() < support::PATIENCE, "{} entries", entries());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    fail::cfg("backup::file", "pause").unwrap();
    let mut connection = daemon.connect();
    let path = place.path().join("backup");
    let backup = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.backup", "params": {"path": path}});
    connection.send(format!("{backup}\n"));
    wait_for_entries(1);
    assert!(!path.exists(), "under its own name a backup is complete");
    let cancel = json!({"jsonrpc": "2.0", "id": 2, "method": "rpc.cancel", "params": {"id": 1}});
    connection.send(format!("{cancel}\n"));
    let answers = [connection.receive().unwrap(), connection.receive().unwrap()];
    let backup = answers.iter().find(|answer| answer["id"] == 1).unwrap();
    assert_eq!(backup["error"]["code"], -32027, "{backup}");
    // Stores go on beside a backup, even one that hangs.
    daemon.call("knowledge.store", json!({"text": "meanwhile"}));
    fail::remove("backup::file");
    wait_for_entries(0);
    assert_eq!(daemon.count(), 2);
}

#[test]
fn a_purge_does_not_wait_for_a_backup_and_is_told_of_it() {
    let daemon = Inside::start();
    let id = daemon.call("knowledge.store", json!({"text": "to be removed"}))["id"].clone();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    fail::cfg("backup::file", "pause").unwrap();
    let mut connection = daemon.connect();
    let backup = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.backup", "params": {"path": path}});
    connection.send(format!("{backup}\n"));
    let begun = std::time::Instant::now();
    while std::fs::read_dir(place.path()).unwrap().count() == 0 {
        assert!(begun.elapsed() < support::PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    let purged = daemon.call("knowledge.purge", json!({"id": id, "confirm": true}));
    assert_eq!(purged["purged"], 1);
    fail::remove("backup::file");
    let answer = loop {
        let line = connection.receive().unwrap();
        if line["id"] == 1 {
            break line;
        }
    };
    assert_eq!(
        (&answer["error"]["code"], &answer["error"]["data"]["retryable"]),
        (&json!(-32051), &json!(true)),
        "{answer}"
    );
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    // The next one is without it, and known.
    let backup = json!({"jsonrpc": "2.0", "id": 2, "method": "admin.backup", "params": {"path": path}});
    connection.send(format!("{backup}\n"));
    while connection.receive().unwrap()["id"] != 2 {}
    let again = daemon.call("knowledge.purge", json!({"id": id, "confirm": true}));
    assert_eq!(again["backups"], json!([path]));
}

#[test]
fn a_restore_that_a_crash_interrupts_is_finished_at_the_next_start() {
    let mut daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "in the backup"}));
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    let call = |daemon: &Inside, method: &str| {
        let mut connection = daemon.connect();
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"path": path}});
        connection.send(format!("{request}\n"));
        loop {
            let line = connection.receive().unwrap();
            if line["id"] == 1 {
                return line;
            }
        }
    };
    assert!(call(&daemon, "admin.backup").get("result").is_some());
    fail::cfg("restore::intended", "return").unwrap();
    assert!(call(&daemon, "admin.restore").get("error").is_some());
    fail::remove("restore::intended");
    daemon.call("knowledge.store", json!({"text": "acknowledged before the crash"}));
    assert_eq!(daemon.count(), 2);
    assert!(daemon.shut_down());
    daemon.boot();

    let status = daemon.call("admin.status", json!({}));
    assert!(
        status["recovery"]
            .to_string()
            .contains("a restore of default was interrupted"),
        "{status}"
    );
    assert_eq!(daemon.count(), 1);
    let found = daemon.call("knowledge.search", json!({"query": "backup", "mode": "text"}));
    assert_eq!(found["results"][0]["text"], "in the backup");
    let home = daemon.home.path().join("home");
    let aside: Vec<_> = std::fs::read_dir(home.join("aside")).unwrap().flatten().collect();
    assert_eq!(aside.len(), 1);
    // What was kept aside has both: as a project of another name it can be looked at.
    std::fs::rename(aside[0].path().join("default"), home.join("knowledge/replaced")).unwrap();
    let listed = daemon.call("knowledge.list", json!({"project_id": "replaced"}));
    assert_eq!(listed["total"], 2);
    let staging = std::fs::read_dir(home.join("knowledge")).unwrap().flatten();
    assert!(
        staging
            .into_iter()
            .all(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
    );
}

#[test]
fn many_backups_at_once_leave_threads_for_everybody_else() {
    const BACKUPS: usize = 20;
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "to be copied"}));
    let place = tempfile::tempdir().unwrap();
    fail::cfg("backup::file", "pause").unwrap();
    let mut connections: Vec<_> = (0..BACKUPS)
        .map(|number| {
            let mut connection = daemon.connect();
            let path = place.path().join(format!("backup-{number}"));
            let backup = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.backup", "params": {"path": path}});
            connection.send(format!("{backup}\n"));
            connection
        })
        .collect();
    // All have come, two are in the middle of a file, and the others wait.
    let begun = std::time::Instant::now();
    loop {
        let in_flight = daemon.call("admin.status", json!({}))["server"]["in_flight"]
            .as_u64()
            .unwrap();
        let copying = std::fs::read_dir(place.path()).unwrap().count();
        assert!(copying <= 2, "{copying} backups hold a thread each");
        if in_flight > BACKUPS as u64 && copying == 2 {
            break;
        }
        assert!(
            begun.elapsed() < support::PATIENCE,
            "{in_flight} in flight, {copying} copy"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    daemon.call("knowledge.store", json!({"text": "meanwhile"}));
    assert_eq!(
        daemon.call("knowledge.search", json!({"query": "meanwhile"}))["results"][0]["text"],
        "meanwhile"
    );
    fail::remove("backup::file");
    for connection in &mut connections {
        let answer = loop {
            let line = connection.receive().unwrap();
            if line["id"] == 1 {
                break line;
            }
        };
        assert!(answer.get("result").is_some(), "{answer}");
    }
}
