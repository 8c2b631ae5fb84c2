//! One connection: what it reads, what it runs, what it writes.
//!
//! ```text
//! socket -> framer -> envelope -> queue -> slot (32) -> a task per call -> outbox (64 lines, 32 MiB) -> writer -> socket
//! ```
//!
//! - A call keeps its slot until its line is written. With no slot free, what is read waits in a short queue, so that
//!   an `rpc.cancel` behind it is seen; when the queue is full, input is not read: the kernel makes the client wait.
//!   Requests of one connection run side by side; responses come as they finish.
//! - A batch has one line, so its calls give their slots back when they finish. The batch itself has a place, of which
//!   there are a few, until its line is written.
//! - End of input ends reading, not the calls: they finish, their lines are written, then the socket is
//!   closed. A client that is gone altogether (the kernel tells, also while input is not read) takes its
//!   calls with it, and so does one that does not read for the write timeout.
//! - When the daemon stops, what was started is answered; what waits and what is read after that is refused with
//!   `shutting_down`.
//! - A connection beyond the limit has one of a few spare places, which are for what an operator needs: anything else
//!   is answered `busy`, and then it is closed (see [`Place`]).

mod batch;
mod outcome;
mod output;
mod queue;

use bytes::{Bytes, BytesMut};
use serde_json::value::RawValue;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant as TokioInstant;
use tokio_util::sync::CancellationToken;

use crate::api::{self, CancelResult, Method};
use crate::budget::Share;
use crate::caller::Caller;
use crate::codec::{Frame, Framer};
use crate::context::{ConnectionId, Guard, Line, Outbox, Subscriptions};
use crate::envelope::{self, IdKey, Request};
use crate::error::{Executed, WireError};
use crate::limits::add;
use crate::params::peek_trace_id;
use crate::peer::PeerIdentity;
use crate::places::{Place, SPARE_PATIENCE, SparePlace, SparePlaces};
use crate::service::Service;

use batch::{Answer, Entries, assemble};
use outcome::{Outcome, head};
use output::{Hangup, Patience, linger, write};
use queue::{Call, Listed, Queue, Reply, Running};

pub(crate) use output::refuse;
pub(crate) use queue::BatchPlace;

/// How much is read at once. Small, for every idle connection holds it; large requests take many reads,
/// each far cheaper than what is done with the request.
const READ_BYTES: usize = 16 << 10;
/// Batches of one connection whose answers are not written yet. A batch is as good as all of its requests, so few
/// keep a connection busy.
const BATCHES: usize = 4;
/// Connections that are given time to read why they are cut off; further ones are closed as soon as they were told.
pub(crate) const LINGERING: usize = 64;

/// What all connections of a socket share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) service: Arc<Service>,
    /// Connections that may still be opened.
    pub(crate) places: Arc<Semaphore>,
    /// Connections beyond that may still be served, to an operator: see [`Place::Spare`].
    pub(crate) spare_places: Arc<SparePlaces>,
    /// Connections that may still be given time to read why they are cut off.
    lingering: Semaphore,
}

