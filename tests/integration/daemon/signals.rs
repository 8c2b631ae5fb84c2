//! What a daemon takes along from the process that started it, the signals it gets, and its end.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::process::{ended, said, until};
use crate::support::{Connection, Daemon, Home, PATIENCE};

/// The descriptors of whoever starts it: a lock would be held, and a pipe would not end, for as long as it runs.
#[test]
fn a_started_daemon_keeps_nothing_of_its_parent() {
    let home = Home::new();
    std::fs::create_dir_all(home.path()).unwrap();
    let place = home.path().join("workplace");
    std::fs::create_dir(&place).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell
        .args([
            "-c",
            r#""$0" daemon start 7>&1 8>&2 9<&0 >/dev/null 2>&1"#,
            crate::support::executable(),
        ])
        .env("CCO_HOME", home.path())
        // As if this process were a service of its own.
        .env("LISTEN_FDS", "1")
        .env("NOTIFY_SOCKET", home.path().join("not-for-you"))
        .current_dir(&place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let shell = shell.spawn().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(shell.wait_with_output().unwrap()));
    let output = told
        .recv_timeout(PATIENCE)
        .expect("the pipes end though the daemon runs");
    assert!(output.status.success());

    let status = Connection::open(&home.socket()).call("admin.status", json!({}));
    let pid = Pid::from_raw(i32::try_from(status["pid"].as_i64().unwrap()).unwrap());
    assert_eq!(nix::unistd::getsid(Some(pid)).unwrap(), pid, "a session of its own");
    if cfg!(target_os = "linux") {
        let process = Path::new("/proc").join(pid.to_string());
        assert_eq!(std::fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
        let log = home.path().join("run/ccod.log");
        for standard in ["1", "2"] {
            assert_eq!(std::fs::read_link(process.join("fd").join(standard)).unwrap(), log);
        }
        assert_eq!(
            std::fs::read_link(process.join("fd/0")).unwrap(),
            Path::new("/dev/null")
        );
    }
    assert!(home.run(&["daemon", "stop"]).status.success());
}

#[test]
fn a_hangup_does_not_disturb_a_daemon_without_a_terminal() {
    let mut daemon = Daemon::start();
    daemon.store("warm up");
    let clients: Vec<_> = (0..12)
        .map(|number| {
            let mut connection = daemon.connect();
            let items: Vec<_> = (0..20)
                .map(|item| json!({"text": format!("{number} {item}")}))
                .collect();
            let request =
                json!({"jsonrpc": "2.0", "id": 1, "method": "knowledge.store_batch", "params": {"items": items}});
            connection.send(format!("{request}\n"));
            connection
        })
        .collect();
    for _ in 0..5 {
        daemon.signal(Signal::SIGHUP);
    }
    for mut client in clients {
        let answer = client.receive().expect("an answer");
        assert_eq!(answer["result"]["stored"], 20, "{answer}");
    }
    until("it is told of", || daemon.log().contains("SIGHUP"));
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
}

#[test]
fn a_hangup_of_its_terminal_ends_a_daemon_in_order() {
    let home = Home::new();
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut child = home
        .command(&["daemon", "run"])
        .stdout(Stdio::null())
        .stderr(terminal.slave)
        .spawn()
        .unwrap();
    until("it serves", || Connection::try_open(&home.socket()).is_some());
    let mut connection = Connection::open(&home.socket());
    connection.call("knowledge.store", json!({"text": "kept"}));
    // The window is closed: what is written from now on fails as well.
    drop(terminal.master);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGHUP).unwrap();
    assert_eq!(ended(&mut child), Some(0));
    assert!(!home.socket().exists());
    let daemon = Daemon::start_in(home, &[]);
    assert_eq!(daemon.call("knowledge.list", json!({}))["total"], 1);
}

