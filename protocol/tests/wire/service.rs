//! Calls of the service itself, without a socket: what another transport gets.

use super::support::*;
use ccod_protocol::api::{self, Method};
use ccod_protocol::caller::{Caller, Notifications};
use ccod_protocol::error::{ErrorKind, Executed, WireError};
use ccod_protocol::limits::Limits;
use ccod_protocol::peer::PeerIdentity;
use ccod_protocol::server::Server;
use ccod_protocol::service::{Answer, Service};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn who(pid: i32) -> PeerIdentity {
    PeerIdentity {
        uid: 1000,
        gid: 1000,
        pid: Some(pid),
    }
}

impl Bare {
    async fn call(&self, method: &str, params: Value) -> Result<Value, WireError> {
        self.call_as(method, params, self.service.caller(who(1))).await
    }

    async fn call_as(&self, method: &str, params: Value, caller: Caller) -> Result<Value, WireError> {
        let answer = self.answer(method, params, caller).await?;
        Ok(serde_json::from_slice(answer.json()).unwrap())
    }

    async fn answer(&self, method: &str, params: Value, caller: Caller) -> Result<Answer, WireError> {
        let params = serde_json::value::to_raw_value(&params).unwrap();
        within(self.service.call(method, Some(params), caller)).await
    }

    fn begin(
        &self,
        method: &'static str,
        params: Value,
        caller: Caller,
    ) -> tokio::task::JoinHandle<Result<Answer, WireError>> {
        let service = Arc::clone(&self.service);
        let params = serde_json::value::to_raw_value(&params).unwrap();
        tokio::spawn(async move { service.call(method, Some(params), caller).await })
    }
}

async fn next(notifications: &mut Notifications) -> Value {
    let notification = within(notifications.next()).await;
    serde_json::from_slice(&notification.json()).unwrap()
}

#[tokio::test]
async fn a_call_without_a_socket_is_answered() {
    let bare = Bare::start();
    assert_eq!(bare.call("test.echo", json!([1, "a"])).await.unwrap(), json!([1, "a"]));
    let deleted = bare.call(api::Delete::NAME, json!({ "agent": "2" })).await.unwrap();
    assert_eq!(
        (&deleted["deleted"], &deleted["undo_token"]),
        (&json!(2), &json!("token"))
    );
    // By another name, and with a result that is spread over lines.
    assert_eq!(
        bare.call("knowledge.search", json!({ "query": "q", "limit": 3 }))
            .await
            .unwrap()["count"],
        3
    );
    let pretty = bare
        .answer("test.pretty", json!({}), bare.service.caller(who(1)))
        .await
        .unwrap();
    assert!(!pretty.json().contains(&b'\n'));
    drop(pretty);
    let absent = within(bare.service.call("test.echo", None, bare.service.caller(who(1)))).await;
    assert_eq!(absent.unwrap().json(), "null");
    let seen = bare.stats.snapshot();
    assert_eq!((seen.requests, seen.responses, seen.in_flight), (5, 5, 0));
    assert_eq!((seen.bytes_queued, seen.bytes_in_flight), (0, 0));
}

#[tokio::test]
async fn a_method_that_is_not_served_is_refused_with_the_nearest() {
    let bare = Bare::start();
    let error = bare.call("knowledge.serch", json!({})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MethodNotFound);
    assert_eq!(error.data.extra["nearest"], "knowledge.search");
    // Without a connection there is nothing that `rpc.cancel` could name.
    let cancel = bare.call("rpc.cancel", json!({ "id": 1 })).await.unwrap_err();
    assert_eq!(cancel.kind(), ErrorKind::MethodNotFound);
    assert!(!cancel.data.extra.contains_key("nearest"), "{cancel:?}");
    assert_eq!(bare.stats.snapshot().errors["method_not_found"], 2);
}

#[tokio::test]
async fn parameters_are_decoded_within_the_limits_of_the_service() {
    let bare = Bare::start();
    let unknown = json!({ "subscripton": "sub-1", "trace_id": "t-1" });
    let error = bare.call(api::Unsubscribe::NAME, unknown).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidParams);
    assert_eq!(error.data.trace_id.as_deref(), Some("t-1"));
    let mut table = ccod_protocol::Methods::default();
    table.serve::<api::Embed, _, _>(|_, _| async move { Err(WireError::not_found("x")) });
    let service = Service::new(table).with_limits(Limits {
        max_embed_texts: 2,
        ..quick()
    });
    for (texts, kind) in [(2, ErrorKind::NotFound), (3, ErrorKind::InvalidParams)] {
        let params = serde_json::value::to_raw_value(&json!({ "texts": vec!["a"; texts] })).unwrap();
        let ended = service
            .call(api::Embed::NAME, Some(params), service.caller(who(1)))
            .await;
        assert_eq!(ended.unwrap_err().kind(), kind, "{texts}");
    }
}

