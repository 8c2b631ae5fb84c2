//! Start, stop, crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Daemon, Home, executable, modes};

#[test]
fn the_model_loads_when_it_is_needed_and_keywords_work_before() {
    let daemon = Daemon::start();
    assert_eq!(daemon.call("admin.health", json!({}))["status"], "ok");
    assert_eq!(
        daemon.call("knowledge.search", json!({"query": "x", "mode": "text"}))["count"],
        0
    );
    assert_eq!(daemon.call("admin.status", json!({}))["model"]["loaded"], false);
    daemon.store("now it is needed");
    let status = daemon.call("admin.status", json!({}));
    assert_eq!(status["model"]["loaded"], true);
    assert_eq!(status["model"]["dimensions"], 384);
    assert_eq!(daemon.call("admin.health", json!({"deep": true}))["status"], "ok");
    let projects = daemon.call("knowledge.projects", json!({}));
    assert_eq!(
        projects["projects"].as_array().unwrap().len(),
        1,
        "the probe leaves nothing: {projects}"
    );
}

#[test]
fn the_debt_of_a_project_is_in_status_and_metrics_also_right_after_a_start() {
    let daemon = Daemon::start();
    for number in 0..3 {
        daemon.store(&format!("note {number}"));
    }
    let daemon = daemon.kill_and_restart();
    let status = daemon.call("admin.status", json!({}));
    let project = &status["projects"][0];
    assert_eq!(
        (&project["unindexed_rows"], &project["fragments"]),
        (&json!(3), &json!(3)),
        "{project}"
    );
    assert!(project["versions"].as_u64().unwrap() > 3, "{project}");
    assert_eq!(project["maintenance_debt"]["purge_unfinished"], 0);

    let metrics = daemon.call("admin.metrics", json!({}));
    let printed = daemon.home.run(&["metrics"]);
    assert_eq!(printed.status.code(), Some(0));
    for text in [
        metrics["text"].as_str().unwrap(),
        &String::from_utf8(printed.stdout).unwrap(),
    ] {
        for line in [
            "ccod_healthy 1.0",
            r#"ccod_project_items{project="default"} 3.0"#,
            r#"ccod_project_maintenance_debt{project="default",kind="unindexed_rows"} 3.0"#,
            r#"ccod_part_running{part="writer"} 1.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}

#[test]
fn everything_under_the_home_is_the_owners_alone() {
    let daemon = Daemon::start();
    daemon.store("private");
    let listed = modes(&daemon.home.path());
    assert!(
        listed
            .iter()
            .any(|(path, _, _)| path.extension().is_some_and(|end| end == "lance"))
    );
    for (path, is_directory, mode) in listed {
        let expected = if is_directory { 0o700 } else { 0o600 };
        assert_eq!(mode, expected, "{} has mode {mode:o}", path.display());
    }
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::start();
    let id = daemon.store("still here");
    let second = daemon.home.run(&["daemon", "run"]);
    assert!(!second.status.success());
    let message = String::from_utf8_lossy(&second.stderr).to_lowercase();
    assert!(message.contains("another") || message.contains("already"), "{message}");
    assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["text"], "still here");
}

#[test]
fn a_stale_socket_is_replaced_and_a_file_in_its_place_is_kept() {
    let mut daemon = Daemon::start();
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert!(daemon.home.socket().exists(), "kill -9 leaves the socket");
    let mut daemon = daemon.restart_after_end();
    daemon.call("admin.shutdown", json!({}));
    assert_eq!(daemon.wait(), Some(0));
    assert!(!daemon.home.socket().exists());

    std::fs::write(daemon.home.socket(), "precious").unwrap();
    let refused = daemon.home.run(&["daemon", "run"]);
    assert!(!refused.status.success());
    assert_eq!(std::fs::read_to_string(daemon.home.socket()).unwrap(), "precious");
}

#[test]
fn sigterm_under_load_answers_what_was_accepted_and_exits_cleanly() {
    let mut daemon = Daemon::start();
    daemon.store("warm up");
    let stopping = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
    let in_flight = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..8)
        .map(|client| {
            let socket = daemon.home.socket();
            let (stopping, acknowledged, in_flight) =
                (Arc::clone(&stopping), Arc::clone(&acknowledged), Arc::clone(&in_flight));
            std::thread::spawn(move || {
                let mut connection = crate::support::Connection::open(&socket);
                for round in 0.. {
                    let text = format!("client {client} round {round}");
                    let request =
                        json!({"jsonrpc": "2.0", "id": round, "method": "knowledge.store", "params": {"text": text}});
                    // The daemon may have closed the connection by now: then this request was not accepted.
                    let line = format!("{request}\n");
                    let Ok(()) = connection.try_send(line.as_bytes()) else {
                        break;
                    };
                    in_flight.fetch_add(1, Ordering::SeqCst);
                    match connection.try_receive() {
                        Some(response) if response.get("result").is_some() => {
                            acknowledged.lock().unwrap().push(text);
                        }
                        Some(response) => {
                            assert_eq!(response["error"]["code"], -32053, "{response}");
                            assert!(stopping.load(Ordering::SeqCst));
                            break;
                        }
                        None => {
                            assert!(stopping.load(Ordering::SeqCst), "closed before the signal");
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    while in_flight.load(Ordering::SeqCst) < 24 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    stopping.store(true, Ordering::SeqCst);
    daemon.signal(Signal::SIGTERM);
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    assert!(!daemon.home.socket().exists());

    let daemon = daemon.restart_after_end();
    let texts = all_texts(&daemon);
    let acknowledged = acknowledged.lock().unwrap();
    assert!(acknowledged.len() >= 16);
    for text in acknowledged.iter() {
        assert_eq!(texts.iter().filter(|stored| *stored == text).count(), 1, "{text}");
    }
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let mut daemon = Daemon::start();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let socket = daemon.home.socket();
        let done = Arc::new(std::sync::Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..4)
            .map(|client| {
                let (socket, done) = (socket.clone(), Arc::clone(&done));
                std::thread::spawn(move || {
                    let mut connection = crate::support::Connection::open(&socket);
                    for item in 0.. {
                        let text = format!("round {round} client {client} item {item}");
                        let request =
                            json!({"jsonrpc": "2.0", "id": 1, "method": "knowledge.store", "params": {"text": text}});
                        if connection.try_send(format!("{request}\n").as_bytes()).is_err() {
                            break;
                        }
                        match connection.try_receive() {
                            Some(_) => done.lock().unwrap().push(text),
                            None => break,
                        }
                    }
                })
            })
            .collect();
        while done.lock().unwrap().len() < 12 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        daemon = daemon.kill_and_restart();
        for thread in threads {
            thread.join().unwrap();
        }
        acknowledged.extend(done.lock().unwrap().drain(..));
        let texts = all_texts(&daemon);
        for text in &acknowledged {
            assert_eq!(texts.iter().filter(|stored| *stored == text).count(), 1, "{text}");
        }
        let probe = acknowledged.last().unwrap();
        let found = daemon.call(
            "knowledge.search",
            json!({"query": probe, "limit": 1, "mode": "vector"}),
        );
        assert_eq!(found["results"][0]["text"], probe.as_str());
    }
}

fn all_texts(daemon: &Daemon) -> Vec<String> {
    let mut texts = Vec::new();
    let mut cursor = serde_json::Value::Null;
    loop {
        let mut params = json!({"limit": 1000});
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let page = daemon.call("knowledge.list", params);
        texts.extend(
            page["results"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["text"].as_str().unwrap().to_owned()),
        );
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            return texts;
        }
    }
}

#[test]
fn the_engine_works_only_for_a_command_line_of_its_own_version() {
    let home = Home::new();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(crate::support::engine())
            .args(arguments)
            .env("CCO_HOME", home.path())
            .output()
            .unwrap();
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), told)
    };
    let (code, [told, _]) = run(&["--version"]);
    assert_eq!(
        (code, told.trim()),
        (Some(0), concat!("ccod ", env!("CARGO_PKG_VERSION")))
    );
    let (code, [_, told]) = run(&["--expect=9.9.9"]);
    assert_eq!(code, Some(78), "{told}");
    assert!(
        told.contains("started by ccoctl 9.9.9") && told.contains("from one release"),
        "{told}"
    );
    let (code, [_, told]) = run(&["--expect=9.9.9", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &error["exit"]), (Some(78), &json!(78)), "{told}");
    assert!(!home.path().exists(), "nothing was touched");
}

#[test]
fn the_executable_is_the_daemon_under_its_other_name() {
    let home = Home::new();
    std::fs::create_dir_all(home.path()).unwrap();
    let link = home.path().join("ccod");
    std::os::unix::fs::symlink(executable(), &link).unwrap();
    let mut child = std::process::Command::new(&link)
        .env("CCO_HOME", home.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while !home.socket().exists() && begun.elapsed() < crate::support::PATIENCE {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = home.run(&["daemon", "stop"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(child.wait().unwrap().success());
}

/// Two daemons started at the same moment, again and again: exactly one serves, the other says why it does not.
#[test]
fn of_two_daemons_started_at_once_exactly_one_serves() {
    let home = Home::new();
    for round in 0..100 {
        let start = || {
            home.command(&["daemon", "run"])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut contenders = [start(), start()];
        let begun = std::time::Instant::now();
        // One ends by itself, with the reason; the other one answers.
        let loser = loop {
            let ended = contenders
                .iter_mut()
                .position(|child| child.try_wait().unwrap().is_some());
            if let Some(ended) = ended {
                break ended;
            }
            assert!(begun.elapsed() < crate::support::PATIENCE, "round {round}: both run");
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        let mut connection = loop {
            if let Ok(stream) = std::os::unix::net::UnixStream::connect(home.socket()) {
                drop(stream);
                break crate::support::Connection::open(&home.socket());
            }
            assert!(
                begun.elapsed() < crate::support::PATIENCE,
                "round {round}: nobody serves"
            );
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        assert_eq!(
            connection.call("admin.health", json!({}))["status"],
            "ok",
            "round {round}"
        );
        let [first, second] = contenders;
        let (lost, mut won) = if loser == 0 { (first, second) } else { (second, first) };
        let lost = lost.wait_with_output().unwrap();
        assert_eq!(lost.status.code(), Some(75), "round {round}");
        assert!(String::from_utf8_lossy(&lost.stderr).contains("another daemon"));
        connection.call("admin.shutdown", json!({}));
        assert_eq!(won.wait().unwrap().code(), Some(0), "round {round}");
    }
}

/// What expires while it waits is answered so, and never executed.
#[test]
fn what_expires_in_a_queue_is_never_executed() {
    let daemon = Daemon::start();
    daemon.store("warm up");
    let mut busy = daemon.connect();
    // Enough work before it that a deadline of a millisecond passes in the queue.
    let items: Vec<_> = (0..200)
        .map(|n| json!({"text": format!("{n} {}", "many words to embed ".repeat(40))}))
        .collect();
    busy.send(format!(
        "{}\n",
        json!({"jsonrpc": "2.0", "id": 1, "method": "knowledge.store_batch", "params": {"items": items}})
    ));
    let mut late = daemon.connect();
    let error = late.call_error("knowledge.store", json!({"text": "too late", "timeout_ms": 1}));
    assert_eq!(
        (&error["code"], &error["data"]["kind"]),
        (&json!(-32050), &json!("deadline_exceeded")),
        "{error}"
    );
    assert_eq!(error["data"]["retryable"], true);
    assert!(busy.receive().unwrap().get("result").is_some());
    if error["data"]["executed"] == false {
        assert!(!all_texts(&daemon).contains(&"too late".to_owned()));
    }
    assert_eq!(
        daemon.call("knowledge.store", json!({"text": "too late"}))["status"],
        "stored"
    );
}

/// A service manager holds the socket (systemd's `LISTEN_FDS`) and waits to be told that the daemon is ready.
#[test]
fn a_socket_of_the_service_manager_is_taken_over_and_told_of() {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::os::unix::process::CommandExt;

    /// The first descriptor that is passed on, by systemd's convention.
    const FIRST: i32 = 3;

    let home = Home::new();
    std::fs::create_dir_all(home.path()).unwrap();
    let path = home.path().join("given.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let notified = home.path().join("notify.sock");
    let manager = UnixDatagram::bind(&notified).unwrap();
    manager.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();

    // `LISTEN_PID` must be the process that serves, which the shell becomes.
    let mut command = std::process::Command::new("/bin/sh");
    command
        .args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" daemon run", executable()])
        .env("CCO_HOME", home.path())
        .env("CCO_SOCKET", &path)
        .env("NOTIFY_SOCKET", &notified)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let descriptor = listener.as_raw_fd();
    // SAFETY: between fork and exec only dup2 and fcntl are called, which are async-signal-safe.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            if descriptor == FIRST {
                // dup2 onto itself would leave close-on-exec set.
                let moved = nix::libc::dup(descriptor);
                nix::libc::dup2(moved, FIRST);
            } else {
                nix::libc::dup2(descriptor, FIRST);
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let told = |wanted: &str| {
        let mut buffer = [0; 256];
        loop {
            let length = manager.recv(&mut buffer).unwrap();
            if String::from_utf8_lossy(&buffer[..length]).contains(wanted) {
                return;
            }
        }
    };
    told("READY=1");
    let mut connection = crate::support::Connection::open(&path);
    assert_eq!(connection.call("admin.health", json!({}))["status"], "ok");
    connection.call("admin.shutdown", json!({}));
    told("STOPPING=1");
    assert!(child.wait().unwrap().success());
    assert!(path.exists(), "the socket is the manager's");
}

/// The daemon notices that its socket was removed and binds it again; clients get in as before.
#[test]
fn a_removed_socket_comes_back() {
    let daemon = Daemon::start();
    let id = daemon.store("still here");
    std::fs::remove_file(daemon.home.socket()).unwrap();
    let begun = std::time::Instant::now();
    while std::os::unix::net::UnixStream::connect(daemon.home.socket()).is_err() {
        assert!(
            begun.elapsed() < crate::support::PATIENCE,
            "the socket does not come back"
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(daemon.home.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(daemon.call("knowledge.get", json!({"id": id}))["text"], "still here");
}
