//! Files of a table that are gone or changed: they are named, and everything else is found.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::home::{OnDisk, Stored, TEXTS, cut, length};
use crate::support::{Daemon, ids};

/// The deletion of one of several rows of a fragment is a file of its own; without it nobody knows which are gone.
#[test]
fn a_deletion_file_that_is_gone_brings_nothing_back() {
    let daemon = Daemon::start();
    let items: Vec<Value> = (0..6)
        .map(|number| json!({"id": format!("n{number}"), "text": format!("note {number} of several")}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    let disk = OnDisk::of(&daemon.home);
    daemon.store("apart from them");
    daemon.call("knowledge.delete", json!({"id": "n3"}));
    let deletions = disk.files("_deletions");
    assert_eq!(deletions.len(), 1, "{deletions:?}");
    let mut daemon = daemon;
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    deletions.iter().for_each(|file| fs::remove_file(file).unwrap());
    let daemon = daemon.restart_after_end();
    let error = daemon.call_error("knowledge.get", json!({"id": "n3"}));
    assert!(error["data"]["degraded"].to_string().contains("_deletions"), "{error}");
    assert_eq!(
        daemon.call("knowledge.list", json!({}))["total"],
        1,
        "the rest of its file is left out too"
    );
    let undone = daemon.call("knowledge.undelete", json!({"ids": ["n3"]}));
    assert_eq!(undone["restored"], 1, "its closed row is in another file: {undone}");
}

#[test]
fn an_old_file_that_is_gone_is_named_and_everything_else_is_readable() {
    let stored = Stored::new().damaged(|stored| fs::remove_file(&stored.data_files[1]).unwrap());
    let name = stored.data_files[1].file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(stored.found(), [0, 2, 3]);
    assert!(stored.recovery().contains(&name), "{}", stored.recovery());
    assert!(stored.daemon.log().contains(&name));
    assert!(stored.problems().contains(&name), "{}", stored.problems());
    let health = stored.health();
    assert!(
        health["status"] == "degraded" && health["reasons"].to_string().contains(&name),
        "{health}"
    );
    let found = stored.daemon.call("knowledge.search", json!({"query": "violin"}));
    assert!(
        found["degraded"].as_str().is_some_and(|told| told.contains(&name)),
        "{found}"
    );
    let missing = stored.daemon.call_error("knowledge.get", json!({"id": stored.ids[1]}));
    assert!(missing["data"]["degraded"].to_string().contains(&name), "{missing}");
    assert!(stored.disk.set_aside().is_empty(), "reading changes nothing");

    // Put back in time, it is as if nothing had been.
    let kept = fs::read(&stored.data_files[2]).unwrap();
    let stored = stored.damaged(|stored| fs::remove_file(&stored.data_files[2]).unwrap());
    assert_eq!(stored.found(), [0, 3]);
    let stored = stored.damaged(|stored| fs::write(&stored.data_files[2], kept).unwrap());
    assert_eq!(stored.found(), [0, 2, 3]);

    // The first write takes what is gone out of the table.
    stored.assert_writable();
    assert_eq!(stored.found(), [0, 2, 3]);
    assert_eq!(stored.disk.set_aside().len(), 1);
    assert!(
        stored.recovery().contains("1 of 1 row is lost"),
        "{}",
        stored.recovery()
    );
    let again = stored.daemon.call("knowledge.store", json!({"text": TEXTS[1]}));
    assert_eq!(again["status"], "stored");
    let mut stored = stored.restarted();
    stored.ids[1] = again["id"].as_str().unwrap().to_owned();
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert_eq!(stored.problems(), "");
}

#[test]
fn a_file_that_goes_while_the_daemon_runs_costs_no_restart() {
    let stored = Stored::new();
    fs::remove_file(&stored.data_files[0]).unwrap();
    assert_eq!(stored.found(), [1, 2, 3]);
    let name = stored.data_files[0].file_name().unwrap().to_str().unwrap();
    assert!(stored.recovery().contains(name), "{}", stored.recovery());
    stored.assert_writable();
    assert_eq!(stored.found(), [1, 2, 3]);
}

/// Bytes that changed on the disk: whatever they do to the item they belong to, the others are found, the daemon
/// stays up and verify finds the damage.
#[test]
fn changed_bytes_cost_no_other_item() {
    // Pages hold the rows; what describes them comes after, and the footer at the end.
    for (from, to) in [(0.0, 0.5), (0.0, 0.05), (0.5, 0.97), (0.9, 0.97)] {
        let stored = Stored::new().damaged(|stored| {
            let path = &stored.data_files[1];
            let size = length(path) as f64;
            let (start, end) = ((size * from) as usize, (size * to) as usize);
            let mut bytes = fs::read(path).unwrap();
            for byte in &mut bytes[start..end] {
                *byte ^= 0xff;
            }
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .write_all_at(&bytes, 0)
                .unwrap();
        });
        let daemon = &stored.daemon;
        for number in [0, 2, 3] {
            for mode in ["hybrid", "text", "vector"] {
                let hits = daemon.search_ids(json!({"query": TEXTS[number], "mode": mode, "limit": 4}));
                assert!(hits.contains(&stored.ids[number]), "{mode} {from}-{to}: {hits:?}");
            }
            let got = daemon.call("knowledge.get", json!({"id": stored.ids[number]}));
            assert_eq!(got["text"], TEXTS[number]);
        }
        let listed = ids(&daemon.call("knowledge.list", json!({})));
        let whole = [0, 2, 3].iter().all(|number| listed.contains(&stored.ids[*number]));
        assert!(whole, "{from}-{to}: {listed:?}");
        let told = stored.problems() + &stored.recovery();
        assert_ne!(told, "", "{from}-{to}");
        let id = daemon.store("Written after all that");
        assert_eq!(
            daemon.search_ids(json!({"query": "written after all", "limit": 1})),
            [id]
        );
        assert_eq!(
            daemon.call("admin.status", json!({}))["actors"]["readers"]["restarts"],
            0
        );
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What can still be read of a large damaged file is saved, and the project can be written again.
#[test]
fn a_damaged_place_in_a_large_file_costs_few_items() {
    const ITEMS: u64 = 120;
    const PLACES: usize = 12;
    let mut daemon = Daemon::start();
    let items: Vec<Value> = (0..ITEMS)
        .map(|number| json!({"text": format!("note {number} on subject {}", number * 7), "id": format!("n{number}")}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    let disk = OnDisk::of(&daemon.home);
    let kept = daemon.home.path().join("kept");
    let (mut few, mut unnoticed) = (0, 0);
    // The texts and numbers stand before the vectors, which are nine tenths of the file.
    for place in 0..PLACES {
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
        if place == 0 {
            copy_directory(&disk.0, &kept);
        } else {
            fs::remove_dir_all(&disk.0).unwrap();
            copy_directory(&kept, &disk.0);
        }
        let file = disk.files("data").into_iter().next().unwrap();
        let at = length(&file) * place as u64 / 100 + 70;
        let opened = File::options().read(true).write(true).open(&file).unwrap();
        let mut byte = [0];
        opened.read_exact_at(&mut byte, at).unwrap();
        opened.write_all_at(&[byte[0] ^ 0xa5], at).unwrap();
        daemon = daemon.restart_after_end();

        daemon.call("admin.verify", json!({}));
        let stored = daemon.store("Written after all that");
        daemon.call(
            "knowledge.update",
            json!({"id": stored, "text": "Changed after all that"}),
        );
        daemon.call("admin.optimize", json!({}));
        let left = daemon.call("knowledge.list", json!({}))["total"].as_u64().unwrap() - 1;
        let verified = daemon.call("admin.verify", json!({}));
        let unreadable = verified["findings"].to_string().contains("cannot be read");
        assert!(!unreadable, "place {place}: {verified:#}");
        few += usize::from(left >= ITEMS * 9 / 10);
        unnoticed += usize::from(daemon.call("admin.status", json!({}))["recovery"] == json!([]));
    }
    assert!(
        few >= PLACES * 2 / 3,
        "in {few} of {PLACES} cases nearly everything was saved"
    );
    assert!(unnoticed < PLACES, "none of the damages was any");
}

#[test]
fn a_damaged_keyword_index_is_made_anew() {
    for damage in ["gone", "cut", "changed"] {
        let stored = Stored::new();
        // Everything into the index, so that a search has to read it.
        stored.daemon.call("admin.optimize", json!({}));
        let stored = stored.damaged(|stored| {
            let files = stored.disk.files("_indices");
            assert!(!files.is_empty());
            for file in files {
                match damage {
                    "gone" => fs::remove_file(file).unwrap(),
                    "cut" => cut(&file, length(&file) / 2),
                    _ => fs::write(&file, vec![0xa5; length(&file) as usize]).unwrap(),
                }
            }
        });
        assert_eq!(stored.found(), [0, 1, 2, 3], "{damage}");
        // What is live is found by the words in memory. What was live at some time is asked of the index.
        let now = ccod_actors::domain::format_time(ccod_actors::clock::now_ms());
        let earlier = json!({"query": TEXTS[0], "mode": "text", "as_of": now});
        assert_eq!(stored.daemon.search_ids(earlier)[0], stored.ids[0], "{damage}");
        let told = stored.recovery();
        assert!(
            told.contains("keyword index was damaged and was rebuilt"),
            "{damage}: {told}"
        );
        stored.assert_writable();
    }
}
