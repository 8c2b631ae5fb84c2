//! The newest versions of a table are torn or lack a file: the daemon goes back to a whole one only where nothing that
//! was answered can come back or get lost unseen.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::home::{Stored, TEXTS, cut, length};
use crate::support::{Daemon, Home};

#[test]
fn nothing_is_told_of_a_sound_home() {
    let stored = Stored::new().restarted();
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert_eq!(stored.recovery(), "");
    let verified = stored.verify();
    assert_eq!(
        (&verified["ok"], &verified["rows"], &verified["projects"]),
        (&json!(true), &json!(4), &json!(["default"])),
        "{verified}"
    );
    assert!(stored.disk.set_aside().is_empty());
    stored.assert_writable();
}

#[test]
fn a_torn_newest_version_is_set_aside_and_the_one_before_opened() {
    for damage in ["empty", "half", "garbage"] {
        let stored = Stored::new();
        let before = stored.daemon.call("knowledge.search", json!({"query": "violin"}))["version"].clone();
        let stored = stored.damaged(|stored| {
            let newest = &stored.disk.manifests()[0];
            match damage {
                "empty" => cut(newest, 0),
                "half" => cut(newest, length(newest) / 2),
                _ => fs::write(newest, vec![0xa5; length(newest) as usize]).unwrap(),
            }
        });
        assert_eq!(stored.found(), [0, 1, 2], "{damage}");
        // It was answered: commits are made durable before they are.
        let health = stored.health();
        assert!(health["reasons"].to_string().contains("is lost"), "{damage}: {health}");
        let told = stored.recovery();
        assert!(
            told.contains("was torn") && told.contains("set-aside"),
            "{damage}: {told}"
        );
        assert!(stored.daemon.log().contains("a torn version was set aside"), "{damage}");
        let aside = stored.disk.set_aside();
        assert_eq!(aside.len(), 1);
        assert_eq!(fs::read_dir(&aside[0]).unwrap().count(), 2, "the manifest and a report");

        // What was lost can be stored again, under a number that was never given.
        let again = stored.daemon.call("knowledge.store", json!({"text": TEXTS[3]}));
        assert_eq!(again["status"], "stored");
        assert!(again["version"].as_i64() > before.as_i64(), "{again} after {before}");
        stored.assert_writable();
        let stored = stored.restarted();
        assert!(
            stored.recovery().contains("was torn"),
            "told until the directory is removed"
        );
        fs::remove_dir_all(stored.disk.0.join("set-aside")).unwrap();
        assert_eq!(stored.recovery(), "");
    }
}

#[test]
fn several_torn_versions_are_stepped_back_from() {
    let stored = Stored::new().damaged(|stored| {
        for manifest in &stored.disk.manifests()[..2] {
            cut(manifest, 7);
        }
    });
    assert_eq!(stored.found(), [0, 1]);
    assert_eq!(stored.recovery().matches("was torn").count(), 2);
    stored.assert_writable();
}

/// Whoever has followed the changes up to a commit that is lost is told to begin again.
#[test]
fn a_feed_that_has_seen_what_is_lost_is_told_so() {
    let stored = Stored::new();
    let cursor = |daemon: &Daemon| daemon.call("knowledge.subscribe", json!({}))["cursor"].clone();
    let seen = cursor(&stored.daemon);
    let stored = stored.damaged(|stored| cut(&stored.disk.manifests()[0], 0));
    // The number that it has seen is passed over, so that it cannot miss what comes after.
    stored.daemon.store("after the loss");
    let mut connection = stored.daemon.connect();
    connection.call("knowledge.subscribe", json!({"cursor": seen}));
    let told = connection.receive().unwrap();
    assert_eq!(
        (&told["params"]["result"]["op"], &told["params"]["result"]["resync"]),
        (&json!("lagged"), &json!(true)),
        "{told}"
    );
    // From where it was sent it follows as ever.
    let resume = told["params"]["result"]["cursor"].clone();
    let mut connection = stored.daemon.connect();
    connection.call("knowledge.subscribe", json!({"cursor": resume}));
    let id = stored.daemon.store("and on it goes");
    assert_eq!(connection.receive().unwrap()["params"]["result"]["id"], id);
}

#[test]
fn a_fast_commit_whose_file_is_gone_or_cut_is_stepped_back_from() {
    for damage in ["gone", "cut"] {
        let fast = Daemon::start_in(Home::new(), &[("CCO_DURABILITY", "fast")]);
        let stored = Stored::in_daemon(fast).damaged(|stored| {
            let newest = &stored.data_files[3];
            match damage {
                "gone" => fs::remove_file(newest).unwrap(),
                _ => cut(newest, length(newest) - 1),
            }
        });
        assert_eq!(stored.found(), [0, 1, 2], "{damage}");
        let told = stored.recovery();
        let name = stored.data_files[3].file_name().unwrap().to_str().unwrap();
        assert!(told.contains("was torn") && told.contains(name), "{told}");
        stored.assert_writable();
    }
}

/// What was answered under `full` was on disk: a file of it that is missing was lost later, and the version before
/// would bring back what was deleted.
#[test]
fn a_durable_commit_whose_file_is_gone_is_never_stepped_back_from() {
    for (directory, damage) in [("data", "gone"), ("data", "cut"), ("_deletions", "gone")] {
        let stored = Stored::new();
        let disk = &stored.disk;
        let before = disk.files(directory);
        let deleted = stored
            .daemon
            .call("knowledge.delete", json!({"ids": [stored.ids[0], stored.ids[1]]}));
        let fresh: Vec<PathBuf> = disk.files(directory).difference(&before).cloned().collect();
        if fresh.is_empty() {
            assert_eq!(
                directory, "_deletions",
                "a fragment of which every row is closed is dropped whole"
            );
            continue;
        }
        let name = fresh[0].file_name().unwrap().to_str().unwrap().to_owned();
        let stored = stored.damaged(|_| match damage {
            "gone" => fs::remove_file(&fresh[0]).unwrap(),
            _ => cut(&fresh[0], length(&fresh[0]) / 2),
        });
        assert_eq!(stored.found(), [2, 3], "{directory} {damage}");
        assert!(stored.disk.set_aside().is_empty());
        let health = stored.health();
        assert!(
            health["status"] == "degraded" && health["reasons"].to_string().contains(&name),
            "{health}"
        );
        assert!(stored.recovery().contains(&name), "{}", stored.recovery());
        stored.assert_writable();
        // No number is given twice.
        let next = stored.daemon.call("knowledge.store", json!({"text": TEXTS[0]}));
        assert!(
            next["version"].as_i64() > deleted["version"].as_i64(),
            "{next} after {deleted}"
        );
        stored.daemon.call("knowledge.delete", json!({"id": next["id"]}));
        let stored = stored.restarted();
        assert_eq!(stored.found(), [2, 3]);
    }
}
