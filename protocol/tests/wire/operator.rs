//! A daemon in which everything is in use can still be asked how it is, and stopped.

use super::support::*;
use ccod_protocol::limits::Limits;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

fn health(id: i64) -> Value {
    request(id, "admin.health", json!({}))
}

/// A daemon with one connection open, which is as many as it may have.
async fn full() -> (Daemon, Wire) {
    let daemon = Daemon::with(Limits {
        max_connections: 1,
        operator_connections: 2,
        ..quick()
    });
    let mut wire = daemon.connect().await;
    assert_eq!(wire.call(&echo(1, json!([]))).await, result(1, json!([])));
    (daemon, wire)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_connection_beyond_the_limit_serves_an_operator_and_nobody_else() {
    let (daemon, _wire) = full().await;
    let mut operator = daemon.connect().await;
    for id in 0..5 {
        assert_eq!(operator.call(&health(id)).await, result(id, json!({ "status": "ok" })));
    }
    assert_eq!(
        operator.call(&request(5, "rpc.cancel", json!([9]))).await,
        result(5, json!({ "cancelled": 0 }))
    );
    // Anything else is told why, with its id, and then the connection is closed.
    let mut other = daemon.connect().await;
    let refusal = other.call(&echo(9, json!([]))).await;
    refused(&refusal, &json!(9), -32009);
    assert_eq!(refusal["error"]["data"]["executed"], false);
    assert_eq!(other.rest().await, Vec::<Value>::new());
    // In a batch as well; what an operator may ask is answered in it.
    let mut mixed = daemon.connect().await;
    let answers = mixed.call(&json!([health(1), echo(2, json!([]))])).await;
    assert_eq!(answers[0], result(1, json!({ "status": "ok" })));
    refused(&answers[1], &json!(2), -32009);
    assert_eq!(mixed.rest().await, Vec::<Value>::new());
    assert_eq!(
        operator.call(&health(6)).await["result"]["status"],
        "ok",
        "the operator is not disturbed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn places_for_operators_are_not_kept_by_who_says_nothing() {
    let (daemon, _wire) = full().await;
    let mut silent = [daemon.connect().await, daemon.connect().await, daemon.connect().await];
    let answer = daemon.connect().await.call(&health(0)).await;
    assert_eq!(answer["result"]["status"], "ok", "{answer}");
    for wire in &mut silent {
        let answers = wire.rest().await;
        assert_eq!(answers.len(), 1);
        refused(&answers[0], &Value::Null, -32009);
    }
    daemon
        .rig
        .until("they are gone", |_| daemon.stats.snapshot().connections_open == 1)
        .await;
    assert_eq!(daemon.connect().await.call(&health(1)).await["result"]["status"], "ok");
}

/// Even if all of them are kept open, each is told why it is refused, and closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_operator_is_served_right_behind_a_burst_of_connections() {
    const BURST: usize = 300;
    let (daemon, _wire) = full().await;
    for round in 0..3 {
        let mut burst = Vec::with_capacity(BURST);
        for _ in 0..BURST {
            burst.push(daemon.connect().await);
        }
        let mut operator = daemon.connect().await;
        assert_eq!(
            operator.call(&health(round)).await,
            result(round, json!({ "status": "ok" }))
        );
        drop(operator);
        for wire in &mut burst {
            let answers = wire.rest().await;
            assert_eq!(answers.len(), 1, "{answers:?}");
            refused(&answers[0], &Value::Null, -32009);
        }
    }
    let refused = daemon.stats.snapshot().connections_refused;
    assert_eq!(refused, 3 * BURST as u64);
}

/// Each connection that sends a request is answered with its id, or refused as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn who_is_no_operator_is_told_so_in_a_burst_and_keeps_no_place() {
    let (daemon, _wire) = full().await;
    let mut burst = Vec::new();
    for id in 0..300 {
        let mut wire = daemon.connect().await;
        // A connection that is refused already cannot be written to, and has its line all the same.
        let request = format!("{}\n", echo(id, json!([])));
        wire.stream.write_all(request.as_bytes()).await.ok();
        burst.push((id, wire));
    }
    let mut operator = daemon.connect().await;
    assert_eq!(operator.call(&health(1)).await["result"]["status"], "ok");
    for (id, wire) in &mut burst {
        let answers = wire.rest().await;
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert!([json!(*id), Value::Null].contains(&answers[0]["id"]), "{answers:?}");
        assert_eq!(code(&answers[0]), -32009);
    }
}

