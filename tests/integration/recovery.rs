//! What the daemon makes of a damaged home: nothing that is whole is lost, what is lost is named, and storing goes
//! on. Each damage is made by hand, on disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Connection, Daemon, Home, engine, ids};

/// Texts that have nothing in common, so that each is found by its own words.
const TEXTS: [&str; 4] = [
    "Penguins huddle together against the antarctic wind",
    "The compiler inlines small functions at link time",
    "Sourdough rises slowly in a cold kitchen",
    "A violin is tuned in perfect fifths",
];

/// A project's directory on disk.
pub(crate) struct OnDisk(PathBuf);

impl OnDisk {
    pub(crate) fn of(home: &Home) -> Self {
        Self(home.path().join("knowledge/default"))
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.0.clone()
    }

    pub(crate) fn table(&self) -> PathBuf {
        self.0.join("orchestra_knowledge.lance")
    }

    pub(crate) fn files(&self, directory: &str) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut directories = vec![self.table().join(directory)];
        while let Some(next) = directories.pop() {
            for entry in fs::read_dir(&next).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    directories.push(entry.path());
                } else {
                    found.insert(entry.path());
                }
            }
        }
        found
    }

    /// The manifests, newest first: their names count down.
    pub(crate) fn manifests(&self) -> Vec<PathBuf> {
        let files = self.files("_versions").into_iter();
        files
            .filter(|path| path.extension().is_some_and(|end| end == "manifest"))
            .collect()
    }

    pub(crate) fn set_aside(&self) -> Vec<PathBuf> {
        let directory = self.0.join("set-aside");
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }
}

/// A stopped daemon's home with one item for each text, each in a fragment of its own, and the data file of each.
pub(crate) struct Stored {
    pub(crate) daemon: Daemon,
    pub(crate) disk: OnDisk,
    pub(crate) ids: Vec<String>,
    pub(crate) data_files: Vec<PathBuf>,
}

impl Stored {
    pub(crate) fn new() -> Self {
        Self::in_daemon(Daemon::start())
    }

    pub(crate) fn in_daemon(daemon: Daemon) -> Self {
        let disk = OnDisk::of(&daemon.home);
        let (mut ids, mut data_files) = (Vec::new(), Vec::new());
        for text in TEXTS {
            let before = disk.files("data");
            ids.push(daemon.store(text));
            let fresh: Vec<PathBuf> = disk.files("data").difference(&before).cloned().collect();
            assert_eq!(fresh.len(), 1, "a store is one file: {fresh:?}");
            data_files.extend(fresh);
        }
        Self {
            daemon,
            disk,
            ids,
            data_files,
        }
    }

    /// Ends the daemon (kill -9), does the damage, and starts it again.
    pub(crate) fn damaged(mut self, damage: impl FnOnce(&Self)) -> Self {
        self.daemon.signal(Signal::SIGKILL);
        self.daemon.wait();
        damage(&self);
        self.daemon = self.daemon.restart_after_end();
        self
    }

    pub(crate) fn restarted(mut self) -> Self {
        self.daemon = self.daemon.kill_and_restart();
        self
    }

    /// Which of the items are found by their own words, listed and got.
    pub(crate) fn found(&self) -> Vec<usize> {
        let daemon = &self.daemon;
        let listed: BTreeSet<String> = ids(&daemon.call("knowledge.list", json!({}))).into_iter().collect();
        let numbers = 0..TEXTS.len();
        let found: Vec<usize> = numbers.filter(|number| listed.contains(&self.ids[*number])).collect();
        for (number, id) in self.ids.iter().enumerate() {
            let expected = found.contains(&number);
            for mode in ["hybrid", "text", "vector"] {
                let hits = daemon.search_ids(json!({"query": TEXTS[number], "mode": mode}));
                assert_eq!(hits.contains(id), expected, "{mode}, item {number}: {hits:?}");
            }
            let got = daemon.connect().request("knowledge.get", json!({"id": id}));
            assert_eq!(got.get("result").is_some(), expected, "item {number}: {got}");
        }
        assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], found.len());
        found
    }

    pub(crate) fn recovery(&self) -> String {
        let status = self.daemon.call("admin.status", json!({}));
        let told: Vec<&str> = status["recovery"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        told.join("\n")
    }

    pub(crate) fn verify(&self) -> Value {
        self.daemon.call("admin.verify", json!({}))
    }

    pub(crate) fn problems(&self) -> String {
        let verified = self.verify();
        let findings = verified["findings"].as_array().unwrap().iter();
        let told: Vec<String> = findings.map(|finding| finding["problem"].to_string()).collect();
        assert_eq!(verified["ok"], told.is_empty(), "{verified}");
        told.join("\n")
    }

    pub(crate) fn health(&self) -> Value {
        self.daemon.call("admin.health", json!({}))
    }

    /// Storing, changing and deleting work, and everything is as it should be afterwards.
    pub(crate) fn assert_writable(&self) {
        let daemon = &self.daemon;
        let id = daemon.store("Written after all that");
        daemon.call("knowledge.update", json!({"id": id, "text": "Changed after all that"}));
        assert_eq!(
            daemon.search_ids(json!({"query": "changed after all", "limit": 1})),
            [id.as_str()]
        );
        assert_eq!(daemon.call("knowledge.delete", json!({"id": id}))["deleted"], 1);
        daemon.call("admin.optimize", json!({}));
        assert_eq!(self.problems(), "");
        let health = self.health();
        let reasons = health["reasons"].as_array().unwrap().iter().filter_map(Value::as_str);
        // What was lost for good is told of for as long as its remains are there; nothing else is wrong.
        let others: Vec<&str> = reasons.filter(|reason| !reason.contains("set-aside")).collect();
        assert_eq!(others, [""; 0]);
    }
}

