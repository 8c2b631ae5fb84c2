//! What a request is answered with.

use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::oneshot;

use super::Shared;
use crate::budget::{Held, Share};
use crate::context::single_line;
use crate::error::{ErrorKind, WireError};
use crate::oversized::too_large;
use crate::service::Answer;

/// An answer without its envelope.
pub(super) struct Outcome {
    /// What stands before the value.
    key: &'static [u8],
    /// The result or the error.
    json: Bytes,
    /// Sent to once the answer is queued among the lines that go out.
    pub(super) queued: Option<oneshot::Sender<()>>,
    pub(super) success: bool,
    /// Whether the call may have changed what is stored.
    writes: bool,
    /// The call's own name, for the error that may take the answer's place.
    trace_id: Option<Arc<str>>,
    /// Whether it has the id null, and the connection is closed after it.
    pub(super) closes: bool,
    /// Its share of the memory for answers.
    pub(super) held: Option<Held>,
}

/// What stands before a result.
const RESULT: &[u8] = b"\"result\":";
/// What stands before an error.
const ERROR: &[u8] = b"\"error\":";
/// What stands behind either.
const END: &[u8] = b"}";

impl Outcome {
    /// A result of the connection's own.
    pub(super) fn result<T: Serialize>(result: &T) -> Self {
        let json = serde_json::to_vec(result).unwrap_or_else(|_| b"null".to_vec());
        Self {
            key: RESULT,
            json: single_line(json),
            queued: None,
            success: true,
            writes: false,
            trace_id: None,
            closes: false,
            held: None,
        }
    }

    /// From the key to the closing brace.
    pub(super) fn length(&self) -> usize {
        self.key.len() + self.json.len() + END.len()
    }

    /// What follows the id in a line.
    pub(super) fn parts(&self) -> [Bytes; 3] {
        [Bytes::from_static(self.key), self.json.clone(), Bytes::from_static(END)]
    }
}

impl From<Answer> for Outcome {
    fn from(answer: Answer) -> Self {
        Self {
            key: RESULT,
            json: answer.json,
            queued: answer.queued,
            success: true,
            writes: answer.writes,
            trace_id: answer.trace_id,
            closes: false,
            held: Some(answer.held),
        }
    }
}

impl Shared {
    /// An error as an outcome; counts it.
    pub(super) fn failure(&self, error: WireError) -> Outcome {
        self.service.stats.errors.add(error.code);
        Outcome {
            key: ERROR,
            json: error_json(&error),
            queued: None,
            success: false,
            writes: false,
            trace_id: error.data.trace_id.as_deref().map(Arc::from),
            // A peer that is refused is refused as a whole: no id, and nothing after it.
            closes: error.code == ErrorKind::Forbidden.code(),
            held: None,
        }
    }

    /// How a call ended, counted in `share`.
    pub(super) fn outcome(&self, ended: Result<Answer, WireError>, share: &Arc<Share>) -> Outcome {
        match ended {
            Ok(answer) => answer.into(),
            Err(error) => {
                let mut outcome = self.failure(error);
                outcome.held = Some(share.hold(outcome.length()));
                outcome
            }
        }
    }

    /// What becomes of an answer that is larger than may be: see [`crate::oversized`].
    pub(super) fn too_large(&self, outcome: &Outcome) -> Outcome {
        let most = self.service.limits.max_response_bytes;
        let error = too_large(&outcome.json, outcome.writes, most);
        self.failure(error.of_trace(outcome.trace_id.as_deref()))
    }
}

/// The beginning of a response: the envelope and the raw id.
pub(super) fn head(id: Option<&str>) -> Bytes {
    Bytes::from(format!(r#"{{"jsonrpc":"2.0","id":{},"#, id.unwrap_or("null")))
}

/// The line that a client gets whose connection is refused.
pub(super) fn refusal(error: &WireError) -> Vec<u8> {
    [&head(None)[..], ERROR, &error_json(error), END, b"\n"].concat()
}

fn error_json(error: &WireError) -> Bytes {
    let json = serde_json::to_vec(error).unwrap_or_else(|_| {
        br#"{"code":-32603,"message":"the error could not be written","data":{"kind":"internal_error","retryable":false}}"#.to_vec()
    });
    single_line(json)
}
