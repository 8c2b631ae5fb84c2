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

mod calls;
mod error;
mod feed;
mod transport;

use jsonrpsee::core::client::{Client as JsonrpseeClient, ClientBuilder};
use jsonrpsee::core::middleware::RpcServiceBuilder;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::sync::broadcast;

use crate::endpoint::SOCKET_PATH_MAX;
use crate::params::TIMEOUT_MS_MAX;

use calls::{NoteId, Service};
use error::from_jsonrpsee;
use transport::{Receiver, Sender};

pub use error::ClientError;
pub use feed::{Notification, Subscription};

/// What the client adds to a call's deadline before it gives up by itself: the daemon answers at the
/// deadline, and its answer says more than ours.
const MARGIN: Duration = Duration::from_secs(2);
/// Notifications that wait for a reader before the oldest are lost, which the reader is told.
const NOTIFICATIONS: usize = 1024;
/// The most characters of a message that jsonrpsee logs (at level trace).
const LOGGED_CHARS: u32 = 1024;

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
