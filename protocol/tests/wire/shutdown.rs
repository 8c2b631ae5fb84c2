//! The end, and a socket file that goes missing.

use super::support::*;
use ccod_protocol::limits::Limits;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// Idle connections are closed without a word; half a request is not a silent end.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn half_a_request_is_told_that_its_rest_is_not_read() {
    let daemon = Daemon::start();
    let mut idle = daemon.connect().await;
    assert_eq!(idle.call(&echo(1, json!([]))).await, result(1, json!([])));
    let mut half = daemon.connect().await;
    half.send(format!("{}\n{{\"jsonrpc\":", echo(1, json!([])))).await;
    assert_eq!(half.line().await, Some(result(1, json!([]))));
    assert!(daemon.stop().await.is_clean());
    assert_eq!(idle.rest().await, Vec::<Value>::new());
    let answers = half.rest().await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    refused(&answers[0], &Value::Null, -32053);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn accepted_requests_are_answered_and_later_ones_refused() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect().await;
    let mut idle = daemon.connect().await;
    assert_eq!(idle.call(&echo(0, json!([]))).await, result(0, json!([])));
    for id in 0..5 {
        wire.send(format!("{}\n", request(id, "test.hold", json!([id])))).await;
    }
    daemon.rig.begun(5).await;
    let rig = Arc::clone(&daemon.rig);
    let path = daemon.path.clone();
    // All in one go, so that it lies in the socket when the server looks for the last time.
    wire.send(format!(
        "{}\n{}\n",
        echo("late", json!([])),
        json!([echo("later", json!([]))])
    ))
    .await;
    let shutdown = daemon.shutdown.clone();
    let answering = tokio::spawn(async move {
        shutdown.cancelled().await;
        rig.gate.add_permits(5);
        wire.rest().await
    });
    let report = daemon.stop().await;
    assert!(report.is_clean(), "{report:?}");
    let answers = within(answering).await.unwrap();
    for id in 0..5 {
        assert!(answers.contains(&result(id, json!([id]))), "{id}: {answers:?}");
    }
    // Read before the end began, the late ones are answered; after it, refused. Never nothing.
    let late = answers.iter().find(|answer| answer["id"] == "late").expect("an answer");
    assert!(late["result"].is_array() || code(late) == -32053, "{late}");
    let later = answers.iter().find_map(Value::as_array).expect("a batch");
    assert!(later[0]["result"].is_array() || code(&later[0]) == -32053, "{later:?}");
    assert_eq!(answers.len(), 7);
    assert!(idle.rest().await.is_empty());
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn requests_that_wait_for_a_place_are_refused() {
    let daemon = Daemon::with(Limits {
        max_in_flight_per_connection: 2,
        ..quick()
    });
    let mut wire = daemon.connect().await;
    for id in 0..6 {
        wire.send(format!("{}\n", request(id, "test.hold", json!([id])))).await;
    }
    daemon.rig.begun(2).await;
    let rig = Arc::clone(&daemon.rig);
    let shutdown = daemon.shutdown.clone();
    let answering = tokio::spawn(async move {
        shutdown.cancelled().await;
        let mut answers = Vec::new();
        for _ in 0..4 {
            answers.push(wire.line().await.unwrap());
        }
        rig.gate.add_permits(2);
        answers.extend(wire.rest().await);
        answers
    });
    assert!(daemon.stop().await.is_clean());
    let answers = within(answering).await.unwrap();
    assert_eq!(answers.len(), 6);
    for answer in &answers[..4] {
        assert_eq!(code(answer), -32053);
        assert_eq!(answer["error"]["data"]["executed"], false);
    }
    assert!(answers[4..].iter().all(|answer| answer["result"].is_array()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_does_not_finish_is_cut_off() {
    let daemon = Daemon::with(Limits {
        shutdown_grace_ms: 50,
        ..quick()
    });
    let mut wire = daemon.connect().await;
    wire.send(format!("{}\n", request(1, "test.hold", json!([])))).await;
    daemon.rig.begun(1).await;
    wire.send(format!(
        "{}\n{}\n{}\n",
        request(2, "test.until_cancelled", json!([])),
        json!([request(3, "test.hold", json!([]))]),
        json!({"jsonrpc": "2.0", "method": "test.hold"}),
    ))
    .await;
    daemon.rig.begun(4).await;
    let report = daemon.stop().await;
    // The connection, and the notification that nobody waits for.
    assert_eq!(report.cut_off, 2);
    assert!(!report.is_clean());
    // Each call is answered: `executed` is unknown for a call that may have happened, and false for one that did not.
    let answers = wire.rest().await;
    assert_eq!(answers.len(), 3, "{answers:?}");
    let of = |id: u64| {
        answers
            .iter()
            .map(|answer| answer.get(0).unwrap_or(answer))
            .find(|answer| answer["id"] == id)
            .unwrap()
    };
    for (id, executed) in [(1, json!("unknown")), (2, json!(false)), (3, json!("unknown"))] {
        let error = &of(id)["error"];
        assert_eq!(
            (&error["code"], &error["data"]["kind"], &error["data"]["executed"]),
            (&json!(-32053), &json!("shutting_down"), &executed),
            "{id}: {error}"
        );
        assert_eq!(error["data"]["retryable"], true);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_removed_socket_is_bound_again() {
    let daemon = Daemon::start();
    let mut before = daemon.connect().await;
    std::fs::remove_file(&daemon.path).unwrap();
    daemon.rig.until("the socket is back", |_| daemon.path.exists()).await;
    assert_eq!(std::fs::symlink_metadata(&daemon.path).unwrap().mode() & 0o777, 0o600);
    daemon
        .rig
        .until("it is counted", |_| daemon.stats.snapshot().rebinds == 1)
        .await;
    assert_eq!(
        daemon.connect().await.call(&echo(1, json!([]))).await,
        result(1, json!([]))
    );
    assert_eq!(before.call(&echo(2, json!([]))).await, result(2, json!([])));
    // The whole directory, as when a runtime directory is cleaned up.
    std::fs::remove_dir_all(daemon.path.parent().unwrap()).unwrap();
    daemon.rig.until("it is back again", |_| daemon.path.exists()).await;
    daemon
        .rig
        .until("it is counted again", |_| daemon.stats.snapshot().rebinds == 2)
        .await;
    assert_eq!(
        daemon.connect().await.call(&echo(3, json!([]))).await,
        result(3, json!([]))
    );
    let path = daemon.path.clone();
    assert!(daemon.stop().await.is_clean());
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_took_the_sockets_place_is_left_alone() {
    let daemon = Daemon::start();
    std::fs::remove_file(&daemon.path).unwrap();
    std::fs::write(&daemon.path, "mine").unwrap();
    let path = daemon.path.clone();
    let directory = Arc::new(daemon.directory.path().to_owned());
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    // Removing it lets the daemon come back.
    std::fs::remove_file(&path).unwrap();
    daemon.rig.until("the socket is back", |_| path.exists()).await;
    daemon
        .rig
        .until("it is counted", |_| daemon.stats.snapshot().rebinds == 1)
        .await;
    assert_eq!(
        daemon.connect().await.call(&echo(1, json!([]))).await,
        result(1, json!([]))
    );
    assert!(directory.exists());
}
