//! What one client may leave in the daemon's memory.

use super::support::*;
use ccod_protocol::limits::Limits;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

const MIB: usize = 1 << 20;

fn large(id: impl Into<Value>, bytes: usize) -> Value {
    request(
        id,
        "knowledge.history",
        json!({ "id": bytes.to_string(), "timeout_ms": 600_000 }),
    )
}

/// Gives the daemon every chance to do more: by the last answer it has been through its loops many times.
async fn settle(daemon: &Daemon) {
    let mut wire = daemon.connect().await;
    for id in 0..200 {
        assert_eq!(wire.call(&echo(id, json!([]))).await, result(id, json!([])));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn answers_of_batches_that_are_not_read_do_not_pile_up() {
    let daemon = Daemon::with(Limits {
        // More than four batches answer: the places of batches bound what begins here, whoever is quicker.
        max_response_bytes: 5 * MIB,
        max_queued_bytes: 64 * MIB,
        write_timeout_ms: 60_000,
        ..quick()
    });
    let mut wire = daemon.connect().await;
    for id in 0..100 {
        let batch = json!([large(2 * id, MIB / 2), large(2 * id + 1, MIB / 2)]);
        wire.send(format!("{batch}\n")).await;
    }
    daemon
        .rig
        .until("four batches have begun", |rig| rig.large.load(Ordering::SeqCst) >= 8)
        .await;
    settle(&daemon).await;
    assert_eq!(daemon.rig.large.load(Ordering::SeqCst), 8, "the others wait");
    assert!(daemon.stats.snapshot().bytes_queued <= 5 * MIB as u64);
    // A client that reads gets all of it.
    wire.end_input().await;
    let lines = wire.rest().await;
    assert_eq!(lines.len(), 100);
    for line in &lines {
        for answer in line.as_array().unwrap() {
            assert_eq!(
                answer["result"].as_str().map(str::len),
                Some(MIB / 2),
                "{}",
                answer["error"]
            );
        }
    }
    daemon
        .rig
        .until("nothing is kept", |_| daemon.stats.snapshot().bytes_queued == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_batch_longer_than_there_are_places_ends_with_one_place_too() {
    let daemon = Daemon::with(Limits {
        max_in_flight_per_connection: 1,
        ..quick()
    });
    let mut wire = daemon.connect().await;
    for round in 0..6 {
        let batch: Vec<Value> = (0..20).map(|id| echo(id, json!([round]))).collect();
        wire.send(format!("{}\n", json!(batch))).await;
    }
    wire.end_input().await;
    let lines = wire.rest().await;
    assert_eq!(lines.len(), 6);
    assert!(lines.iter().all(|line| line.as_array().unwrap().len() == 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn many_connections_that_do_not_read_are_bounded_together() {
    let daemon = Daemon::with(Limits {
        max_response_bytes: 2 * MIB,
        max_queued_bytes: 3 * MIB + MIB / 2,
        write_timeout_ms: 60_000,
        ..quick()
    });
    let mut silent = Vec::new();
    for number in 0..3 {
        let mut wire = daemon.connect().await;
        wire.send(format!("{}\n", large(number, MIB))).await;
        daemon
            .rig
            .until("its answer waits", |_| {
                daemon.stats.snapshot().bytes_queued >= (number as u64 + 1) * MIB as u64 - 1
                    || daemon.stats.snapshot().errors.contains_key("busy")
            })
            .await;
        silent.push(wire);
    }
    let mut other = daemon.connect().await;
    let answer = other.call(&large("l", MIB)).await;
    refused(&answer, &json!("l"), -32009);
    assert_eq!(answer["error"]["data"]["executed"], false);
    // What is small passes, and so does what a write says, whatever its size.
    assert_eq!(other.call(&echo(1, json!([]))).await, result(1, json!([])));
    let deleted = other
        .call(&request(2, "knowledge.delete", json!({ "agent": "20000" })))
        .await;
    assert_eq!(deleted["result"]["undo_token"], "token", "{deleted}");
    drop(silent);
    daemon
        .rig
        .until("nothing is kept", |_| daemon.stats.snapshot().bytes_queued == 0)
        .await;
    assert!(other.call(&large("l", MIB)).await["result"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn large_calls_in_flight_are_bounded_together() {
    let daemon = Daemon::with(Limits {
        max_message_bytes: MIB,
        max_buffered_bytes: MIB,
        ..quick()
    });
    let text = "x".repeat(600_000);
    let mut first = daemon.connect().await;
    first
        .send(format!("{}\n", request(1, "test.hold", json!([text]))))
        .await;
    daemon.rig.begun(1).await;
    let mut second = daemon.connect().await;
    let answer = second.call(&request(2, "test.hold", json!([text]))).await;
    refused(&answer, &json!(2), -32009);
    assert_eq!(second.call(&echo(3, json!([]))).await, result(3, json!([])));
    daemon.rig.gate.add_permits(2);
    assert!(first.line().await.unwrap()["result"].is_array());
    assert!(second.call(&request(4, "test.hold", json!([text]))).await["result"].is_array());
    daemon
        .rig
        .until("nothing is kept", |_| daemon.stats.snapshot().bytes_in_flight == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_write_whose_answer_is_too_large_says_what_it_did() {
    let daemon = Daemon::with(Limits {
        max_response_bytes: 100_000,
        ..quick()
    });
    let delete = |id: i64, count: &str| request(id, "knowledge.delete", json!({ "agent": count }));
    let says_what_it_did = |answer: &Value, id: i64| {
        refused(answer, &json!(id), -32008);
        let data = &answer["error"]["data"];
        assert_eq!(data["executed"], true, "{answer}");
        assert_eq!(data["undo_token"], "token", "{answer}");
        assert_eq!(data["version"], 7, "{answer}");
        assert!(data["deleted"].is_u64() && data.get("ids").is_none(), "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("the call was carried out"), "{message}");
    };
    let mut wire = daemon.connect().await;
    says_what_it_did(&wire.call(&delete(1, "5000")).await, 1);
    assert_eq!(wire.call(&delete(2, "10")).await["result"]["deleted"], 10);
    // In a batch that grew too large, whichever comes first.
    let batch = json!([
        request(1, "test.big", json!({ "bytes": 90_000 })),
        delete(2, "1000"),
        delete(3, "3")
    ]);
    let answers = wire.call(&batch).await;
    assert!(answers[0]["result"].is_string());
    says_what_it_did(&answers[1], 2);
    assert_eq!(answers[2]["result"]["deleted"], 3);
    // A read has done nothing.
    let read = wire.call(&large(4, 200_000)).await;
    refused(&read, &json!(4), -32008);
    assert!(read["error"]["data"].get("executed").is_none(), "{read}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_list_of_millions_is_refused_before_it_is_built() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    let zeros = vec!["0"; 4_000_000].join(",");
    wire.send(format!("[{zeros}]\n")).await;
    refused(&wire.line().await.unwrap(), &Value::Null, -32010);
    wire.send(format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"rpc.cancel","params":{{"id":[{zeros}]}}}}"#
    ))
    .await;
    refused(&wire.line().await.unwrap(), &json!(1), -32602);
    wire.send(format!(
        r#"{{"jsonrpc":"2.0","id":2,"method":"knowledge.search","params":{{"query":"q","agent":[{zeros}]}}}}"#
    ))
    .await;
    refused(&wire.line().await.unwrap(), &json!(2), -32602);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_cancellation_behind_more_requests_than_there_are_places_is_seen() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    for id in 0..100 {
        wire.send(format!("{}\n", request(id, "test.hold", json!([id])))).await;
    }
    daemon.rig.begun(32).await;
    // One that runs, and one that waits.
    wire.send(format!("{}\n", request("a", "rpc.cancel", json!([5])))).await;
    wire.send(format!("{}\n", request("b", "rpc.cancel", json!([70]))))
        .await;
    let mut lines = Vec::new();
    for _ in 0..4 {
        lines.push(wire.line().await.unwrap());
    }
    let find = |id: Value| {
        lines
            .iter()
            .find(|line| line["id"] == id)
            .unwrap_or_else(|| panic!("{id}: {lines:?}"))
    };
    assert_eq!(find(json!("a"))["result"]["cancelled"], 1);
    assert_eq!(find(json!("b"))["result"]["cancelled"], 1);
    refused(find(json!(5)), &json!(5), -32027);
    refused(find(json!(70)), &json!(70), -32027);
    assert_eq!(find(json!(70))["error"]["data"]["executed"], false);
    // The place that became free went to the next, and the one that waited is never run.
    daemon.rig.begun(33).await;
    daemon.rig.gate.add_permits(100);
    for _ in 0..98 {
        assert!(wire.line().await.unwrap()["result"].is_array());
    }
    assert_eq!(daemon.rig.begun.load(Ordering::SeqCst), 99);
}
