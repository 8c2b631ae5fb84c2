//! The typed client: jsonrpsee's async client over the daemon's socket.
//!
//! The transport is ours. It frames by lines, takes notifications out before jsonrpsee sees them (whose
//! own notion of a subscription has no cursors), and turns an error without an id, by which the daemon
//! refuses a whole connection, into the reason for which every call of the connection fails.
//!
//! ```no_run
//! use ccod_protocol::api::{self, SearchParams, StoreParams};
//! use ccod_protocol::client::{CallOptions, Client, ClientError};
//!
//! # async fn example() -> Result<(), ClientError> {
//! let client = Client::connect("/home/me/.cco/run/ccod.sock").await?;
//! let decision = StoreParams {
//!     text: "Tokens expire after 15 minutes".to_owned(),
//!     agent: Some("architect".to_owned()),
//!     // A retry with the same key stores once.
//!     idempotency_key: Some("session-7/decision-3".to_owned()),
//!     ..StoreParams::default()
//! };
//! let stored = client.call::<api::Store>(&decision, CallOptions::project("web")).await?;
//! assert!(stored.version > 0);
//!
//! let query = SearchParams {
//!     query: "how long is a token valid".to_owned(),
//!     limit: 3,
//!     ..SearchParams::default()
//! };
//! let found = client.call::<api::Search>(&query, CallOptions::project("web")).await?;
//! for hit in &found.results {
//!     println!("{:.2}  {}", hit.score, hit.passage.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Errors keep the daemon's own: [`ClientError::as_wire`] has the code, whether a retry helps, and what was executed.

use futures::Stream;
use jsonrpsee::core::client::async_client::RpcService;
use jsonrpsee::core::client::{
    Client as JsonrpseeClient, ClientBuilder, ClientT, Error as JsonrpseeError, ReceivedMessage, TransportReceiverT,
    TransportSenderT,
};
use jsonrpsee::core::middleware::layer::RpcLogger;
use jsonrpsee::core::middleware::{Batch, Notification as RpcNotification, Request, RpcServiceBuilder, RpcServiceT};
use jsonrpsee::core::traits::ToRpcParams;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast;

use crate::api::{
    self, Change, ChangedNotification, KNOWLEDGE_CHANGED, Method, ProgressNotification, RPC_PROGRESS, SubscribeParams,
    UnsubscribeParams, method,
};
use crate::endpoint::SOCKET_PATH_MAX;
use crate::error::WireError;
use crate::params::{TIMEOUT_MS_MAX, peek_timeout};

/// What the client adds to a call's deadline before it gives up by itself: the daemon answers at the
/// deadline, and its answer says more than ours.
const MARGIN: Duration = Duration::from_secs(2);
/// Notifications that wait for a reader before the oldest are lost (and the reader is told).
const NOTIFICATIONS: usize = 1024;
/// The most characters of a message that jsonrpsee logs (at level trace).
const LOGGED_CHARS: u32 = 1024;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no daemon runs at {path}; start it with `ccoctl daemon start`")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system does not allow it.
    #[error(
        "permission denied for {path}: the socket belongs to another user, or a sandbox forbids Unix sockets; run as its owner, or allow the path in the sandbox's settings"
    )]
    Permission {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No socket can have such a path.
    #[error(
        "the socket path {path} is longer than {SOCKET_PATH_MAX} bytes; give a shorter one with --socket or CCO_SOCKET"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Connecting failed otherwise.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon answered with an error.
    #[error("{0}")]
    Rpc(WireError),
    /// The connection ended before the answer. Of a write it is unknown whether it happened.
    #[error("the daemon closed the connection before it answered")]
    Closed,
    /// No answer came in time, not even that the deadline passed.
    #[error("the daemon gave no answer within {} ms", after.as_millis())]
    Timeout {
        /// How long the client waited.
        after: Duration,
    },
    /// Notifications were lost because they were not read in time; resume from the last cursor.
    #[error("{missed} notifications were lost because they were not read in time; resume from the last cursor")]
    Lagged {
        /// How many.
        missed: u64,
    },
    /// The answer is not what this version of the client expects.
    #[error(
        "the daemon's answer cannot be read ({0}); client and daemon may be of different versions, see `rpc.version`"
    )]
    Unexpected(String),
}

