//! What a daemon does that has no file descriptors left: it says so, loses nothing, and goes on when there are some.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{Connection, Daemon, Home, PATIENCE};

const PROJECTS: usize = 12;

fn project(number: usize) -> String {
    format!("project-{number}")
}

/// Sets the limit of open files of a running process; the hard one stays.
fn limit_open_files(daemon: &Daemon, most: usize) {
    let set = Command::new("prlimit")
        .args(["--pid", &daemon.pid().to_string(), &format!("--nofile={most}:")])
        .status()
        .expect("prlimit, which is a part of util-linux");
    assert!(set.success());
}

/// The limit with which a process can open so many files more: what is open above it stays open.
fn limit_with(daemon: &Daemon, spare: usize) -> usize {
    let descriptors = Path::new("/proc").join(daemon.pid().to_string()).join("fd");
    let numbers = std::fs::read_dir(descriptors).unwrap().flatten();
    let open: BTreeSet<usize> = numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    (0..).filter(|number| !open.contains(number)).nth(spare).unwrap()
}

/// A call that may fail for want of descriptors, and in no other way. Whether it says that nothing was executed.
fn call(connection: &mut Connection, method: &str, params: Value) -> (Option<Value>, bool) {
    let mut response = connection.request(method, params);
    let Some(error) = response.get("error") else {
        return (Some(response["result"].take()), false);
    };
    let code = error["code"].as_i64().unwrap();
    assert!(
        [-32009, -32052, -32050].contains(&code),
        "{method}: {error:#}\nneither busy nor unknown"
    );
    assert_eq!(error["data"]["retryable"], true, "{error}");
    if code == -32009 {
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("file descriptors") && message.contains("LimitNOFILE"),
            "{error}"
        );
        assert!(error["data"]["retry_after_ms"].as_u64() > Some(0), "{error}");
    }
    (None, error["data"]["executed"] == false)
}

