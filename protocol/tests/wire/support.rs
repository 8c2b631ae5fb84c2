//! A server of test methods, and a client that knows nothing but bytes.

use ccod_protocol::api::{self, Change, ChangeOp, ChangedNotification, Method, SubscribeResult};
use ccod_protocol::context::CallContext;
use ccod_protocol::endpoint::{self, BindOptions, BoundSocket, EndpointLock};
use ccod_protocol::error::{Executed, WireError};
use ccod_protocol::limits::{Limits, ServerStats};
use ccod_protocol::methods::Methods;
use ccod_protocol::params::{self, Decoded};
use ccod_protocol::peer::PeerPolicy;
use ccod_protocol::server::{ServeReport, Server};
use ccod_protocol::service::Service;
use jsonrpsee_types::ErrorObjectOwned;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

type Answer = Result<Value, WireError>;

/// Ends a test that would hang.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("the test hangs")
}

/// What the methods and the tests share.
#[derive(Debug)]
pub(super) struct Rig {
    /// Calls of `test.hold` that have begun.
    pub(super) begun: AtomicU64,
    /// Calls whose futures were dropped before they ended.
    pub(super) dropped: AtomicU64,
    /// Calls of `knowledge.history` that have begun.
    pub(super) large: AtomicU64,
    pub(super) changed: Notify,
    /// A permit lets one `test.hold` go on.
    pub(super) gate: Semaphore,
}

impl Rig {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            large: AtomicU64::new(0),
            changed: Notify::new(),
            gate: Semaphore::new(0),
        })
    }

    /// Waits until `condition` holds; woken at every change of the rig.
    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if condition(self) {
                    return;
                }
                // The counters of the server do not wake anybody, hence the second branch.
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(Duration::from_millis(5)) => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }

    pub(super) async fn begun(&self, count: u64) {
        self.until("calls begin", |rig| rig.begun.load(Ordering::SeqCst) >= count)
            .await;
    }
}

struct Held<'a> {
    rig: &'a Rig,
    done: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.rig.dropped.fetch_add(1, Ordering::SeqCst);
        }
        self.rig.changed.notify_waiters();
    }
}

fn parsed(params: Option<Box<str>>) -> Value {
    params.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
}

fn decoded<M: Method>(params: Option<Box<str>>) -> Result<Decoded<M::Params>, WireError> {
    params::decode_str::<M>(params.as_deref())
}

