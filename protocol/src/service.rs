//! The service: the methods, and what bounds their calls, without a socket.
//!
//! A transport reads requests and writes answers; what is between the two is here, the same for all of them. The
//! connections of the Unix socket are the first ([`crate::server::Server::over`]). [`Service::call`] does all of it for
//! one call:
//!
//! ```text
//! find (does the method exist) -> prepare (bytes, deadline, context) -> admit (rate, calls in flight) -> run
//! ```
//!
//! A transport in which calls wait for their turn, as they do on a connection, takes the steps one by one.

use bytes::Bytes;
use futures::FutureExt;
use serde_json::value::RawValue;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant as TokioInstant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::api;
use crate::budget::{Held, RequestBytes, Share};
use crate::caller::Caller;
use crate::context::{CallContext, ConnectionId};
use crate::error::{ErrorKind, Executed, WireError};
use crate::limits::{Limits, ServerStats, add};
use crate::methods::{Entry, Methods, Reply};
use crate::oversized::too_large;
use crate::params::{TIMEOUT_MS_MAX, nearest_method, peek_timeout, peek_trace_id};
use crate::rate::RateLimiter;

/// How long a method that the end of the daemon has cancelled may take to report its outcome.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// The methods with their limits, shared by all transports.
pub struct Service {
    methods: Methods,
    pub(crate) limits: Limits,
    pub(crate) stats: Arc<ServerStats>,
    /// Calls that may still start, over all callers.
    in_flight: Arc<Semaphore>,
    /// As `in_flight`, for what an operator needs when that is used up.
    operators_in_flight: Arc<Semaphore>,
    pub(crate) rate: Option<RateLimiter>,
    pub(crate) shutdown: CancellationToken,
    /// Cancelled when the time for finishing is over: what still runs then is answered for.
    pub(crate) over: CancellationToken,
    /// Calls that nobody waits for, which outlive their connections.
    pub(crate) detached: TaskTracker,
    connections: AtomicU64,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("methods", &self.methods)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// A service of these methods with the default limits.
    #[must_use]
    pub fn new(methods: Methods) -> Self {
        let limits = Limits::default();
        Self {
            in_flight: Arc::new(Semaphore::new(limits.max_in_flight)),
            operators_in_flight: Arc::new(Semaphore::new(limits.operator_in_flight)),
            rate: RateLimiter::new(&limits),
            stats: Arc::default(),
            shutdown: CancellationToken::new(),
            over: CancellationToken::new(),
            detached: TaskTracker::new(),
            connections: AtomicU64::new(0),
            methods,
            limits,
        }
    }