/// The texts of all items, with how often each is there.
fn stored(daemon: &Daemon) -> BTreeMap<String, usize> {
    let mut texts = BTreeMap::new();
    for number in 0..PROJECTS {
        let listed = daemon.call("knowledge.list", json!({"project_id": project(number), "limit": 1000}));
        for item in listed["results"].as_array().unwrap() {
            *texts.entry(item["text"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        }
    }
    texts
}

/// The limit is raised step by step, so that each part of an opening, a query and a commit is what fails once.
#[cfg(target_os = "linux")]
#[test]
fn a_daemon_without_descriptors_is_busy_says_so_and_loses_nothing() {
    let daemon = Daemon::start();
    let mut acknowledged = Vec::new();
    for number in 0..PROJECTS {
        let text = format!("first of {number}");
        daemon.call("knowledge.store", json!({"project_id": project(number), "text": text}));
        acknowledged.push(text);
    }
    // Half of the projects are not open.
    let daemon = daemon.kill_and_restart();
    for number in 0..PROJECTS / 2 {
        daemon.call(
            "knowledge.search",
            json!({"project_id": project(number), "query": "first"}),
        );
    }
    let mut connection = daemon.connect();
    assert_eq!(connection.call("admin.health", json!({}))["status"], "ok");
    let (mut lacking, mut refused, mut unknown) = (0, Vec::new(), Vec::new());
    for spare in 0..14 {
        let limit = limit_with(&daemon, spare);
        limit_open_files(&daemon, limit);
        for number in [spare % PROJECTS, (spare + PROJECTS / 2) % PROJECTS] {
            let project = project(number);
            for (method, params) in [
                ("knowledge.search", json!({"project_id": project, "query": "first"})),
                ("knowledge.search", json!({"query": "first", "projects": "*"})),
                ("knowledge.list", json!({"project_id": project})),
                (
                    "knowledge.history",
                    json!({"project_id": project, "id": "unknown-1-00000000"}),
                ),
                ("admin.verify", json!({"project_id": project})),
                ("admin.optimize", json!({"project_id": project})),
                (
                    "admin.backup",
                    json!({"path": daemon.home.path().with_file_name(format!("backup-{spare}-{number}"))}),
                ),
            ] {
                let response = connection.request(method, params);
                let error = &response["error"];
                let code = error["code"].as_i64().unwrap_or(0);
                // An id that nobody has is not found.
                assert!(
                    [0, -32009, -32020, -32052].contains(&code),
                    "{spare} {method}: {error:#}"
                );
                if code == -32009 {
                    assert!(error["message"].as_str().unwrap().contains("LimitNOFILE"), "{error}");
                    lacking += 1;
                }
                // What cannot be read now is not taken for empty.
                if method == "knowledge.list" && code == 0 {
                    assert!(response["result"]["total"].as_u64() > Some(0), "{response}");
                }
            }
            let text = format!("with {spare} spare in {number}");
            match call(
                &mut connection,
                "knowledge.store",
                json!({"project_id": project, "text": text, "idempotency_key": text}),
            ) {
                (Some(_), _) => acknowledged.push(text),
                (None, true) => refused.push((project, text)),
                (None, false) => unknown.push((project, text)),
            }
        }
        if lacking > 0 {
            let health = connection.call("admin.health", json!({}));
            assert_eq!(health["status"], "degraded", "{health}");
            assert!(health["reasons"].to_string().contains("file descriptors"), "{health}");
        }
    }
    assert!(lacking > 0 && !refused.is_empty(), "{lacking} {refused:?}");
    assert!(acknowledged.len() > PROJECTS, "with enough of them it worked");

    // There are some again: everything is as it was answered, and goes on.
    limit_open_files(&daemon, 1024);
    let begun = Instant::now();
    while daemon.connect().request("knowledge.stats", json!({}))["result"]["errors"] != Value::Null {
        assert!(begun.elapsed() < PATIENCE);
    }
    let found = stored(&daemon);
    for text in &acknowledged {
        assert_eq!(found.get(text), Some(&1), "{text}: {found:#?}");
    }
    for (_, text) in &refused {
        assert_eq!(found.get(text), None, "it said that nothing was executed: {text}");
    }
    for (project, text) in refused.iter().chain(&unknown) {
        let stored = daemon.call(
            "knowledge.store",
            json!({"project_id": project, "text": text, "idempotency_key": text}),
        );
        assert!(stored["id"].is_string());
    }
    let verified = daemon.call("admin.verify", json!({}));
    assert_eq!(verified["ok"], true, "{verified:#}");
    // Nothing was repaired, set aside or taken for damaged.
    let status = daemon.call("admin.status", json!({}));
    assert_eq!(status["recovery"], json!([]), "{status:#}");
    let daemon = daemon.kill_and_restart();
    let found = stored(&daemon);
    let texts = refused
        .iter()
        .chain(&unknown)
        .map(|(_, text)| text)
        .chain(&acknowledged);
    for text in texts {
        assert_eq!(found.get(text), Some(&1), "{text}");
    }
}

/// A low limit from the start, and connections that use it up.
#[test]
fn a_daemon_with_a_low_limit_serves_its_operator_and_recovers_when_connections_close() {
    let home = Home::new();
    let mut shell = Command::new("/bin/sh");
    shell
        .args([
            "-c",
            r#"ulimit -n 96; exec "$0" daemon run"#,
            crate::support::executable(),
        ])
        .env("CCO_HOME", home.path())
        .current_dir("/");
    let daemon = Daemon::spawn(home, shell);
    for number in 0..PROJECTS {
        daemon.call(
            "knowledge.store",
            json!({"project_id": project(number), "text": format!("first of {number}")}),
        );
    }
    // Connections are taken until one is refused; those that were let in are used.
    let mut open = Vec::new();
    loop {
        let Some(mut connection) = Connection::try_open(&daemon.home.socket()) else {
            break;
        };
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "rpc.version"});
        if connection.try_send(format!("{request}\n").as_bytes()).is_err() {
            break;
        }
        let Some(answer) = connection.try_receive() else { break };
        if answer.get("error").is_some() {
            break;
        }
        open.push(connection);
        assert!(open.len() < 96, "never refused");
        // A connection in the place of a reserved descriptor serves an operator only.
        let used = open.last_mut().unwrap();
        let answer = used.request("knowledge.stats", json!({"project_id": "none"}));
        if answer["error"]["code"] == -32009 {
            break;
        }
    }
    let mut lacking = 0;
    let count = open.len() - 1;
    for (number, connection) in open.iter_mut().take(count).enumerate() {
        let text = format!("under pressure {number}");
        let project = project(number % PROJECTS);
        let (_, busy) = call(
            connection,
            "knowledge.store",
            json!({"project_id": project, "text": text}),
        );
        lacking += usize::from(busy);
    }
    let health = open[0].call("admin.health", json!({}));
    assert_eq!(health["status"], "degraded", "{lacking} {health}");
    assert!(health["reasons"].to_string().contains("file descriptors"), "{health}");
    drop(open);
    let begun = Instant::now();
    loop {
        let connection = Connection::try_open(&daemon.home.socket());
        let stored = connection.and_then(|mut connection| {
            let params = json!({"text": "afterwards"});
            let request = json!({"jsonrpc": "2.0", "id": 1, "method": "knowledge.store", "params": params});
            connection.try_send(format!("{request}\n").as_bytes()).ok()?;
            connection.try_receive()
        });
        if stored.is_some_and(|answer| answer.get("result").is_some()) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not recover");
    }
    for number in 0..PROJECTS {
        let found = daemon.call("knowledge.list", json!({"project_id": project(number)}));
        assert!(found["total"].as_u64() > Some(0), "{found}");
    }
    assert_eq!(daemon.call("admin.verify", json!({}))["ok"], true);
}

/// Whatever the command line cannot open, it says what helps, and never that another command would.
#[test]
fn a_command_line_without_file_descriptors_says_how_to_get_some() {
    let daemon = Daemon::start();
    let mut lacking = 0;
    for limit in 4..32 {
        let prepared = daemon.home.command(&[]);
        let mut shell = Command::new("/bin/sh");
        for (name, value) in prepared.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let script = format!(r#"ulimit -n {limit}; exec "$0" health"#);
        let asked = shell
            .args(["-c", &script, crate::support::executable()])
            .current_dir("/")
            .output()
            .unwrap();
        let said = String::from_utf8(asked.stderr).unwrap();
        match asked.status.code() {
            Some(0) => break,
            Some(75) if said.contains("ulimit -n") => lacking += 1,
            // The system's loader finds no library.
            Some(127) => {}
            code => panic!("with {limit}: {code:?} {said}"),
        }
    }
    assert!((1..28).contains(&lacking), "{lacking}");
}