/// The methods that the tests call.
pub(super) fn methods(rig: &Arc<Rig>) -> Methods {
    let mut table = Methods::default();
    // A handler that gets the rig.
    fn with<F>(
        rig: &Arc<Rig>,
        handler: impl Fn(Arc<Rig>, Option<Box<str>>, CallContext) -> F + Send + Sync + 'static,
    ) -> impl Fn(Option<Box<str>>, CallContext) -> F + Send + Sync + 'static {
        let rig = Arc::clone(rig);
        move |params, context| handler(Arc::clone(&rig), params, context)
    }
    table.serve_raw("test.echo", |params, _| async move { Answer::Ok(parsed(params)) });
    table.serve_raw(
        "test.hold",
        with(rig, |rig, params, _| async move {
            rig.begun.fetch_add(1, Ordering::SeqCst);
            rig.changed.notify_waiters();
            let mut held = Held { rig: &rig, done: false };
            rig.gate.acquire().await.unwrap().forget();
            held.done = true;
            Answer::Ok(parsed(params))
        }),
    );
    table.serve_raw(
        "test.until_cancelled",
        with(rig, |rig, _, context| async move {
            rig.begun.fetch_add(1, Ordering::SeqCst);
            rig.changed.notify_waiters();
            context.cancelled.cancelled().await;
            Answer::Err(WireError::cancelled(Executed::No))
        }),
    );
    table.serve_raw("test.panic", |_, _| async move {
        if true {
            panic!("a secret that must not leave the daemon");
        }
        Answer::Ok(Value::Null)
    });
    // Before there is a future.
    table.serve_raw("test.panic_sync", |_, _| -> std::future::Ready<Answer> {
        panic!("a secret that must not leave the daemon")
    });
    table.serve_raw("test.sync", |params, _| std::future::ready(Answer::Ok(json!(params))));
    table.serve_raw("test.big", |params, _| async move {
        let bytes = parsed(params)["bytes"].as_u64().unwrap();
        Answer::Ok(Value::String("x".repeat(usize::try_from(bytes).unwrap())))
    });
    // A read according to the table, whose answer has as many bytes as its id says.
    table.serve_raw(
        api::History::NAME,
        with(rig, |rig, params, _| async move {
            rig.large.fetch_add(1, Ordering::SeqCst);
            rig.changed.notify_waiters();
            let bytes = decoded::<api::History>(params)?.params.id.parse().unwrap();
            Answer::Ok(Value::String("x".repeat(bytes)))
        }),
    );
    table.serve_raw("test.forbidden", |_, _| async move {
        Answer::Err(WireError::forbidden(Some(7)))
    });
    // What an operator needs, according to the table.
    for name in [api::Health::NAME, api::Version::NAME] {
        table.serve_raw(name, |_, _| async move { Answer::Ok(json!({ "status": "ok" })) });
    }
    // A write whose result may be large.
    table.serve_raw(api::Delete::NAME, |params, _| async move {
        let decoded = decoded::<api::Delete>(params)?;
        let count = decoded.params.filters.agents()[0].parse::<usize>().unwrap();
        let ids: Vec<String> = (0..count).map(|number| format!("general-{number:020}")).collect();
        Answer::Ok(json!({ "deleted": count, "ids": ids, "undo_token": "token", "version": 7 }))
    });
    table.serve_raw("test.pretty", |_, _| async move {
        let raw = serde_json::value::RawValue::from_string("{\n  \"a\": [\r\n 1 ]\n}".to_owned()).unwrap();
        Ok::<_, WireError>(raw)
    });
    table.serve_raw(
        "test.error",
        |_, _| async move { Answer::Err(WireError::not_found("x")) },
    );
    table.serve_raw("test.foreign_error", |_, _| async move {
        Err::<Value, _>(ErrorObjectOwned::owned(-32_000, "foreign", Some("data")))
    });
    table.serve_raw("test.context", |_, context| async move {
        let whole = context.deadline.duration_since(context.received);
        Answer::Ok(json!({
            "uid": context.peer.uid,
            "pid": context.peer.pid,
            "connection": context.connection.0,
            "timeout_ms": u64::try_from(whole.as_millis()).unwrap(),
            "request_id": context.request_id.as_deref(),
        }))
    });
    table.serve_raw("test.progress", |_, context| async move {
        context.progress(1, Some(2), "half");
        Answer::Ok(Value::Null)
    });
    // Two that take long according to the table: one reports its progress and ends, one ends when it is cancelled.
    table.serve_raw(
        api::Backup::NAME,
        with(rig, |rig, params, context| async move {
            let path = decoded::<api::Backup>(params)?.params.path;
            rig.begun.fetch_add(1, Ordering::SeqCst);
            rig.changed.notify_waiters();
            rig.gate.acquire().await.unwrap().forget();
            for done in 1..=3 {
                context.progress(done, Some(3), &path);
            }
            Answer::Ok(json!({ "path": path }))
        }),
    );
    table.serve_raw(api::Optimize::NAME, |_, context| async move {
        context.progress(0, None, "waiting");
        context.cancelled.cancelled().await;
        Answer::Err(WireError::cancelled(Executed::Unknown))
    });
    table.serve_raw("test.flood", |_, context| async move {
        let text = "x".repeat(10_000);
        let mut sent = 0;
        let refused = loop {
            match context.notifier.notify("test.flooded", &text) {
                Ok(()) => sent += 1,
                Err(reason) => break reason.to_string(),
            }
        };
        Answer::Ok(json!({ "sent": sent, "refused": refused }))
    });
    // A read and a write according to the table, to see what a missed deadline says of each.
    for name in [api::Stats::NAME, api::Undelete::NAME] {
        table.serve_raw(
            name,
            with(rig, |rig, _, _| async move {
                let _held = Held { rig: &rig, done: false };
                std::future::pending::<Answer>().await
            }),
        );
    }
    table.serve_raw(api::Search::NAME, |params, _| async move {
        let decoded = decoded::<api::Search>(params)?;
        Answer::Ok(json!({
            "results": [], "count": decoded.params.limit, "omitted": 0, "mode": decoded.params.mode,
            "version": 7, "took_ms": 1.5, "project": decoded.project_id, "timeout_ms": decoded.timeout_ms,
        }))
    });
    table.serve_notifying::<api::Subscribe, _, _>(|_, context| async move {
        let (id, ended) = context.subscriptions.open()?;
        let result = SubscribeResult {
            subscription: id.clone(),
            cursor: "c0".to_owned(),
        };
        let (queued, answered) = oneshot::channel();
        tokio::spawn(async move {
            if answered.await.is_err() {
                let _was_open = context.subscriptions.close(&id);
                return;
            }
            for number in 1..=3 {
                let change = Change {
                    cursor: format!("c{number}"),
                    op: ChangeOp::Store,
                    id: Some(format!("item-{number}")),
                    project_id: None,
                    knowledge_type: None,
                    agent: None,
                    text: None,
                    version: Some(number),
                    timestamp: None,
                    resync: false,
                };
                let params = ChangedNotification {
                    subscription: id.clone(),
                    result: change,
                };
                context.notifier.notify(api::KNOWLEDGE_CHANGED, &params).unwrap();
            }
            ended.cancelled().await;
        });
        Ok::<_, WireError>((result, queued))
    });
    table.serve::<api::Unsubscribe, _, _>(|call, context| async move {
        Ok::<_, WireError>(context.subscriptions.close(&call.params.subscription))
    });
    table
}

/// A service of the test methods, without a socket.
pub(super) struct Bare {
    pub(super) rig: Arc<Rig>,
    pub(super) stats: Arc<ServerStats>,
    pub(super) shutdown: CancellationToken,
    pub(super) service: Arc<Service>,
}

impl Bare {
    pub(super) fn start() -> Self {
        Self::with(quick())
    }