#[tokio::test]
async fn a_deadline_ends_a_call_and_no_other_of_its_caller() {
    let bare = Bare::start();
    let caller = bare.service.caller(who(1));
    let other = bare.begin("test.hold", json!(["held"]), caller.clone());
    bare.rig.begun(1).await;
    for (method, executed) in [
        (api::Stats::NAME, Executed::No),
        (api::Undelete::NAME, Executed::Unknown),
    ] {
        let params = json!({ "timeout_ms": 20, "trace_id": "t" });
        let error = bare.call_as(method, params, caller.clone()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.data.executed),
            (ErrorKind::DeadlineExceeded, Some(executed))
        );
        assert_eq!(error.data.trace_id.as_deref(), Some("t"));
    }
    assert_eq!(bare.rig.dropped.load(Ordering::SeqCst), 2);
    bare.rig.gate.add_permits(1);
    assert_eq!(within(other).await.unwrap().unwrap().json(), r#"["held"]"#);
}

#[tokio::test]
async fn a_panic_is_an_error_and_the_service_goes_on() {
    let bare = Bare::start();
    for method in ["test.panic", "test.panic_sync"] {
        let error = bare.call(method, json!({})).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.data.executed),
            (ErrorKind::InternalError, Some(Executed::Unknown))
        );
        assert!(!error.message.contains("secret"));
    }
    assert_eq!(bare.stats.snapshot().panics, 2);
    assert_eq!(bare.call("test.echo", json!([])).await.unwrap(), json!([]));
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_an_error() {
    let bare = Bare::with(Limits {
        max_response_bytes: 100_000,
        ..quick()
    });
    let read = bare
        .call(api::History::NAME, json!({ "id": "200000" }))
        .await
        .unwrap_err();
    assert_eq!((read.kind(), read.data.executed), (ErrorKind::ResponseTooLarge, None));
    let write = bare
        .call(api::Delete::NAME, json!({ "agent": "5000" }))
        .await
        .unwrap_err();
    assert_eq!(
        (write.kind(), write.data.executed),
        (ErrorKind::ResponseTooLarge, Some(Executed::Yes))
    );
    assert_eq!(write.data.extra["undo_token"], "token");
    let fits = bare.call(api::History::NAME, json!({ "id": "90000" })).await.unwrap();
    assert_eq!(fits.as_str().map(str::len), Some(90_000));
}

#[tokio::test]
async fn answers_that_are_kept_count_against_their_caller_and_all() {
    let bare = Bare::with(Limits {
        max_response_bytes: 1 << 20,
        max_queued_bytes: 4 << 20,
        ..quick()
    });
    let caller = bare.service.caller(who(1));
    let large = || json!({ "id": "1000000" });
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(bare.answer(api::History::NAME, large(), caller.clone()).await.unwrap());
    }
    let error = bare
        .answer(api::History::NAME, large(), caller.clone())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.data.executed),
        (ErrorKind::Busy, Some(Executed::No))
    );
    // What is small passes, and so does another caller.
    assert!(bare.call_as("test.echo", json!([]), caller.clone()).await.is_ok());
    assert!(bare.call(api::History::NAME, large()).await.is_ok());
    kept.pop();
    assert!(bare.call_as(api::History::NAME, large(), caller).await.is_ok());
}

#[tokio::test]
async fn notifications_reach_the_caller_that_asked() {
    let bare = Bare::start();
    let (caller, mut notifications) = bare.service.caller_with_notifications(who(1));
    let (_silent, mut other) = bare.service.caller_with_notifications(who(2));
    let mut asked = caller.clone();
    asked.request_id = Some("\"job\"".into());
    bare.call_as("test.progress", json!({}), asked).await.unwrap();
    let progress = next(&mut notifications).await;
    assert_eq!(
        (&progress["method"], &progress["params"]["request_id"]),
        (&json!("rpc.progress"), &json!("job"))
    );
    // Without an id no progress is sent, and no other caller gets it.
    bare.call_as("test.progress", json!({}), caller).await.unwrap();
    assert!(futures::FutureExt::now_or_never(notifications.next()).is_none());
    assert!(futures::FutureExt::now_or_never(other.next()).is_none());
}

