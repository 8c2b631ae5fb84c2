//! `trace_id`: the caller's own name for a call, found again in its error, in the log and in the answer of `explain`.

use serde_json::{Value, json};

use crate::support::Daemon;

#[test]
fn a_trace_id_stands_in_the_error_and_in_the_log() {
    let daemon = Daemon::start();
    let mut connection = daemon.connect();
    for (number, (method, params, code)) in [
        ("knowledge.get", json!({"id": "unknown-1-00000000"}), -32020),
        ("knowledge.search", json!({"query": "q", "limit": 0}), -32602),
        ("knowledge.serch", json!({}), -32601),
        ("knowledge.store", json!({"text": ""}), -32602),
    ]
    .into_iter()
    .enumerate()
    {
        let trace = format!("trace-{number}");
        let mut params = params;
        params["trace_id"] = json!(trace);
        let error = connection.call_error(method, params.clone());
        assert_eq!(
            (&error["code"], &error["data"]["trace_id"]),
            (&json!(code), &json!(trace))
        );
        // In a batch each answer has its own.
        let request = |id, trace: &str| {
            let mut params = params.clone();
            params["trace_id"] = json!(trace);
            json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        };
        connection.send(format!("{}\n", json!([request(1, "one"), request(2, "two")])));
        let answers = connection.receive().unwrap();
        let traces: Vec<&Value> = (0..2)
            .map(|place| &answers[place]["error"]["data"]["trace_id"])
            .collect();
        assert_eq!(traces, [&json!("one"), &json!("two")], "{answers}");
    }
    // Without one there is none, and a call that succeeds has nothing of it.
    let error = connection.call_error("knowledge.get", json!({"id": "unknown-1-00000000"}));
    assert!(error["data"].get("trace_id").is_none(), "{error}");
    for absent in [json!(null), json!("")] {
        connection.call("knowledge.list", json!({"trace_id": absent}));
    }
    for wrong in [json!(7), json!(["a"]), json!("x".repeat(257))] {
        let error = connection.call_error("knowledge.list", json!({"trace_id": wrong}));
        assert_eq!(
            (&error["code"], &error["data"]["parameter"]),
            (&json!(-32602), &json!("trace_id"))
        );
    }
    connection.call("knowledge.store", json!({"text": "a needle", "trace_id": "stored"}));
    let found = connection.call(
        "knowledge.search",
        json!({"query": "needle", "explain": true, "trace_id": "found"}),
    );
    assert_eq!(found["results"][0]["explain"]["trace_id"], "found", "{found}");

    // A line of the log is a line whatever the name is.
    let nasty = "a\n2026-01-01T00:00:00Z ERROR forged";
    let error = connection.call_error("knowledge.get", json!({"id": "unknown-1-00000000", "trace_id": nasty}));
    assert_eq!(error["data"]["trace_id"], nasty);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("trace-0")).expect("it is logged");
    assert!(line.contains("knowledge.get") && line.contains("not_found"), "{line}");
    assert!(log.contains(r"a\n2026-01-01T00:00:00Z ERROR forged"), "{log}");
    assert!(
        !log.lines()
            .any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR forged"))
    );
}
