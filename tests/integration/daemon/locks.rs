//! One daemon for each home, and one writer for each store, whatever happens to the locks and their directories.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::process::Stdio;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::process::{LOOK_OFTEN, remove, said, until};
use crate::support::{Connection, Daemon, Home};

/// A hundred times the run directory, or the lock in it, goes missing, and at once a command and a daemon come. There
/// is one writer always: the first.
#[test]
fn a_removed_run_directory_never_makes_a_second_daemon() {
    let daemon = Daemon::start_in(Home::new(), &[LOOK_OFTEN]);
    let pid = daemon.call("admin.status", json!({}))["pid"].clone();
    let run = daemon.home.path().join("run");
    let lock = run.join("ccod.lock");
    let mut version = 0;
    for round in 0..100 {
        match round % 4 {
            0 => remove(&run),
            1 => std::fs::remove_file(&lock).unwrap_or_default(),
            2 => {
                std::fs::remove_file(&lock).unwrap_or_default();
                // The daemon may have been quicker.
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(&lock)
                    .unwrap();
            }
            _ => {
                remove(&run);
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&run)
                    .unwrap();
            }
        }
        let second = daemon
            .home
            .command(&["daemon", "run"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Different texts of one id in each round: two writers would both take one.
        let id = format!("note-{}", round / 2);
        let text = format!("text {round}");
        let stored = daemon
            .home
            .run(&["--json", "store", &text, "--id", &id, "--project", "p"]);
        let second = second.wait_with_output().unwrap();
        assert_eq!(second.status.code(), Some(75), "round {round}: {}", said(&second));
        assert!(said(&second).contains("another daemon"), "{}", said(&second));
        if round % 2 == 0 {
            assert!(stored.status.success(), "round {round}: {}", said(&stored));
            let stored: Value = serde_json::from_slice(&stored.stdout).unwrap();
            assert!(stored["version"].as_i64().unwrap() > version, "round {round}: {stored}");
            version = stored["version"].as_i64().unwrap();
        } else {
            assert_eq!(stored.status.code(), Some(65), "round {round}: {}", said(&stored));
        }
    }
    until("the socket is there", || {
        Connection::try_open(&daemon.home.socket()).is_some()
    });
    assert_eq!(daemon.call("admin.status", json!({}))["pid"], pid);
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    let listed = daemon.call("knowledge.list", json!({"project_id": "p", "limit": 1000}));
    assert_eq!(listed["total"], 50);
    let verified = daemon.home.run(&["verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
    // And it ends when it is told to, wherever its run directory was.
    remove(&run);
    let stopped = daemon.home.run(&["daemon", "stop"]);
    assert!(stopped.status.success(), "{}", said(&stopped));
    let mut daemon = daemon;
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    assert!(daemon.home.run(&["store", "next", "--project", "p"]).status.success());
    assert!(daemon.home.run(&["daemon", "stop"]).status.success());
}

#[test]
fn a_daemon_whose_lock_another_process_has_taken_ends() {
    let mut daemon = Daemon::start_in(Home::new(), &[LOOK_OFTEN]);
    daemon.store("before");
    let path = daemon.home.path().join("run/ccod.lock");
    // Locked before it has the name, so that the daemon cannot be quicker.
    let taken = path.with_extension("taken");
    let other = Flock::lock(File::create(&taken).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    std::fs::rename(&taken, &path).unwrap();
    assert_eq!(daemon.wait(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("another daemon"), "{}", daemon.log());
    drop(other);
    let daemon = daemon.restart_after_end();
    assert_eq!(daemon.call("knowledge.list", json!({}))["total"], 1);
}

/// Whoever moves the projects away from under a running daemon finds nothing of it in what comes in their place.
#[test]
fn a_store_that_was_moved_away_takes_no_writes_and_ends_the_daemon() {
    // It does not look by itself: the write has to.
    let mut daemon = Daemon::start_in(Home::new(), &[("CCO_LIMITS__SOCKET_CHECK_MS", "60000")]);
    let id = daemon.store("before");
    let (knowledge, aside) = (daemon.home.path().join("knowledge"), daemon.home.path().join("moved"));
    std::fs::rename(&knowledge, &aside).unwrap();
    for replaced in [false, true] {
        if replaced {
            std::fs::DirBuilder::new().mode(0o700).create(&knowledge).unwrap();
        }
        for (method, params) in [
            ("knowledge.store", json!({"text": "after"})),
            ("knowledge.store", json!({"text": "after", "project_id": "other"})),
            ("knowledge.delete", json!({"id": id})),
        ] {
            let error = daemon.call_error(method, params);
            assert_eq!(error["code"], -32051, "{method}: {error}");
        }
        assert_eq!(knowledge.exists(), replaced);
    }
    assert_eq!(std::fs::read_dir(&knowledge).unwrap().count(), 0);
    std::fs::remove_dir(&knowledge).unwrap();
    std::fs::rename(&aside, &knowledge).unwrap();
    daemon.store("put back, it goes on");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());

    let mut daemon = Daemon::start_in(daemon.into_home(), &[LOOK_OFTEN]);
    std::fs::rename(&knowledge, &aside).unwrap();
    assert_eq!(
        daemon.wait(),
        Some(1),
        "a service manager starts it again: {}",
        daemon.log()
    );
    // The next one begins with what is there now, while nobody else has it.
    let daemon = daemon.restart_after_end();
    assert_eq!(daemon.call("knowledge.list", json!({}))["total"], 0);
    daemon.store("begun again");
    let second = daemon.home.run(&["daemon", "run"]);
    assert_eq!(second.status.code(), Some(75));
}