impl ClientError {
    /// The daemon's error, if it is one.
    #[must_use]
    pub fn as_wire(&self) -> Option<&WireError> {
        match self {
            Self::Rpc(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the same call may succeed later. A write should then carry an id or an idempotency key.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Rpc(error) => error.data.retryable,
            Self::NotRunning { .. } | Self::Closed | Self::Timeout { .. } => true,
            Self::Permission { .. }
            | Self::PathTooLong { .. }
            | Self::Connect { .. }
            | Self::Lagged { .. }
            | Self::Unexpected(_) => false,
        }
    }
}

/// What a call may carry besides its parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// The project; absent means the method's default.
    pub project_id: Option<String>,
    /// The deadline, 1 ms to 600 s; absent means the method's default.
    pub timeout: Option<Duration>,
    /// The caller's own name for the call, at most 256 bytes.
    pub trace_id: Option<String>,
}

impl CallOptions {
    /// A call in this project.
    #[must_use]
    pub fn project(project_id: impl Into<String>) -> Self {
        Self {
            project_id: Some(project_id.into()),
            ..Self::default()
        }
    }

    /// With this name, by which the call is found again in errors and in the daemon's log.
    #[must_use]
    pub fn trace_id(mut self, trace_id: impl Into<String>) -> Self {
        self.trace_id = Some(trace_id.into());
        self
    }

    /// With this deadline.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// How a client connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long to try while the daemon's queue of new connections is full.
    pub connect_timeout: Duration,
    /// The longest line that is accepted, in bytes. Above the daemon's own limit.
    pub max_line_bytes: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            max_line_bytes: 64 << 20,
        }
    }
}

/// A notification that the daemon sent.
#[derive(Clone, Debug)]
pub struct Notification {
    /// Its name.
    pub method: String,
    /// Its parameters, as they came.
    pub params: Box<RawValue>,
}

/// A connection to the daemon. Calls may run side by side; dropping it closes the connection, which
/// cancels what is still in flight.
#[derive(Debug)]
pub struct Client {
    rpc: JsonrpseeClient<Service>,
    notifications: broadcast::Sender<Arc<Notification>>,
    path: PathBuf,
}

