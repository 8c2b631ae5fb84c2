//! The typed client against the server.

use super::support::*;
use ccod_protocol::api::{self, ChangeOp, SearchMode, SearchParams, SubscribeParams};
use ccod_protocol::client::{CallOptions, Client, ClientError};
use ccod_protocol::error::{ErrorKind, WireError};
use ccod_protocol::limits::Limits;
use ccod_protocol::peer::PeerPolicy;
use futures::StreamExt;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test]
async fn typed_calls_carry_project_and_deadline() {
    let daemon = Daemon::start();
    let client = Client::connect(&daemon.path).await.unwrap();
    let params = SearchParams {
        query: "q".to_owned(),
        limit: 7,
        mode: SearchMode::Text,
        ..Default::default()
    };
    let options = CallOptions::project("p").timeout(Duration::from_millis(1500));
    let found = within(client.call::<api::Search>(&params, options)).await.unwrap();
    assert_eq!((found.count, found.mode, found.version), (7, SearchMode::Text, 7));
    let raw = client
        .call_raw(
            "knowledge.search",
            json!({ "query": "q", "project_id": "p", "timeout_ms": 1500 }),
        )
        .await;
    let raw = raw.unwrap();
    assert_eq!((&raw["project"], &raw["timeout_ms"]), (&json!("p"), &json!(1500)));
    assert_eq!(client.call_raw("test.echo", Value::Null).await.unwrap(), Value::Null);
    assert_eq!(
        client.call_raw("test.echo", json!([1, "é"])).await.unwrap(),
        json!([1, "é"])
    );
}

#[tokio::test]
async fn errors_keep_their_data() {
    let daemon = Daemon::start();
    let client = Client::connect(&daemon.path).await.unwrap();
    let params = SearchParams {
        query: "q".to_owned(),
        limit: 1000,
        ..Default::default()
    };
    let error = client
        .call::<api::Search>(&params, CallOptions::default())
        .await
        .unwrap_err();
    let wire = error.as_wire().unwrap();
    assert_eq!(
        (wire.kind(), wire.data.parameter.as_deref()),
        (ErrorKind::InvalidParams, Some("limit"))
    );
    assert!(!error.is_retryable());
    // The connection goes on.
    let error = client.call_raw("no.such", json!({})).await.unwrap_err();
    assert_eq!(error.as_wire().unwrap().kind(), ErrorKind::MethodNotFound);
    let error = client
        .call::<api::Stats>(
            &api::StatsParams {},
            CallOptions::default().timeout(Duration::from_millis(1)),
        )
        .await
        .unwrap_err();
    assert_eq!(error.as_wire().unwrap().kind(), ErrorKind::DeadlineExceeded);
    assert!(error.is_retryable());
    assert!(client.is_connected());
}

