//! What cannot be read may still be put back: only a write that has an effect gives it up, every answer that may be
//! short of it says so, and what was given up is reported until somebody has dealt with it.

use std::fs;

use serde_json::{Value, json};

use super::home::Stored;
use crate::support::Daemon;

/// A project of which the data file of its second item is away, and the file's bytes.
fn without_a_file() -> (Stored, Vec<u8>) {
    let stored = Stored::new();
    let kept = fs::read(&stored.data_files[1]).unwrap();
    let stored = stored.damaged(|stored| fs::remove_file(&stored.data_files[1]).unwrap());
    (stored, kept)
}

fn name_of_the_file(stored: &Stored) -> String {
    let name = stored.data_files[1].file_name().unwrap().to_str().unwrap();
    name.to_owned()
}

/// Writes that change nothing.
fn writes_without_effect(daemon: &Daemon, known: &str, text: &str) -> Vec<Value> {
    let deleted = daemon.call("knowledge.delete", json!({"id": "nope"}));
    assert_eq!(deleted["deleted"], 0, "{deleted}");
    let by_filter = daemon.call("knowledge.delete", json!({"agent": "nobody"}));
    assert_eq!(by_filter["deleted"], 0, "{by_filter}");
    let undeleted = daemon.call("knowledge.undelete", json!({"ids": ["nope"]}));
    assert_eq!(undeleted["missing"], json!(["nope"]), "{undeleted}");
    let purged = daemon.call("knowledge.purge", json!({"id": "nope", "confirm": true}));
    assert_eq!(purged["purged"], 0, "{purged}");
    let cleanup = json!({"older_than_days": 30, "dry_run": false});
    let cleaned = daemon.call("knowledge.cleanup", cleanup);
    assert_eq!(cleaned["deleted"], 0, "{cleaned}");
    let again = daemon.call("knowledge.store", json!({"text": text}));
    assert_eq!(again["status"], "duplicate", "{again}");
    let same = json!({"id": known, "text": text});
    assert_eq!(daemon.call("knowledge.update", same)["id"], known);
    vec![deleted, by_filter, undeleted, purged, cleaned]
}

#[test]
fn a_write_without_effect_gives_nothing_up() {
    let (stored, kept) = without_a_file();
    let name = name_of_the_file(&stored);
    let text = "Penguins huddle together against the antarctic wind";
    for answer in writes_without_effect(&stored.daemon, &stored.ids[0], text) {
        let degraded = answer["degraded"].as_str().unwrap_or_default();
        assert!(degraded.contains(&name), "{answer}");
    }
    assert_eq!(stored.health()["status"], "degraded");
    assert!(stored.disk.set_aside().is_empty());
    let stored = stored.damaged(|stored| fs::write(&stored.data_files[1], kept).unwrap());
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert_eq!(stored.problems(), "");
    assert_eq!(stored.health()["status"], "ok", "{}", stored.health());
}

/// As the test above, for a file that goes while the daemon has the project open: the write comes upon it itself.
#[test]
fn a_write_without_effect_that_finds_the_damage_gives_nothing_up_either() {
    let stored = Stored::new();
    let kept = fs::read(&stored.data_files[1]).unwrap();
    fs::remove_file(&stored.data_files[1]).unwrap();
    writes_without_effect(
        &stored.daemon,
        &stored.ids[0],
        "Penguins huddle together against the antarctic wind",
    );
    let stored = stored.damaged(|stored| fs::write(&stored.data_files[1], kept).unwrap());
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert_eq!(stored.problems(), "");
}

/// And as the reads find it: none of them takes anything out of the table.
#[test]
fn a_read_that_finds_the_damage_gives_nothing_up_and_says_what_is_missing() {
    let stored = Stored::new();
    let (kept, name) = (fs::read(&stored.data_files[1]).unwrap(), name_of_the_file(&stored));
    fs::remove_file(&stored.data_files[1]).unwrap();
    // Of the others, whose texts need not be in memory, and of the one that is gone.
    for query in ["penguins", "compiler", "sourdough", "violin"] {
        stored
            .daemon
            .call("knowledge.search", json!({"query": query, "mode": "text"}));
    }
    let history = stored
        .daemon
        .connect()
        .request("knowledge.history", json!({"id": stored.ids[1]}));
    let told = history.to_string();
    assert!(told.contains(&name), "{told}");
    let list = stored.daemon.call("knowledge.list", json!({}));
    assert!(list["degraded"].as_str().unwrap_or_default().contains(&name), "{list}");
    assert!(stored.disk.set_aside().is_empty());
    let stored = stored.damaged(|stored| fs::write(&stored.data_files[1], kept).unwrap());
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert_eq!(stored.problems(), "");
}