impl Client {
    /// Connects to the daemon at `path`. Needs a tokio runtime.
    ///
    /// # Errors
    /// Says whether it does not run, may not be used, or cannot be reached otherwise.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        Self::connect_with(path, ClientOptions::default()).await
    }

    /// [`Client::connect`] with options.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(path: impl AsRef<Path>, options: ClientOptions) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let stream = connect(path, options.connect_timeout).await?;
        let (reader, writer) = stream.into_split();
        let (notifications, _) = broadcast::channel(NOTIFICATIONS);
        let receiver = Receiver {
            reader: BufReader::with_capacity(64 << 10, reader),
            line: Vec::new(),
            max_line_bytes: options.max_line_bytes,
            notifications: notifications.clone(),
        };
        let rpc = ClientBuilder::new()
            // Each call has its own deadline; this one only catches what has none.
            .request_timeout(Duration::from_millis(TIMEOUT_MS_MAX) + 2 * MARGIN)
            .max_concurrent_requests(1024)
            .set_rpc_middleware(RpcServiceBuilder::new().rpc_logger(LOGGED_CHARS).layer_fn(NoteId))
            .build_with_tokio(Sender { writer }, receiver);
        Ok(Self {
            rpc,
            notifications,
            path: path.to_owned(),
        })
    }

    /// The socket it is connected to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the connection still stands, as far as is known.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.rpc.is_connected()
    }

    /// Returns when the connection has ended.
    pub async fn closed(&self) -> ClientError {
        from_jsonrpsee(self.rpc.on_disconnect().await)
    }

    /// Calls `M`.
    ///
    /// # Errors
    /// [`ClientError::Rpc`] with the daemon's error, or why there is no answer.
    pub async fn call<M: Method>(&self, params: &M::Params, options: CallOptions) -> Result<M::Result, ClientError> {
        let raw = with_common(params, &options)?;
        let given = options.timeout;
        let patience = given.unwrap_or_else(|| api::default_timeout(M::NAME, raw.get().len())) + MARGIN;
        let result: Box<RawValue> = self.request(M::NAME, raw, patience).await?;
        serde_json::from_str(result.get()).map_err(|error| ClientError::Unexpected(error.to_string()))
    }

    /// Calls `M`, gives its progress to `progress` as it comes, and cancels it once `cancel` is ready.
    ///
    /// A cancelled call is answered like any other, and the answer decides: the daemon's error `cancelled`,
    /// or the result if that was quicker. Progress may be lost where it comes faster than it is taken.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_watched<M: Method>(
        &self,
        params: &M::Params,
        options: CallOptions,
        cancel: impl Future<Output = ()>,
        mut progress: impl FnMut(ProgressNotification),
    ) -> Result<M::Result, ClientError> {
        let id = Arc::new(OnceLock::new());
        // Listens before it asks, as for a subscription.
        let mut notifications = self.notifications.subscribe();
        let mut tell = |notification: &Notification| {
            if notification.method == RPC_PROGRESS
                && let Ok(of_some_call) = serde_json::from_str::<ProgressNotification>(notification.params.get())
                && id.get() == Some(&of_some_call.request_id)
            {
                progress(of_some_call);
            }
        };
        let call = REQUEST_ID.scope(Arc::clone(&id), self.call::<M>(params, options));
        tokio::pin!(call, cancel);
        let mut cancelled = false;
        let mut listening = true;
        let answer = loop {
            tokio::select! {
                // The call first: it has no id, and is not on its way, before it was polled once.
                biased;
                answer = &mut call => break answer,
                received = next_notification(&mut notifications), if listening => match received {
                    Some(Ok(notification)) => tell(&notification),
                    // Later progress says more than what was lost.
                    Some(Err(_)) => {}
                    None => listening = false,
                },
                () = &mut cancel, if !cancelled => {
                    cancelled = true;
                    if let Some(id) = id.get() {
                        // Fails only with the connection, and then the call does, too.
                        self.notify(method::RPC_CANCEL, serde_json::json!({ "id": id })).await.unwrap_or_default();
                    }
                }
            }
        };
        // What came right before the answer.
        while let Ok(notification) = notifications.try_recv() {
            tell(&notification);
        }
        answer
    }

    /// Calls a method by name with parameters as they are: an object, an array, or null for none.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_raw(&self, method: &str, params: serde_json::Value) -> Result<serde_json::Value, ClientError> {
        let raw = to_raw_value(&params).map_err(|error| ClientError::Unexpected(error.to_string()))?;
        self.call_json(method, raw).await
    }

    /// As [`Client::call_raw`], for parameters that are JSON already: they are sent as they are, a key that stands
    /// there twice included.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call_json(&self, method: &str, params: Box<RawValue>) -> Result<serde_json::Value, ClientError> {
        let default = || api::default_timeout(method, params.get().len());
        let patience = peek_timeout(Some(params.get())).unwrap_or_else(default) + MARGIN;
        let result: Box<RawValue> = self.request(method, params, patience).await?;
        serde_json::from_str(result.get()).map_err(|error| ClientError::Unexpected(error.to_string()))
    }

    async fn request(
        &self,
        method: &str,
        params: Box<RawValue>,
        patience: Duration,
    ) -> Result<Box<RawValue>, ClientError> {
        let params = RawParams((params.get() != "null").then_some(params));
        match tokio::time::timeout(patience, self.rpc.request(method, params)).await {
            Ok(result) => result.map_err(from_jsonrpsee),
            Err(_) => Err(ClientError::Timeout { after: patience }),
        }
    }

    /// Sends a notification: a call without an answer.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn notify(&self, method: &str, params: serde_json::Value) -> Result<(), ClientError> {
        let raw = to_raw_value(&params).map_err(|error| ClientError::Unexpected(error.to_string()))?;
        let params = RawParams((raw.get() != "null").then_some(raw));
        self.rpc.notification(method, params).await.map_err(from_jsonrpsee)
    }

    /// Every notification from now on, of whatever subscription or call. Ends with the connection.
    pub fn notifications(&self) -> impl Stream<Item = Result<Arc<Notification>, ClientError>> + Send + Unpin + 'static {
        let receiver = self.notifications.subscribe();
        Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
            let item = next_notification(&mut receiver).await?;
            Some((item, receiver))
        }))
    }

    /// Starts the change feed.
    ///
    /// # Errors
    /// As [`Client::call`]; `expired` if the cursor is too old.
    pub async fn subscribe(&self, params: &SubscribeParams, options: CallOptions) -> Result<Subscription, ClientError> {
        // Listens before it asks: the first change may come right behind the answer.
        let receiver = self.notifications.subscribe();
        let answer = self.call::<api::Subscribe>(params, options).await?;
        let id = answer.subscription.clone();
        let changes = futures::stream::unfold((receiver, id), |(mut receiver, id)| async move {
            loop {
                let item = match next_notification(&mut receiver).await? {
                    Err(error) => Err(error),
                    Ok(notification) if notification.method == KNOWLEDGE_CHANGED => {
                        match serde_json::from_str::<ChangedNotification>(notification.params.get()) {
                            Ok(changed) if changed.subscription == id => Ok(changed.result),
                            Ok(_) => continue,
                            Err(error) => Err(ClientError::Unexpected(error.to_string())),
                        }
                    }
                    Ok(_) => continue,
                };
                return Some((item, (receiver, id)));
            }
        });
        Ok(Subscription {
            id: answer.subscription,
            cursor: answer.cursor,
            changes: Box::pin(changes),
        })
    }

    /// Ends a change feed. False if it had ended already.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn unsubscribe(&self, subscription: &Subscription) -> Result<bool, ClientError> {
        let params = UnsubscribeParams {
            subscription: subscription.id.clone(),
        };
        self.call::<api::Unsubscribe>(&params, CallOptions::default()).await
    }
}