impl Shared {
    pub(crate) fn new(service: Arc<Service>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(service.limits.max_connections)),
            spare_places: SparePlaces::new(service.limits.operator_connections),
            lingering: Semaphore::new(LINGERING),
            service,
        }
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve(shared: Arc<Shared>, stream: UnixStream, peer: PeerIdentity, id: ConnectionId, place: Place) {
    let gone = CancellationToken::new();
    let Service { limits, stats, .. } = &*shared.service;
    let share = Share::new(limits, Arc::clone(stats));
    let (outbox, lines) = Outbox::new(limits, Arc::clone(stats), Arc::clone(&share));
    let hangup = stream.as_fd().try_clone_to_owned();
    let (reader, writer) = stream.into_split();
    let subscriptions = Subscriptions::new(gone.clone(), limits.max_subscriptions_per_connection);
    let writer = tokio::spawn(write(
        writer,
        lines,
        Patience {
            usual: limits.write_timeout(),
            subscriptions: subscriptions.clone(),
        },
        Arc::clone(stats),
        gone.clone(),
    ));
    let server = Arc::clone(&shared);
    let mut connection = Connection {
        framer: Framer::new(limits.max_message_bytes, limits.max_depth),
        slots: Arc::new(Semaphore::new(limits.max_in_flight_per_connection)),
        batches: Arc::new(Semaphore::new(BATCHES)),
        waiting: Queue::default(),
        calls: JoinSet::new(),
        running: Arc::default(),
        caller: Caller {
            who: peer,
            connection: id,
            request_id: None,
            cancelled: gone.clone(),
            notifier: outbox.notifier(),
            subscriptions,
            share,
        },
        hangup: Hangup {
            descriptor: hangup.ok(),
            watched: None,
        },
        buffered: 0,
        outbox,
        gone: gone.clone(),
        closing: CancellationToken::new(),
        quiet_since: TokioInstant::now(),
        asked: false,
        place,
        shared,
    };
    let ended = connection.run(&reader).await;
    if ended.is_ok() {
        connection.finish().await;
    }
    let stats = &server.service.stats;
    stats
        .bytes_buffered
        .fetch_sub(connection.buffered as u64, Ordering::Relaxed);
    if ended.is_err() {
        gone.cancel();
    }
    // Dropping the rest ends the calls that are left and closes the outbox, which lets the writer finish.
    drop(connection);
    if writer.await.is_err() {
        tracing::error!(connection = %id, "the writer panicked");
    }
    gone.cancel();
    if matches!(ended, Ok(Ended::ByUs)) {
        linger(&server, reader.as_ref()).await;
    }
}

/// The connection is gone, or given up: nothing more can be said on it.
struct Gone;

/// Whether to read on.
#[derive(PartialEq, Eq)]
enum Reading {
    On,
    Over,
}

/// Why reading ended.
#[derive(Clone, Copy)]
enum Ended {
    /// The client has sent everything.
    ByClient,
    /// There is no point in reading on, or no time.
    ByUs,
}

struct Connection {
    shared: Arc<Shared>,
    /// Who is at the other end, for each call of theirs.
    caller: Caller,
    place: Place,
    framer: Framer,
    /// Bytes of the framer that are counted in the server's total.
    buffered: usize,
    outbox: Outbox,
    /// Calls that were read and have no slot yet.
    waiting: Queue,
    /// Places for calls that run or whose line waits to be written.
    slots: Arc<Semaphore>,
    /// Places for batches whose line is not written yet.
    batches: Arc<Semaphore>,
    calls: JoinSet<()>,
    running: Running,
    /// Cancelled when the connection has failed: every call's token is its child.
    gone: CancellationToken,
    /// Cancelled when nothing more shall be read: an answer was one after which the connection is closed.
    closing: CancellationToken,
    /// Since when it has no call.
    quiet_since: TokioInstant,
    /// Whether it has sent anything whole.
    asked: bool,
    hangup: Hangup,
}

