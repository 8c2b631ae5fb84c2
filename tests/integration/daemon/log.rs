//! The log: written, set aside and opened again, and never in the way of anything else.

use std::fs::OpenOptions;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::process::{LOOK_OFTEN, ended, mode, remove, said, until};
use crate::support::{Connection, Daemon, Home};

#[test]
fn a_log_that_nobody_reads_any_more_costs_nothing_else() {
    let home = Home::new();
    let mut child = home
        .command(&["daemon", "run", "--log", "debug"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it serves", || Connection::try_open(&home.socket()).is_some());
    drop(child.stderr.take());
    let mut connection = Connection::open(&home.socket());
    for number in 0..3 {
        connection.call("knowledge.store", json!({"text": format!("note {number}")}));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGHUP).unwrap();
    }
    let status = connection.call("admin.status", json!({}));
    assert_eq!(status["status"], "ok", "{status}");
    connection.call("admin.shutdown", json!({}));
    assert_eq!(ended(&mut child), Some(0));
}

/// A daemon in the background and its log.
struct Background {
    home: Home,
    pid: Pid,
}

impl Background {
    fn start() -> Self {
        let home = Home::new();
        let mut command = home.command(&["--json", "daemon", "start"]);
        let output = command.env(LOOK_OFTEN.0, LOOK_OFTEN.1).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let started: Value = serde_json::from_slice(&output.stdout).unwrap();
        let pid = Pid::from_raw(i32::try_from(started["pid"].as_i64().unwrap()).unwrap());
        Self { home, pid }
    }

    fn hang_up(&self) {
        kill(self.pid, Signal::SIGHUP).unwrap();
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path().join("run").join(name)).unwrap_or_default()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        kill(self.pid, Signal::SIGKILL).unwrap_or_default();
    }
}

#[test]
fn the_log_is_opened_anew_where_it_was_moved_or_removed() {
    let daemon = Background::start();
    let log = daemon.home.path().join("run/ccod.log");
    let moved = daemon.home.path().join("run/moved.log");
    assert!(daemon.log("ccod.log").contains("serving"));
    std::fs::rename(&log, &moved).unwrap();
    until("the log is back", || log.exists());
    daemon.hang_up();
    until("it goes on there", || daemon.log("ccod.log").contains("SIGHUP"));
    assert!(daemon.log("moved.log").contains("serving") && !daemon.log("moved.log").contains("SIGHUP"));
    assert_eq!(mode(&log), 0o600);
    // Where standard error goes, standard output does too, and with the whole directory it is the same.
    remove(&daemon.home.path().join("run"));
    until("the log is back again", || log.exists());
    until("so is the socket", || {
        Connection::try_open(&daemon.home.socket()).is_some()
    });
    daemon.hang_up();
    until("it goes on", || daemon.log("ccod.log").contains("SIGHUP"));
    assert!(daemon.home.run(&["daemon", "stop"]).status.success());
    assert!(daemon.log("ccod.log").contains("stopped"));
}

#[test]
fn the_log_is_set_aside_while_the_daemon_runs() {
    let daemon = Background::start();
    let run = daemon.home.path().join("run");
    let (log, aside) = (run.join("ccod.log"), run.join("ccod.log.1"));
    let grown = ccod::log_file::MAX_LOG_BYTES + 1;
    for round in 0..2 {
        OpenOptions::new()
            .append(true)
            .open(&log)
            .unwrap()
            .set_len(grown)
            .unwrap();
        daemon.hang_up();
        until("it is set aside", || {
            aside.metadata().is_ok_and(|aside| aside.len() == grown) && daemon.log("ccod.log").contains("SIGHUP")
        });
        assert_eq!((mode(&log), mode(&aside)), (0o600, 0o600), "round {round}");
        assert!(log.metadata().unwrap().len() < grown);
        std::fs::remove_file(&aside).unwrap();
    }
    assert!(daemon.home.run(&["daemon", "stop"]).status.success());
}

#[test]
fn the_log_goes_to_the_file_that_the_configuration_names() {
    let home = Home::new();
    std::fs::create_dir(home.path()).unwrap();
    std::fs::write(home.path().join("ccod.toml"), "[log]\nfile = \"own.log\"\n").unwrap();
    let own = home.path().join("own.log");
    let logged = || std::fs::read_to_string(&own).unwrap_or_default();
    assert!(home.run(&["daemon", "start"]).status.success());
    assert!(logged().contains("serving"));
    assert!(home.run(&["daemon", "stop"]).status.success());
    assert!(!home.path().join("run/ccod.log").exists());

    let mut daemon = Daemon::start_in(home, &[]);
    std::fs::remove_file(daemon.home.path().join("own.log")).unwrap();
    daemon.signal(Signal::SIGHUP);
    let own = daemon.home.path().join("own.log");
    until("it goes on there", || {
        std::fs::read_to_string(&own).is_ok_and(|log| log.contains("SIGHUP"))
    });
    assert_eq!(mode(&own), 0o600);
    assert_eq!(daemon.log(), "", "none of it goes elsewhere");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0));
}
