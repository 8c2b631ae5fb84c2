//! The command line in the hands of a hurried agent: variables that are not set, flags given twice, output that goes
//! nowhere. What was not meant is refused before anything is done; what was done is said.

use std::fs::OpenOptions;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Daemon, Home, exits, stderr, stdout};

fn ids(value: &Value) -> Vec<&str> {
    let mut ids: Vec<&str> = value
        .as_array()
        .unwrap_or_else(|| panic!("{value}"))
        .iter()
        .map(|entry| entry.as_str().or(entry["id"].as_str()).unwrap())
        .collect();
    ids.sort_unstable();
    ids
}

#[test]
fn of_several_conditions_on_one_key_all_must_hold() {
    let daemon = Daemon::start();
    for (id, tags) in [
        ("both", json!(["a", "b"])),
        ("only-a", json!(["a"])),
        ("only-b", json!("b")),
        ("none", json!("c")),
    ] {
        let item = json!({"id": id, "text": format!("The note {id}"), "metadata": {"tag": tags, "n": 1}});
        daemon.call("knowledge.store", item);
    }
    let run = |arguments: &[&str]| {
        let output = exits(
            daemon
                .home
                .run(&[arguments, &["--project", "default", "--json"]].concat()),
            0,
        );
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let both = ["--meta", "tag=a", "--meta", "tag=b"];
    assert_eq!(ids(&run(&[&["list"], both.as_slice()].concat())["results"]), ["both"]);
    assert_eq!(
        ids(&run(&[&["search", "note"], both.as_slice()].concat())["results"]),
        ["both"]
    );
    let old = run(&[&["cleanup", "--older-than", "0"], both.as_slice()].concat());
    assert_eq!(old["deleted"], 1);
    let deleted = run(&[&["delete", "--yes"], both.as_slice()].concat());
    assert_eq!((&deleted["deleted"], ids(&deleted["ids"])), (&json!(1), vec!["both"]));
    // A JSON object beside it, and one whose key stands there twice.
    run(&["undelete", "both"]);
    let object = run(&["list", "--meta", "tag=a", "--meta", r#"{"tag":"b","n":1}"#]);
    assert_eq!(ids(&object["results"]), ["both"]);
    let twice = run(&["list", "--meta", r#"{"tag":"a","tag":"b"}"#]);
    assert_eq!(ids(&twice["results"]), ["both"]);

    // The same on the wire, where an object says it for one value of each key.
    let list = |metadata: Value| daemon.call("knowledge.list", json!({"metadata": metadata}))["results"].take();
    assert_eq!(ids(&list(json!({"tag": "a"}))), ["both", "only-a"]);
    assert_eq!(ids(&list(json!([{"tag": "a"}, {"tag": "b"}]))), ["both"]);
    assert_eq!(ids(&list(json!([{"tag": "b", "n": 1}]))), ["both", "only-b"]);
    for nothing in [json!([]), json!([{}]), json!([{"tag": "a"}, {}]), json!("tag=a")] {
        let error = daemon.call_error("knowledge.delete", json!({"metadata": nothing}));
        assert_eq!(
            (&error["code"], &error["data"]["parameter"]),
            (&json!(-32602), &json!("metadata")),
            "{nothing}: {error}"
        );
    }
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 4);
}

#[test]
fn what_says_nothing_is_refused_before_a_daemon_is_asked() {
    let home = Home::new();
    let refused: &[&[&str]] = &[
        &["delete"],
        &["delete", "--yes"],
        &["delete", "--agent", "", "--yes"],
        &["delete", "--agent", "a", "--agent", "", "--yes"],
        &["delete", "--agent", " ", "--yes"],
        &["delete", "--type", "", "--yes"],
        &["delete", "--session", "", "--yes"],
        &["delete", "--meta", "", "--yes"],
        &["delete", "--meta", "=x", "--yes"],
        &["delete", "--meta", "{}", "--yes"],
        &["delete", "--since", "", "--yes"],
        &["delete", "--until", "", "--type", "issue", "--yes"],
        &["delete", ""],
        &["delete", "a", "", "b"],
        &["delete", "a", "--type", "issue"],
        &["delete", "a", "--project", ""],
        &["get", ""],
        &["get", "a", ""],
        &["history", ""],
        &["undelete", "--undo", ""],
        &["purge", "", "--yes"],
        &["cleanup", "--agent", "", "--apply", "--yes"],
        &["update", "", "--type", "issue"],
        &["list", "--cursor", ""],
        &["list", "--project", ""],
        &["search", ""],
        &["search", "q", "--project", ""],
        &["search", "q", "--limit", "0"],
        &["search", "q", "--limit", "101"],
        &["search", "q", "--limit", "-1"],
        &["search", "q", "--limit", ""],
        &["search", "q", "--offset", "-1"],
        &["search", "q", "--timeout", "1", "--timeout", "2"],
        &["--timeout", "1", "search", "q", "--timeout", "2"],
        &["--socket", "", "list"],
        &["export", ""],
        &["import", ""],
        &["backup", ""],
        &["restore", "", "--yes"],
        &["km", "search"],
        &["km", "search", "q", "0"],
        &["km", "search", "q", "-1"],
        &["km", "search", "q", "ten"],
        &["km", "search", ""],
        &["km", "store", "t", "idea"],
        &["km", "store"],
        &["km", "store", "--type", "issue", "text"],
        &["store", "--agnet"],
        &["search", "--limt"],
        &["search", "q", "--threshold", "nan"],
        &["search", "q", "--threshold", "1.5"],
    ];
    for arguments in refused.iter().copied() {
        let output = exits(home.run(arguments), 2);
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let told = stderr(&exits(home.run(&[arguments, &["--json"]].concat()), 2));
        assert_eq!(told.lines().count(), 1, "{arguments:?}: {told}");
        let told: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {told}"));
        assert_eq!(told["exit"], 2, "{arguments:?}: {told}");
        assert_eq!(told["error"]["data"]["kind"], "usage", "{arguments:?}: {told}");
        assert!(
            told["error"]["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{arguments:?}: {told}"
        );
    }
    for blank in [
        &["store", ""] as &[&str],
        &["store", "   "],
        &["store", "-"],
        &["update", "id", "--text", ""],
        &["update", "id", "--text", "-"],
        &["km", "store", ""],
        &["store", "t", "--metadata", r#"{"a":1,"a":2}"#],
    ] {
        let told = stderr(&exits(home.run(&[&["--json"], blank].concat()), 65));
        let told: Value = serde_json::from_str(&told).unwrap_or_else(|error| panic!("{blank:?}: {error}: {told}"));
        assert_eq!(told["error"]["data"]["kind"], "bad_data", "{blank:?}");
    }
    assert!(!home.socket().exists(), "no daemon was started for any of these");
}

#[test]
fn help_and_version_are_prose_and_wrong_words_are_json_where_it_is_asked_for() {
    let home = Home::new();
    for arguments in [
        &["--json", "--help"] as &[&str],
        &["search", "--json", "--help"],
        &["--json", "--version"],
    ] {
        let output = exits(home.run(arguments), 0);
        assert!(
            !stdout(&output).starts_with('{') && output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
    for arguments in [
        &["--json"] as &[&str],
        &["--json", "nonsense"],
        &["--json", "daemon"],
        &["search", "--json"],
        &["search", "q", "--bogus", "--json"],
        &["search", "q", "--mode", "fuzzy", "--json"],
    ] {
        let output = exits(home.run(arguments), 2);
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let told: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|error| {
            panic!("{arguments:?}: {error}: {}", stderr(&output));
        });
        assert!(told["error"]["message"].is_string() && told["exit"] == 2, "{told}");
    }
    // Prose stays prose.
    let output = exits(home.run(&["search", "q", "--bogus"]), 2);
    assert!(stderr(&output).contains("Usage: ccoctl search"), "{}", stderr(&output));
}

#[test]
fn what_was_done_is_told_where_standard_output_takes_nothing() {
    let daemon = Daemon::start();
    let full = |arguments: &[&str]| {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = daemon
            .home
            .command(&[arguments, &["--project", "p"]].concat())
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let told = stderr(&exits(output, 1));
        assert!(!told.contains("panicked"), "{told}");
        assert!(told.contains("standard output"), "{told}");
        told
    };
    let json = |arguments: &[&str]| {
        let told = full(&[arguments, &["--json"]].concat());
        assert_eq!(told.lines().count(), 1, "{told}");
        let mut told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["error"]["data"]["executed"], true, "{told}");
        told["error"]["data"]["result"].take()
    };
    let stored = json(&["store", "The first note of the day"]);
    let id = stored["id"].as_str().unwrap();
    let plain = full(&["store", "Another note of the day"]);
    assert!(plain.contains("it was done") && plain.contains("\"id\":"), "{plain}");
    json(&["update", id, "--type", "issue"]);

    // An undo token is never lost.
    for by in [&[id] as &[&str], &["--type", "issue", "--yes"]] {
        let deleted = json(&[&["delete"], by].concat());
        assert_eq!(deleted["deleted"], 1, "{deleted}");
        let undone = json(&["undelete", "--undo", deleted["undo_token"].as_str().unwrap()]);
        assert_eq!(undone["restored"], 1, "{undone}");
    }
    let told = full(&["delete", id]);
    let token = told
        .lines()
        .find_map(|line| line.trim().strip_prefix("undo: ccoctl undelete --undo "))
        .unwrap_or_else(|| panic!("{told}"));
    exits(daemon.home.run(&["undelete", "--undo", token]), 0);
    let cleaned = json(&["cleanup", "--older-than", "0", "--apply", "--yes"]);
    assert_eq!(cleaned["deleted"], 2, "{cleaned}");
    json(&["undelete", "--undo", cleaned["undo_token"].as_str().unwrap()]);
    assert_eq!(json(&["purge", id, "--yes"])["purged"], 1);
    assert_eq!(json(&["optimize"])["projects"], json!(["p"]));

    // What only reads says no more than that it failed.
    for read in [
        &["list"] as &[&str],
        &["stats"],
        &["search", "note"],
        &["delete", "--type", "general", "--dry-run"],
        &["cleanup"],
    ] {
        let told = full(read);
        assert!(!told.contains("it was done"), "{told}");
    }
    let help = daemon
        .home
        .command(&["--help"])
        .stdout(OpenOptions::new().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(stderr(&exits(help, 1)).contains("standard output"));
}

#[test]
fn a_reader_that_has_gone_does_not_take_what_was_done_with_it() {
    let daemon = Daemon::start();
    let id = daemon.store("The note whose reader has gone");
    let gone = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        daemon
            .home
            .command(&[arguments, &["--project", "default", "--json"]].concat())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap()
    };
    assert_eq!(stderr(&exits(gone(&["list"]), 0)), "");
    let told: Value = serde_json::from_str(&stderr(&exits(gone(&["delete", &id]), 1))).unwrap();
    let token = told["error"]["data"]["result"]["undo_token"].as_str().unwrap();
    assert_eq!(
        daemon.call("knowledge.undelete", json!({"undo_token": token}))["restored"],
        1
    );
}

#[test]
fn a_closed_standard_output_is_one_that_takes_nothing() {
    let daemon = Daemon::start();
    let id = daemon.store("The note of a script without an output");
    let closed = |arguments: &str| {
        let script = format!(
            "exec {} {arguments} --project default --json >&-",
            crate::support::executable()
        );
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", &script]).env("CCO_HOME", daemon.home.path());
        shell.current_dir("/").output().unwrap()
    };
    let told: Value = serde_json::from_str(&stderr(&exits(closed(&format!("delete {id}")), 1))).unwrap();
    let token = told["error"]["data"]["result"]["undo_token"].as_str().unwrap();
    assert_eq!(
        daemon.call("knowledge.undelete", json!({"undo_token": token}))["restored"],
        1
    );
    exits(closed("list"), 1);
}

#[test]
fn an_agent_without_a_name_has_one_in_the_counts() {
    let daemon = Daemon::start();
    daemon.store("Nobody said this");
    daemon.call(
        "knowledge.store",
        json!({"text": "The planner said this", "agent": "planner"}),
    );
    let output = exits(daemon.home.run(&["stats", "--project", "default"]), 0);
    assert!(stdout(&output).contains("(none) 1, planner 1"), "{}", stdout(&output));
    let output = exits(daemon.home.run(&["stats", "--project", "default", "--json"]), 0);
    let stats: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(stats["by_agent"], json!({"": 1, "planner": 1}));
}

#[test]
fn empty_words_of_the_drop_in_are_words_that_were_not_given() {
    let daemon = Daemon::start();
    let output = exits(daemon.home.run(&["km", "store", "The words by position", "", ""]), 0);
    let id = stdout(&output).trim_end().replace("Stored with ID: ", "");
    let item = daemon.call("knowledge.get", json!({"id": id}));
    assert_eq!((&item["type"], &item["agent"]), (&json!("general"), &json!("cli")));
    let output = exits(daemon.home.run(&["km", "search", "words by position", ""]), 0);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found[0]["id"], json!(id));
}

#[test]
fn a_poor_environment_is_enough() {
    let daemon = Daemon::start();
    let id = daemon.store("A note that is shown without a terminal's help");
    for missing in ["HOME", "TERM", "PATH", "LANG", "USER"] {
        let output = daemon
            .home
            .command(&["list", "--project", "default"])
            .env_remove(missing)
            .output()
            .unwrap();
        assert!(stdout(&exits(output, 0)).contains(&id), "without {missing}");
    }
    let mut command = daemon.home.command(&["search", "note", "--project", "default"]);
    let output = command.env("NO_COLOR", "1").env("COLUMNS", "20").output().unwrap();
    let shown = stdout(&exits(output, 0));
    assert!(shown.contains(&id) && !shown.contains('\u{1b}'), "{shown}");
}
