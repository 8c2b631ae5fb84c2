//! A filter or a target that came out as nothing deletes, finds and changes nothing: it is refused.

use serde_json::{Value, json};

use crate::support::Daemon;

const EMPTY: [&str; 6] = ["null", "\"\"", "[]", "{}", "[\"\"]", "[\"a\",null]"];

/// Two items that every careless call below would take.
fn filled() -> Daemon {
    let daemon = Daemon::start();
    for (text, kind) in [
        ("the build needs a newer compiler", "issue"),
        ("tests run in CI", "general"),
    ] {
        let stored = json!({"text": text, "type": kind, "agent": "a", "session_id": "s", "metadata": {"k": 1}});
        daemon.call("knowledge.store", stored);
    }
    daemon
}

#[test]
fn what_was_computed_and_came_out_as_nothing_is_refused_and_changes_nothing() {
    let daemon = filled();
    let mut connection = daemon.connect();
    let calls = [
        (
            "knowledge.delete",
            json!({}),
            &["id", "ids", "type", "agent", "session_id", "since", "until", "metadata"][..],
        ),
        (
            "knowledge.delete",
            json!({"type": "issue"}),
            &["agent", "session_id", "since", "until", "metadata"],
        ),
        (
            "knowledge.cleanup",
            json!({"older_than_days": 0, "dry_run": false}),
            &["type", "agent", "session_id", "since", "until", "metadata"],
        ),
        ("knowledge.purge", json!({"confirm": true}), &["id", "ids"]),
        ("knowledge.undelete", json!({}), &["undo_token", "ids"]),
        (
            "knowledge.search",
            json!({"query": "build"}),
            &["type", "agent", "session_id", "metadata", "projects"],
        ),
        (
            "knowledge.list",
            json!({}),
            &["type", "agent", "session_id", "metadata"],
        ),
        ("knowledge.get", json!({}), &["id", "ids"]),
        ("knowledge.similar", json!({}), &["id"]),
        ("knowledge.history", json!({}), &["id"]),
        ("knowledge.update", json!({"text": "x"}), &["id"]),
        ("knowledge.stats", json!({}), &["project_id"]),
        ("admin.restore", json!({"path": "/nowhere"}), &["project_id"]),
    ];
    for (method, others, parameters) in calls {
        for parameter in parameters {
            for empty in EMPTY {
                let mut params = others.clone();
                params[*parameter] = serde_json::from_str(empty).unwrap();
                let error = connection.call_error(method, params.clone());
                assert_eq!(error["code"], -32602, "{method} {params}: {error}");
                let named = error["data"]["parameter"].as_str().unwrap_or_default();
                assert!(named.starts_with(parameter), "{method} {params}: {error}");
            }
        }
    }
    for metadata in [json!({"k": null}), json!({"k": 1, "l": null})] {
        let error = connection.call_error("knowledge.delete", json!({"metadata": metadata}));
        assert_eq!(error["data"]["parameter"], "metadata", "{error}");
    }
    assert_eq!(connection.call("knowledge.stats", json!({}))["total"], 2);
    // The same calls with something in them do what they say.
    let deleted = connection.call(
        "knowledge.delete",
        json!({"type": "issue", "agent": ["a"], "metadata": {"k": 1}}),
    );
    assert_eq!(deleted["deleted"], 1);
}

#[test]
fn an_id_named_twice_counts_once() {
    let daemon = filled();
    let id = daemon.store("an item that is asked for again and again");
    let many = vec![id.clone(); 1_000];
    let found = daemon.call("knowledge.get", json!({ "ids": many }));
    assert_eq!(found["results"].as_array().unwrap().len(), 1);
    assert_eq!(found["missing"], json!([]));
    let missing = daemon.call("knowledge.get", json!({"ids": ["x", "x"]}));
    assert_eq!(missing["missing"], json!(["x"]));
    let deleted = daemon.call("knowledge.delete", json!({ "ids": many }));
    assert_eq!((&deleted["deleted"], &deleted["ids"]), (&json!(1), &json!([id])));
}

#[test]
fn empty_flags_are_usage_errors() {
    let daemon = filled();
    for arguments in [
        &["delete", "--agent", "", "--yes"][..],
        &["delete", "--type", "issue", "--agent", "", "--yes"],
        &["delete", "--type", "issue", "--session=", "--yes"],
        &["delete", "--type", "issue", "--meta", "{}", "--yes"],
        &["delete", "--type", "issue", "--meta", r#"{"k":null}"#, "--yes"],
        &["delete", "", "--yes"],
        &["cleanup", "--older-than", "0", "--agent", "", "--apply", "--yes"],
        &["undelete", "--undo", ""],
        &["purge", "", "--yes"],
        &["get", ""],
        &["search", "build", "--agent", ""],
        &["list", "--since", ""],
    ] {
        let output = daemon.home.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    }
    assert_eq!(daemon.call("knowledge.stats", json!({}))["total"], 2);
}

#[test]
fn a_deadline_counts_for_parameters_by_place_as_well() {
    let daemon = filled();
    let ask = |parameters: &str| {
        let output = daemon
            .home
            .run(&["--json", "--timeout", "0.001", "rpc", "knowledge.search", parameters]);
        let text = String::from_utf8(output.stderr).unwrap();
        serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))["error"]["code"].clone()
    };
    for parameters in [r#"{"query":"build"}"#, r#"["build"]"#] {
        assert_eq!(ask(parameters), -32050, "{parameters}");
    }
}