#[test]
fn every_answer_that_may_be_short_says_so() {
    let (stored, _) = without_a_file();
    let (daemon, name) = (&stored.daemon, name_of_the_file(&stored));
    let place = tempfile::tempdir().unwrap();
    let export = place.path().join("out.jsonl");
    let asked = [
        ("knowledge.search", json!({"query": "violin"})),
        ("knowledge.list", json!({})),
        ("knowledge.stats", json!({})),
        ("knowledge.stats", json!({"project_id": "default"})),
        ("knowledge.get", json!({"ids": [stored.ids[0], stored.ids[1]]})),
        ("knowledge.history", json!({"id": stored.ids[0]})),
        ("knowledge.similar", json!({"id": stored.ids[0]})),
        ("knowledge.delete", json!({"agent": "nobody", "dry_run": true})),
        ("knowledge.cleanup", json!({"older_than_days": 0})),
        ("admin.export", json!({"path": export, "project_id": "default"})),
    ];
    for (method, parameters) in asked {
        let answer = daemon.call(method, parameters);
        let degraded = answer["degraded"].as_str().unwrap_or_default();
        assert!(degraded.contains(&name), "{method}: {answer}");
    }
    for method in ["knowledge.get", "knowledge.history", "knowledge.update"] {
        let mut parameters = json!({"id": stored.ids[1]});
        if method == "knowledge.update" {
            parameters["agent"] = "somebody".into();
        }
        let error = daemon.call_error(method, parameters);
        assert_eq!(error["code"], -32020, "{method}: {error}");
        let told = error["data"]["degraded"].as_str().unwrap_or_default();
        assert!(told.contains(&name), "{method}: {error}");
        assert!(error["message"].as_str().unwrap().contains(&name), "{method}: {error}");
    }

    let path = place.path().join("cli.jsonl");
    let path = path.to_str().unwrap();
    let commands: [(&[&str], i32); 6] = [
        (&["list"], 0),
        (&["get", &stored.ids[0], &stored.ids[1]], 1),
        (&["get", &stored.ids[1]], 1),
        (&["stats"], 0),
        (&["delete", "nope"], 0),
        (&["export", path], 65),
    ];
    for (command, exit) in commands {
        let mut arguments = command.to_vec();
        arguments.extend(["--project", "default"]);
        let output = daemon.home.run(&arguments);
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(messages.contains(&name), "{command:?}: {messages}");
        assert_eq!(output.status.code(), Some(exit), "{command:?}: {messages}");
    }
}

#[test]
fn what_a_write_has_given_up_is_told_of_until_its_remains_are_removed() {
    let (stored, _) = without_a_file();
    let name = name_of_the_file(&stored);
    stored.daemon.store("A write that has an effect");
    let stored = stored.restarted();
    let told = |health: &Value| health["reasons"].to_string().contains(&name);
    let health = stored.health();
    assert!(health["status"] == "degraded" && told(&health), "{health}");

    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    let backup = stored.daemon.call("admin.backup", json!({"path": path}));
    assert!(backup["lost"].to_string().contains(&name), "{backup}");
    assert_eq!(
        (&backup["projects"], &backup["warnings"]),
        (&json!(["default"]), &Value::Null)
    );

    for remains in stored.disk.set_aside() {
        fs::remove_dir_all(remains).unwrap();
    }
    let health = stored.health();
    assert_eq!((&health["status"], &health["reasons"]), (&json!("ok"), &json!([])));
}

#[test]
fn a_purge_of_nothing_leaves_what_was_set_aside_and_says_where_it_lies() {
    let (stored, _) = without_a_file();
    stored.daemon.store("A write that has an effect");
    let before = stored.disk.set_aside();
    assert_eq!(before.len(), 1);
    let files = |place: &std::path::Path| fs::read_dir(place).unwrap().count();
    let count = files(&before[0]);
    assert!(count > 1, "a report and a manifest at least");
    let purged = stored
        .daemon
        .call("knowledge.purge", json!({"id": "nope", "confirm": true}));
    assert_eq!(purged["purged"], 0);
    assert!(
        purged["degraded"]
            .as_str()
            .is_some_and(|told| told.contains("set-aside")),
        "{purged}"
    );
    assert_eq!((stored.disk.set_aside(), files(&before[0])), (before.clone(), count));
    // A purge of something removes it, for nobody knows what it still holds.
    let purge = json!({"id": stored.ids[0], "confirm": true});
    assert_eq!(stored.daemon.call("knowledge.purge", purge)["purged"], 1);
    assert_eq!(files(&before[0]), 1, "the report stays");
}

