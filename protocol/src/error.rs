//! The errors of the wire: one table of codes, kinds and whether a retry helps.
//!
//! Every error that leaves the daemon is a [`WireError`]. Its message is one sentence that says what to
//! do; its data says the same to programs. Messages never repeat stored text or a secret.

use ccod_words::{message, shortened};
use jsonrpsee_types::ErrorObjectOwned;
use serde::{Deserialize, Serialize};
use std::fmt;

pub use ccod_words::{Executed, Invalid};

/// Declares [`ErrorKind`] and the table behind it.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $code:literal, $retryable:literal;)*) => {
        /// What went wrong, in a word that programs may rely on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorKind {
            $($(#[$doc])* $variant,)*
            /// A kind that this version does not know: the peer is newer.
            #[serde(other)]
            Unknown,
        }

        impl ErrorKind {
            /// Every kind of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The JSON-RPC error code.
            #[must_use]
            pub const fn code(self) -> i32 {
                match self { $(Self::$variant => $code,)* Self::Unknown => -32_603 }
            }

            /// Whether the same request may succeed later.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable,)* Self::Unknown => false }
            }

            /// The word on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* Self::Unknown => "unknown" }
            }

            /// The kind that has this code.
            #[must_use]
            pub const fn from_code(code: i32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

kinds! {
    /// What came in is not JSON.
    ParseError = "parse_error", -32_700, false;
    /// It is JSON, but not a request.
    InvalidRequest = "invalid_request", -32_600, false;
    /// No such method.
    MethodNotFound = "method_not_found", -32_601, false;
    /// A parameter is missing, unknown, or has a wrong value.
    InvalidParams = "invalid_params", -32_602, false;
    /// A fault in the daemon.
    InternalError = "internal_error", -32_603, false;
    /// The request is over the size limit.
    RequestTooLarge = "request_too_large", -32_007, false;
    /// The response is over the size limit.
    ResponseTooLarge = "response_too_large", -32_008, false;
    /// There is too much load.
    Busy = "busy", -32_009, true;
    /// The batch has too many requests.
    BatchTooLarge = "batch_too_large", -32_010, false;
    /// No such item.
    NotFound = "not_found", -32_020, false;
    /// The id is taken by other content.
    AlreadyExists = "already_exists", -32_021, false;
    /// A secret was found and the policy is to refuse.
    SecretRejected = "secret_rejected", -32_022, false;
    /// The stored vectors come from another model.
    ModelMismatch = "model_mismatch", -32_023, false;
    /// Nothing can be written at the moment.
    ReadOnly = "read_only", -32_024, true;
    /// The peer sends faster than it may.
    RateLimited = "rate_limited", -32_025, true;
    /// The peer may not use this socket.
    Forbidden = "forbidden", -32_026, false;
    /// The call was cancelled.
    Cancelled = "cancelled", -32_027, true;
    /// The cursor or token is too old.
    Expired = "expired", -32_028, false;
    /// The data has an older shape.
    NeedsMigration = "needs_migration", -32_029, false;
    /// The deadline passed.
    DeadlineExceeded = "deadline_exceeded", -32_050, true;
    /// A part of the daemon is restarting or degraded.
    Unavailable = "unavailable", -32_051, true;
    /// The write may or may not have happened.
    OutcomeUnknown = "outcome_unknown", -32_052, true;
    /// The daemon is stopping.
    ShuttingDown = "shutting_down", -32_053, true;
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an error says to programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorData {
    /// What went wrong, in a word.
    pub kind: ErrorKind,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// What to do about it, where the message does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The parameter that is wrong, as a path (`items[3].text`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// Milliseconds after which a retry makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Whether the call was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed: Option<Executed>,
    /// The `trace_id` of the call, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Whatever else an error says.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// An error as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// The JSON-RPC error code.
    pub code: i32,
    /// One sentence that says what to do.
    pub message: String,
    /// The same for programs. Boxed: results carry errors around, and most succeed.
    pub data: Box<ErrorData>,
}

impl WireError {
    /// An error of `kind` with this message.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            code: kind.code(),
            message: message.into(),
            data: Box::new(ErrorData {
                kind,
                retryable: kind.retryable(),
                fix: None,
                parameter: None,
                retry_after_ms: None,
                executed: None,
                trace_id: None,
                extra: serde_json::Map::new(),
            }),
        }
    }

    /// What went wrong, in a word.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.data.kind
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.data.fix = Some(fix.into());
        self
    }

    /// Names the parameter that is wrong.
    #[must_use]
    pub fn with_parameter(mut self, parameter: impl Into<String>) -> Self {
        self.data.parameter = Some(parameter.into());
        self
    }

    /// Says when a retry makes sense, in milliseconds.
    #[must_use]
    pub fn with_retry_after_ms(mut self, retry_after_ms: u64) -> Self {
        self.data.retry_after_ms = Some(retry_after_ms);
        self
    }

    /// Says whether the call was carried out.
    #[must_use]
    pub fn with_executed(mut self, executed: Executed) -> Self {
        self.data.executed = Some(executed);
        self
    }

    /// Names the call, if its caller has given it a name.
    #[must_use]
    pub fn of_trace(mut self, trace_id: Option<&str>) -> Self {
        if let Some(trace_id) = trace_id {
            self.data.trace_id = Some(trace_id.to_owned());
        }
        self
    }

    /// Adds a further fact.
    #[must_use]
    pub fn with_extra(mut self, key: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.data.extra.insert(key.into(), value.into());
        self
    }

    /// -32700: what came in is not JSON.
    #[must_use]
    pub fn parse_error(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::ParseError, message)
    }

    /// -32600: JSON, but not a request.
    #[must_use]
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// -32601: no such method; `nearest` is one that is served and has a similar name.
    #[must_use]
    pub fn method_not_found(name: &str, nearest: Option<&str>) -> Self {
        let name = shortened(name, 80);
        let message = match nearest {
            Some(nearest) => format!("there is no method `{name}`; did you mean `{nearest}`?"),
            None => format!("there is no method `{name}`; `rpc.discover` lists the methods"),
        };
        let error = Self::new(ErrorKind::MethodNotFound, message);
        match nearest {
            Some(nearest) => error.with_extra("nearest", nearest),
            None => error,
        }
    }

    /// -32602: `parameter` is missing, unknown or wrong; the message says what is valid.
    #[must_use]
    pub fn invalid_params(parameter: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidParams, message).with_parameter(parameter)
    }

    /// -32603: a fault in the daemon. `message` must hold nothing that was sent or stored.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InternalError, message).with_fix("look into the daemon's log, and report it if it recurs")
    }

    /// -32007: the request is over `limit_bytes`.
    #[must_use]
    pub fn request_too_large(limit_bytes: usize) -> Self {
        Self::new(
            ErrorKind::RequestTooLarge,
            format!("the request is larger than {limit_bytes} bytes; send it in smaller parts"),
        )
        .with_extra("limit_bytes", limit_bytes)
    }

    /// -32008: the response would be over `limit_bytes`.
    #[must_use]
    pub fn response_too_large(limit_bytes: usize) -> Self {
        Self::new(ErrorKind::ResponseTooLarge, message::response_too_large(limit_bytes))
            .with_extra("limit_bytes", limit_bytes)
    }

    /// -32010: the batch has more than `limit` requests.
    #[must_use]
    pub fn batch_too_large(limit: usize) -> Self {
        Self::new(
            ErrorKind::BatchTooLarge,
            format!("the batch has more than {limit} requests; send several batches"),
        )
        .with_extra("limit", limit)
    }

    /// -32009: there is too much load (`what`, a clause such as "the queue is full"); nothing was done.
    #[must_use]
    pub fn busy(what: impl fmt::Display, retry_after_ms: u64) -> Self {
        Self::new(ErrorKind::Busy, message::busy(what, retry_after_ms))
            .with_retry_after_ms(retry_after_ms)
            .with_executed(Executed::No)
    }

    /// -32020: no item has this id.
    #[must_use]
    pub fn not_found(id: &str) -> Self {
        Self::new(ErrorKind::NotFound, message::not_found(id)).with_extra("id", shortened(id, 120))
    }

    /// As [`Self::not_found`], where a part of the project cannot be read, and why.
    #[must_use]
    pub fn not_found_in_part(id: &str, degraded: Option<String>) -> Self {
        let mut error = Self::not_found(id);
        error.message = message::not_found_in_part(id, degraded.as_deref());
        match degraded {
            Some(reason) => error.with_extra("degraded", reason),
            None => error,
        }
    }

    /// -32021: the id belongs to other content.
    #[must_use]
    pub fn already_exists(id: &str) -> Self {
        Self::new(ErrorKind::AlreadyExists, message::already_exists(id)).with_extra("id", shortened(id, 120))
    }

    /// -32022: `detector` found a secret at `place` (never the secret itself).
    #[must_use]
    pub fn secret_rejected(detector: &str, place: &str) -> Self {
        Self::new(ErrorKind::SecretRejected, message::secret_rejected(detector, place))
            .with_extra("detector", detector)
            .with_extra("place", place)
    }

    /// -32023: the stored vectors come from another model than the daemon's.
    #[must_use]
    pub fn model_mismatch(project_id: &str, stored: &str, current: &str) -> Self {
        let message = message::model_mismatch(project_id, stored, current);
        Self::new(ErrorKind::ModelMismatch, message)
            .with_extra("stored", stored)
            .with_extra("current", current)
    }

    /// -32024: nothing can be written at the moment; `reason` says why.
    #[must_use]
    pub fn read_only(reason: impl fmt::Display) -> Self {
        Self::new(ErrorKind::ReadOnly, message::read_only(reason)).with_executed(Executed::No)
    }

    /// -32025: the peer sends faster than it may.
    #[must_use]
    pub fn rate_limited(retry_after_ms: u64) -> Self {
        Self::new(
            ErrorKind::RateLimited,
            format!("too many requests; try again in {retry_after_ms} ms"),
        )
        .with_retry_after_ms(retry_after_ms)
        .with_executed(Executed::No)
    }

    /// -32026: the peer may not use this socket.
    #[must_use]
    pub fn forbidden(uid: Option<u32>) -> Self {
        let who = uid.map_or_else(
            || "your user could not be determined and".to_owned(),
            |uid| format!("user id {uid}"),
        );
        Self::new(
            ErrorKind::Forbidden,
            format!("{who} may not use this socket; its owner can add the user id to `allowed_uids`"),
        )
    }

    /// -32027: the call was cancelled.
    #[must_use]
    pub fn cancelled(executed: Executed) -> Self {
        Self::new(ErrorKind::Cancelled, message::CANCELLED).with_executed(executed)
    }

    /// -32028: `what` (the cursor, the undo token: with its article) is too old.
    #[must_use]
    pub fn expired(what: &str) -> Self {
        Self::new(ErrorKind::Expired, message::expired(what))
    }

    /// -32029: the project's data has an older shape.
    #[must_use]
    pub fn needs_migration(project_id: &str, detail: &str) -> Self {
        let message = message::needs_migration(project_id, detail);
        Self::new(ErrorKind::NeedsMigration, message)
            .with_extra("project_id", project_id)
            .with_extra("detail", detail)
    }

    /// -32050: the deadline passed.
    #[must_use]
    pub fn deadline_exceeded(executed: Executed) -> Self {
        Self::new(ErrorKind::DeadlineExceeded, message::deadline_exceeded(executed)).with_executed(executed)
    }

    /// -32051: `part` is restarting or degraded.
    #[must_use]
    pub fn unavailable(part: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unavailable, message::unavailable(part, reason)).with_executed(Executed::No)
    }

    /// -32052: the write may or may not have happened.
    #[must_use]
    pub fn outcome_unknown() -> Self {
        Self::new(ErrorKind::OutcomeUnknown, message::OUTCOME_UNKNOWN).with_executed(Executed::Unknown)
    }

    /// -32053: the daemon is stopping and takes no new requests.
    #[must_use]
    pub fn shutting_down() -> Self {
        Self::new(ErrorKind::ShuttingDown, message::SHUTTING_DOWN).with_executed(Executed::No)
    }
}