/// More work than a second is enough for.
fn much_work(id: u64) -> String {
    let items: Vec<_> = (0..1_000)
        .map(|n| json!({"text": format!("{n} {}", "many words to embed ".repeat(90))}))
        .collect();
    let request = json!({"jsonrpc": "2.0", "id": id, "method": "knowledge.store_batch", "params": {"items": items}});
    format!("{request}\n")
}

/// The work has begun: its first texts are in the embedder, which may be too busy to say so at once.
fn has_begun(daemon: &Daemon) {
    until("the work begins", || {
        let status = daemon.call("admin.status", json!({}));
        let passes = status.pointer("/actors/embedder/counters/forward_passes");
        passes.and_then(Value::as_u64).is_some_and(|passes| passes > 0)
    });
}

const SHORT_END: [(&str, &str); 2] = [
    ("CCO_SHUTDOWN__GRACE_MS", "3000"),
    ("CCO_LIMITS__SHUTDOWN_GRACE_MS", "300"),
];

#[test]
fn what_is_left_at_the_end_is_stopped_and_answered() {
    let mut daemon = Daemon::start_in(Home::new(), &SHORT_END);
    let file = daemon.home.path().join("many.jsonl");
    let lines: String = (0..2_000)
        .map(|n| json!({"text": format!("{n} {}", "many words to import ".repeat(90))}).to_string() + "\n")
        .collect();
    std::fs::write(&file, lines).unwrap();
    let mut importing = daemon.connect();
    let import = json!({"jsonrpc": "2.0", "id": 7, "method": "admin.import", "params": {"path": file}});
    importing.send(format!("{import}\n"));
    let mut storing = daemon.connect();
    storing.send(much_work(8));
    has_begun(&daemon);
    daemon.signal(Signal::SIGTERM);
    for (mut connection, id) in [(importing, 7), (storing, 8)] {
        let answer = loop {
            let answer = connection.receive().expect("an answer");
            if answer["method"] != "rpc.progress" {
                break answer;
            }
        };
        assert_eq!(
            (&answer["id"], &answer["error"]["code"]),
            (&json!(id), &json!(-32053)),
            "{answer}"
        );
        let executed = &answer["error"]["data"]["executed"];
        assert!(!executed.is_null(), "{answer}");
        assert!(connection.receive().is_none());
    }
    // No failure: neither systemd nor launchd starts it again.
    assert_eq!(daemon.wait(), Some(75), "{}", daemon.log());
    assert!(!daemon.home.socket().exists());
    let daemon = daemon.restart_after_end();
    let verified = daemon.home.run(&["verify"]);
    assert!(verified.status.success(), "{}", said(&verified));
}

#[test]
fn the_first_signal_after_a_shutdown_that_was_asked_for_is_not_the_second() {
    let mut daemon = Daemon::start_in(Home::new(), &SHORT_END);
    let mut working = daemon.connect();
    working.send(much_work(1));
    has_begun(&daemon);
    let stopping = daemon.call("admin.shutdown", json!({}));
    assert_eq!(
        (&stopping["stopping"], &stopping["grace_ms"]),
        (&json!(true), &json!(3000))
    );
    until("it does not listen any more", || !daemon.home.socket().exists());
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGHUP);
    let answer = working.receive().expect("an answer, for it did not end at once");
    assert_eq!(answer["error"]["code"], -32053, "{answer}");
    assert_eq!(daemon.wait(), Some(75), "{}", daemon.log());
    assert!(!daemon.log().contains("second signal, ending"), "{}", daemon.log());
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    let mut daemon = Daemon::start_in(
        Home::new(),
        &[
            ("CCO_SHUTDOWN__GRACE_MS", "600000"),
            ("CCO_LIMITS__SHUTDOWN_GRACE_MS", "500000"),
        ],
    );
    let mut working = daemon.connect();
    working.send(much_work(1));
    has_begun(&daemon);
    daemon.signal(Signal::SIGTERM);
    until("it does not listen any more", || !daemon.home.socket().exists());
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait(), Some(75), "{}", daemon.log());
    assert!(working.try_receive().is_none());
    let daemon = daemon.restart_after_end();
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
}