fn cut(path: &Path, keep: u64) {
    File::options().write(true).open(path).unwrap().set_len(keep).unwrap();
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

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

/// Whoever has followed the changes up to a commit that is lost is told to begin anew.
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
        let told = stored.recovery();
        assert!(
            told.contains("keyword index was damaged and was rebuilt"),
            "{damage}: {told}"
        );
        stored.assert_writable();
    }
}

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

/// The numbers begin anew, so whoever has followed what is lost must not take them for those that it has seen.
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

#[test]
fn verify_takes_one_project_or_all_and_only_those_that_exist() {
    let stored = Stored::new();
    stored
        .daemon
        .call("knowledge.store", json!({"text": "elsewhere", "project_id": "other"}));
    assert_eq!(stored.verify()["projects"], json!(["default", "other"]));
    let one = stored.daemon.call("admin.verify", json!({"project_id": "other"}));
    assert_eq!((&one["projects"], &one["rows"]), (&json!(["other"]), &json!(1)));
    // "All is well" would be the answer to a misspelled name.
    let error = stored
        .daemon
        .call_error("admin.verify", json!({"project_id": "nowhere"}));
    assert_eq!(error["code"], -32020, "{error}");
    assert!(!stored.daemon.home.path().join("knowledge/nowhere").exists());
}

fn assert_read_only(daemon: &Daemon, words: &str) {
    let error = daemon.call_error("knowledge.store", json!({"text": "not now"}));
    assert_eq!(
        (&error["code"], &error["data"]["kind"], &error["data"]["retryable"]),
        (&json!(-32024), &json!("read_only"), &json!(true)),
        "{error}"
    );
    assert!(error["message"].as_str().unwrap().contains(words), "{error}");
    let health = daemon.call("admin.health", json!({}));
    assert_eq!(health["status"], "degraded", "{health}");
    assert!(health["reasons"].to_string().contains(words), "{health}");
    assert_eq!(daemon.search_ids(json!({"query": TEXTS[0], "limit": 1})).len(), 1);
}

#[test]
fn a_disk_that_is_nearly_full_refuses_stores_and_takes_deletions() {
    let stored = Stored::new();
    let ids = stored.ids.clone();
    let mut daemon = stored.daemon;
    daemon.call("admin.shutdown", json!({}));
    daemon.wait();
    let home = daemon.into_home();
    // More than any disk has free.
    let daemon = Daemon::start_in(home, &[("CCO_STORE__MIN_FREE_BYTES", "1125899906842624")]);
    assert_read_only(&daemon, "store.min_free_bytes");
    assert_eq!(daemon.call("knowledge.delete", json!({"id": ids[0]}))["deleted"], 1);
    let daemon = daemon.kill_and_restart();
    assert_eq!(
        daemon.call("knowledge.store", json!({"text": "room again"}))["status"],
        "stored"
    );
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
}