    pub(super) fn with(limits: Limits) -> Self {
        let rig = Rig::new();
        let stats = Arc::new(ServerStats::default());
        let shutdown = CancellationToken::new();
        let service = Service::new(methods(&rig))
            .with_limits(limits)
            .with_stats(Arc::clone(&stats))
            .with_shutdown(shutdown.clone());
        Self {
            rig,
            stats,
            shutdown,
            service: Arc::new(service),
        }
    }
}

/// A socket in a run directory of its own, and its path.
pub(super) fn bound(directory: &Path) -> (PathBuf, BoundSocket) {
    let run = directory.join("run");
    let path = run.join("ccod.sock");
    let options = BindOptions::default();
    endpoint::prepare_run_dir(&run, &options).unwrap();
    let lock = EndpointLock::acquire(&run.join("ccod.lock")).unwrap();
    let socket = endpoint::bind(&path, &lock, &options).unwrap();
    (path, socket)
}

/// A server on a socket of its own.
pub(super) struct Daemon {
    pub(super) directory: TempDir,
    pub(super) path: PathBuf,
    pub(super) rig: Arc<Rig>,
    pub(super) stats: Arc<ServerStats>,
    pub(super) shutdown: CancellationToken,
    serving: JoinHandle<ServeReport>,
}

/// What most tests want: short deadlines, everything else as it is.
pub(super) fn quick() -> Limits {
    Limits {
        deadline_grace_ms: 20,
        socket_check_ms: 20,
        ..Limits::default()
    }
}

impl Daemon {
    pub(super) fn start() -> Self {
        Self::with(quick())
    }

    pub(super) fn with(limits: Limits) -> Self {
        Self::serving(limits, None)
    }

    pub(super) fn serving(limits: Limits, policy: Option<PeerPolicy>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (path, socket) = bound(directory.path());
        let Bare {
            rig,
            stats,
            shutdown,
            service,
        } = Bare::with(limits);
        let mut server = Server::over(service);
        if let Some(policy) = policy {
            server = server.policy(policy);
        }
        let serving = tokio::spawn(server.serve(socket));
        Self {
            directory,
            path,
            rig,
            stats,
            shutdown,
            serving,
        }
    }

    pub(super) async fn connect(&self) -> Wire {
        Wire::connect(&self.path).await
    }

    /// Stops it and returns how that went.
    pub(super) async fn stop(self) -> ServeReport {
        self.shutdown.cancel();
        within(self.serving).await.expect("the server panicked")
    }

    /// Sends `input`, ends the input, and gives back every line of the answer.
    pub(super) async fn ask(&self, input: impl AsRef<[u8]>) -> Vec<Value> {
        let mut wire = self.connect().await;
        wire.send(input).await;
        wire.end_input().await;
        wire.rest().await
    }
}

/// A client of bytes.
pub(super) struct Wire {
    pub(super) stream: UnixStream,
    buffer: Vec<u8>,
}

impl Wire {
    pub(super) async fn connect(path: &Path) -> Self {
        let stream = within(async {
            loop {
                match UnixStream::connect(path).await {
                    Ok(stream) => return stream,
                    // The queue of new connections is full for now.
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await;
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub(super) async fn send(&mut self, input: impl AsRef<[u8]>) {
        within(self.stream.write_all(input.as_ref())).await.unwrap();
    }

    pub(super) async fn end_input(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// The next line, which must be JSON; none at the end.
    pub(super) async fn line(&mut self) -> Option<Value> {
        let line = within(async {
            loop {
                if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                    let rest = self.buffer.split_off(end + 1);
                    return Some(std::mem::replace(&mut self.buffer, rest));
                }
                if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                    assert!(
                        self.buffer.is_empty(),
                        "half a line: {:?}",
                        String::from_utf8_lossy(&self.buffer)
                    );
                    return None;
                }
            }
        })
        .await?;
        Some(
            serde_json::from_slice(&line).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&line))),
        )
    }

    /// All lines up to the end.
    pub(super) async fn rest(&mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        lines
    }

    pub(super) async fn call(&mut self, request: &Value) -> Value {
        self.send(format!("{request}\n")).await;
        self.line().await.expect("an answer")
    }
}

pub(super) fn request(id: impl Into<Value>, method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params })
}

pub(super) fn echo(id: impl Into<Value>, params: Value) -> Value {
    request(id, "test.echo", params)
}

pub(super) fn result(id: impl Into<Value>, result: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id.into(), "result": result })
}

pub(super) fn code(answer: &Value) -> i64 {
    answer["error"]["code"]
        .as_i64()
        .unwrap_or_else(|| panic!("no error: {answer}"))
}

/// Every error says its kind and whether to retry.
pub(super) fn refused(answer: &Value, id: &Value, expected: i64) {
    assert_eq!(code(answer), expected, "{answer}");
    assert_eq!(&answer["id"], id, "{answer}");
    assert!(answer["error"]["data"]["kind"].is_string(), "{answer}");
    assert!(answer["error"]["data"]["retryable"].is_boolean(), "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(!message.is_empty() && !message.contains('\n'), "{answer}");
}
