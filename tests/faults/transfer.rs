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

/// What says nothing about the data fails the backup, which can be made again, and never costs it a project.
#[test]
fn a_backup_that_fails_for_a_reason_of_the_moment_drops_no_project() {
    let daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "to be copied"}));
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    let mut number = 0;
    for point in ["backup::source", "backup::read_back"] {
        // EMFILE, ENFILE, ENOMEM, EACCES
        for errno in [24, 23, 12, 13] {
            number += 1;
            let stored = json!({"text": format!("beside it {number}"), "project_id": format!("p{number}")});
            daemon.call("knowledge.store", stored);
            fail::cfg(point, &format!("1*return({errno})")).unwrap();
            let error = daemon.call_error("admin.backup", json!({"path": path}));
            assert_eq!(error["data"]["retryable"], true, "{point} {errno}: {error}");
            fail::remove(point);
            assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "{point} {errno}");
        }
        // EIO is of what is stored, and costs that project only.
        fail::cfg(point, "1*return(5)").unwrap();
        let backup = daemon.call("admin.backup", json!({"path": path}));
        fail::remove(point);
        assert_eq!(backup["projects"].as_array().unwrap().len(), number, "{backup}");
        assert_eq!(backup["warnings"].as_array().unwrap().len(), 1, "{backup}");
        std::fs::remove_dir_all(&path).unwrap();
    }
    let backup = daemon.call("admin.backup", json!({"path": path}));
    assert_eq!(backup["projects"].as_array().unwrap().len(), number + 1, "{backup}");
    assert!(backup.get("warnings").is_none(), "{backup}");
}

#[test]
fn a_restore_that_a_crash_interrupts_is_finished_at_the_next_start() {
    interrupted_restore("return");
}

#[test]
fn a_restore_that_panics_is_finished_at_the_next_start() {
    interrupted_restore("panic(injected)");
}

fn interrupted_restore(fault: &str) {
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
    let count = |daemon: &Inside| daemon.call("knowledge.stats", json!({"project_id": "default"}))["total"].clone();
    assert!(call(&daemon, "admin.backup").get("result").is_some());
    daemon.call("knowledge.store", json!({"text": "acknowledged before the crash"}));
    daemon.call("knowledge.store", json!({"text": "elsewhere", "project_id": "other"}));
    fail::cfg("restore::intended", fault).unwrap();
    let error = call(&daemon, "admin.restore")["error"].clone();
    assert!(error.is_object() && !error.to_string().contains("injected"), "{error}");
    fail::remove("restore::intended");
    // Nothing is acknowledged any more that the next start would move aside. What is there can be read.
    assert_eq!(count(&daemon), 2);
    for (method, params) in [
        ("knowledge.store", json!({"text": "refused"})),
        ("knowledge.delete", json!({"type": ["general"]})),
        ("knowledge.purge", json!({"id": "x", "confirm": true})),
    ] {
        let error = daemon.call_error(method, params);
        assert_eq!(error["code"], -32024, "{method}: {error}");
        assert!(error.to_string().contains("start the daemon again"), "{error}");
    }
    // Another restore, too: the next start would replace it by what the first one has left.
    let second = call(&daemon, "admin.restore");
    assert_eq!(second["error"]["code"], -32024, "{second}");
    let error = daemon.call_error("knowledge.store", json!({"text": "still refused"}));
    assert_eq!(error["code"], -32024, "{error}");
    let health = daemon.call("admin.health", json!({}));
    assert!(health["reasons"].to_string().contains("stopped halfway"), "{health}");
    daemon.call("knowledge.store", json!({"text": "goes on", "project_id": "other"}));
    assert_eq!(count(&daemon), 2);
    assert!(daemon.shut_down());
    daemon.boot();

    let status = daemon.call("admin.status", json!({}));
    assert!(
        status["recovery"]
            .to_string()
            .contains("a restore of default was interrupted"),
        "{status}"
    );
    assert_eq!(count(&daemon), 1);
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
    let hidden: Vec<_> = staging
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert_eq!(hidden, [".lock"], "the lock of the store, and nothing of the restore");
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
/// Calls `change` while a verification looks at the files of its version, and gives back what that answers.
fn verified_during(daemon: &Inside, change: impl FnOnce()) -> serde_json::Value {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    let ((begun, has_begun), (go_on, may_go_on)) = (channel(), channel::<()>());
    let (begun, may_go_on) = (Mutex::new(Some(begun)), Mutex::new(may_go_on));
    // Only the first time: what is read again is read without a pause.
    fail::cfg_callback("verify::files", move || {
        if let Some(begun) = begun.lock().unwrap().take() {
            begun.send(()).unwrap();
            may_go_on.lock().unwrap().recv().unwrap();
        }
    })
    .unwrap();
    let mut connection = daemon.connect();
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "admin.verify", "params": {}});
    connection.send(format!("{request}\n"));
    has_begun.recv_timeout(support::PATIENCE).unwrap();
    change();
    go_on.send(()).unwrap();
    loop {
        let line = connection.receive().unwrap();
        if line["id"] == 1 {
            fail::remove("verify::files");
            return line["result"].clone();
        }
    }
}

#[test]
fn a_verification_whose_version_is_taken_away_reads_the_next_one() {
    let daemon = Inside::start();
    let id = daemon.call("knowledge.store", json!({"text": "to be removed"}))["id"].clone();
    daemon.call("knowledge.store", json!({"text": "stays"}));
    let verified = verified_during(&daemon, || {
        let purged = daemon.call("knowledge.purge", json!({"id": id, "confirm": true}));
        assert_eq!(purged["purged"], 1);
    });
    assert_eq!(
        (&verified["ok"], &verified["rows"]),
        (&json!(true), &json!(2)),
        "{verified}"
    );

    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    daemon.call("admin.backup", json!({"path": path}));
    for number in 0..3 {
        daemon.call("knowledge.store", json!({"text": format!("after the backup {number}")}));
    }
    let verified = verified_during(&daemon, || {
        daemon.call("admin.restore", json!({"path": path}));
    });
    assert_eq!(
        (&verified["ok"], &verified["rows"]),
        (&json!(true), &json!(2)),
        "{verified}"
    );

    // What is really damaged is still said.
    let data = daemon
        .home
        .path()
        .join("home/knowledge/default/orchestra_knowledge.lance/data");
    let file = std::fs::read_dir(data).unwrap().flatten().next().unwrap();
    std::fs::remove_file(file.path()).unwrap();
    let verified = daemon.call("admin.verify", json!({}));
    assert_eq!(verified["ok"], false, "{verified}");
}
