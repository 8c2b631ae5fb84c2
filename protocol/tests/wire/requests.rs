//! Requests, ids, batches, notifications, errors, deadlines.

use super::support::*;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use tokio::io::AsyncReadExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn ids_come_back_byte_for_byte() {
    let daemon = Daemon::start();
    for id in [
        "1",
        "0",
        "-1",
        "-9007199254740993",
        "123456789012345678901234567890",
        "18446744073709551615",
        "1.5",
        "1e2",
        "\"a\"",
        "\"\"",
        "\"\\u0041\\n\\\"\"",
        "\"é\"",
        "\"\\ud83d\\ude00\"",
        "null",
    ] {
        for (method, outcome) in [
            ("test.echo", "\"result\":[7]}\n"),
            ("no.such", "\"error\":{\"code\":-32601,"),
        ] {
            let mut wire = daemon.connect().await;
            wire.send(format!(
                r#"{{"method":"{method}","params":[7],"id": {id} ,"jsonrpc":"2.0"}}"#
            ))
            .await;
            wire.end_input().await;
            let mut answer = String::new();
            within(wire.stream.read_to_string(&mut answer)).await.unwrap();
            let head = format!(r#"{{"jsonrpc":"2.0","id":{id},"#);
            assert!(answer.starts_with(&format!("{head}{outcome}")), "{answer}");
            assert_eq!(answer.matches('\n').count(), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_is_no_request_is_said_so() {
    let daemon = Daemon::start();
    for input in [
        "1",
        "\"x\"",
        "true",
        "null",
        "{}",
        r#"{"id":1,"method":"test.echo"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"test.echo"}"#,
        r#"{"jsonrpc":"2.0","id":true,"method":"test.echo"}"#,
        r#"{"jsonrpc":"2.0","id":[1],"method":"test.echo"}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"test.echo"}"#,
    ] {
        let answers = daemon.ask(format!("{input}\n")).await;
        assert_eq!(answers.len(), 1, "{input}");
        refused(&answers[0], &Value::Null, -32600);
    }
    let answer = daemon
        .connect()
        .await
        .call(&json!({ "jsonrpc": "2.0", "id": 3, "method": 5 }))
        .await;
    refused(&answer, &json!(3), -32600);
    let answer = daemon
        .connect()
        .await
        .call(&request(4, "test.echo", json!("text")))
        .await;
    refused(&answer, &json!(4), -32602);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn unknown_methods_name_the_nearest() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    let answer = wire.call(&request(1, "knowledge.serch", json!({}))).await;
    refused(&answer, &json!(1), -32601);
    assert_eq!(answer["error"]["data"]["nearest"], "knowledge.search");
    // Nothing is like it, and what could do harm is not offered for that.
    let answer = wire.call(&request(3, "admin.nope", json!({}))).await;
    refused(&answer, &json!(3), -32601);
    assert_eq!(answer["error"]["data"].get("nearest"), None, "{answer}");
    let long = "x".repeat(100_000);
    let answer = wire.call(&request(2, &long, json!({}))).await;
    refused(&answer, &json!(2), -32601);
    assert!(answer.to_string().len() < 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn parameters_are_checked_by_name() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    for (params, name) in [
        (json!({ "query": "q", "limt": 3 }), "limt"),
        (json!({ "query": "q", "limit": 1_000_000 }), "limit"),
        (json!({ "query": 3 }), "query"),
        (json!({ "query": "q", "project_id": "../x" }), "project_id"),
        (json!({ "query": "q", "timeout_ms": 0 }), "timeout_ms"),
    ] {
        let answer = wire.call(&request(1, "knowledge.search", params)).await;
        refused(&answer, &json!(1), -32602);
        assert_eq!(answer["error"]["data"]["parameter"], name);
    }
    wire.send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"knowledge.search\",\"params\":{\"query\":\"\\ud800\"}}\n")
        .await;
    let answer = wire.line().await.unwrap();
    refused(&answer, &json!(2), -32602);
    assert_eq!(answer["error"]["data"]["parameter"], "query");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn pipelined_calls_overtake_each_other() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    wire.send(format!("{}\n", request("slow", "test.hold", json!(["slow"]))))
        .await;
    daemon.rig.begun(1).await;
    let batch: String = (0..20).map(|id| echo(id, json!([id])).to_string()).collect();
    wire.send(batch).await;
    let mut seen: Vec<i64> = Vec::new();
    for _ in 0..20 {
        let answer = wire.line().await.unwrap();
        assert_eq!(answer["result"][0], answer["id"]);
        seen.push(answer["id"].as_i64().unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
    daemon.rig.gate.add_permits(1);
    assert_eq!(wire.line().await.unwrap(), result("slow", json!(["slow"])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn notifications_run_and_say_nothing() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    for method in ["test.hold", "no.such", "test.panic", "test.error"] {
        wire.send(format!("{}\n", json!({ "jsonrpc": "2.0", "method": method })))
            .await;
    }
    wire.send("{\"jsonrpc\":\"2.0\",\"method\":\"test.echo\",\"params\":5}\n")
        .await;
    assert_eq!(wire.call(&echo(1, json!([]))).await, result(1, json!([])));
    daemon.rig.begun(1).await;
    // Its sender leaves; it goes on.
    drop(wire);
    daemon
        .rig
        .until("the connection closes", |_| {
            daemon.stats.snapshot().connections_open == 0
        })
        .await;
    assert_eq!(daemon.rig.dropped.load(Ordering::SeqCst), 0);
    daemon.rig.gate.add_permits(1);
    let report = daemon.stop().await;
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn batches_answer_in_their_order() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    let batch = json!([
        request(1, "test.hold", json!(["held"])),
        echo(2, json!(["echo"])),
        { "jsonrpc": "2.0", "method": "test.echo" },
        17,
        request(3, "no.such", json!([])),
        request(4, "test.panic", json!([])),
        { "jsonrpc": "2.0", "id": true, "method": "test.echo" },
        echo(-5, json!([])),
    ]);
    wire.send(format!("{batch}\n")).await;
    daemon.rig.begun(1).await;
    daemon.rig.gate.add_permits(1);
    let answer = wire.line().await.unwrap();
    let answers = answer.as_array().unwrap();
    assert_eq!(answers.len(), 7, "{answer:#}");
    assert_eq!(answers[0], result(1, json!(["held"])));
    assert_eq!(answers[1], result(2, json!(["echo"])));
    refused(&answers[2], &Value::Null, -32600);
    refused(&answers[3], &json!(3), -32601);
    refused(&answers[4], &json!(4), -32603);
    refused(&answers[5], &Value::Null, -32600);
    assert_eq!(answers[6], result(-5, json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn odd_batches() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    wire.send("[]\n").await;
    refused(&wire.line().await.unwrap(), &Value::Null, -32600);
    let notifications = json!([{ "jsonrpc": "2.0", "method": "test.echo" }, { "jsonrpc": "2.0", "method": "no.such" }]);
    wire.send(format!("{notifications}\n")).await;
    let many: Vec<Value> = (0..33).map(|id| echo(id, json!([]))).collect();
    wire.send(format!("{}\n", json!(many))).await;
    // The batch of notifications wrote nothing: this is the next line.
    refused(&wire.line().await.unwrap(), &Value::Null, -32010);
    wire.send(format!("{}\n", json!(&many[..32]))).await;
    assert_eq!(wire.line().await.unwrap().as_array().unwrap().len(), 32);
    for (input, expected) in [("[1,2]\n", 2), ("[[1]]\n", 1)] {
        wire.send(input).await;
        let answers = wire.line().await.unwrap();
        assert_eq!(answers.as_array().unwrap().len(), expected);
        for answer in answers.as_array().unwrap() {
            refused(answer, &Value::Null, -32600);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_panic_keeps_the_id_and_the_daemon() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    for method in ["test.panic", "test.panic_sync"] {
        let answer = wire.call(&request("p", method, json!({}))).await;
        refused(&answer, &json!("p"), -32603);
        assert!(!answer.to_string().contains("secret"));
    }
    assert_eq!(wire.call(&echo(2, json!([]))).await, result(2, json!([])));
    assert_eq!(daemon.stats.snapshot().panics, 2);
    assert_eq!(
        wire.call(&request(3, "test.sync", json!([1]))).await,
        result(3, json!("[1]"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn results_and_errors_of_methods() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    assert_eq!(
        wire.call(&request(1, "test.pretty", json!({}))).await,
        result(1, json!({ "a": [1] }))
    );
    refused(
        &wire.call(&request(2, "test.error", json!({}))).await,
        &json!(2),
        -32020,
    );
    let foreign = wire.call(&request(3, "test.foreign_error", json!({}))).await;
    refused(&foreign, &json!(3), -32000);
    let snapshot = daemon.stats.snapshot();
    assert_eq!(
        (snapshot.requests, snapshot.errors["not_found"], snapshot.in_flight),
        (3, 1, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn methods_know_their_caller() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    let context = wire
        .call(&request("a", "test.context", json!({ "timeout_ms": 1234 })))
        .await;
    let context = &context["result"];
    assert_eq!(context["uid"], nix::unistd::geteuid().as_raw());
    assert_eq!(context["pid"], std::process::id());
    assert_eq!(context["timeout_ms"], 1234);
    assert_eq!(context["request_id"], "\"a\"");
    let again = wire.call(&request(-1, "test.context", json!({}))).await;
    assert_eq!(
        (&again["result"]["timeout_ms"], &again["result"]["request_id"]),
        (&json!(10_000), &json!("-1"))
    );
    let other = daemon
        .connect()
        .await
        .call(&request(1, "test.context", json!({})))
        .await;
    assert_ne!(other["result"]["connection"], context["connection"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn deadlines_are_kept_for_methods_that_do_not() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    let read = wire
        .call(&request(1, "knowledge.stats", json!({ "timeout_ms": 300 })))
        .await;
    refused(&read, &json!(1), -32050);
    assert_eq!(read["error"]["data"]["executed"], false);
    let write = wire
        .call(&request(2, "knowledge.undelete", json!({ "timeout_ms": 300 })))
        .await;
    refused(&write, &json!(2), -32050);
    assert_eq!(write["error"]["data"]["executed"], "unknown");
    // The place is free again: the futures are gone.
    assert_eq!(daemon.rig.dropped.load(Ordering::SeqCst), 2);
    assert_eq!(daemon.stats.snapshot().in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_call_can_be_cancelled_by_its_id() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    wire.send(format!("{}\n", request("a", "test.until_cancelled", json!({}))))
        .await;
    wire.send(format!("{}\n", request(-7, "test.hold", json!({})))).await;
    daemon.rig.begun(2).await;
    assert_eq!(
        wire.call(&request(1, "rpc.cancel", json!({ "id": "b" }))).await,
        result(1, json!({ "cancelled": 0 }))
    );
    // Escaped otherwise, it is the same id.
    wire.send("{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"rpc.cancel\",\"params\":{\"id\":\"\\u0061\"}}\n")
        .await;
    let mut answers = [wire.line().await.unwrap(), wire.line().await.unwrap()];
    answers.sort_by_key(|answer| answer["id"] == "a");
    assert_eq!(answers[0], result(2, json!({ "cancelled": 1 })));
    refused(&answers[1], &json!("a"), -32027);
    // One that does not listen is dropped after the grace.
    wire.send(format!("{}\n", request(3, "rpc.cancel", json!([-7])))).await;
    let mut answers = [wire.line().await.unwrap(), wire.line().await.unwrap()];
    answers.sort_by_key(|answer| answer["id"] == -7);
    assert_eq!(answers[0], result(3, json!({ "cancelled": 1 })));
    refused(&answers[1], &json!(-7), -32027);
    assert_eq!(daemon.rig.dropped.load(Ordering::SeqCst), 1);
    refused(
        &wire.call(&request(4, "rpc.cancel", json!({}))).await,
        &json!(4),
        -32602,
    );
    // Another connection's calls are out of reach.
    wire.send(format!("{}\n", request(5, "test.until_cancelled", json!({}))))
        .await;
    daemon.rig.begun(3).await;
    let other = daemon
        .connect()
        .await
        .call(&request(1, "rpc.cancel", json!({ "id": 5 })))
        .await;
    assert_eq!(other, result(1, json!({ "cancelled": 0 })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_client_that_leaves_takes_its_calls_with_it() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    wire.send(format!("{}\n", request(1, "test.hold", json!({})))).await;
    daemon.rig.begun(1).await;
    drop(wire);
    daemon
        .rig
        .until("the call is dropped", |rig| rig.dropped.load(Ordering::SeqCst) == 1)
        .await;
    daemon
        .rig
        .until("it is not in flight", |_| daemon.stats.snapshot().in_flight == 0)
        .await;
    // Also while nothing is read because all places are taken.
    let mut wire = daemon.connect().await;
    for id in 0..40 {
        wire.send(format!("{}\n", request(id, "test.hold", json!({})))).await;
    }
    daemon.rig.begun(33).await;
    drop(wire);
    daemon
        .rig
        .until("all are dropped", |rig| rig.dropped.load(Ordering::SeqCst) == 33)
        .await;
    assert_eq!(
        daemon.connect().await.call(&echo(1, json!([]))).await,
        result(1, json!([]))
    );
    assert!(daemon.stop().await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn progress_names_the_request() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    let progress = wire.call(&request("x", "test.progress", json!({}))).await;
    assert_eq!(
        progress,
        json!({ "jsonrpc": "2.0", "method": "rpc.progress", "params": { "request_id": "x", "done": 1, "total": 2, "message": "half" } })
    );
    assert_eq!(wire.line().await.unwrap(), result("x", Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn subscriptions_answer_first_and_end_with_their_connection() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    let answer = wire.call(&request(1, "knowledge.subscribe", json!({}))).await;
    assert_eq!(answer, result(1, json!({ "subscription": "sub-1", "cursor": "c0" })));
    for number in 1..=3 {
        let change = wire.line().await.unwrap();
        assert_eq!(change["params"]["subscription"], "sub-1");
        assert_eq!(change["params"]["result"]["cursor"], format!("c{number}"));
    }
    for expected in [true, false] {
        let answer = wire.call(&request(2, "knowledge.unsubscribe", json!(["sub-1"]))).await;
        assert_eq!(answer, result(2, json!(expected)));
    }
}