    /// Sets the limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self {
            in_flight: Arc::new(Semaphore::new(limits.max_in_flight)),
            operators_in_flight: Arc::new(Semaphore::new(limits.operator_in_flight)),
            rate: RateLimiter::new(&limits),
            limits,
            ..self
        }
    }

    /// Counts into `stats`, which may be read at any time.
    #[must_use]
    pub fn with_stats(self, stats: Arc<ServerStats>) -> Self {
        Self { stats, ..self }
    }

    /// Takes no more calls once `shutdown` is cancelled.
    #[must_use]
    pub fn with_shutdown(self, shutdown: CancellationToken) -> Self {
        Self { shutdown, ..self }
    }

    /// Makes one call, from the checks that come before it to its answer. Dropping the future ends the call where it
    /// stands, as when a client leaves.
    ///
    /// `params` is an object or an array, or absent. How long and how deep it may be is for the transport to check,
    /// before it keeps it ([`Limits::max_message_bytes`], [`Limits::max_depth`]). The answer is JSON on one line, no
    /// longer than [`Limits::max_response_bytes`].
    ///
    /// # Errors
    /// What the method says, and
    ///
    /// - `shutting_down`, `method_not_found`, `rate_limited`, `busy`: nothing was started;
    /// - `invalid_params`: they cannot be decoded;
    /// - `deadline_exceeded` after `timeout_ms` or the method's own time, `cancelled` by the caller's token, and
    ///   `shutting_down` when the time for finishing is over: `executed` says what is known of it;
    /// - `response_too_large`: of a write with the small parts of the answer, because it was carried out;
    /// - `internal_error`: the method panicked.
    ///
    /// Each has the call's `trace_id`, if it came with one.
    pub async fn call(&self, method: &str, params: Option<Box<RawValue>>, caller: Caller) -> Result<Answer, WireError> {
        add(&self.stats.requests, 1);
        // A deadline that passes cancels the call, and no other of the caller's.
        let caller = Caller {
            cancelled: caller.cancelled.child_token(),
            ..caller
        };
        let params: Option<Box<str>> = params.map(Into::into);
        let trace_id = peek_trace_id(params.as_deref());
        let prepared = self
            .find(method)
            .and_then(|found| self.prepare(found, params, caller))
            .and_then(|call| Ok((self.admit(&call)?, call)));
        let ended = match prepared {
            Ok((admitted, call)) => self.run(call, admitted).await,
            Err(error) => Err(error.of_trace(trace_id.as_deref())),
        };
        add(&self.stats.responses, 1);
        ended.inspect_err(|error| self.stats.errors.add(error.code))
    }

    /// The number of a new connection, or of what stands for one.
    pub(crate) fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The method of this name.
    ///
    /// # Errors
    /// `shutting_down`, or -32601 with the nearest name.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Entry>, WireError> {
        if self.shutdown.is_cancelled() {
            return Err(WireError::shutting_down());
        }
        self.methods.get(name).cloned().ok_or_else(|| {
            let served = self.methods.all_names().chain([api::method::RPC_CANCEL]);
            // Only connections serve `rpc.cancel`; elsewhere it is not a slip of the keyboard for itself.
            let nearest = nearest_method(name, served.filter(|served| *served != name));
            WireError::method_not_found(name, nearest)
        })
    }

    /// Makes a call that may wait for its turn.
    ///
    /// # Errors
    /// `busy` if its parameters are large and those of others take too much already.
    pub(crate) fn prepare(
        &self,
        method: Arc<Entry>,
        params: Option<Box<str>>,
        caller: Caller,
    ) -> Result<PendingCall, WireError> {
        let text = params.as_deref();
        let params_bytes = text.map_or(0, str::len);
        let bytes = RequestBytes::count(params_bytes, &self.limits, &self.stats)?;
        let timeout = peek_timeout(text).unwrap_or_else(|| method.default_timeout(params_bytes));
        let timeout = timeout.min(Duration::from_millis(TIMEOUT_MS_MAX));
        let received = Instant::now();
        let context = CallContext {
            peer: caller.who,
            connection: caller.connection,
            request_id: caller.request_id,
            received,
            deadline: received + timeout,
            trace_id: peek_trace_id(text).map(Arc::from),
            cancelled: caller.cancelled,
            notifier: caller.notifier,
            subscriptions: caller.subscriptions,
        };
        Ok(PendingCall {
            method,
            params,
            context,
            timeout,
            share: caller.share,
            bytes,
        })
    }

    /// Lets a call in, or says why not. Cheap, and before anything is started.
    ///
    /// # Errors
    /// `shutting_down`, `rate_limited` or `busy`.
    pub(crate) fn admit(&self, call: &PendingCall) -> Result<OwnedSemaphorePermit, WireError> {
        if self.shutdown.is_cancelled() {
            return Err(WireError::shutting_down());
        }
        if let Some(rate) = &self.rate {
            rate.check(&call.context.peer)?;
        }
        let mut admitted = Arc::clone(&self.in_flight).try_acquire_owned();
        if admitted.is_err() && call.method.is_operators() {
            admitted = Arc::clone(&self.operators_in_flight).try_acquire_owned();
        }
        admitted.map_err(|_| {
            WireError::busy(
                format!("{} requests are in flight already", self.limits.max_in_flight),
                self.limits.busy_retry_after_ms,
            )
        })
    }

    /// Runs a call to its end, whatever that is. What it holds besides its answer is given back by then.
    ///
    /// # Errors
    /// As [`Self::call`], but for what comes before. They are not counted.
    pub(crate) async fn run(&self, call: PendingCall, admitted: OwnedSemaphorePermit) -> Result<Answer, WireError> {
        let PendingCall {
            method,
            params,
            mut context,
            timeout,
            share,
            bytes,
        } = call;
        context.received = Instant::now();
        context.deadline = context.received + timeout;
        let counted = InFlight::new(Arc::clone(&self.stats));
        let writes = method.writes();
        let connection = context.connection;
        let trace_id = context.trace_id.clone();
        let span = match &trace_id {
            // As a literal, so that it stays on its line of the log.
            Some(trace_id) => tracing::info_span!("call", method = method.name, ?trace_id),
            None => tracing::Span::none(),
        };
        let ended = self.run_to_its_end(&method, params, context).instrument(span.clone());
        let ended = ended.await.and_then(|reply| {
            let size = reply.json.len();
            let held = match writes {
                true => share.hold(size),
                false => share.try_hold_answer(size).inspect_err(|_| {
                    tracing::warn!(%connection, bytes = size, "an answer was dropped: too many wait to be read");
                })?,
            };
            Ok((reply, held))
        });
        drop((admitted, counted, bytes));
        match ended {
            Ok((Reply { json, queued }, held)) => Ok(Answer {
                json,
                queued,
                writes,
                trace_id,
                held,
            }),
            Err(error) => {
                if trace_id.is_some() {
                    let kind = error.kind();
                    tracing::info!(parent: &span, code = error.code, %kind, "the call failed");
                }
                Err(error.of_trace(trace_id.as_deref()))
            }
        }
    }

    async fn run_to_its_end(
        &self,
        method: &Entry,
        params: Option<Box<str>>,
        context: CallContext,
    ) -> Result<Reply, WireError> {
        let writes = method.writes();
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
        let call = AssertUnwindSafe(method.call(params, context, &self.limits)).catch_unwind();
        let mut call = pin!(call);
        let finished = tokio::select! {
            biased;
            reply = &mut call => Some(reply),
            () = tokio::time::sleep_until(deadline) => None,
            () = cancelled.cancelled() => None,
            // Long work looks at its token, so this stops it.
            () = self.over.cancelled() => { cancelled.cancel(); None }
        };
        let finished = match finished {
            Some(reply) => Some(reply),
            // The method knows of it as well, and may say more than is known here.
            None if self.over.is_cancelled() => tokio::time::timeout(grace.min(LAST_WORDS), &mut call).await.ok(),
            None => tokio::time::timeout(grace, &mut call).await.ok(),
        };
        match finished {
            Some(Ok(reply)) => self.reply(reply, writes),
            Some(Err(_panic)) => {
                // The panic hook has logged where; what it said may quote data and stays off the wire.
                self.stats.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(method = method.name, %connection, "a method panicked; the log says where");
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

    /// Makes the outcome of what the method returned.
    fn reply(&self, reply: Result<Reply, WireError>, writes: bool) -> Result<Reply, WireError> {
        let most = self.limits.max_response_bytes;
        match reply {
            Ok(reply) if reply.is_too_large(most) => Err(too_large(&reply.json, writes, most)),
            Ok(reply) => Ok(reply),
            Err(mut error) => {
                if self.over.is_cancelled() && error.kind() == ErrorKind::Cancelled {
                    // By the end of the daemon, not by the caller. What the method says of its effect stays.
                    let stopping = WireError::shutting_down();
                    error.code = stopping.code;
                    error.message = stopping.message;
                    error.data.kind = stopping.data.kind;
                    error.data.retryable = stopping.data.retryable;
                }
                Err(error)
            }
        }
    }
}

/// A call that was not started.
pub(crate) struct PendingCall {
    method: Arc<Entry>,
    params: Option<Box<str>>,
    /// Its deadline counts from when it is started: until then the request counts as not read.
    pub(crate) context: CallContext,
    timeout: Duration,
    pub(crate) share: Arc<Share>,
    bytes: RequestBytes,
}

impl PendingCall {
    /// The length of its parameters.
    pub(crate) fn params_bytes(&self) -> usize {
        self.params.as_deref().map_or(0, str::len)
    }
}

/// The answer to a call that succeeded. Its bytes count as waiting to be sent until it is dropped.
#[derive(Debug)]
pub struct Answer {
    pub(crate) json: Bytes,
    pub(crate) queued: Option<oneshot::Sender<()>>,
    /// Whether the call may have changed what is stored.
    pub(crate) writes: bool,
    /// The call's own name, for the error that may take the answer's place.
    pub(crate) trace_id: Option<Arc<str>>,
    pub(crate) held: Held,
}

impl Answer {
    /// The result, as JSON on one line.
    #[must_use]
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// Says that the answer has its place among what the caller is sent. What the method notifies of comes after that:
    /// a change feed begins with it, and ends where the answer is dropped without it.
    pub fn queued(&mut self) {
        if let Some(queued) = self.queued.take() {
            // The method may have ended what it would have begun.
            let _begun = queued.send(());
        }
    }
}

/// Counts a call as in flight.
struct InFlight(Arc<ServerStats>);

impl InFlight {
    fn new(stats: Arc<ServerStats>) -> Self {
        stats.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(stats)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
