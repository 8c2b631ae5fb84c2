//! Bad input gets a clear error with the parameter's name, and the daemon goes on.

use serde_json::{Value, json};

use crate::support::Daemon;

fn many_keys(count: usize) -> Value {
    (0..count)
        .map(|number| (format!("key{number}"), json!(number)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[test]
fn the_largest_filters_that_are_allowed_are_answered() {
    let daemon = Daemon::start();
    daemon.call(
        "knowledge.store",
        json!({"text": "x", "metadata": many_keys(32), "agent": "a7"}),
    );
    let agents: Vec<String> = (0..256).map(|number| format!("a{number}")).collect();
    let filters = json!({"query": "x", "metadata": many_keys(32), "agent": agents, "mode": "text"});
    assert_eq!(daemon.call("knowledge.search", filters)["count"], 1);
    let query = "word ".repeat(3_200);
    assert_eq!(
        daemon.call("knowledge.search", json!({"query": query}))["mode"],
        "hybrid"
    );
}

#[test]
fn bad_parameters_are_named() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect();
    let long_key = "k".repeat(10_000);
    let deep = (0..200).fold(json!(1), |inner, _| json!({ "x": inner }));
    let cases: Vec<(&str, Value, &str)> = vec![
        ("knowledge.store", json!({}), "text"),
        ("knowledge.store", json!({"text": ""}), "text"),
        ("knowledge.store", json!({"text": " \n\t "}), "text"),
        ("knowledge.store", json!({"text": 5}), "text"),
        ("knowledge.store", json!({"text": null}), "text"),
        ("knowledge.store", json!({"text": "x".repeat(1_000_001)}), "text"),
        ("knowledge.store", json!({"text": "x", "type": "bug"}), "type"),
        ("knowledge.store", json!({"text": "x", "typ": "issue"}), "typ"),
        ("knowledge.store", json!({"text": "x", "metadata": []}), "metadata"),
        (
            "knowledge.store",
            json!({"text": "x", "metadata": {"x": "y".repeat(70_000)}}),
            "metadata",
        ),
        ("knowledge.store", json!({"text": "x", "id": ""}), "id"),
        ("knowledge.store", json!({"text": "x", "id": long_key}), "id"),
        ("knowledge.store", json!({"text": "x", "agent": "a\u{0}b"}), "agent"),
        (
            "knowledge.store",
            json!({"text": "x", "project_id": "../x"}),
            "project_id",
        ),
        ("knowledge.store", json!({"text": "x", "project_id": ""}), "project_id"),
        (
            "knowledge.store",
            json!({"text": "x", "project_id": "a/b"}),
            "project_id",
        ),
        ("knowledge.store", json!({"text": "x", "timeout_ms": 0}), "timeout_ms"),
        (
            "knowledge.store",
            json!({"text": "x", "on_duplicate": "maybe"}),
            "on_duplicate",
        ),
        ("knowledge.store_batch", json!({"items": {}}), "items"),
        (
            "knowledge.store_batch",
            json!({"items": vec![json!({"text": "x"}); 1_001]}),
            "items",
        ),
        ("knowledge.search", json!({"query": ""}), "query"),
        ("knowledge.search", json!({"query": "x", "limit": 0}), "limit"),
        ("knowledge.search", json!({"query": "x", "limit": 101}), "limit"),
        ("knowledge.search", json!({"query": "x", "limit": 1e30}), "limit"),
        ("knowledge.search", json!({"query": "x", "limit": -1}), "limit"),
        (
            "knowledge.search",
            json!({"query": "x", "offset": 4_000_000_000_u32}),
            "offset",
        ),
        ("knowledge.search", json!({"query": "x", "mode": "magic"}), "mode"),
        ("knowledge.search", json!({"query": "x", "threshold": 2}), "threshold"),
        ("knowledge.search", json!({"query": "x", "since": "yesterday"}), "since"),
        (
            "knowledge.search",
            json!({"query": "x", "projects": ["a", "../b"]}),
            "projects",
        ),
        (
            "knowledge.search",
            json!({"query": "x", "projects": [], "limit": 3}),
            "projects",
        ),
        ("knowledge.search", json!({"query": "long ".repeat(4_000)}), "query"),
        (
            "knowledge.search",
            json!({"query": "x", "agent": vec!["a"; 257]}),
            "agent",
        ),
        (
            "knowledge.search",
            json!({"query": "x", "projects": vec!["a"; 257]}),
            "projects",
        ),
        (
            "knowledge.search",
            json!({"query": "x", "metadata": many_keys(33)}),
            "metadata",
        ),
        ("knowledge.list", json!({"metadata": many_keys(5_000)}), "metadata"),
        ("knowledge.list", json!({"limit": 1001}), "limit"),
        ("knowledge.list", json!({"order": "random"}), "order"),
        ("knowledge.get", json!({}), "id"),
        ("embedding.embed", json!({"texts": "x"}), "texts"),
        ("admin.health", json!({"depe": true}), "depe"),
    ];
    for (method, params, parameter) in cases {
        let shown: String = params.to_string().chars().take(120).collect();
        let error = connection.call_error(method, params);
        assert_eq!(error["code"], -32602, "{method} {shown}: {error}");
        assert_eq!(error["data"]["parameter"], parameter, "{method} {shown}: {error}");
        assert_eq!(error["data"]["retryable"], false);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(parameter), "{method} {shown}: {message}");
    }
    let error = connection.call_error("knowledge.store", json!({"text": "x", "type": "bug"}));
    for kind in ["decision", "architecture", "system"] {
        assert!(
            error["message"].as_str().unwrap().contains(kind),
            "the valid values are named: {error}"
        );
    }
    let error = connection.call_error("knowledge.store", json!({"text": "x", "agnet": "a"}));
    assert!(
        error["message"].as_str().unwrap().contains("agent"),
        "the nearest name is given: {error}"
    );
    assert_eq!(connection.call_error("knowledge.stroe", json!({}))["code"], -32601);
    assert_eq!(
        connection.call_error("knowledge.delete", json!({"id": "x", "type": "issue"}))["code"],
        -32602
    );

    // Deeper than the limit: an error without an id, for the id may be too deep as well.
    let mut other = daemon.connect();
    other.send(format!(
        "{}\n",
        json!({"jsonrpc": "2.0", "id": 1, "method": "knowledge.store", "params": {"text": "x", "metadata": deep}})
    ));
    let refused = other.receive().unwrap();
    assert!(refused["error"]["code"].as_i64().unwrap() < 0, "{refused}");

    assert_eq!(
        connection.call("knowledge.stats", json!({}))["total"],
        0,
        "nothing of all that was stored"
    );
    assert_eq!(connection.call("admin.health", json!({}))["status"], "ok");
}

#[test]
fn broken_lines_get_an_error_and_the_connection_goes_on() {
    let daemon = Daemon::start();
    let ping = r#"{"jsonrpc":"2.0","id":"ping","method":"admin.health"}"#;
    for (line, code) in [
        ("this is not json", -32700),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"knowledge.store","params":{"text":NaN}}"#,
            -32700,
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"knowledge.store","params":{"text":"\ud800"}}"#,
            -32602,
        ),
        (r#"{"jsonrpc":"2.0","id":{},"method":"admin.health"}"#, -32600),
        (r#"{"id":1,"method":"admin.health"}"#, -32600),
        ("[]", -32600),
        ("42", -32600),
    ] {
        let mut connection = daemon.connect();
        connection.send(format!("{line}\n"));
        let refused = connection.receive().unwrap();
        let got = refused["error"]["code"].as_i64().unwrap();
        // A lone surrogate may be refused by the syntax or by the parameter.
        assert!(
            got == code || (line.contains("ud800") && got == -32700),
            "{line}: {refused}"
        );
        connection.send(format!("{ping}\n"));
        assert_eq!(connection.receive().unwrap()["id"], "ping", "after {line}");
    }

    // A line over the limit of 16 MiB.
    let mut connection = daemon.connect();
    let request = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"knowledge.store","params":{{"text":"{}"}}}}"#,
        "x".repeat(17 * 1024 * 1024)
    );
    connection.send(request);
    connection.send(format!("\n{ping}\n"));
    let refused = connection.receive().unwrap();
    assert_eq!(refused["error"]["code"], -32007, "{refused}");
    assert_eq!(connection.receive().unwrap()["id"], "ping");
}
