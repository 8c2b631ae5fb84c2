//! Runs one call: finds the method, keeps the deadline, survives a panic, writes the line.
//!
//! Methods are registered with jsonrpsee and called through their callbacks directly. Its response is a
//! complete JSON-RPC object with an id of its own; dispatch gave it 0 and puts the caller's raw id in its
//! place. The result itself is neither parsed nor copied.

use bytes::Bytes;
use futures::FutureExt;
use jsonrpsee::Extensions;
use jsonrpsee::core::server::{ConnectionId as JsonrpseeConnection, MethodCallback, MethodResponse, Methods};
use jsonrpsee_types::{ErrorObjectOwned, Id, Params};
use serde_json::value::RawValue;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant as TokioInstant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::api;
use crate::budget::{Held, Share};
use crate::context::{CallContext, single_line};
use crate::error::{ErrorKind, Executed, WireError};
use crate::limits::{Limits, ServerStats};
use crate::oversized::too_large;
use crate::params::nearest_method;
use crate::peer::PeerIdentity;
use crate::rate::RateLimiter;

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) methods: Methods,
    pub(crate) limits: Limits,
    pub(crate) stats: Arc<ServerStats>,
    /// Calls that may still start, over all connections.
    pub(crate) in_flight: Arc<Semaphore>,
    /// As `in_flight`, for what an operator needs when that is used up.
    pub(crate) operators_in_flight: Arc<Semaphore>,
    /// Connections that may still be opened.
    pub(crate) places: Arc<Semaphore>,
    /// Connections beyond that may still be served, to an operator: see [`crate::connection::Place::Spare`].
    pub(crate) spare_places: Arc<Semaphore>,
    /// Connections that may still be given time to read why they are cut off.
    pub(crate) lingering: Semaphore,
    pub(crate) rate: Option<RateLimiter>,
    pub(crate) shutdown: CancellationToken,
    /// Cancelled when the time for finishing is over: what still runs then is answered for.
    pub(crate) over: CancellationToken,
    /// Notifications, which outlive their connections.
    pub(crate) detached: TaskTracker,
}

/// A method that was found.
#[derive(Clone)]
pub(crate) struct Found {
    callback: MethodCallback,
    name: &'static str,
}

impl Found {
    /// How long a call with this many bytes of parameters may take that names no `timeout_ms`.
    pub(crate) fn default_timeout(&self, params_bytes: usize) -> Duration {
        api::default_timeout(self.name, params_bytes)
    }

    /// Whether it is served when everything is in use: see [`api::Method::OPERATOR`].
    pub(crate) fn is_operators(&self) -> bool {
        api::method_info(self.name).is_some_and(|row| row.operator)
    }

    fn writes(&self) -> bool {
        // A method that no row names might do anything.
        api::method_info(self.name).is_none_or(|row| row.writes)
    }
}

/// The outcome of a call without its envelope: what follows the id, from `"result":` or `"error":` to the
/// closing brace.
pub(crate) struct Outcome {
    pub(crate) tail: Bytes,
    /// Told once the response is in its place among those that go out.
    pub(crate) queued: Option<jsonrpsee::MethodResponseNotifyTx>,
    pub(crate) success: bool,
    /// Whether the call may have changed what is stored.
    pub(crate) writes: bool,
    /// The call's own name, for the error that may take the answer's place.
    pub(crate) trace_id: Option<Arc<str>>,
    /// Whether it has the id null, and the connection is closed after it.
    pub(crate) closes: bool,
    /// Its share of the memory for answers.
    pub(crate) held: Option<Held>,
}

impl Outcome {
    fn new(tail: Bytes, success: bool) -> Self {
        Self {
            tail,
            queued: None,
            success,
            writes: false,
            trace_id: None,
            closes: false,
            held: None,
        }
    }
}