/// Part of a request is not a request: a connection that has sent one waits like one that sends nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_operator_is_served_behind_a_burst_of_half_requests() {
    let (daemon, _wire) = full().await;
    for round in 0..3 {
        let mut burst = Vec::new();
        for _ in 0..300 {
            let mut wire = daemon.connect().await;
            wire.stream
                .write_all(br#"{"jsonrpc":"2.0","id":1,"method":"test."#)
                .await
                .ok();
            burst.push(wire);
        }
        let answer = daemon.connect().await.call(&health(round)).await;
        assert_eq!(answer, result(round, json!({ "status": "ok" })));
        for wire in &mut burst {
            let answers = wire.rest().await;
            assert_eq!(answers.len(), 1, "{answers:?}");
            refused(&answers[0], &Value::Null, -32009);
        }
    }
}

/// Half a request that ends, or is left behind, is answered like any other, and nothing waits for its rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_requests_that_end_hold_up_nobody() {
    let (daemon, _wire) = full().await;
    for half in [&b"{\"jso"[..], b"\n", b" ", b"12", b""] {
        let mut ended = Vec::new();
        for _ in 0..20 {
            let mut left = daemon.connect().await;
            left.stream.write_all(half).await.ok();
            drop(left);
            let mut wire = daemon.connect().await;
            wire.stream.write_all(half).await.ok();
            wire.stream.shutdown().await.ok();
            ended.push(wire);
        }
        let answer = daemon.connect().await.call(&health(1)).await;
        assert_eq!(answer["result"]["status"], "ok", "{answer}");
        for wire in &mut ended {
            let answers = wire.rest().await;
            // Nothing was asked with white space alone.
            let is_blank = half.iter().all(u8::is_ascii_whitespace);
            assert!(answers.len() == 1 || (is_blank && answers.is_empty()), "{answers:?}");
            assert!(
                answers
                    .iter()
                    .all(|answer| [-32700, -32600, -32009].contains(&code(answer))),
                "{answers:?}"
            );
        }
    }
    daemon
        .rig
        .until("they are gone", |_| daemon.stats.snapshot().connections_open == 1)
        .await;
    assert!(daemon.stop().await.is_clean());
}

/// A request that is completed while its connection waits is served as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_operator_may_send_a_request_in_two_parts() {
    let (daemon, _wire) = full().await;
    let mut operator = daemon.connect().await;
    let request = health(1).to_string();
    let (first, second) = request.split_at(20);
    operator.send(first.to_owned()).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    operator.send(format!("{second}\n")).await;
    assert_eq!(operator.line().await, Some(result(1, json!({ "status": "ok" }))));
}

/// Operators who have been answered and stay make room for the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_operator_is_served_behind_many_who_asked_and_stay() {
    let (daemon, _wire) = full().await;
    let mut stay = Vec::new();
    for id in 0..300 {
        let mut operator = daemon.connect().await;
        assert_eq!(
            operator.call(&health(id)).await,
            result(id, json!({ "status": "ok" })),
            "the one after {id} others"
        );
        stay.push(operator);
    }
    // The first two had places for all that time; each was told why it has to go, except those who are there now.
    for wire in &mut stay {
        let answers = wire.rest().await;
        assert_eq!(answers.len(), 1, "{answers:?}");
        refused(&answers[0], &Value::Null, -32009);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_spare_connection_becomes_a_full_one_when_there_is_a_place() {
    let (daemon, wire) = full().await;
    let mut operator = daemon.connect().await;
    assert_eq!(operator.call(&health(1)).await["result"]["status"], "ok");
    drop(wire);
    daemon
        .rig
        .until("the first is gone", |_| daemon.stats.snapshot().connections_open == 1)
        .await;
    assert_eq!(operator.call(&echo(2, json!([]))).await, result(2, json!([])));
    // It has taken the place.
    let mut other = daemon.connect().await;
    refused(&other.call(&echo(3, json!([]))).await, &json!(3), -32009);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_operator_is_served_when_all_calls_are_in_use() {
    let daemon = Daemon::with(Limits {
        max_in_flight: 2,
        operator_in_flight: 1,
        ..quick()
    });
    let mut wire = daemon.connect().await;
    for id in 0..2 {
        wire.send(format!("{}\n", request(id, "test.hold", json!([])))).await;
    }
    daemon.rig.begun(2).await;
    let mut operator = daemon.connect().await;
    assert_eq!(operator.call(&health(1)).await["result"]["status"], "ok");
    refused(&operator.call(&echo(2, json!([]))).await, &json!(2), -32009);
    assert_eq!(operator.call(&health(3)).await["result"]["status"], "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn who_is_forbidden_gets_no_id_and_is_closed() {
    let daemon = Daemon::start();
    for input in [
        request(1, "test.forbidden", json!({})).to_string(),
        json!([echo(1, json!([])), request(2, "test.forbidden", json!({}))]).to_string(),
    ] {
        let mut wire = daemon.connect().await;
        wire.send(format!("{input}\n")).await;
        let lines = wire.rest().await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        let last = lines[0].as_array().map_or(&lines[0], |batch| batch.last().unwrap());
        refused(last, &Value::Null, -32026);
    }
}
