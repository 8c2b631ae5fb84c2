//! A restore, while the daemon serves: it begins another history, keeps the old one, and refuses damage.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::calls::{back_up, entries, files, items, long_call, long_error, names, refused_path, store_in, texts};
use crate::support::{Connection, Daemon, Home, copy_tree};

#[test]
fn a_restore_keeps_the_old_aside_and_begins_another_history() {
    let daemon = Daemon::start();
    let kept = daemon.store("in the backup");
    store_in(&daemon, "other", json!({"text": "also in the backup"}));
    let place = TempDir::new().unwrap();
    let backup = place.path().join("backup");
    // An empty directory may be there.
    std::fs::create_dir(&backup).unwrap();
    back_up(&daemon, &backup);

    let mut live = daemon.connect();
    let begun = live.call("knowledge.subscribe", json!({}));
    let old_cursor = begun["cursor"].clone();
    let mut last = Value::Null;
    for number in 0..3 {
        last = daemon.call("knowledge.store", json!({"text": format!("after the backup {number}")}));
        assert_eq!(live.receive().unwrap()["params"]["result"]["id"], last["id"]);
    }
    store_in(&daemon, "other", json!({"text": "stays where it is"}));
    let report = long_call(
        &daemon,
        "admin.restore",
        json!({"path": backup, "project_id": "default"}),
    );
    assert_eq!(
        (names(&report["projects"]), &report["items"]),
        (vec!["default"], &json!(1))
    );
    assert_eq!(texts(&daemon, "default"), BTreeSet::from(["in the backup".to_owned()]));
    assert_eq!(daemon.search_ids(json!({"query": "backup"})), [kept.as_str()]);
    assert_eq!(texts(&daemon, "other").len(), 2, "only the named project is replaced");

    // Who was listening, and who comes back later, has to read everything again.
    let ended = live.receive().unwrap()["params"]["result"].take();
    assert_eq!(
        (&ended["op"], &ended["resync"]),
        (&json!("lagged"), &json!(true)),
        "{ended}"
    );
    let mut newest = 0;
    for number in 0..5 {
        let stored = daemon.call(
            "knowledge.store",
            json!({"text": format!("in the new history {number}")}),
        );
        newest = stored["version"].as_u64().unwrap();
        assert!(newest > last["version"].as_u64().unwrap(), "versions go on growing");
    }
    let daemon = daemon.kill_and_restart();
    let mut late = daemon.connect();
    late.call("knowledge.subscribe", json!({"cursor": old_cursor}));
    let ended = late.receive().unwrap()["params"]["result"].take();
    assert_eq!(
        (&ended["op"], &ended["resync"]),
        (&json!("lagged"), &json!(true)),
        "{ended}"
    );
    // And from there on the feed is complete.
    let mut resumed = daemon.connect();
    resumed.call("knowledge.subscribe", json!({"cursor": ended["cursor"]}));
    let next = daemon.call("knowledge.store", json!({"text": "seen again"}));
    assert!(next["version"].as_u64().unwrap() > newest);
    assert_eq!(resumed.receive().unwrap()["params"]["result"]["id"], next["id"]);

    // What was replaced is whole: put back by hand, it is a project.
    let aside = names(&report["kept_aside"]);
    assert_eq!(aside.len(), 1);
    assert!(Path::new(aside[0]).starts_with(daemon.home.path().canonicalize().unwrap().join("aside")));
    let by_hand = Home::new();
    copy_tree(Path::new(aside[0]), &by_hand.path().join("knowledge/default"));
    let by_hand = Daemon::start_in(by_hand, &[]);
    assert_eq!(texts(&by_hand, "default").len(), 4);

    // A second time: another place aside, the same result.
    let again = long_call(&daemon, "admin.restore", json!({"path": backup}));
    assert_eq!(names(&again["kept_aside"]).len(), 2);
    assert_ne!(again["kept_aside"][0], report["kept_aside"][0]);
    assert_eq!(texts(&daemon, "default"), BTreeSet::from(["in the backup".to_owned()]));
    assert_eq!(texts(&daemon, "other").len(), 1);
    assert_eq!(
        entries(&daemon.home.path().join("knowledge")),
        [".lock", "default", "other"]
    );
}