impl Shared {
    /// The method of this name.
    ///
    /// # Errors
    /// -32601 with the nearest name.
    pub(crate) fn find(&self, name: &str) -> Result<Found, WireError> {
        match self.methods.method_with_name(name) {
            Some((name, callback)) => Ok(Found {
                callback: callback.clone(),
                name,
            }),
            None => Err(WireError::method_not_found(
                name,
                nearest_method(name, self.methods.method_names().chain([api::method::RPC_CANCEL])),
            )),
        }
    }

    /// Lets a call in, or says why not. Cheap, and before anything is started.
    ///
    /// # Errors
    /// `shutting_down`, `rate_limited` or `busy`.
    pub(crate) fn admit(
        &self,
        peer: &PeerIdentity,
        found: &Found,
    ) -> Result<tokio::sync::OwnedSemaphorePermit, WireError> {
        if self.shutdown.is_cancelled() {
            return Err(WireError::shutting_down());
        }
        if let Some(rate) = &self.rate {
            rate.check(peer)?;
        }
        let mut admitted = Arc::clone(&self.in_flight).try_acquire_owned();
        if admitted.is_err() && found.is_operators() {
            admitted = Arc::clone(&self.operators_in_flight).try_acquire_owned();
        }
        admitted.map_err(|_| {
            WireError::busy(
                format!("{} requests are in flight already", self.limits.max_in_flight),
                self.limits.busy_retry_after_ms,
            )
        })
    }

    /// An error as an outcome; counts it.
    pub(crate) fn failure(&self, error: WireError) -> Outcome {
        self.stats.errors.add(error.code);
        Outcome {
            // A peer that is refused is refused as a whole: no id, and nothing after it.
            closes: error.code == ErrorKind::Forbidden.code(),
            ..Outcome::new(error_tail(&error), false)
        }
    }

    /// What becomes of an answer that is larger than may be: see [`crate::oversized`].
    pub(crate) fn too_large(&self, outcome: &Outcome) -> Outcome {
        let most = self.limits.max_response_bytes;
        let error = too_large(&outcome.tail, outcome.writes, most);
        self.failure(error.of_trace(outcome.trace_id.as_deref()))
    }

