//! A daemon that answers anything is there: `daemon start`, `status` and `stop` where everything is in use.

use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::{Connection, Daemon, Home, PATIENCE};

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// The daemon of a test writes elsewhere: this is the log of one that was started in the background.
fn another_was_started(home: &Home) -> bool {
    home.path().join("run/ccod.log").exists()
}

/// Until what has connected before is gone, only an operator's place may be left.
fn take_a_place(daemon: &Daemon, holder: &mut Connection) {
    let begun = std::time::Instant::now();
    while holder.request("knowledge.list", json!({})).get("result").is_none() {
        assert!(begun.elapsed() < PATIENCE);
        *holder = daemon.connect();
    }
}

/// Ends the threads of a test, also where it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_daemon_whose_connections_are_in_use_is_there() {
    let limits = [("CCO_LIMITS__MAX_CONNECTIONS", "2")];
    let mut daemon = Daemon::start_in(Home::new(), &limits);
    let mut holders = [daemon.connect(), daemon.connect()];
    for holder in &mut holders {
        take_a_place(&daemon, holder);
    }
    let started = daemon.home.run(&["--json", "daemon", "start"]);
    assert_eq!(started.status.code(), Some(0), "{}", told(&started));
    let answer: Value = serde_json::from_slice(&started.stdout).unwrap();
    assert_eq!(
        (&answer["state"], &answer["pid"]),
        (&json!("running"), &json!(daemon.pid()))
    );
    let status = daemon.home.run(&["daemon", "status"]);
    assert_eq!(status.status.code(), Some(0), "{}", told(&status));
    assert!(!another_was_started(&daemon.home));
    // A command that is not an operator's is refused, and does not take the daemon for absent either.
    let stored = daemon.home.run(&["store", "text", "--project", "p"]);
    assert_eq!(stored.status.code(), Some(75), "{}", told(&stored));
    assert!(!another_was_started(&daemon.home));
    let stopped = daemon.home.run(&["daemon", "stop"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", told(&stopped));
    assert_eq!(daemon.wait(), Some(0));
}

/// The file descriptors that a process has open.
#[cfg(target_os = "linux")]
fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

/// The burst keeps its connections open, and says nothing.
#[cfg(target_os = "linux")]
#[test]
fn after_a_burst_of_connections_the_operator_is_served_and_what_was_refused_is_gone() {
    const BURST: usize = 300;
    let limits = [("CCO_LIMITS__MAX_CONNECTIONS", "2")];
    let daemon = Daemon::start_in(Home::new(), &limits);
    daemon.store("warm up");
    let mut holders = [daemon.connect(), daemon.connect()];
    for holder in &mut holders {
        take_a_place(&daemon, holder);
    }
    let before = descriptors(&daemon);
    for _ in 0..3 {
        let burst: Vec<Connection> = (0..BURST).map(|_| Connection::open(&daemon.home.socket())).collect();
        let health = daemon.home.run(&["health"]);
        assert_eq!(health.status.code(), Some(0), "{}", told(&health));
        // One for each that waits, that is given time to read why it was refused, or that is just ending; two for an
        // operator.
        assert!(descriptors(&daemon) <= before + 3 * 64 + 2 * 8);
        for mut connection in burst {
            let line = connection.try_receive().expect("a line");
            assert_eq!(line["error"]["code"], -32009, "{line}");
            assert!(connection.try_receive().is_none());
        }
        let begun = std::time::Instant::now();
        while descriptors(&daemon) > before {
            assert!(begun.elapsed() < PATIENCE, "{} descriptors", descriptors(&daemon));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// A daemon that can say nothing but "busy": nothing is kept for operators, and all else is in use.
#[test]
fn a_daemon_that_says_nothing_but_busy_is_there() {
    let limits = [
        ("CCO_LIMITS__MAX_CONNECTIONS", "1"),
        ("CCO_LIMITS__OPERATOR_CONNECTIONS", "0"),
    ];
    let daemon = Daemon::start_in(Home::new(), &limits);
    let mut holder = daemon.connect();
    take_a_place(&daemon, &mut holder);
    let started = daemon.home.run(&["--timeout", "2", "daemon", "start"]);
    assert_eq!(started.status.code(), Some(75), "{}", told(&started));
    assert!(told(&started).contains("a daemon runs"), "{}", told(&started));
    let status = daemon.home.run(&["--timeout", "2", "daemon", "status"]);
    assert_eq!(status.status.code(), Some(0), "{}", told(&status));
    assert!(told(&status).contains("connections"), "{}", told(&status));
    let stop = daemon.home.run(&["--timeout", "2", "daemon", "stop"]);
    assert_eq!(stop.status.code(), Some(75), "{}", told(&stop));
    assert!(!another_was_started(&daemon.home));
    // The place is free again.
    drop(holder);
    let stopped = daemon.home.run(&["daemon", "stop"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", told(&stopped));
}

/// An operator who asks again and again on one connection keeps no other operator out.
#[test]
fn a_daemon_whose_operator_asks_all_the_time_serves_another() {
    let limits = [
        ("CCO_LIMITS__MAX_CONNECTIONS", "1"),
        ("CCO_LIMITS__OPERATOR_CONNECTIONS", "1"),
    ];
    let daemon = Daemon::start_in(Home::new(), &limits);
    let mut holder = daemon.connect();
    take_a_place(&daemon, &mut holder);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = Over(&over);
        let (tell, told_begun) = std::sync::mpsc::channel();
        scope.spawn(|| {
            let tell = tell;
            // Whoever has lost its place asks for one again.
            while !over.load(Ordering::SeqCst) {
                let Some(mut operator) = Connection::try_open(&daemon.home.socket()) else {
                    continue;
                };
                let ask = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"rpc.version\"}\n";
                while !over.load(Ordering::SeqCst) && operator.try_send(ask).is_ok() {
                    if !operator
                        .try_receive()
                        .is_some_and(|answer| answer["result"]["api"] == "1")
                    {
                        break;
                    }
                    tell.send(()).ok();
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            }
        });
        told_begun.recv().unwrap();
        for _ in 0..5 {
            let status = daemon.home.run(&["daemon", "status"]);
            assert_eq!(status.status.code(), Some(0), "{}", told(&status));
            assert!(!told(&status).contains("busy"), "{}", told(&status));
        }
        let stop = daemon.home.run(&["daemon", "stop"]);
        assert_eq!(stop.status.code(), Some(0), "{}", told(&stop));
        drop(end);
    });
}

#[test]
fn a_daemon_whose_calls_are_in_use_is_there() {
    let limits = [
        ("CCO_LIMITS__MAX_IN_FLIGHT", "1"),
        ("CCO_LIMITS__OPERATOR_IN_FLIGHT", "1"),
    ];
    let mut daemon = Daemon::start_in(Home::new(), &limits);
    daemon.store("warm up");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = Over(&over);
        for _ in 0..2 {
            scope.spawn(|| {
                let mut caller = Connection::open(&daemon.home.socket());
                while !over.load(Ordering::SeqCst) {
                    caller.request("admin.status", json!({}));
                }
            });
        }
        for command in ["start", "status"] {
            let output = daemon.home.run(&["daemon", command]);
            assert_eq!(output.status.code(), Some(0), "{command}: {}", told(&output));
        }
        drop(end);
    });
    assert!(!another_was_started(&daemon.home));
    let stopped = daemon.home.run(&["daemon", "stop"]);
    assert_eq!(stopped.status.code(), Some(0), "{}", told(&stopped));
    assert_eq!(daemon.wait(), Some(0));
}