#[tokio::test]
async fn calls_run_side_by_side_and_find_their_answers() {
    let daemon = Daemon::start();
    let client = Arc::new(Client::connect(&daemon.path).await.unwrap());
    let calls = (0..500).map(|number| {
        let client = Arc::clone(&client);
        tokio::spawn(async move { (number, client.call_raw("test.echo", json!([number])).await.unwrap()) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (number, answer) = within(call).await.unwrap();
        assert_eq!(answer, json!([number]));
    }
}

#[tokio::test]
async fn large_results() {
    let daemon = Daemon::start();
    let client = Client::connect(&daemon.path).await.unwrap();
    let text = within(client.call_raw("test.big", json!({ "bytes": 20_000_000 })))
        .await
        .unwrap();
    assert_eq!(text.as_str().unwrap().len(), 20_000_000);
    let error = within(client.call_raw("test.big", json!({ "bytes": 40_000_000 })))
        .await
        .unwrap_err();
    assert_eq!(error.as_wire().unwrap().kind(), ErrorKind::ResponseTooLarge);
}

#[tokio::test]
async fn the_feed_is_a_stream() {
    let daemon = Daemon::start();
    let client = Client::connect(&daemon.path).await.unwrap();
    let mut first = client
        .subscribe(&SubscribeParams::default(), CallOptions::project("*"))
        .await
        .unwrap();
    let mut second = client
        .subscribe(&SubscribeParams::default(), CallOptions::default())
        .await
        .unwrap();
    assert_eq!(
        (first.id.as_str(), second.id.as_str(), first.cursor.as_str()),
        ("sub-1", "sub-2", "c0")
    );
    for feed in [&mut second, &mut first] {
        for number in 1..=3 {
            let change = within(feed.next()).await.unwrap().unwrap();
            assert_eq!((change.op, change.cursor), (ChangeOp::Store, format!("c{number}")));
        }
    }
    assert!(client.unsubscribe(&first).await.unwrap());
    assert!(!client.unsubscribe(&first).await.unwrap());
}

#[tokio::test]
async fn notifications_of_calls_are_seen() {
    let daemon = Daemon::start();
    let client = Client::connect(&daemon.path).await.unwrap();
    let mut notifications = client.notifications();
    client.call_raw("test.progress", json!({})).await.unwrap();
    let progress = within(notifications.next()).await.unwrap().unwrap();
    assert_eq!(progress.method, "rpc.progress");
    assert!(progress.params.get().contains("half"));
    client.notify("test.echo", json!([1])).await.unwrap();
}

/// A call of `admin.backup`: its result, and the progress that it got.
async fn watched_backup(client: Arc<Client>, path: &str) -> (api::BackupResult, Vec<(u64, Option<u64>, String)>) {
    let params = api::BackupParams { path: path.to_owned() };
    let mut told = Vec::new();
    let result = client
        .call_watched::<api::Backup>(&params, CallOptions::default(), std::future::pending(), |progress| {
            told.push((progress.done, progress.total, progress.message));
        })
        .await
        .unwrap();
    (result, told)
}

#[tokio::test]
async fn a_watched_call_sees_its_own_progress_and_no_other() {
    let daemon = Daemon::start();
    let client = Arc::new(Client::connect(&daemon.path).await.unwrap());
    // Both are in flight before either says anything.
    let calls = ["/a", "/b"].map(|path| tokio::spawn(watched_backup(Arc::clone(&client), path)));
    daemon.rig.begun(2).await;
    daemon.rig.gate.add_permits(2);
    for (call, path) in calls.into_iter().zip(["/a", "/b"]) {
        let (result, told) = within(call).await.unwrap();
        assert_eq!(result.path, path);
        assert_eq!(told, [1, 2, 3].map(|done| (done, Some(3), path.to_owned())));
    }
}

#[tokio::test]
async fn a_watched_call_can_be_cancelled() {
    let daemon = Daemon::start();
    let client = Client::connect(&daemon.path).await.unwrap();
    let begun = tokio::sync::Notify::new();
    let options = || CallOptions::default().timeout(Duration::from_secs(60));
    let call = client.call_watched::<api::Optimize>(&api::OptimizeParams {}, options(), begun.notified(), |progress| {
        assert_eq!((progress.total, progress.message.as_str()), (None, "waiting"));
        begun.notify_one();
    });
    let error = within(call).await.unwrap_err();
    assert_eq!(error.as_wire().unwrap().kind(), ErrorKind::Cancelled);
    // Wanted from the beginning: the request is sent, and then its end.
    let call = client.call_watched::<api::Optimize>(&api::OptimizeParams {}, options(), std::future::ready(()), |_| ());
    let error = within(call).await.unwrap_err();
    assert_eq!(error.as_wire().unwrap().kind(), ErrorKind::Cancelled);
    assert_eq!(daemon.stats.snapshot().cancelled, 2);
    // One that has its answer is not cancelled any more.
    daemon.rig.gate.add_permits(1);
    let params = api::BackupParams { path: "/c".to_owned() };
    let done = tokio::sync::Notify::new();
    let call = client.call_watched::<api::Backup>(&params, options(), done.notified(), |_| ());
    assert_eq!(within(call).await.unwrap().path, "/c");
    assert!(client.is_connected());
}

#[tokio::test]
async fn why_there_is_no_connection() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Client::connect(directory.path().join("none")).await.unwrap_err();
    assert!(matches!(missing, ClientError::NotRunning { .. }), "{missing}");
    assert!(missing.is_retryable());
    let stale = directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(matches!(
        Client::connect(&stale).await,
        Err(ClientError::NotRunning { .. })
    ));
    let long = Path::new("/").join("x".repeat(200));
    assert!(matches!(
        Client::connect(&long).await,
        Err(ClientError::PathTooLong { .. })
    ));
    let text = ClientError::Permission {
        path: stale,
        source: std::io::ErrorKind::PermissionDenied.into(),
    }
    .to_string();
    assert!(text.contains("sandbox"), "{text}");
}

#[tokio::test]
async fn why_a_connection_ended() {
    let daemon = Daemon::serving(quick(), Some(PeerPolicy::only([4_000_000_000])));
    let client = Client::connect(&daemon.path).await.unwrap();
    let error = within(client.call_raw("test.echo", json!([]))).await.unwrap_err();
    assert_eq!(
        error.as_wire().map(|wire| wire.kind()),
        Some(ErrorKind::Forbidden),
        "{error:?}"
    );
    let crowded = Daemon::with(Limits {
        max_connections: 1,
        ..quick()
    });
    let first = Client::connect(&crowded.path).await.unwrap();
    first.call_raw("test.echo", json!([])).await.unwrap();
    let second = Client::connect(&crowded.path).await.unwrap();
    let error = within(second.closed()).await;
    assert_eq!(
        error.as_wire().map(|wire| wire.kind()),
        Some(ErrorKind::Busy),
        "{error:?}"
    );
    assert!(error.is_retryable());
}

/// The connection is closed before anything could be written to it. What it was told is there to be read.
#[tokio::test]
async fn who_is_refused_before_it_has_asked_is_told_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let refusal = json!({"jsonrpc": "2.0", "id": null, "error": WireError::busy("too many are here", 100)});
    for _ in 0..20 {
        let client = Client::connect(&path).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, format!("{refusal}\n").as_bytes())
            .await
            .unwrap();
        drop(stream);
        let error = within(client.call_raw("admin.health", json!({}))).await.unwrap_err();
        assert_eq!(
            error.as_wire().map(|wire| wire.kind()),
            Some(ErrorKind::Busy),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_daemon_that_stops_answers_first() {
    let daemon = Daemon::start();
    let client = Arc::new(Client::connect(&daemon.path).await.unwrap());
    let calling = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.call_raw("test.hold", json!(["x"])).await }
    });
    daemon.rig.begun(1).await;
    daemon.rig.gate.add_permits(1);
    assert!(daemon.stop().await.is_clean());
    assert_eq!(within(calling).await.unwrap().unwrap(), json!(["x"]));
    let error = within(client.call_raw("test.echo", json!([]))).await.unwrap_err();
    assert!(matches!(error, ClientError::Closed), "{error:?}");
}