    /// Runs a call to its end, whatever that is. Every path out of here is an answer, which is counted in `share`.
    pub(crate) async fn run(
        &self,
        found: Found,
        params: Params<'static>,
        context: CallContext,
        share: &Arc<Share>,
    ) -> Outcome {
        let writes = found.writes();
        let connection = context.connection;
        let trace_id = context.trace_id.clone();
        let span = match &trace_id {
            // As a literal, so that it stays on its line of the log.
            Some(trace_id) => tracing::info_span!("call", method = found.name, ?trace_id),
            None => tracing::Span::none(),
        };
        let ended = self.run_to_its_end(found, params, context).instrument(span.clone());
        let mut outcome = match ended.await {
            Ok(outcome) => outcome,
            Err(error) => {
                if trace_id.is_some() {
                    let kind = error.kind();
                    tracing::info!(parent: &span, code = error.code, %kind, "the call failed");
                }
                self.failure(error.of_trace(trace_id.as_deref()))
            }
        };
        outcome.trace_id.clone_from(&trace_id);
        let bytes = outcome.tail.len();
        outcome.held = Some(if writes || !outcome.success {
            share.hold(bytes)
        } else {
            match share.try_hold_answer(bytes) {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(%connection, bytes, "an answer was dropped: too many wait to be read");
                    outcome = self.failure(error.of_trace(trace_id.as_deref()));
                    share.hold(outcome.tail.len())
                }
            }
        });
        outcome
    }

    async fn run_to_its_end(
        &self,
        found: Found,
        params: Params<'static>,
        context: CallContext,
    ) -> Result<Outcome, WireError> {
        let writes = found.writes();
        let connection = context.connection;
        if context.is_over() {
            // It waited for its turn beyond its deadline: nothing was started.
            let error = if context.cancelled.is_cancelled() {
                WireError::cancelled(Executed::No)
            } else {
                WireError::deadline_exceeded(Executed::No)
            };
            return Err(error);
        }
        let grace = self.limits.deadline_grace();
        let cancelled = context.cancelled.clone();
        let deadline = TokioInstant::from_std(context.deadline);
        let name = found.name;
        let call = AssertUnwindSafe(self.invoke(found.callback, params, context, writes)).catch_unwind();
        let mut call = pin!(call);
        let finished = tokio::select! {
            biased;
            response = &mut call => Some(response),
            () = tokio::time::sleep_until(deadline) => None,
            () = cancelled.cancelled() => None,
            // Long work looks at its token, so this stops it.
            () = self.over.cancelled() => { cancelled.cancel(); None }
        };
        let finished = match finished {
            Some(response) => Some(response),
            // The method knows it as well, and may say more than dispatch can.
            None if self.over.is_cancelled() => tokio::time::timeout(grace.min(LAST_WORDS), &mut call).await.ok(),
            None => tokio::time::timeout(grace, &mut call).await.ok(),
        };
        match finished {
            Some(Ok(response)) => self.outcome(response, writes),
            Some(Err(_panic)) => {
                // The panic hook has logged where; what it said may quote data and stays off the wire.
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(method = name, %connection, "a method panicked; the log says where");
                let error = WireError::internal("the method failed unexpectedly; the daemon goes on");
                Err(error.with_executed(Executed::unanswered(writes)))
            }
            None if self.over.is_cancelled() => {
                Err(WireError::shutting_down().with_executed(Executed::unanswered(writes)))
            }
            None if cancelled.is_cancelled() => Err(WireError::cancelled(Executed::unanswered(writes))),
            None => {
                // For whatever the method has started on the side.
                cancelled.cancel();
                Err(WireError::deadline_exceeded(Executed::unanswered(writes)))
            }
        }
    }

    /// Calls the callback with an id of our own. The callback itself runs inside the future, so that a
    /// panic before its first await is caught too.
    async fn invoke(
        &self,
        callback: MethodCallback,
        params: Params<'static>,
        context: CallContext,
        writes: bool,
    ) -> MethodResponse {
        let connection = JsonrpseeConnection(usize::try_from(context.connection.0).unwrap_or(usize::MAX));
        // The answer to a change is looked into when it is too large, see `oversized`.
        let max = if writes {
            usize::MAX
        } else {
            self.limits.max_response_bytes
        };
        let mut extensions = Extensions::new();
        extensions.insert(context);
        match callback {
            MethodCallback::Async(call) => call(OUR_ID, params, connection, max, extensions).await,
            MethodCallback::Sync(call) => call(OUR_ID, params, max, extensions),
            MethodCallback::Unsubscription(call) => call(OUR_ID, params, connection, max, extensions),
            // Our feed has cursors and a result of its own; jsonrpsee's subscriptions have neither.
            MethodCallback::Subscription(_) => MethodResponse::error(
                OUR_ID,
                ErrorObjectOwned::from(WireError::internal(
                    "the method is registered in a way that is not served",
                )),
            ),
        }
    }

    fn outcome(&self, response: MethodResponse, writes: bool) -> Result<Outcome, WireError> {
        let code = response.as_error_code();
        let (json, queued, _) = response.into_parts();
        let Some(code) = code else {
            let is_too_large = json.get().len() > self.limits.max_response_bytes;
            let mut outcome = Outcome {
                writes,
                ..Outcome::new(result_tail(json), true)
            };
            if is_too_large {
                if let Some(queued) = queued {
                    queued.notify(false);
                }
                return Err(too_large(&outcome.tail, writes, self.limits.max_response_bytes));
            }
            outcome.queued = queued;
            return Ok(outcome);
        };
        let mut error = if code == ErrorKind::ResponseTooLarge.code() {
            WireError::response_too_large(self.limits.max_response_bytes)
        } else {
            read_error(&json)
        };
        if self.over.is_cancelled() && error.kind() == ErrorKind::Cancelled {
            // By the end of the daemon, not by the caller. What the method says of its effect stays.
            let stopping = WireError::shutting_down();
            error.code = stopping.code;
            error.message = stopping.message;
            error.data.kind = stopping.data.kind;
            error.data.retryable = stopping.data.retryable;
        }
        if let Some(queued) = queued {
            queued.notify(false);
        }
        Err(error)
    }
}