/// A disk that is unmounted, a directory that somebody moves: it may come back, so nothing is begun in its place.
#[test]
fn a_project_that_goes_while_the_daemon_runs_is_not_begun_anew() {
    let stored = Stored::new();
    let daemon = &stored.daemon;
    let place = stored.disk.directory();
    let away = place.with_file_name(".away");
    fs::rename(&place, &away).unwrap();
    let health = stored.health();
    assert!(health["reasons"].to_string().contains("no longer in"), "{health}");
    let connection = || daemon.connect();
    for _ in 0..3 {
        let refused = connection().request("knowledge.store", json!({"text": "Written where nothing is"}));
        assert!(refused.get("result").is_none(), "{refused}");
    }
    let error = daemon.call_error("knowledge.store", json!({"text": "Written where nothing is"}));
    assert!(error["message"].to_string().contains("no longer in"), "{error}");
    assert_eq!(error["data"]["executed"], false, "{error}");
    for (method, parameters) in [
        ("knowledge.list", json!({})),
        ("knowledge.get", json!({"id": stored.ids[0]})),
        ("knowledge.delete", json!({"id": "nope"})),
    ] {
        let error = daemon.call_error(method, parameters);
        assert!(
            error["message"].to_string().contains("no longer in"),
            "{method}: {error}"
        );
    }
    let health = stored.health();
    assert_eq!(health["status"], "degraded");
    assert!(
        health["reasons"].to_string().contains("put the directory back"),
        "{health}"
    );
    let to = tempfile::tempdir().unwrap();
    let backup = daemon
        .connect()
        .request("admin.backup", json!({"path": to.path().join("b")}));
    assert!(backup.to_string().contains("no longer in"), "{backup}");

    fs::remove_dir_all(&place).ok();
    fs::rename(&away, &place).unwrap();
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    stored.assert_writable();
    assert_eq!(stored.health()["status"], "ok", "{}", stored.health());
}

/// With `durability = "full"` a power cut tears no version, so a manifest that cannot be read was damaged later, and
/// what it had committed was answered.
#[test]
fn an_answered_commit_whose_manifest_is_damaged_is_told_of_until_somebody_has_dealt_with_it() {
    let stored = Stored::new();
    assert_eq!(
        stored.daemon.call("knowledge.delete", json!({"id": stored.ids[3]}))["deleted"],
        1
    );
    let stored = stored.damaged(|stored| {
        let newest = &stored.disk.manifests()[0];
        let bytes = fs::read(newest).unwrap();
        fs::write(newest, &bytes[..100]).unwrap();
    });
    assert_eq!(stored.found(), [0, 1, 2, 3], "the deletion is lost");
    for _ in 0..2 {
        let health = stored.health();
        assert_eq!(health["status"], "degraded", "{health}");
        assert!(health["reasons"].to_string().contains("is lost"), "{health}");
    }
    for remains in stored.disk.set_aside() {
        fs::remove_dir_all(remains).unwrap();
    }
    assert_eq!(stored.health()["status"], "ok", "{}", stored.health());
}

#[test]
fn a_link_to_an_empty_directory_is_a_disk_that_is_not_mounted() {
    let daemon = Daemon::start();
    daemon.store("A note elsewhere");
    let disk = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(disk.path(), daemon.home.path().join("knowledge/away")).unwrap();
    let daemon = daemon.kill_and_restart();
    let health = daemon.call("admin.health", json!({}));
    assert_eq!(health["status"], "degraded", "{health}");
    assert!(health["reasons"].to_string().contains("mount the disk"), "{health}");
    let error = daemon.call_error("knowledge.store", json!({"text": "x", "project_id": "away"}));
    assert!(error.to_string().contains("mount the disk"), "{error}");
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
}

#[test]
fn an_undo_token_from_before_a_restore_has_expired() {
    let daemon = Daemon::start();
    let id = daemon.store("Kept in the backup");
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("backup");
    daemon.call("admin.backup", json!({"path": path}));
    let token = daemon.call("knowledge.delete", json!({"id": id}))["undo_token"].clone();
    daemon.call("admin.restore", json!({"path": path}));
    assert_eq!(
        daemon.call_error("knowledge.undelete", json!({"undo_token": token}))["code"],
        -32028
    );
    // One from after it is good.
    let token = daemon.call("knowledge.delete", json!({"id": id}))["undo_token"].clone();
    assert_eq!(
        daemon.call("knowledge.undelete", json!({"undo_token": token}))["restored"],
        1
    );
}