/// A data directory without the right to write. Root has that right everywhere, so as root the daemon runs as
/// another user.
#[test]
fn a_directory_that_may_not_be_written_is_read_only_until_it_may() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    /// `nobody`, on Linux and macOS near enough: any id but root's will do.
    const OTHER: u32 = 65_534;

    let home = Home::new();
    let parent = home.path().parent().unwrap().to_path_buf();
    fs::create_dir_all(home.path()).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    // Where the executable lies the other user may not be able to go.
    let copy = parent.join("ccod");
    if is_root {
        if fs::hard_link(engine(), &copy).is_err() {
            fs::copy(engine(), &copy).unwrap();
        }
        for path in [&parent, &home.path()] {
            chown(path, Some(OTHER), Some(OTHER)).unwrap();
        }
    }
    let mut command = std::process::Command::new(if is_root { &copy } else { Path::new(engine()) });
    command
        .env("CCO_HOME", home.path())
        .env("CCO_ACCESS__ALLOWED_UIDS", nix::unistd::geteuid().to_string())
        .current_dir("/");
    if is_root {
        command.uid(OTHER).gid(OTHER);
    }
    let daemon = Daemon::spawn(home, command);
    for text in TEXTS {
        daemon.store(text);
    }
    let table = OnDisk::of(&daemon.home).table();
    let directories: Vec<PathBuf> = ["data", "_versions", "_transactions"]
        .map(|name| table.join(name))
        .into();
    let set_mode = |mode: u32| {
        for directory in &directories {
            fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set_mode(0o500);
    assert_read_only(&daemon, "writable");
    assert_read_only(&daemon, &table.parent().unwrap().display().to_string());
    assert_eq!(ids(&daemon.call("knowledge.list", json!({}))).len(), TEXTS.len());
    set_mode(0o700);
    // The probe of the health check is enough; so would be the next store.
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    assert_eq!(
        daemon.call("knowledge.store", json!({"text": "not now"}))["status"],
        "stored"
    );
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

/// A disk that is really full. Needs the right to mount; what does not is tested in `faults`.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_read_only_until_there_is_room() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            std::process::Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .status()
                .ok();
        }
    }
    let home = Home::new();
    fs::create_dir_all(home.path()).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m,mode=700", "none"])
        .arg(home.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("not run: this user may not mount a file system");
        return;
    }
    let mounted = Mounted(home.path());
    let daemon = Daemon::start_in(home, &[("CCO_STORE__MIN_FREE_BYTES", "0")]);
    let stored = Stored::in_daemon(daemon);
    let filler = mounted.0.join("filler");
    let mut file = File::create(&filler).unwrap();
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok() {}
    drop(file);
    assert_read_only(&stored.daemon, "disk is full");
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    // It can be started on a full disk, too.
    let stored = Stored {
        daemon: stored
            .daemon
            .kill_and_restart_with(&[("CCO_STORE__MIN_FREE_BYTES", "0")]),
        ..stored
    };
    assert_eq!(stored.found(), [0, 1, 2, 3]);
    assert_read_only(&stored.daemon, "disk is full");
    fs::remove_file(&filler).unwrap();
    assert_eq!(stored.health()["status"], "ok", "{}", stored.health());
    stored.assert_writable();
}

#[test]
fn verify_ends_when_it_is_cancelled_and_tells_its_progress() {
    let daemon = Daemon::start();
    let items: Vec<Value> = (0..600)
        .map(|number| json!({"text": format!("number {number} of many")}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    let mut connection = Connection::open(&daemon.home.socket());
    connection.send(format!(
        "{}\n",
        json!({"jsonrpc": "2.0", "id": 7, "method": "admin.verify"})
    ));
    let mut progress = 0;
    let answer = loop {
        let line = connection.receive().unwrap();
        if line["method"] == "rpc.progress" {
            assert_eq!(
                (&line["params"]["request_id"], &line["params"]["total"]),
                (&json!(7), &json!(600)),
                "{line}"
            );
            progress += 1;
        } else {
            break line;
        }
    };
    assert!(progress > 0);
    assert_eq!(
        (&answer["result"]["ok"], &answer["result"]["rows"]),
        (&json!(true), &json!(600)),
        "{answer}"
    );
    let late = daemon.call_error("admin.verify", json!({"timeout_ms": 1}));
    assert_eq!(late["data"]["kind"], "deadline_exceeded", "{late}");
    // One runs at a time, and the late one may not have noticed yet.
    let begun = std::time::Instant::now();
    loop {
        let answer = daemon.connect().request("admin.verify", json!({}));
        if answer["result"]["ok"] == true {
            break;
        }
        assert_eq!(answer["error"]["data"]["kind"], "busy", "{answer}");
        assert!(begun.elapsed() < crate::support::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
