//! Two who stop a daemon at the same time.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::Inside;
use crate::lanes::{answer, begin, wait_for, wait_for_queue};
use crate::support::{executable, exits};

#[test]
fn who_stops_a_daemon_that_is_being_stopped_waits_for_its_end_as_well() {
    let mut daemon = Inside::start();
    daemon.call("knowledge.store", json!({"text": "warm up"}));
    // No upkeep is under way: what is from here on is what the test begins.
    wait_for_queue(&daemon, 0, 0);
    fail::cfg("writer::hold_commit", "return").unwrap();
    let mut held = begin(&daemon, "knowledge.store", &json!({"text": "accepted"}));
    wait_for_queue(&daemon, 1, 0);
    let home = daemon.home.path().join("home");
    let stop = || {
        let mut command = Command::new(executable());
        command
            .env("CCO_HOME", &home)
            .current_dir("/")
            .args(["daemon", "stop"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let first = stop();
    wait_for("the end of the socket", || !daemon.socket().exists());
    let mut second = stop();
    // Longer than it looks for a socket elsewhere.
    std::thread::sleep(Duration::from_millis(3_500));
    assert!(second.try_wait().unwrap().is_none());
    fail::remove("writer::hold_commit");
    assert!(answer(&mut held).get("result").is_some());
    assert!(daemon.shut_down());
    for stopping in [first, second] {
        exits(stopping.wait_with_output().unwrap(), 0);
    }
}
