//! What is too much, and what becomes of it.

use super::support::*;
use ccod_protocol::limits::Limits;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_oversized_request_and_then_a_valid_one() {
    let daemon = Daemon::with(Limits {
        max_message_bytes: 4096,
        ..quick()
    });
    let large = echo(1, json!(["x".repeat(100_000)]));
    let answers = daemon.ask(format!("{large}\n{}\n", echo(2, json!([])))).await;
    assert_eq!(answers.len(), 2);
    refused(&answers[0], &Value::Null, -32007);
    assert_eq!(answers[1], result(2, json!([])));
    // Without an end in sight the answer comes all the same, and nothing is kept.
    let mut wire = daemon.connect().await;
    wire.send(format!("[\"{}", "x".repeat(100_000))).await;
    refused(&wire.line().await.unwrap(), &Value::Null, -32007);
    daemon
        .rig
        .until("nothing is kept", |_| daemon.stats.snapshot().bytes_buffered == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn deep_nesting_and_then_a_valid_request() {
    let daemon = Daemon::start();
    for depth in [65, 100_000] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let answers = daemon.ask(format!("{deep}\n{}\n", echo(2, json!([])))).await;
        assert_eq!(answers.len(), 2);
        refused(&answers[0], &Value::Null, -32600);
        assert_eq!(answers[1], result(2, json!([])));
    }
    let mut nested = json!(1);
    for _ in 0..62 {
        nested = json!([nested]);
    }
    let answers = daemon.ask(echo(1, json!([nested])).to_string()).await;
    assert_eq!(answers[0]["id"], 1);
    assert!(answers[0]["result"].is_array());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_oversized_response_is_an_error_with_its_id() {
    let daemon = Daemon::with(Limits {
        max_response_bytes: 4096,
        ..quick()
    });
    let mut wire = daemon.connect().await;
    refused(
        &wire.call(&request(1, "test.big", json!({ "bytes": 5000 }))).await,
        &json!(1),
        -32008,
    );
    let fits = wire.call(&request(2, "test.big", json!({ "bytes": 3000 }))).await;
    assert_eq!(fits["result"].as_str().unwrap().len(), 3000);
    // In a batch the others still get through.
    let batch = json!([
        request(1, "test.big", json!({ "bytes": 3000 })),
        request(2, "test.big", json!({ "bytes": 3000 })),
        echo(3, json!([])),
    ]);
    let answers = wire.call(&batch).await;
    assert!(answers[0]["result"].is_string());
    refused(&answers[1], &json!(2), -32008);
    assert_eq!(answers[2], result(3, json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_33rd_request_in_flight_is_not_read() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    for id in 0..40 {
        wire.send(format!("{}\n", request(id, "test.hold", json!([id])))).await;
    }
    daemon.rig.begun(32).await;
    // Another connection is not affected, and by its answer the first has had its chance to start more.
    assert_eq!(
        daemon.connect().await.call(&echo(1, json!([]))).await,
        result(1, json!([]))
    );
    assert_eq!(daemon.rig.begun.load(Ordering::SeqCst), 32);
    assert_eq!(daemon.stats.snapshot().in_flight, 32);
    daemon.rig.gate.add_permits(1);
    daemon.rig.begun(33).await;
    daemon.rig.gate.add_permits(39);
    let mut ids: Vec<i64> = Vec::new();
    for _ in 0..40 {
        ids.push(wire.line().await.unwrap()["id"].as_i64().unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_batch_may_be_longer_than_there_are_places() {
    let daemon = Daemon::with(Limits {
        max_in_flight_per_connection: 2,
        ..quick()
    });
    let batch: Vec<Value> = (0..20).map(|id| echo(id, json!([id]))).collect();
    let answers = daemon.connect().await.call(&json!(batch)).await;
    assert_eq!(answers.as_array().unwrap().len(), 20);
    assert_eq!(answers[19], result(19, json!([19])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn over_the_limit_of_all_connections_it_is_busy() {
    let daemon = Daemon::with(Limits {
        max_in_flight: 3,
        ..quick()
    });
    let mut wire = daemon.connect().await;
    for id in 0..3 {
        wire.send(format!("{}\n", request(id, "test.hold", json!([])))).await;
    }
    daemon.rig.begun(3).await;
    let mut other = daemon.connect().await;
    let answer = other.call(&echo(9, json!([]))).await;
    refused(&answer, &json!(9), -32009);
    assert!(answer["error"]["data"]["retry_after_ms"].as_u64().unwrap() > 0);
    assert_eq!(answer["error"]["data"]["executed"], false);
    // Cancelling works when nothing else does.
    assert_eq!(
        wire.call(&request(10, "rpc.cancel", json!([99]))).await,
        result(10, json!({ "cancelled": 0 }))
    );
    daemon.rig.gate.add_permits(3);
    for _ in 0..3 {
        wire.line().await.unwrap();
    }
    assert_eq!(other.call(&echo(9, json!([]))).await, result(9, json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn one_connection_too_many_is_told_so() {
    let daemon = Daemon::start();
    let mut connections = Vec::new();
    for id in 0..256 {
        let mut wire = daemon.connect().await;
        assert_eq!(wire.call(&echo(id, json!([]))).await, result(id, json!([])));
        connections.push(wire);
    }
    for _ in 0..3 {
        let mut refused_one = daemon.connect().await;
        let answers = refused_one.rest().await;
        assert_eq!(answers.len(), 1);
        refused(&answers[0], &Value::Null, -32009);
    }
    connections.pop();
    daemon
        .rig
        .until("a place is free", |_| daemon.stats.snapshot().connections_open < 256)
        .await;
    assert_eq!(
        daemon.connect().await.call(&echo(1, json!([]))).await,
        result(1, json!([]))
    );
    assert_eq!(daemon.stats.snapshot().connections_refused, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_client_that_does_not_read_is_given_up() {
    let daemon = Daemon::with(Limits {
        write_timeout_ms: 100,
        ..quick()
    });
    let mut slow = daemon.connect().await;
    for id in 0..8 {
        slow.send(format!("{}\n", request(id, "test.big", json!({ "bytes": 1_000_000 }))))
            .await;
    }
    slow.send(format!("{}\n", request("held", "test.hold", json!([]))))
        .await;
    daemon.rig.begun(1).await;
    // Its calls go with it, and others never notice.
    daemon
        .rig
        .until("its call is dropped", |rig| rig.dropped.load(Ordering::SeqCst) == 1)
        .await;
    daemon
        .rig
        .until("it is closed", |_| daemon.stats.snapshot().connections_open == 0)
        .await;
    assert_eq!(
        daemon.connect().await.call(&echo(1, json!([]))).await,
        result(1, json!([]))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_client_that_reads_slowly_gets_everything() {
    let daemon = Daemon::start();
    let mut slow = daemon.connect().await;
    for id in 0..50 {
        slow.send(format!("{}\n", request(id, "test.big", json!({ "bytes": 300_000 }))))
            .await;
    }
    slow.end_input().await;
    let answers = slow.rest().await;
    assert_eq!(answers.len(), 50);
    assert!(
        answers
            .iter()
            .all(|answer| answer["result"].as_str().unwrap().len() == 300_000)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn notifications_that_do_not_fit_are_refused() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    wire.send(format!("{}\n", request(1, "test.flood", json!({})))).await;
    let mut flooded = 0;
    let answer = loop {
        let line = wire.line().await.unwrap();
        if line["method"] == "test.flooded" {
            flooded += 1;
        } else {
            break line;
        }
    };
    assert_eq!(answer["result"]["sent"], flooded);
    assert!(answer["result"]["refused"].as_str().unwrap().contains("full"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn subscriptions_are_limited() {
    let daemon = Daemon::with(Limits {
        max_subscriptions_per_connection: 1,
        ..quick()
    });
    let answers = daemon
        .ask(format!(
            "{}\n",
            json!([
                request(1, "knowledge.subscribe", json!({})),
                request(2, "knowledge.subscribe", json!({}))
            ])
        ))
        .await;
    let batch = answers.iter().find_map(Value::as_array).unwrap();
    assert_eq!(
        batch.iter().filter(|answer| answer["error"]["code"] == -32009).count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_incomplete_request_is_given_up_but_silence_is_not() {
    let daemon = Daemon::with(Limits {
        partial_request_timeout_ms: 100,
        ..quick()
    });
    let mut silent = daemon.connect().await;
    let mut stuck = daemon.connect().await;
    stuck.send("{\"jsonrpc\":").await;
    let answers = stuck.rest().await;
    assert_eq!(answers.len(), 1);
    refused(&answers[0], &Value::Null, -32700);
    // The other has said nothing for at least as long.
    assert_eq!(silent.call(&echo(1, json!([]))).await, result(1, json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn many_large_requests_at_once_are_bounded_together() {
    let limits = Limits {
        max_message_bytes: 1 << 20,
        max_buffered_bytes: 1 << 20,
        ..quick()
    };
    let daemon = Daemon::with(limits);
    let part = format!("[\"{}", "x".repeat(700_000));
    let mut first = daemon.connect().await;
    first.send(&part).await;
    daemon
        .rig
        .until("the first is held", |_| {
            daemon.stats.snapshot().bytes_buffered >= 700_000
        })
        .await;
    let mut second = daemon.connect().await;
    second.send(&part.as_bytes()[..500_000]).await;
    let answers = second.rest().await;
    assert_eq!(answers.len(), 1);
    refused(&answers[0], &Value::Null, -32009);
    // Small ones pass, and the first is not disturbed.
    assert_eq!(
        daemon.connect().await.call(&echo(1, json!([]))).await,
        result(1, json!([]))
    );
    first.send("\"]\n").await;
    refused(&first.line().await.unwrap()[0], &Value::Null, -32600);
    drop(first);
    daemon
        .rig
        .until("nothing is held", |_| daemon.stats.snapshot().bytes_buffered == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_rate_of_a_peer_can_be_limited() {
    let limits = Limits {
        rate_limit_per_second: Some(1),
        rate_limit_burst: Some(2),
        ..quick()
    };
    let daemon = Daemon::with(limits);
    let mut wire = daemon.connect().await;
    let mut limited = 0;
    for id in 0..20 {
        let answer = wire.call(&echo(id, json!([]))).await;
        if answer["error"].is_object() {
            refused(&answer, &json!(id), -32025);
            assert!(answer["error"]["data"]["retry_after_ms"].as_u64().unwrap() > 0);
            limited += 1;
        }
    }
    assert!(limited > 0);
}
