//! What was never finished, or is left of a project or of its state: it is removed, kept aside or refused, and no
//! number is given twice.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::json;

use super::home::{OnDisk, Stored, TEXTS, cut};
use crate::support::Daemon;

#[test]
fn leftovers_of_interrupted_writes_are_removed() {
    let stored = Stored::new().damaged(|stored| {
        let table = stored.disk.table();
        let staged = format!("{}#1", stored.disk.manifests()[0].display());
        for path in [table.join("data/.tmpLeft0"), PathBuf::from(staged)] {
            fs::write(path, "leftover").unwrap();
        }
    });
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert!(
        stored.recovery().contains("2 files (16 bytes)"),
        "{}",
        stored.recovery()
    );
    let left = stored.disk.files("").into_iter().map(|path| path.display().to_string());
    assert_eq!(
        left.filter(|path| path.contains(".tmp") || path.contains('#')).count(),
        0
    );
}

#[test]
fn a_project_that_was_never_finished_is_made_anew() {
    let mut daemon = Daemon::start();
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    let disk = OnDisk::of(&daemon.home);
    fs::create_dir_all(disk.table().join("_versions")).unwrap();
    let daemon = daemon.restart_after_end();
    assert_eq!(daemon.call("knowledge.search", json!({"query": "x"}))["count"], 0);
    let stored = Stored::in_daemon(daemon);
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert!(stored.disk.set_aside().is_empty());
    stored.assert_writable();
}

#[test]
fn a_table_without_any_version_is_kept_aside_and_the_project_begins_anew() {
    let stored = Stored::new().damaged(|stored| {
        for manifest in stored.disk.manifests() {
            cut(&manifest, 0);
        }
    });
    assert_eq!(stored.daemon.call("knowledge.list", json!({}))["total"], 0);
    assert_eq!(stored.health()["status"], "degraded");
    assert!(stored.recovery().contains("no version"), "{}", stored.recovery());
    assert!(stored.disk.set_aside().is_empty(), "reading moves nothing");
    stored.daemon.store("A new beginning");
    assert_eq!(stored.daemon.call("knowledge.list", json!({}))["total"], 1);
    let aside = stored.disk.set_aside();
    let kept = fs::read_dir(aside[0].join("orchestra_knowledge.lance/data"))
        .unwrap()
        .count();
    assert_eq!(kept, TEXTS.len());
    // Told of until somebody has dealt with it.
    let health = stored.health();
    assert!(health["reasons"].to_string().contains("set-aside"), "{health}");
    // A purge leaves nothing behind, wherever it lies.
    let id = stored.daemon.store("To be purged");
    stored
        .daemon
        .call("knowledge.purge", json!({"id": id, "confirm": true}));
    assert!(!aside[0].join("orchestra_knowledge.lance").exists());
    stored.assert_writable();
}

/// The numbers begin again, so a follower of what is lost must not take them for those that it has seen.
#[test]
fn a_feed_from_before_a_project_began_anew_is_told_so() {
    let stored = Stored::new();
    let seen = stored.daemon.call("knowledge.subscribe", json!({}))["cursor"].clone();
    let stored = stored.damaged(|stored| {
        for manifest in stored.disk.manifests() {
            cut(&manifest, 0);
        }
    });
    // More than there were: the old cursor's number is one of the new ones.
    for number in 0..TEXTS.len() + 3 {
        stored.daemon.store(&format!("a new beginning {number}"));
    }
    let stored = stored.restarted();
    let mut connection = stored.daemon.connect();
    connection.call("knowledge.subscribe", json!({"cursor": seen}));
    let told = connection.receive().unwrap();
    let change = &told["params"]["result"];
    assert_eq!(
        (&change["op"], &change["resync"]),
        (&json!("lagged"), &json!(true)),
        "{told}"
    );
    let resume = change["cursor"].clone();
    let mut connection = stored.daemon.connect();
    connection.call("knowledge.subscribe", json!({"cursor": resume}));
    let id = stored.daemon.store("and on it goes");
    assert_eq!(connection.receive().unwrap()["params"]["result"]["id"], id);
}

/// A file of state that is damaged or cannot be read is not taken for one that is not there: numbers would be given
/// twice.
#[test]
fn damaged_state_is_refused_with_what_to_do() {
    let stored = Stored::new();
    stored
        .daemon
        .call("knowledge.store", json!({"text": "elsewhere", "project_id": "other"}));
    let mut stored = stored;
    for name in ["restored.json", "lost-commits.json"] {
        for damage in [
            "",
            "\0\0\0\0",
            "{\"epoch\":17953",
            "{\"gaps\":[{\"after\":1,",
            "a directory",
        ] {
            let file = stored.disk.0.join(name);
            stored = stored.damaged(|_| match damage {
                "a directory" => fs::create_dir(&file).unwrap(),
                _ => fs::write(&file, damage).unwrap(),
            });
            let daemon = &stored.daemon;
            for (method, params) in [
                ("knowledge.search", json!({"query": "violin"})),
                ("knowledge.store", json!({"text": "not now"})),
                ("knowledge.delete", json!({"id": stored.ids[0]})),
            ] {
                let error = daemon.call_error(method, params);
                assert!(error.to_string().contains(name), "{method} {damage:?}: {error}");
            }
            let health = stored.health();
            assert!(
                health["status"] == "degraded" && health["reasons"].to_string().contains(name),
                "{health}"
            );
            assert_eq!(
                daemon
                    .search_ids(json!({"query": "elsewhere", "project_id": "other"}))
                    .len(),
                1,
                "the others go on"
            );
            if damage == "a directory" {
                fs::remove_dir(&file).unwrap();
            } else {
                assert_eq!(fs::read(&file).unwrap(), damage.as_bytes(), "it stays as it is");
                fs::remove_file(&file).unwrap();
            }
            // Nothing needs a restart.
            assert_eq!(stored.daemon.call("knowledge.list", json!({}))["total"], 4);
            assert_eq!(stored.health()["status"], "ok");
        }
    }
    // What the message advises begins another history.
    let seen = stored.daemon.call("knowledge.subscribe", json!({}))["cursor"].clone();
    let file = stored.disk.0.join("restored.json");
    let stored = stored.damaged(|_| fs::write(&file, "").unwrap());
    let error = stored
        .daemon
        .call_error("knowledge.search", json!({"query": "violin"}))
        .to_string();
    let advice = error.replace("\\\"", "\"");
    let begin = advice.find("{\"epoch\"").unwrap_or_else(|| panic!("{error}"));
    let end = begin + advice[begin..].find('}').unwrap() + 1;
    fs::write(&file, &advice[begin..end]).unwrap();
    assert_eq!(stored.daemon.call("knowledge.list", json!({}))["total"], 4);
    let mut connection = stored.daemon.connect();
    connection.call("knowledge.subscribe", json!({"cursor": seen}));
    let told = connection.receive().unwrap();
    assert_eq!(told["params"]["result"]["resync"], true, "{told}");
    stored.assert_writable();
}