#[tokio::test]
async fn a_feed_begins_after_its_answer_and_ends_with_its_caller() {
    let bare = Bare::start();
    let (caller, mut notifications) = bare.service.caller_with_notifications(who(1));
    let mut answer = bare
        .answer(api::Subscribe::NAME, json!({}), caller.clone())
        .await
        .unwrap();
    let opened: Value = serde_json::from_slice(answer.json()).unwrap();
    tokio::task::yield_now().await;
    assert!(futures::FutureExt::now_or_never(notifications.next()).is_none());
    answer.queued();
    drop(answer);
    for number in 1..=3 {
        let change = next(&mut notifications).await;
        assert_eq!(change["params"]["subscription"], opened["subscription"]);
        assert_eq!(change["params"]["result"]["version"], number);
    }
    // One whose answer is dropped is taken back.
    drop(
        bare.answer(api::Subscribe::NAME, json!({}), caller.clone())
            .await
            .unwrap(),
    );
    bare.rig
        .until("it is closed", |_| caller.subscriptions.len() == 1)
        .await;
    drop(notifications);
    assert!(caller.cancelled.is_cancelled());
    let error = bare.call_as("test.hold", json!([]), caller).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.data.executed),
        (ErrorKind::Cancelled, Some(Executed::No))
    );
    assert_eq!(bare.rig.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_caller_that_cannot_be_notified_gets_no_feed() {
    let bare = Bare::start();
    let error = bare.call(api::Subscribe::NAME, json!({})).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.message.contains("socket"), "{error}");
}

#[tokio::test]
async fn the_token_of_a_caller_cancels_its_calls() {
    let bare = Bare::start();
    let caller = bare.service.caller(who(1));
    let call = bare.begin("test.until_cancelled", json!({}), caller.clone());
    bare.rig.begun(1).await;
    caller.cancelled.cancel();
    assert_eq!(within(call).await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    // One whose future is dropped ends where it stands.
    let dropped = bare.begin("test.hold", json!({}), bare.service.caller(who(1)));
    bare.rig.begun(2).await;
    dropped.abort();
    bare.rig
        .until("it is dropped", |rig| rig.dropped.load(Ordering::SeqCst) == 1)
        .await;
    bare.rig
        .until("nothing is kept", |_| bare.stats.snapshot().in_flight == 0)
        .await;
}

#[tokio::test]
async fn a_shutdown_refuses_what_is_new_and_lets_the_rest_finish() {
    let bare = Bare::start();
    let held = bare.begin("test.hold", json!(["held"]), bare.service.caller(who(1)));
    bare.rig.begun(1).await;
    bare.shutdown.cancel();
    let error = bare.call("test.echo", json!([])).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.data.executed),
        (ErrorKind::ShuttingDown, Some(Executed::No))
    );
    bare.rig.gate.add_permits(1);
    assert_eq!(within(held).await.unwrap().unwrap().json(), r#"["held"]"#);
}

#[tokio::test]
async fn callers_are_rated_apart() {
    let bare = Bare::with(Limits {
        rate_limit_per_second: Some(1),
        rate_limit_burst: Some(2),
        ..quick()
    });
    let (one, two) = (bare.service.caller(who(1)), bare.service.caller(who(2)));
    assert_ne!(one.connection, two.connection);
    bare.call_as("test.echo", json!([]), one.clone()).await.unwrap();
    // However slow this is, it is faster than one call a second at some time.
    let error = loop {
        if let Err(error) = bare.call_as("test.echo", json!([]), one.clone()).await {
            break error;
        }
    };
    assert_eq!(
        (error.kind(), error.data.executed),
        (ErrorKind::RateLimited, Some(Executed::No))
    );
    bare.call_as("test.echo", json!([]), two).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_socket_and_other_callers_share_the_service() {
    let bare = Bare::with(Limits {
        max_in_flight: 1,
        operator_in_flight: 1,
        ..quick()
    });
    let directory = tempfile::tempdir().unwrap();
    let (path, socket) = bound(directory.path());
    let serving = tokio::spawn(Server::over(Arc::clone(&bare.service)).serve(socket));
    let caller = bare.service.caller(who(1));
    let mut wire = Wire::connect(&path).await;
    let context = wire.call(&request(1, "test.context", json!({}))).await;
    assert_ne!(context["result"]["connection"], caller.connection.0);
    wire.send(format!("{}\n", request(2, "test.hold", json!([])))).await;
    bare.rig.begun(1).await;
    // The one place is taken, whoever asks; that of the operators is not.
    let error = bare.call_as("test.echo", json!([]), caller.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    bare.call_as(api::Health::NAME, json!({}), caller.clone())
        .await
        .unwrap();
    bare.rig.gate.add_permits(1);
    assert_eq!(wire.line().await.unwrap(), result(2, json!([])));
    bare.call_as("test.echo", json!([]), caller.clone()).await.unwrap();
    bare.shutdown.cancel();
    assert!(within(serving).await.unwrap().is_clean());
    let error = bare.call_as("test.echo", json!([]), caller).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShuttingDown);
}
