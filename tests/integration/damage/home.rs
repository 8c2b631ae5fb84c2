//! A home that is damaged by hand, on disk, and what is found in it afterwards.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Daemon, Home, ids};

/// Texts that have nothing in common, so that each is found by its own words.
pub(super) const TEXTS: [&str; 4] = [
    "Penguins huddle together against the antarctic wind",
    "The compiler inlines small functions at link time",
    "Sourdough rises slowly in a cold kitchen",
    "A violin is tuned in perfect fifths",
];

/// A project's directory on disk.
pub(crate) struct OnDisk(pub(super) PathBuf);

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
        // What was lost for good is reported for as long as its remains are there; nothing else is wrong.
        let others: Vec<&str> = reasons.filter(|reason| !reason.contains("set-aside")).collect();
        assert_eq!(others, [""; 0]);
    }
}

pub(super) fn cut(path: &Path, keep: u64) {
    File::options().write(true).open(path).unwrap().set_len(keep).unwrap();
}

pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}
