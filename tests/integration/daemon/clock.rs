//! A clock that stands before 1970, as on a machine whose battery is empty, is reported and harmless.
//!
//! The daemon is the real one, with all its parts. Only the function that gives it the system's time is replaced.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Daemon, Home, exits, stderr, stdout};

/// Tells the daemon's process another time while it is `set_back`.
struct Clock {
    library: PathBuf,
    mark: PathBuf,
}

impl Clock {
    /// Compiled with the compiler that links this test.
    fn new(directory: &Path) -> Self {
        let library = directory.join("clock.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/clock/clock.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .unwrap();
        exits(compiled, 0);
        Self {
            library,
            mark: directory.join("before-1970"),
        }
    }

    fn for_process(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("CCOD_TEST_CLOCK", &self.mark);
    }

    fn set_back(&self) {
        std::fs::write(&self.mark, "").unwrap();
    }

    fn set_right(&self) {
        std::fs::remove_file(&self.mark).unwrap();
    }
}

fn start(home: Home, clock: &Clock) -> Daemon {
    let mut command = home.command(&["daemon", "run"]);
    clock.for_process(&mut command);
    Daemon::spawn(home, command)
}

/// Every call that needs what is stored.
fn calls(id: &str, place: &Path) -> Vec<(&'static str, Value)> {
    vec![
        ("knowledge.store", json!({"text": "in 1969"})),
        ("knowledge.search", json!({"query": "battery"})),
        ("knowledge.search", json!({"query": "battery", "projects": "*"})),
        ("knowledge.list", json!({})),
        ("knowledge.get", json!({"id": id})),
        ("knowledge.history", json!({"id": id})),
        ("knowledge.update", json!({"id": id, "text": "in 1969"})),
        ("knowledge.delete", json!({"id": id})),
        ("knowledge.cleanup", json!({})),
        ("knowledge.similar", json!({"id": id})),
        ("knowledge.purge", json!({"id": id, "confirm": true})),
        ("knowledge.stats", json!({"project_id": "default"})),
        ("admin.verify", json!({})),
        ("admin.optimize", json!({})),
        ("admin.backup", json!({"path": place.join("backup-1969")})),
        ("admin.restore", json!({"path": place.join("backup")})),
        ("admin.import", json!({"path": place.join("items.jsonl")})),
        ("admin.export", json!({"path": place.join("other.jsonl")})),
    ]
}

#[test]
fn a_clock_before_1970_is_told_of_by_every_call_and_blames_no_data() {
    let place = tempfile::tempdir().unwrap();
    let clock = Clock::new(place.path());
    let mut daemon = start(Home::new(), &clock);
    let id = daemon.store("before the battery was empty");
    daemon.call("admin.backup", json!({"path": place.path().join("backup")}));
    daemon.call("admin.export", json!({"path": place.path().join("items.jsonl")}));
    for restarted in [false, true] {
        clock.set_back();
        if restarted {
            daemon.signal(nix::sys::signal::Signal::SIGKILL);
            daemon.wait();
            daemon = start(daemon.into_home(), &clock);
        }
        for (method, params) in calls(&id, place.path()) {
            let error = daemon.call_error(method, params);
            let told = (&error["code"], &error["data"]["kind"], &error["data"]["retryable"]);
            assert_eq!(
                told,
                (&json!(-32051), &json!("unavailable"), &json!(true)),
                "{method}: {error}"
            );
            assert!(
                error["message"].as_str().unwrap().contains("set the clock"),
                "{method}: {error}"
            );
        }
        let health = daemon.call("admin.health", json!({}));
        assert_eq!(health["status"], "degraded", "{health}");
        assert!(
            health["reasons"][0].as_str().unwrap().contains("set the clock"),
            "{health}"
        );
        assert_eq!(health["reasons"].as_array().unwrap().len(), 1, "{health}");
        let deep = daemon.call("admin.health", json!({"deep": true}));
        assert!(deep["reasons"].to_string().contains("set the clock"), "{deep}");
        for method in ["admin.status", "admin.metrics", "knowledge.projects", "knowledge.stats"] {
            let told = daemon.call(method, json!({})).to_string();
            assert!(!told.contains("no version") && !told.contains("damaged"), "{told}");
        }
        // The command line has the same clock.
        let mut command = daemon.home.command(&["health"]);
        clock.for_process(&mut command);
        let asked = exits(command.output().unwrap(), 1);
        assert!((stdout(&asked) + &stderr(&asked)).contains("set the clock"));

        clock.set_right();
        let health = daemon.call("admin.health", json!({}));
        assert_eq!(health["status"], "ok", "{health}");
        let mut command = daemon.home.command(&["list", "--project", "default"]);
        clock.for_process(&mut command);
        assert!(stdout(&exits(command.output().unwrap(), 0)).contains(&id));
        let listed = daemon.call("knowledge.list", json!({}));
        assert_eq!((&listed["total"], &listed["results"][0]["id"]), (&json!(1), &json!(id)));
        let verified = daemon.call("admin.verify", json!({}));
        assert_eq!(verified["ok"], true, "{verified}");
        assert_eq!(daemon.call("admin.status", json!({}))["recovery"], json!([]));
        assert!(!daemon.home.path().join("knowledge/default/set-aside").exists());
        assert!(!place.path().join("backup-1969").exists());
    }
    let log = daemon.log();
    assert!(!log.contains("a panic"), "{log}");
}