async fn next_notification(
    receiver: &mut broadcast::Receiver<Arc<Notification>>,
) -> Option<Result<Arc<Notification>, ClientError>> {
    match receiver.recv().await {
        Ok(notification) => Some(Ok(notification)),
        Err(broadcast::error::RecvError::Lagged(missed)) => Some(Err(ClientError::Lagged { missed })),
        Err(broadcast::error::RecvError::Closed) => None,
    }
}

/// A change feed: a stream of changes. Dropping it stops listening; [`Client::unsubscribe`] tells the
/// daemon as well.
pub struct Subscription {
    /// Its name on the connection.
    pub id: String,
    /// Where it began.
    pub cursor: String,
    changes: Pin<Box<dyn Stream<Item = Result<Change, ClientError>> + Send>>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Stream for Subscription {
    type Item = Result<Change, ClientError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.changes.as_mut().poll_next(context)
    }
}

async fn connect(path: &Path, patience: Duration) -> Result<UnixStream, ClientError> {
    /// How often to try again while the queue of new connections is full.
    const PAUSE: Duration = Duration::from_millis(10);
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(ClientError::PathTooLong { path: path.to_owned() });
    }
    let end = tokio::time::Instant::now() + patience;
    loop {
        let source = match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(source) => source,
        };
        let path = path.to_owned();
        return Err(match source.kind() {
            io::ErrorKind::WouldBlock if tokio::time::Instant::now() < end => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path, source }
            }
            io::ErrorKind::PermissionDenied => ClientError::Permission { path, source },
            _ => ClientError::Connect { path, source },
        });
    }
}

/// Parameters with the common ones, as raw JSON.
fn with_common<P: Serialize>(params: &P, options: &CallOptions) -> Result<Box<RawValue>, ClientError> {
    #[derive(Serialize)]
    struct WithCommon<'a, P> {
        #[serde(flatten)]
        params: &'a P,
        #[serde(skip_serializing_if = "Option::is_none")]
        project_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace_id: Option<&'a str>,
    }
    let timeout_ms = options.timeout.map(|timeout| {
        u64::try_from(timeout.as_millis())
            .unwrap_or(TIMEOUT_MS_MAX)
            .clamp(1, TIMEOUT_MS_MAX)
    });
    to_raw_value(&WithCommon {
        params,
        project_id: options.project_id.as_deref(),
        timeout_ms,
        trace_id: options.trace_id.as_deref(),
    })
    .map_err(|error| ClientError::Unexpected(error.to_string()))
}

tokio::task_local! {
    /// Where [`Client::call_watched`] wants the id of the request that it makes.
    static REQUEST_ID: Arc<OnceLock<serde_json::Value>>;
}

/// What a request passes on its way to the transport.
type Service = RpcLogger<NoteId<RpcService>>;

/// Notes the id that jsonrpsee gave to a request where [`REQUEST_ID`] asks for it: jsonrpsee itself tells it
/// to nobody.
#[derive(Clone, Debug)]
struct NoteId<S>(S);

impl<S: RpcServiceT + Send + Sync + Clone + 'static> RpcServiceT for NoteId<S> {
    type MethodResponse = S::MethodResponse;
    type NotificationResponse = S::NotificationResponse;
    type BatchResponse = S::BatchResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        if let (Ok(place), Ok(id)) = (REQUEST_ID.try_with(Arc::clone), serde_json::to_value(&request.id)) {
            place.get_or_init(|| id);
        }
        self.0.call(request)
    }

    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        self.0.batch(batch)
    }

    fn notification<'a>(
        &self,
        notification: RpcNotification<'a>,
    ) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        self.0.notification(notification)
    }
}

struct RawParams(Option<Box<RawValue>>);

impl ToRpcParams for RawParams {
    fn to_rpc_params(self) -> Result<Option<Box<RawValue>>, serde_json::Error> {
        Ok(self.0)
    }
}

