//! The command line as a person, a script and an agent use it.

use serde_json::{Value, json};

use crate::support::{Daemon, Home, stdout};

fn json_of(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

/// Stops the daemon that a command has started.
struct Stopped<'a>(&'a Home);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.run(&["daemon", "stop"]);
    }
}

#[test]
fn commands_start_the_daemon_and_it_stops_when_told() {
    let home = Home::new();
    let refused = home.run(&["--no-start", "stats"]);
    assert_eq!(refused.status.code(), Some(69));
    assert!(refused.stdout.is_empty() && !refused.stderr.is_empty());
    assert_eq!(home.run(&["daemon", "status"]).status.code(), Some(69));

    let stop = Stopped(&home);
    let stored = json_of(&home.run(&[
        "--json",
        "store",
        "The build cache lives on the big disk",
        "--type",
        "configuration",
        "--project",
        "p",
    ]));
    assert_eq!(
        (&stored["status"], &stored["project_id"]),
        (&json!("stored"), &json!("p"))
    );
    assert_eq!(home.run(&["daemon", "status"]).status.code(), Some(0));
    assert_eq!(
        home.run(&["daemon", "start"]).status.code(),
        Some(0),
        "starting a running daemon is not an error"
    );

    let found = json_of(&home.run(&["search", "where is the build cache", "--project", "p", "--json"]));
    assert_eq!(found["results"][0]["id"], stored["id"]);
    let human = stdout(&home.run(&["search", "build cache", "--project", "p"]));
    assert!(
        human.contains("The build cache lives on the big disk") && human.contains(stored["id"].as_str().unwrap()),
        "{human}"
    );
    assert!(!human.contains('\u{1b}'), "no colour off a terminal");

    let id = stored["id"].as_str().unwrap();
    assert_eq!(
        json_of(&home.run(&["--json", "get", id, "--project", "p"]))["text"],
        "The build cache lives on the big disk"
    );
    assert_eq!(home.run(&["get", "nope", "--project", "p"]).status.code(), Some(1));
    assert_eq!(home.run(&["store", " ", "--project", "p"]).status.code(), Some(65));
    assert_eq!(home.run(&["search"]).status.code(), Some(2));
    assert_eq!(home.run(&["nonsense"]).status.code(), Some(2));
    assert_eq!(json_of(&home.run(&["--json", "list", "--project", "p"]))["total"], 1);
    assert_eq!(json_of(&home.run(&["--json", "stats", "--project", "p"]))["total"], 1);
    assert_eq!(
        json_of(&home.run(&["--json", "projects"]))["projects"][0]["project_id"],
        "p"
    );
    assert_eq!(json_of(&home.run(&["--json", "health", "--deep"]))["status"], "ok");
    assert_eq!(json_of(&home.run(&["--json", "status"]))["status"], "ok");
    assert_eq!(
        json_of(&home.run(&["rpc", "knowledge.stats", r#"{"project_id":"p"}"#]))["total"],
        1
    );
    assert_eq!(home.run(&["rpc", "knowledge.nonsense"]).status.code(), Some(2));

    let stopped = home.run(&["daemon", "stop"]);
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert_eq!(home.run(&["daemon", "status"]).status.code(), Some(69));
    drop(stop);
}

#[test]
fn many_commands_at_once_start_one_daemon() {
    let home = Home::new();
    let _stop = Stopped(&home);
    let children: Vec<_> = (0..8)
        .map(|number| {
            let text = format!("started together {number}");
            home.command(&["--json", "store", &text, "--project", "p"])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        assert_eq!(json_of(&child.wait_with_output().unwrap())["status"], "stored");
    }
    assert_eq!(json_of(&home.run(&["--json", "stats", "--project", "p"]))["total"], 8);
}

#[test]
fn the_drop_in_prints_what_the_old_tool_printed() {
    let daemon = Daemon::start();
    let link = daemon.home.path().join("knowledge-manager");
    std::os::unix::fs::symlink(crate::support::executable(), &link).unwrap();
    let run = |arguments: &[&str]| {
        std::process::Command::new(&link)
            .env("CCO_HOME", daemon.home.path())
            .current_dir("/")
            .args(arguments)
            .output()
            .unwrap()
    };
    let stored = run(&[
        "store",
        "We chose PostgreSQL for its transactional DDL",
        "decision",
        "architect",
    ]);
    let line = stdout(&stored);
    let id = line
        .strip_prefix("Stored with ID: ")
        .and_then(|rest| rest.strip_suffix('\n'))
        .unwrap_or_else(|| panic!("{line:?}"));
    assert!(id.starts_with("decision-"), "{id}");

    let found = json_of(&run(&["search", "which database did we choose", "3"]));
    let first = &found.as_array().unwrap()[0];
    let mut keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "agent",
            "id",
            "metadata",
            "project_id",
            "score",
            "session_id",
            "text",
            "timestamp",
            "type"
        ]
    );
    assert_eq!(
        (&first["id"], &first["agent"], &first["type"]),
        (&json!(id), &json!("architect"), &json!("decision"))
    );

    run(&["store", "plain"]);
    let stats = json_of(&run(&["stats"]));
    assert_eq!(
        (&stats["totalRecords"], &stats["byType"]),
        (&json!(2), &json!({"decision": 1, "general": 1}))
    );
    assert_eq!(stats["byAgent"], json!({"architect": 1, "cli": 1}));
    for key in ["repository", "byProject", "oldestRecord", "newestRecord"] {
        assert!(stats.get(key).is_some(), "{key}: {stats}");
    }
    let test = json_of(&run(&["test"]));
    assert_eq!((&test["success"], &test["purged"]), (&json!(true), &json!(1)), "{test}");
}

#[test]
fn the_configuration_says_where_each_value_came_from() {
    let home = Home::new();
    std::fs::create_dir_all(home.path()).unwrap();
    std::fs::write(
        home.path().join("ccod.toml"),
        "[readers]\nworkers = 3\n\n[limits]\nmax_connections = 9\n",
    )
    .unwrap();
    let output = home
        .command(&["config", "show"])
        .env("CCO_LIMITS__MAX_CONNECTIONS", "11")
        .output()
        .unwrap();
    let text = stdout(&output);
    let line = |key: &str| {
        text.lines()
            .find(|line| line.contains(key))
            .unwrap_or_else(|| panic!("{key}: {text}"))
    };
    assert!(line("readers.workers").contains('3') && line("readers.workers").contains("ccod.toml:2"));
    assert!(
        line("limits.max_connections").contains("11")
            && line("limits.max_connections").contains("CCO_LIMITS__MAX_CONNECTIONS")
    );
    assert!(line("store.durability").contains("default"));

    std::fs::write(home.path().join("ccod.toml"), "[readers]\nworker = 3\n").unwrap();
    let refused = home.run(&["config", "show"]);
    assert_eq!(refused.status.code(), Some(78));
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(
        message.contains("workers") && message.contains("ccod.toml:2"),
        "{message}"
    );
}