impl Connection {
    /// Reads until the client, the daemon or a fault ends it, and everything that was read has been started.
    async fn run(&mut self, reader: &OwnedReadHalf) -> Result<Ended, Gone> {
        let mut chunk = BytesMut::with_capacity(READ_BYTES);
        let shutdown = self.shared.service.shutdown.clone();
        let gone = self.gone.clone();
        let closing = self.closing.clone();
        let patience = self.shared.service.limits.partial_request_timeout();
        let mut over = None;
        loop {
            while self.calls.try_join_next().is_some() {}
            self.answer_what_was_cancelled().await?;
            self.start_waiting();
            if let Some(ended) = over
                && self.waiting.is_empty()
            {
                return Ok(ended);
            }
            if !self.calls.is_empty() {
                self.quiet_since = TokioInstant::now();
            }
            let reads = over.is_none() && self.waiting.has_room();
            let spare = over.is_none() && self.calls.is_empty() && matches!(self.place, Place::Spare { .. });
            let place = self.place_for_the_next();
            let wanted = self.spare_place_wanted();
            tokio::select! {
                biased;
                () = gone.cancelled() => return Err(Gone),
                () = shutdown.cancelled() => {
                    self.refuse_what_waits().await?;
                    if over.is_none() {
                        self.refuse_the_rest(reader, &mut chunk).await?;
                    }
                    return Ok(Ended::ByUs);
                }
                () = closing.cancelled(), if over.is_none() => {
                    over = Some(Ended::ByUs);
                    continue;
                }
                _ = self.calls.join_next(), if !self.calls.is_empty() => continue,
                () = place, if !self.waiting.is_empty() => continue,
                () = tokio::time::sleep_until(self.quiet_since + SPARE_PATIENCE), if spare => {
                    if let Some(refusal) = self.grow() {
                        self.say(None, refusal).await?;
                        over = Some(Ended::ByUs);
                    }
                    continue;
                }
                ready = reader.readable(), if reads => if ready.is_err() { return Err(Gone) },
                () = self.hangup.wait(), if !reads => {
                    tracing::debug!(connection = %self.caller.connection, "the client left its calls behind");
                    return Err(Gone);
                }
                () = tokio::time::sleep(patience), if reads && self.framer.is_partial() => {
                    let seconds = patience.as_secs();
                    let error = WireError::parse_error(format!("the request was not completed within {seconds} seconds; send it anew"));
                    self.say(None, error).await?;
                    tracing::info!(connection = %self.caller.connection, "an incomplete request was given up");
                    over = Some(Ended::ByUs);
                    continue;
                }
                // Last, so that what has arrived is served before the place goes.
                () = wanted, if spare && self.asked => {
                    if let Some(refusal) = self.leave() {
                        self.say(None, refusal).await?;
                        over = Some(Ended::ByUs);
                    }
                    continue;
                }
            }
            chunk.clear();
            match reader.try_read_buf(&mut chunk) {
                Ok(0) => {
                    if let Some(frame) = self.framer.finish() {
                        self.frame(frame).await?;
                    }
                    over = Some(Ended::ByClient);
                }
                Ok(_) => {
                    if self.take(&chunk).await? == Reading::Over {
                        over = Some(Ended::ByUs);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// After the daemon began to stop: whatever has arrived by now is refused, and nothing more is read.
    async fn refuse_the_rest(&mut self, reader: &OwnedReadHalf, chunk: &mut BytesMut) -> Result<(), Gone> {
        /// A client that goes on sending does not hold up the end.
        const MOST_BYTES: usize = 1 << 20;
        chunk.resize(READ_BYTES, 0);
        let mut taken = 0;
        while taken < MOST_BYTES {
            // Past tokio, whose idea of readiness may be a turn of its loop old.
            let descriptor = reader.as_ref().as_raw_fd();
            match nix::sys::socket::recv(descriptor, chunk, nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
                Ok(0) => {
                    if let Some(frame) = self.framer.finish() {
                        self.frame(frame).await?;
                    }
                    break;
                }
                Ok(count) => {
                    taken += count;
                    if self.take(&chunk[..count]).await? == Reading::Over {
                        break;
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Bytes that have arrived.
    async fn take(&mut self, bytes: &[u8]) -> Result<Reading, Gone> {
        add(&self.shared.service.stats.bytes_read, bytes.len());
        self.framer.push(bytes);
        while let Some(frame) = self.framer.next() {
            self.uncount();
            if self.frame(frame).await? == Reading::Over {
                return Ok(Reading::Over);
            }
            while self.calls.try_join_next().is_some() {}
        }
        self.account().await
    }

    /// Counts no more what has left the framer: it is counted with its call from now on.
    fn uncount(&mut self) {
        let held = self.framer.buffered();
        if held < self.buffered {
            self.shared
                .service
                .stats
                .bytes_buffered
                .fetch_sub((self.buffered - held) as u64, Ordering::Relaxed);
            self.buffered = held;
        }
    }

    /// Counts what is held of an incomplete request, and gives the connection up if all of them together
    /// hold too much.
    async fn account(&mut self) -> Result<Reading, Gone> {
        let stats = &self.shared.service.stats;
        let held = self.framer.buffered();
        let before = self.buffered;
        self.buffered = held;
        if held <= before {
            stats
                .bytes_buffered
                .fetch_sub((before - held) as u64, Ordering::Relaxed);
            return Ok(Reading::On);
        }
        let total = stats
            .bytes_buffered
            .fetch_add((held - before) as u64, Ordering::Relaxed)
            + (held - before) as u64;
        // Small requests pass: a few large ones must not lock everybody out.
        if total <= self.shared.service.limits.max_buffered_bytes as u64 || held <= READ_BYTES {
            return Ok(Reading::On);
        }
        let retry = self.shared.service.limits.busy_retry_after_ms;
        self.say(
            None,
            WireError::busy("too many large requests are being received", retry),
        )
        .await?;
        Ok(Reading::Over)
    }

    async fn frame(&mut self, frame: Frame) -> Result<Reading, Gone> {
        self.asked = true;
        let limits = &self.shared.service.limits;
        let error = match frame {
            Frame::Value(bytes) => {
                self.value(&bytes).await?;
                return Ok(Reading::On);
            }
            Frame::SyntaxError(error) => WireError::parse_error(format!(
                "the input is not JSON ({error}); what follows is skipped up to a line that begins with a bracket"
            )),
            Frame::Incomplete => WireError::parse_error("the input ended within a request; send it whole"),
            Frame::TooLarge => WireError::request_too_large(limits.max_message_bytes),
            Frame::TooDeep => WireError::invalid_request(format!(
                "the request is nested deeper than {} levels; make it flatter",
                limits.max_depth
            )),
            Frame::Http => {
                let error =
                    WireError::parse_error("this socket speaks JSON-RPC 2.0, one JSON object per request, not HTTP")
                        .with_fix("send {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"rpc.version\"} and a newline");
                self.say(None, error).await?;
                return Ok(Reading::Over);
            }
        };
        self.say(None, error).await?;
        Ok(Reading::On)
    }

    async fn value(&mut self, bytes: &Bytes) -> Result<(), Gone> {
        // The framer lets only UTF-8 pass; the check costs little and spares an `unsafe`.
        let Ok(json) = std::str::from_utf8(bytes) else {
            return self.say(None, WireError::parse_error("the input is not UTF-8")).await;
        };
        if json.starts_with('[') {
            self.batch(json).await
        } else {
            self.single(json).await
        }
    }

    async fn single(&mut self, json: &str) -> Result<(), Gone> {
        let request = match envelope::read(json) {
            Ok(request) => request,
            Err(refusal) if refusal.silent => return Ok(()),
            Err(refusal) => return self.say(refusal.id, refusal.error).await,
        };
        match self.prepare(&request) {
            Prepared::Call(mut call) => {
                if let Some(id) = request.id {
                    call.reply = Reply::Line(head(Some(id)));
                }
                self.waiting.push(*call);
                self.start_waiting();
                Ok(())
            }
            Prepared::Outcome(outcome) => match request.id {
                Some(id) => self.queue(head(Some(id)), outcome).await,
                None => Ok(()),
            },
        }
    }

    async fn batch(&mut self, json: &str) -> Result<(), Gone> {
        let most = self.shared.service.limits.max_batch_requests;
        let entries = match batch::entries(json, most) {
            Ok(Entries::Some(entries)) if !entries.is_empty() => entries,
            Ok(Entries::Some(_)) => {
                return self
                    .say(
                        None,
                        WireError::invalid_request("the batch is empty; put requests into it"),
                    )
                    .await;
            }
            Ok(Entries::TooMany) => return self.say(None, WireError::batch_too_large(most)).await,
            Err(_) => {
                return self
                    .say(None, WireError::invalid_request("the batch cannot be read"))
                    .await;
            }
        };
        let place = BatchPlace::default();
        let mut waits = false;
        let mut answers = Vec::new();
        for entry in entries {
            let request = match envelope::read(entry.get()) {
                Ok(request) => request,
                Err(refusal) if refusal.silent => continue,
                Err(refusal) => {
                    answers.push((head(refusal.id), Answer::Now(self.shared.failure(refusal.error))));
                    continue;
                }
            };
            let answer = match self.prepare(&request) {
                Prepared::Outcome(outcome) => Answer::Now(outcome),
                Prepared::Call(call) if request.id.is_none() => {
                    self.waiting.push(*call);
                    continue;
                }
                Prepared::Call(mut call) => {
                    let (tell, told) = oneshot::channel();
                    call.reply = Reply::Batch(tell, Arc::clone(&place));
                    self.waiting.push(*call);
                    waits = true;
                    Answer::Later(told)
                }
            };
            if let Some(id) = request.id {
                answers.push((head(Some(id)), answer));
            }
        }
        self.start_waiting();
        if answers.is_empty() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let outbox = self.outbox.clone();
        let closing = self.closing.clone();
        let assembled = async move {
            if assemble(&shared, &outbox, answers, place).await {
                closing.cancel();
            }
        };
        if waits {
            self.calls.spawn(assembled);
            return Ok(());
        }
        // Nothing bounds how many of these there are but the room for their lines.
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Gone),
            () = assembled => Ok(()),
        }
    }

    /// Makes a call of a request, or the answer that takes no place.
    fn prepare(&mut self, request: &Request<'_>) -> Prepared {
        let stats = Arc::clone(&self.shared.service.stats);
        add(
            if request.id.is_some() {
                &stats.requests
            } else {
                &stats.notifications
            },
            1,
        );
        if request.method == api::Cancel::NAME {
            return Prepared::Outcome(self.cancel(request.params));
        }
        let call = match self.call(request) {
            Ok(call) => call,
            Err(error) => {
                let error = error.of_trace(peek_trace_id(request.params).as_deref());
                return Prepared::Outcome(self.shared.failure(error));
            }
        };
        Prepared::Call(Box::new(call))
    }

    fn call(&mut self, request: &Request<'_>) -> Result<Call, WireError> {
        let found = self.shared.service.find(&request.method)?;
        if !found.is_operators()
            && let Some(refusal) = self.grow()
        {
            // What is in the way of it goes on as long as this connection does.
            self.closing.cancel();
            return Err(refusal);
        }
        let cancelled = match request.id {
            Some(_) => self.gone.child_token(),
            // A notification outlives its connection.
            None => CancellationToken::new(),
        };
        let caller = Caller {
            request_id: request.id.map(Arc::from),
            cancelled: cancelled.clone(),
            ..self.caller.clone()
        };
        let params = request.params.map(Box::from);
        let pending = self.shared.service.prepare(found, params, caller)?;
        let listed = request
            .id
            .map(|id| Listed::new(&self.running, IdKey::of(id), cancelled));
        Ok(Call {
            shared: Arc::clone(&self.shared),
            pending,
            listed,
            reply: Reply::Nothing,
        })
    }

    /// Takes a full place where this connection has a spare one. None: it has a full one now.
    fn grow(&mut self) -> Option<WireError> {
        let Place::Spare { reason, may_grow, .. } = &self.place else {
            return None;
        };
        if *may_grow && let Ok(permit) = Arc::clone(&self.shared.places).try_acquire_owned() {
            self.place = Place::Full(permit);
            return None;
        }
        if !self.closing.is_cancelled() {
            add(&self.shared.service.stats.connections_refused, 1);
        }
        Some(WireError::busy(reason, self.shared.service.limits.busy_retry_after_ms))
    }

    /// Ready when somebody waits for the spare place of this connection.
    fn spare_place_wanted(&self) -> impl Future<Output = ()> + use<> {
        let wanted = match &self.place {
            Place::Spare { place, .. } => place.as_ref().map(SparePlace::wanted),
            Place::Full(_) => None,
        };
        async move {
            match wanted {
                Some(wanted) => wanted.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Hands the spare place over to who waits for it. Why this connection ends by that; none if it does not.
    fn leave(&mut self) -> Option<WireError> {
        let Place::Spare { place, .. } = &mut self.place else {
            return None;
        };
        *place = place.take()?.hand_over();
        if place.is_some() { None } else { self.grow() }
    }

    /// Ready when the call at the front of the queue may have what it lacked.
    fn place_for_the_next(&self) -> impl Future<Output = ()> + use<> {
        let batch = self.waiting.front().and_then(|call| match &call.reply {
            Reply::Batch(_, place) if place.get().is_none() => Some(Arc::clone(&self.batches)),
            _ => None,
        });
        let slots = Arc::clone(&self.slots);
        let share = Arc::clone(&self.caller.share);
        async move {
            share.not_full().await;
            // Nobody else takes them, so what is free now is free when it is taken.
            if let Some(batches) = batch {
                batches.acquire().await.map(drop).unwrap_or_default();
            }
            slots.acquire().await.map(drop).unwrap_or_default();
        }
    }

    /// Starts what waits, as far as there are places.
    fn start_waiting(&mut self) {
        while let Some(call) = self.waiting.front() {
            if self.shared.service.shutdown.is_cancelled() || self.caller.share.is_full() {
                return;
            }
            if let Reply::Batch(_, place) = &call.reply
                && place.get().is_none()
            {
                let Ok(permit) = Arc::clone(&self.batches).try_acquire_owned() else {
                    return;
                };
                // It was empty, and only this task fills it.
                place.set(permit).map_err(drop).unwrap_or_default();
            }
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                return;
            };
            if let Some(call) = self.waiting.pop() {
                self.start(call, slot);
            }
        }
    }

    fn start(&mut self, call: Call, slot: OwnedSemaphorePermit) {
        let shared = Arc::clone(&self.shared);
        let admitted = shared.service.admit(&call.pending);
        if matches!(call.reply, Reply::Nothing) {
            // Its sender wants no answer and may leave at once, so it outlives the connection; the server waits for
            // it when it stops.
            if let Ok(admitted) = admitted {
                self.shared.service.detached.spawn(async move {
                    drop(call.run(admitted).await);
                    drop(slot);
                });
            }
            return;
        }
        let outbox = self.outbox.clone();
        let closing = self.closing.clone();
        self.calls.spawn(async move {
            let (outcome, reply) = match admitted {
                Ok(admitted) => call.run(admitted).await,
                Err(error) => {
                    let error = error.of_trace(call.pending.context.trace_id.as_deref());
                    (shared.failure(error), call.reply)
                }
            };
            deliver(&outbox, reply, outcome, Some(slot), &closing).await;
        });
    }

    /// Answers what was cancelled while it waited.
    async fn answer_what_was_cancelled(&mut self) -> Result<(), Gone> {
        for call in self.waiting.take_cancelled() {
            self.answer_unstarted(call, WireError::cancelled(Executed::No)).await?;
        }
        Ok(())
    }

    async fn refuse_what_waits(&mut self) -> Result<(), Gone> {
        while let Some(call) = self.waiting.pop() {
            self.answer_unstarted(call, WireError::shutting_down()).await?;
        }
        Ok(())
    }

    async fn answer_unstarted(&self, call: Call, error: WireError) -> Result<(), Gone> {
        let outcome = self
            .shared
            .failure(error.of_trace(call.pending.context.trace_id.as_deref()));
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Gone),
            () = deliver(&self.outbox, call.reply, outcome, None, &self.closing) => Ok(()),
        }
    }

    /// `rpc.cancel`. Answered here, without a slot: it frees some.
    fn cancel(&self, params: Option<&str>) -> Outcome {
        #[derive(serde::Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            id: &'a RawValue,
        }
        let json = params.unwrap_or_default();
        // The raw id is taken apart from the decoding, for a number may not fit any type.
        let raw = match serde_json::from_str::<Named<'_>>(json) {
            Ok(named) => Some(named.id.get()),
            Err(_) => match batch::entries(json, 1) {
                Ok(Entries::Some(list)) => list.first().map(|raw| raw.get()),
                _ => None,
            },
        };
        if raw.is_some_and(|raw| !envelope::is_id(raw)) {
            return self.shared.failure(WireError::invalid_params(
                "id",
                "`id` must be that of a request in flight: a string or a number",
            ));
        }
        // Checks names and shape.
        if let Err(error) = crate::params::decode_str::<api::Cancel>(params) {
            return self.shared.failure(error);
        }
        let Some(raw) = raw else {
            return self.shared.failure(WireError::invalid_params(
                "id",
                "`id` must be that of a request in flight",
            ));
        };
        let running = self.running.lock();
        let cancelled = running.cancel(&IdKey::of(raw));
        self.shared
            .service
            .stats
            .cancelled
            .fetch_add(cancelled, Ordering::Relaxed);
        Outcome::result(&CancelResult { cancelled })
    }

    /// Answers with an error of the connection's own.
    async fn say(&self, id: Option<&str>, error: WireError) -> Result<(), Gone> {
        self.queue(head(id), self.shared.failure(error)).await
    }

    async fn queue(&self, head: Bytes, outcome: Outcome) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Gone),
            sent = send(&self.outbox, head, outcome, None) => if sent { Ok(()) } else { Err(Gone) },
        }
    }

    /// Waits for the calls in flight, unless the client leaves altogether.
    async fn finish(&mut self) {
        let gone = self.gone.clone();
        while !self.calls.is_empty() {
            tokio::select! {
                biased;
                _ = self.calls.join_next() => {}
                () = gone.cancelled() => return,
                () = self.hangup.wait() => {
                    tracing::debug!(connection = %self.caller.connection, calls = self.calls.len(), "the client left its calls behind");
                    gone.cancel();
                    return;
                }
            }
        }
    }
}

/// What becomes of a request.
enum Prepared {
    /// It waits for a place to run.
    Call(Box<Call>),
    /// It is answered already.
    Outcome(Outcome),
}

/// Gives an outcome to whoever waits for it. A call that has a line of its own keeps its slot until that is written.
async fn deliver(
    outbox: &Outbox,
    reply: Reply,
    outcome: Outcome,
    slot: Option<OwnedSemaphorePermit>,
    closing: &CancellationToken,
) {
    match reply {
        Reply::Line(_) if outcome.closes => {
            send(outbox, head(None), outcome, slot).await;
            closing.cancel();
        }
        Reply::Line(head) => {
            send(outbox, head, outcome, slot).await;
        }
        Reply::Batch(tell, _) => {
            if tell.send(outcome).is_err() {
                tracing::trace!("a batch was given up");
            }
        }
        Reply::Nothing => {}
    }
}

/// Queues one response.
async fn send(outbox: &Outbox, head: Bytes, outcome: Outcome, slot: Option<OwnedSemaphorePermit>) -> bool {
    let [key, json, end] = outcome.parts();
    let mut line = Line::new(vec![head, key, json, end]);
    line.guards.extend(outcome.held.map(Guard::Bytes));
    line.guards.extend(slot.map(Guard::Slot));
    let sent = outbox.send(line).await;
    if sent {
        outbox.count_response();
    }
    if sent && let Some(queued) = outcome.queued {
        // A method may wait for this before it sends notifications, so that they come after the answer.
        let _begun = queued.send(());
    }
    sent
}