fn from_jsonrpsee(error: JsonrpseeError) -> ClientError {
    match error {
        JsonrpseeError::Call(object) => ClientError::Rpc(object.into()),
        JsonrpseeError::RestartNeeded(reason) => ended(&reason),
        JsonrpseeError::Transport(_) | JsonrpseeError::ServiceDisconnect => ended(&error),
        JsonrpseeError::RequestTimeout => ClientError::Timeout {
            after: Duration::from_millis(TIMEOUT_MS_MAX),
        },
        other => ClientError::Unexpected(other.to_string()),
    }
}

/// Why a connection ended, which jsonrpsee passes on to every call of it.
fn ended(reason: &JsonrpseeError) -> ClientError {
    match reason {
        JsonrpseeError::Transport(source) => match source.downcast_ref::<TransportError>() {
            Some(TransportError::Refused(error)) => ClientError::Rpc(error.clone()),
            Some(TransportError::Unexpected(what)) => ClientError::Unexpected((*what).to_owned()),
            _ => ClientError::Closed,
        },
        JsonrpseeError::InvalidRequestId(_) | JsonrpseeError::ParseError(_) | JsonrpseeError::Custom(_) => {
            ClientError::Unexpected(reason.to_string())
        }
        _ => ClientError::Closed,
    }
}

/// Why the transport ended.
#[derive(Debug, thiserror::Error)]
enum TransportError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the daemon closed the connection")]
    Closed,
    #[error("{0}")]
    Refused(WireError),
    #[error("{0}")]
    Unexpected(&'static str),
}

struct Sender {
    writer: OwnedWriteHalf,
}

impl TransportSenderT for Sender {
    type Error = TransportError;

    async fn send(&mut self, mut message: String) -> Result<(), TransportError> {
        message.push('\n');
        match self.writer.write_all(message.as_bytes()).await {
            // The daemon has closed the connection. It may have said why, and what it said can still be read, so the
            // end of reading is the end of the connection, and not this.
            Err(error) if is_of_the_end(&error) => Ok(()),
            written => Ok(written?),
        }
    }

    async fn close(&mut self) -> Result<(), TransportError> {
        self.writer.shutdown().await?;
        Ok(())
    }
}

fn is_of_the_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

struct Receiver {
    reader: BufReader<OwnedReadHalf>,
    /// What has come of a line that is not complete.
    line: Vec<u8>,
    max_line_bytes: usize,
    notifications: broadcast::Sender<Arc<Notification>>,
}

impl Receiver {
    /// The next line without its newline.
    async fn next_line(&mut self) -> Result<Vec<u8>, TransportError> {
        loop {
            let available = self.reader.fill_buf().await?;
            if available.is_empty() {
                return Err(TransportError::Closed);
            }
            let newline = available.iter().position(|byte| *byte == b'\n');
            let used = newline.map_or(available.len(), |end| end + 1);
            self.line.extend_from_slice(&available[..newline.unwrap_or(used)]);
            self.reader.consume(used);
            if newline.is_some() {
                return Ok(std::mem::take(&mut self.line));
            }
            if self.line.len() > self.max_line_bytes {
                return Err(TransportError::Unexpected("a line is longer than this client accepts"));
            }
        }
    }
}

impl TransportReceiverT for Receiver {
    type Error = TransportError;

    async fn receive(&mut self) -> Result<ReceivedMessage, TransportError> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow, default)]
            id: Option<&'a RawValue>,
            #[serde(borrow, default)]
            method: Option<Cow<'a, str>>,
            #[serde(borrow, default)]
            params: Option<&'a RawValue>,
            #[serde(default)]
            error: Option<jsonrpsee_types::ErrorObjectOwned>,
        }
        loop {
            let line = self.next_line().await?;
            // A response to a request of ours, by far the most frequent: nothing in it is looked at here.
            const RESPONSE: &[u8] = br#"{"jsonrpc":"2.0","id":"#;
            if line
                .strip_prefix(RESPONSE)
                .and_then(<[u8]>::first)
                .is_some_and(u8::is_ascii_digit)
            {
                return Ok(ReceivedMessage::Bytes(line));
            }
            let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(&line) else {
                return Err(TransportError::Unexpected("a line is not JSON-RPC"));
            };
            match envelope {
                Envelope {
                    method: Some(method),
                    params,
                    ..
                } => {
                    let params = params.map_or_else(|| RawValue::NULL.to_owned(), RawValue::to_owned);
                    // Fails only if nobody listens.
                    let _listeners = self.notifications.send(Arc::new(Notification {
                        method: method.into_owned(),
                        params,
                    }));
                }
                Envelope {
                    id: None,
                    error: Some(error),
                    ..
                } => return Err(TransportError::Refused(error.into())),
                _ => return Ok(ReceivedMessage::Bytes(line)),
            }
        }
    }
}
