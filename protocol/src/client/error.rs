//! Why a call has no result.

use jsonrpsee::core::client::Error as JsonrpseeError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::transport::TransportError;
use crate::endpoint::SOCKET_PATH_MAX;
use crate::error::WireError;
use crate::params::TIMEOUT_MS_MAX;

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

pub(super) fn from_jsonrpsee(error: JsonrpseeError) -> ClientError {
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