/// How long a method that the end of the daemon has cancelled may take to say what became of it.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// The id that dispatch gives to jsonrpsee.
const OUR_ID: Id<'static> = Id::Number(0);
/// How jsonrpsee's response to it begins.
const OUR_PREFIX: &str = r#"{"jsonrpc":"2.0","id":0,"#;

/// What follows the id in jsonrpsee's response. Cuts off the known beginning; should another version write
/// it in another order, the response is parsed instead.
fn result_tail(json: Box<RawValue>) -> Bytes {
    let text: Box<str> = json.into();
    if text.starts_with(OUR_PREFIX) {
        return single_line(String::from(text).into_bytes()).slice(OUR_PREFIX.len()..);
    }
    #[derive(serde::Deserialize)]
    struct Response<'a> {
        #[serde(borrow)]
        result: &'a RawValue,
    }
    match serde_json::from_str::<Response<'_>>(&text) {
        Ok(response) => single_line(format!("\"result\":{}}}", response.result).into_bytes()),
        Err(_) => error_tail(&WireError::internal("the method's result could not be read")),
    }
}

/// The error of jsonrpsee's response with the data that every error has, also one that jsonrpsee made.
fn read_error(json: &RawValue) -> WireError {
    #[derive(serde::Deserialize)]
    struct Response {
        error: ErrorObjectOwned,
    }
    match serde_json::from_str::<Response>(json.get()) {
        Ok(response) => response.error.into(),
        Err(_) => WireError::internal("the method's error could not be read"),
    }
}

pub(crate) fn error_tail(error: &WireError) -> Bytes {
    let mut tail = b"\"error\":".to_vec();
    match serde_json::to_vec(error) {
        Ok(json) => tail.extend_from_slice(&json),
        Err(_) => tail.extend_from_slice(br#"{"code":-32603,"message":"the error could not be written","data":{"kind":"internal_error","retryable":false}}"#),
    }
    tail.push(b'}');
    single_line(tail)
}

/// The beginning of a response: the envelope and the raw id.
pub(crate) fn head(id: Option<&str>) -> Bytes {
    Bytes::from(format!(r#"{{"jsonrpc":"2.0","id":{},"#, id.unwrap_or("null")))
}

/// A result as an outcome, for what dispatch answers itself.
pub(crate) fn success<T: serde::Serialize>(result: &T) -> Outcome {
    let json = serde_json::to_string(result).unwrap_or_else(|_| "null".to_owned());
    Outcome::new(single_line(format!("\"result\":{json}}}").into_bytes()), true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonrpsee::ResponsePayload;
    use jsonrpsee_types::ErrorObject;

    fn tail(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn jsonrpsee_writes_what_is_cut_off() {
        let response = MethodResponse::response(OUR_ID, ResponsePayload::success(5), 1000);
        assert!(response.as_ref().starts_with(OUR_PREFIX), "{response}");
        assert_eq!(tail(&result_tail(response.into_json())), "\"result\":5}");
    }

    #[test]
    fn another_order_is_parsed() {
        let json = RawValue::from_string(r#"{"result":{"a":[1,"\n"]},"id":0,"jsonrpc":"2.0"}"#.to_owned()).unwrap();
        assert_eq!(tail(&result_tail(json)), r#""result":{"a":[1,"\n"]}}"#);
    }

    #[test]
    fn foreign_errors_get_our_data() {
        let response = MethodResponse::error(OUR_ID, ErrorObject::borrowed(-32602, "no", None));
        let error = read_error(&response.into_json());
        assert_eq!((error.code, error.kind()), (-32602, ErrorKind::InvalidParams));
        let text = String::from_utf8(error_tail(&error).to_vec()).unwrap();
        assert!(text.contains(r#""kind":"invalid_params","retryable":false"#), "{text}");
    }
}