#[test]
fn stores_wait_for_a_restore_and_none_that_was_acknowledged_is_lost() {
    let daemon = Daemon::start();
    daemon.store("in the backup");
    let place = TempDir::new().unwrap();
    let backup = place.path().join("backup");
    back_up(&daemon, &backup);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|client| {
            let (socket, stop) = (daemon.home.socket(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut connection = Connection::open(&socket);
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let text = format!("client {client} number {}", acknowledged.len());
                    connection.call("knowledge.store", json!({"text": text}));
                    acknowledged.push(text);
                    let found = connection.call("knowledge.search", json!({"query": "number", "mode": "text"}));
                    assert!(found["count"].is_u64());
                }
                acknowledged
            })
        })
        .collect();
    let mut asides = Vec::new();
    for _ in 0..4 {
        let report = long_call(&daemon, "admin.restore", json!({"path": backup}));
        asides.extend(names(&report["kept_aside"]).iter().map(|path| (*path).to_owned()));
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged: Vec<String> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    assert_eq!(asides.len(), 4);
    let mut held = texts(&daemon, "default");
    for aside in &asides {
        let home = Home::new();
        copy_tree(Path::new(aside), &home.path().join("knowledge/default"));
        held.append(&mut texts(&Daemon::start_in(home, &[]), "default"));
    }
    for text in &acknowledged {
        assert!(held.contains(text), "{text} was acknowledged and is gone");
    }
    assert!(held.contains("in the backup"));
}

#[test]
fn a_damaged_backup_is_refused_and_nothing_changes() {
    let daemon = Daemon::start();
    for number in 0..5 {
        daemon.store(&format!("in the backup {number}"));
    }
    let place = TempDir::new().unwrap();
    let backup = place.path().join("backup");
    back_up(&daemon, &backup);
    daemon.store("after the backup");
    let before = items(&daemon, "default");

    let refused = |what: &str| {
        let error = long_error(&daemon, "admin.restore", json!({"path": backup}));
        assert_eq!(
            (&error["code"], &error["data"]["parameter"]),
            (&json!(-32602), &json!("path")),
            "{what}: {error}"
        );
        assert_eq!(items(&daemon, "default"), before, "{what}");
        assert_eq!(
            entries(&daemon.home.path().join("knowledge")),
            [".lock", "default"],
            "{what}"
        );
        assert!(!daemon.home.path().join("aside").exists(), "{what}");
        error["message"].as_str().unwrap().to_owned()
    };
    let all = files(&backup);
    for kind in ["data/", "_versions/", "_indices/", "backup.json"] {
        assert!(all.iter().any(|file| file.to_str().unwrap().contains(kind)), "{kind}");
    }
    for file in &all {
        let length = std::fs::metadata(file).unwrap().len();
        let name = file.file_name().unwrap().to_str().unwrap();
        // Not in the sum itself, where one digit of hexadecimal could become another of the same value.
        flip(file, length / 2);
        let message = refused(name);
        assert!(
            message.contains(name) && message.contains("damaged"),
            "{name}: {message}"
        );
        flip(file, length / 2);
    }
    let victim = all
        .iter()
        .find(|file| file.to_str().unwrap().contains("data/"))
        .unwrap();
    let content = std::fs::read(victim).unwrap();
    std::fs::write(victim, &content[..content.len() - 1]).unwrap();
    assert!(refused("truncated").contains("bytes instead of"));
    std::fs::remove_file(victim).unwrap();
    assert!(refused("missing").contains("cannot be read"));
    std::fs::write(victim, &content).unwrap();
    assert!(refused_path(&daemon, "admin.restore", place.path()).contains("no backup"));
    let unknown = long_error(
        &daemon,
        "admin.restore",
        json!({"path": backup, "project_id": "absent"}),
    );
    assert_eq!(unknown["data"]["parameter"], "project_id", "{unknown}");

    // Whole again, it works.
    long_call(&daemon, "admin.restore", json!({"path": backup}));
    assert_eq!(items(&daemon, "default"), before[..5]);
}

/// Inverts one bit of a file.
fn flip(file: &Path, position: u64) {
    let mut file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(position)).unwrap();
    file.read_exact(&mut byte).unwrap();
    byte[0] ^= 1;
    file.seek(SeekFrom::Start(position)).unwrap();
    file.write_all(&byte).unwrap();
}