impl From<Invalid> for WireError {
    fn from(Invalid { parameter, message }: Invalid) -> Self {
        Self::invalid_params(parameter, message)
    }
}

impl From<ErrorObjectOwned> for WireError {
    fn from(error: ErrorObjectOwned) -> Self {
        let code = error.code();
        let data = error
            .data()
            .and_then(|raw| serde_json::from_str::<ErrorData>(raw.get()).ok());
        let mut wire = Self::new(
            ErrorKind::from_code(code).unwrap_or(ErrorKind::Unknown),
            error.message(),
        );
        wire.code = code;
        if let Some(data) = data {
            *wire.data = data;
        } else if let Some(raw) = error.data() {
            // Not of our shape: another server, or a library's own error. Keep what it said.
            let value = serde_json::from_str(raw.get()).unwrap_or_default();
            wire.data.extra.insert("data".to_owned(), value);
        }
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_itself_and_the_contract() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(kind.code()), Some(*kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        let retryable: Vec<i32> = ErrorKind::ALL
            .iter()
            .filter(|kind| kind.retryable())
            .map(|kind| kind.code())
            .collect();
        assert_eq!(
            retryable,
            [-32009, -32024, -32025, -32027, -32050, -32051, -32052, -32053]
        );
    }

    #[test]
    fn every_constructor_survives_the_wire() {
        let errors = [
            WireError::parse_error("x"),
            WireError::invalid_request("x"),
            WireError::method_not_found("a", Some("b")),
            WireError::invalid_params("limit", "x"),
            WireError::internal("x"),
            WireError::request_too_large(1),
            WireError::response_too_large(1),
            WireError::busy("x", 5),
            WireError::batch_too_large(1),
            WireError::not_found("x"),
            WireError::already_exists("x"),
            WireError::secret_rejected("aws", "text"),
            WireError::model_mismatch("p", "a", "b"),
            WireError::read_only("x"),
            WireError::rate_limited(5),
            WireError::forbidden(Some(7)),
            WireError::cancelled(Executed::Unknown),
            WireError::expired("the cursor"),
            WireError::needs_migration("p", "x"),
            WireError::deadline_exceeded(Executed::No),
            WireError::unavailable("x", "y"),
            WireError::outcome_unknown(),
            WireError::shutting_down(),
        ];
        let kinds: Vec<ErrorKind> = errors.iter().map(WireError::kind).collect();
        assert_eq!(kinds, ErrorKind::ALL);
        for error in errors {
            let text = serde_json::to_string(&error).unwrap();
            let back: ErrorObjectOwned = serde_json::from_str(&text).unwrap();
            assert_eq!(WireError::from(back), error);
            assert!(!error.message.ends_with('.') && !error.message.is_empty());
            let words: Vec<&str> = error.message.split_whitespace().collect();
            assert!(words.windows(2).all(|pair| pair[0] != pair[1]), "{}", error.message);
        }
    }

    #[test]
    fn what_an_error_is_made_with_does_not_repeat_its_own_words() {
        let with_articles = [
            WireError::expired("the cursor"),
            WireError::expired("the undo token"),
            WireError::unavailable("the writer", "it is restarting"),
            WireError::busy("the readers' queue is full", 50),
            WireError::read_only("the disk is full; free some space"),
            WireError::deadline_exceeded(Executed::Yes),
            WireError::deadline_exceeded(Executed::Unknown),
            WireError::forbidden(None),
        ];
        for error in with_articles {
            let words: Vec<&str> = error.message.split_whitespace().collect();
            assert!(words.windows(2).all(|pair| pair[0] != pair[1]), "{}", error.message);
            assert!(error.message.contains(';'), "it says what to do: {}", error.message);
        }
    }

    #[test]
    fn executed_is_false_true_or_unknown() {
        let data = |executed| serde_json::to_value(*WireError::deadline_exceeded(executed).data).unwrap();
        assert_eq!(data(Executed::No)["executed"], false);
        assert_eq!(data(Executed::Yes)["executed"], true);
        assert_eq!(data(Executed::Unknown)["executed"], "unknown");
    }

    #[test]
    fn a_strangers_error_keeps_what_it_said() {
        let stranger = ErrorObjectOwned::owned(-1, "no", Some("details"));
        let error = WireError::from(stranger);
        assert_eq!((error.code, error.kind()), (-1, ErrorKind::Unknown));
        assert_eq!(error.data.extra["data"], "details");
    }

    #[test]
    fn names_in_messages_are_short_and_printable() {
        let error = WireError::method_not_found(&"\u{1b}x".repeat(1000), None);
        assert!(error.message.len() < 1000 && !error.message.contains('\u{1b}'));
    }
}
