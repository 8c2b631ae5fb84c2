//! One connection: what it reads, what it runs, what it writes.
//!
//! ```text
//! socket -> framer -> envelope -> slot (32) -> a task per call -> outbox (64 lines, 32 MiB) -> writer -> socket
//! ```
//!
//! - A call keeps its slot until its line is written. With no slot free, input is not read: the kernel
//!   makes the client wait. Requests of one connection run side by side; responses come as they finish.
//! - End of input ends reading, not the calls: they finish, their lines are written, then the socket is
//!   closed. A client that is gone altogether (the kernel tells, also while input is not read) takes its
//!   calls with it, and so does one that does not read for the write timeout.
//! - When the daemon stops, what was accepted is answered; what is read after that is refused with
//!   `shutting_down`.

use bytes::{BufMut, Bytes, BytesMut};
use jsonrpsee_types::Params;
use serde_json::value::RawValue;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{self, CancelResult, Method};
use crate::codec::{Frame, Framer};
use crate::context::{CallContext, ConnectionId, Line, Outbox, Subscriptions};
use crate::dispatch::{Found, Outcome, Shared, head, success};
use crate::envelope::{self, IdKey, Request};
use crate::error::{Executed, WireError};
use crate::limits::{ServerStats, add};
use crate::oversized::{SMALL_ERROR_BYTES, too_large};
use crate::params::{TIMEOUT_MS_MAX, peek_timeout};
use crate::peer::PeerIdentity;

/// How much is read at once. Small, for every idle connection holds it; large requests take many reads,
/// each far cheaper than what is done with the request.
const READ_BYTES: usize = 16 << 10;
/// Lines up to this size together are written with one call.
const WRITE_BYTES: usize = 64 << 10;
/// How long a client that is cut off may take to notice.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub(crate) async fn serve(shared: Arc<Shared>, stream: UnixStream, peer: PeerIdentity, id: ConnectionId) {
    let gone = CancellationToken::new();
    let (outbox, lines) = Outbox::new(&shared.limits, Arc::clone(&shared.stats));
    let hangup = stream.as_fd().try_clone_to_owned();
    let (reader, writer) = stream.into_split();
    let writer = tokio::spawn(write(
        writer,
        lines,
        shared.limits.write_timeout(),
        Arc::clone(&shared.stats),
        gone.clone(),
    ));
    let mut connection = Connection {
        framer: Framer::new(shared.limits.max_message_bytes, shared.limits.max_depth),
        slots: Arc::new(Semaphore::new(shared.limits.max_in_flight_per_connection)),
        calls: JoinSet::new(),
        running: Arc::default(),
        subscriptions: Subscriptions::new(gone.clone(), shared.limits.max_subscriptions_per_connection),
        hangup: Hangup {
            descriptor: hangup.ok(),
            watched: None,
        },
        buffered: 0,
        outbox,
        gone: gone.clone(),
        peer,
        id,
        shared,
    };
    let ended = connection.read(&reader).await;
    if ended.is_ok() {
        connection.finish().await;
    }
    let stats = Arc::clone(&connection.shared.stats);
    let shutdown = connection.shared.shutdown.clone();
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
        linger(&reader, shutdown).await;
    }
}

/// Lets a client that is still sending take note of why it is cut off: closed at once, its next write would
/// fail before it reads.
async fn linger(reader: &OwnedReadHalf, shutdown: CancellationToken) {
    let mut sink = [0; 4096];
    let until_end = async {
        while reader.readable().await.is_ok() {
            match reader.try_read(&mut sink) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(REFUSAL_LINGER, until_end) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Tells a client why it may not come in, and closes.
pub(crate) async fn refuse(stream: UnixStream, error: WireError, shutdown: CancellationToken) {
    let mut line = BytesMut::from(&head(None)[..]);
    line.put(crate::dispatch::error_tail(&error));
    line.put_u8(b'\n');
    let (reader, mut writer) = stream.into_split();
    // The socket's buffer is empty, so this takes no time; if it fails, the client has left.
    let told = tokio::time::timeout(REFUSAL_LINGER, writer.write_all(&line)).await;
    if !matches!(told, Ok(Ok(()))) {
        return;
    }
    drop(writer);
    linger(&reader, shutdown).await;
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
enum Ended {
    /// The client has sent everything.
    ByClient,
    /// There is no point in reading on, or no time.
    ByUs,
}

/// The calls that `rpc.cancel` can name.
type Running = Arc<Mutex<RunningCalls>>;

#[derive(Default)]
struct RunningCalls {
    calls: Vec<(u64, IdKey, CancellationToken)>,
    next: u64,
}

struct Connection {
    shared: Arc<Shared>,
    peer: PeerIdentity,
    id: ConnectionId,
    framer: Framer,
    /// Bytes of the framer that are counted in the server's total.
    buffered: usize,
    outbox: Outbox,
    /// Places for calls that run or whose line waits to be written.
    slots: Arc<Semaphore>,
    calls: JoinSet<()>,
    running: Running,
    subscriptions: Subscriptions,
    /// Cancelled when the connection has failed: every call's token is its child.
    gone: CancellationToken,
    hangup: Hangup,
}

impl Connection {
    async fn read(&mut self, reader: &OwnedReadHalf) -> Result<Ended, Gone> {
        let mut chunk = BytesMut::with_capacity(READ_BYTES);
        let shutdown = self.shared.shutdown.clone();
        let gone = self.gone.clone();
        let patience = self.shared.limits.partial_request_timeout();
        loop {
            while self.calls.try_join_next().is_some() {}
            tokio::select! {
                biased;
                () = gone.cancelled() => return Err(Gone),
                () = shutdown.cancelled() => {
                    self.refuse_the_rest(reader, &mut chunk).await?;
                    return Ok(Ended::ByUs);
                }
                _ = self.calls.join_next(), if !self.calls.is_empty() => continue,
                ready = reader.readable() => if ready.is_err() { return Err(Gone) },
                () = tokio::time::sleep(patience), if self.framer.is_partial() => {
                    let seconds = patience.as_secs();
                    let error = WireError::parse_error(format!("the request was not completed within {seconds} seconds; send it anew"));
                    self.say(None, error).await?;
                    tracing::info!(connection = %self.id, "an incomplete request was given up");
                    return Ok(Ended::ByUs);
                }
            }
            chunk.clear();
            match reader.try_read_buf(&mut chunk) {
                Ok(0) => {
                    if let Some(frame) = self.framer.finish() {
                        self.frame(frame).await?;
                    }
                    return Ok(Ended::ByClient);
                }
                Ok(_) => {
                    if self.take(&chunk).await? == Reading::Over {
                        return Ok(Ended::ByUs);
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
        add(&self.shared.stats.bytes_read, bytes.len());
        self.framer.push(bytes);
        while let Some(frame) = self.framer.next() {
            if self.frame(frame).await? == Reading::Over {
                return Ok(Reading::Over);
            }
            while self.calls.try_join_next().is_some() {}
        }
        self.account().await
    }

    /// Counts what is held of an incomplete request, and gives the connection up if all of them together
    /// hold too much.
    async fn account(&mut self) -> Result<Reading, Gone> {
        let stats = &self.shared.stats;
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
        if total <= self.shared.limits.max_buffered_bytes as u64 || held <= READ_BYTES {
            return Ok(Reading::On);
        }
        let retry = self.shared.limits.busy_retry_after_ms;
        self.say(
            None,
            WireError::busy("too many large requests are being received", retry),
        )
        .await?;
        Ok(Reading::Over)
    }

    async fn frame(&mut self, frame: Frame) -> Result<Reading, Gone> {
        let limits = &self.shared.limits;
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
        match self.prepare(&request).await? {
            Prepared::Call(call) => {
                let Some(id) = request.id else {
                    self.detach(call);
                    return Ok(());
                };
                let head = head(Some(id));
                let outbox = self.outbox.clone();
                self.calls.spawn(async move {
                    let (outcome, slot) = call.run().await;
                    send(&outbox, head, outcome, Some(slot)).await;
                });
                Ok(())
            }
            Prepared::Outcome(outcome) => match request.id {
                Some(id) => self.queue(head(Some(id)), outcome).await,
                None => Ok(()),
            },
        }
    }

    async fn batch(&mut self, json: &str) -> Result<(), Gone> {
        let Ok(entries) = serde_json::from_str::<Vec<&RawValue>>(json) else {
            return self
                .say(None, WireError::invalid_request("the batch cannot be read"))
                .await;
        };
        if entries.is_empty() {
            return self
                .say(
                    None,
                    WireError::invalid_request("the batch is empty; put requests into it"),
                )
                .await;
        }
        let most = self.shared.limits.max_batch_requests;
        if entries.len() > most {
            return self.say(None, WireError::batch_too_large(most)).await;
        }
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
            let answer = match self.prepare(&request).await? {
                Prepared::Outcome(outcome) => Answer::Now(outcome),
                Prepared::Call(call) if request.id.is_none() => {
                    self.detach(call);
                    continue;
                }
                Prepared::Call(call) => {
                    let (tell, told) = oneshot::channel();
                    self.calls.spawn(async move {
                        // Here the slot is given back with the outcome: the line waits for the others, and
                        // a batch may be longer than there are slots.
                        let (outcome, _slot) = call.run().await;
                        if tell.send(outcome).is_err() {
                            tracing::trace!("a batch was given up");
                        }
                    });
                    Answer::Later(told)
                }
            };
            if let Some(id) = request.id {
                answers.push((head(Some(id)), answer));
            }
        }
        if answers.is_empty() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let outbox = self.outbox.clone();
        self.calls
            .spawn(async move { assemble(&shared, &outbox, answers).await });
        Ok(())
    }

    /// Runs a notification. Its sender wants no answer and may leave at once, so it outlives the
    /// connection; the server waits for it when it stops.
    fn detach(&self, call: Box<Call>) {
        self.shared.detached.spawn(async move { drop(call.run().await) });
    }

    /// Finds the method and a place to run it, or the answer that takes neither.
    async fn prepare(&mut self, request: &Request<'_>) -> Result<Prepared, Gone> {
        let received = Instant::now();
        let stats = Arc::clone(&self.shared.stats);
        add(
            if request.id.is_some() {
                &stats.requests
            } else {
                &stats.notifications
            },
            1,
        );
        if request.method == api::Cancel::NAME {
            return Ok(Prepared::Outcome(self.cancel(request.params)));
        }
        let found = match self.shared.find(&request.method) {
            Ok(found) => found,
            Err(error) => return Ok(Prepared::Outcome(self.shared.failure(error))),
        };
        let Some(slot) = self.slot().await? else {
            return Ok(Prepared::Outcome(self.shared.failure(WireError::shutting_down())));
        };
        let admitted = match self.shared.admit(&self.peer) {
            Ok(admitted) => admitted,
            Err(error) => return Ok(Prepared::Outcome(self.shared.failure(error))),
        };
        let params_bytes = request.params.map_or(0, str::len);
        let timeout = peek_timeout(request.params).unwrap_or_else(|| found.default_timeout(params_bytes));
        let cancelled = match request.id {
            Some(_) => self.gone.child_token(),
            None => CancellationToken::new(),
        };
        let context = CallContext {
            peer: self.peer,
            connection: self.id,
            request_id: request.id.map(Arc::from),
            received,
            deadline: received + timeout.min(Duration::from_millis(TIMEOUT_MS_MAX)),
            cancelled: cancelled.clone(),
            notifier: self.outbox.notifier(),
            subscriptions: self.subscriptions.clone(),
        };
        let listed = request
            .id
            .map(|id| Listed::new(&self.running, IdKey::of(id), cancelled));
        Ok(Prepared::Call(Box::new(Call {
            shared: Arc::clone(&self.shared),
            found,
            params: Params::new(request.params).into_owned(),
            context,
            slot,
            admitted,
            listed,
            counted: InFlight::new(stats),
        })))
    }

    /// A place for one more call. None: the daemon began to stop before there was one.
    async fn slot(&mut self) -> Result<Option<OwnedSemaphorePermit>, Gone> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(Some(slot));
        }
        let slots = Arc::clone(&self.slots);
        let shutdown = self.shared.shutdown.clone();
        let gone = self.gone.clone();
        tokio::select! {
            biased;
            () = gone.cancelled() => Err(Gone),
            slot = slots.acquire_owned() => slot.map(Some).map_err(|_| Gone),
            () = shutdown.cancelled() => Ok(None),
            () = self.hangup.wait() => Err(Gone),
        }
    }

    /// `rpc.cancel`. Answered here, without a slot: it frees some.
    fn cancel(&self, params: Option<&str>) -> Outcome {
        #[derive(serde::Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            id: &'a RawValue,
        }
        // Checks names and shape; the raw id is taken apart from it, for a number may not fit any type.
        if let Err(error) = crate::params::decode_str::<api::Cancel>(params) {
            return self.shared.failure(error);
        }
        let json = params.unwrap_or_default();
        let raw = match serde_json::from_str::<Named<'_>>(json) {
            Ok(named) => Some(named.id),
            Err(_) => serde_json::from_str::<Vec<&RawValue>>(json)
                .ok()
                .and_then(|list| list.into_iter().next()),
        };
        let Some(raw) = raw else {
            return self.shared.failure(WireError::invalid_params(
                "id",
                "`id` must be that of a request in flight",
            ));
        };
        let key = IdKey::of(raw.get());
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cancelled = 0;
        for (_, _, token) in running.calls.iter().filter(|(_, id, _)| *id == key) {
            token.cancel();
            cancelled += 1;
        }
        self.shared.stats.cancelled.fetch_add(cancelled, Ordering::Relaxed);
        success(&CancelResult { cancelled })
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
                    tracing::debug!(connection = %self.id, calls = self.calls.len(), "the client left its calls behind");
                    gone.cancel();
                    return;
                }
            }
        }
    }
}

/// What becomes of a request.
enum Prepared {
    /// It runs.
    Call(Box<Call>),
    /// It is answered already.
    Outcome(Outcome),
}

/// A call that may run.
struct Call {
    shared: Arc<Shared>,
    found: Found,
    params: Params<'static>,
    context: CallContext,
    slot: OwnedSemaphorePermit,
    admitted: OwnedSemaphorePermit,
    listed: Option<Listed>,
    counted: InFlight,
}

impl Call {
    /// Runs it; gives its slot back with the outcome, and its other places when it has one.
    async fn run(self: Box<Self>) -> (Outcome, OwnedSemaphorePermit) {
        let Self {
            shared,
            found,
            params,
            context,
            slot,
            admitted,
            listed,
            counted,
        } = *self;
        let outcome = shared.run(found, params, context).await;
        drop((admitted, listed, counted));
        (outcome, slot)
    }
}

/// Keeps a call in the list of those that can be cancelled.
struct Listed {
    running: Running,
    number: u64,
}

impl Listed {
    fn new(running: &Running, id: IdKey, token: CancellationToken) -> Self {
        let mut list = running.lock().unwrap_or_else(PoisonError::into_inner);
        let number = list.next;
        list.next += 1;
        list.calls.push((number, id, token));
        Self {
            running: Arc::clone(running),
            number,
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut list = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = list.calls.iter().position(|(number, ..)| *number == self.number) {
            list.calls.swap_remove(place);
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

/// Queues one response.
async fn send(outbox: &Outbox, head: Bytes, outcome: Outcome, slot: Option<OwnedSemaphorePermit>) -> bool {
    let mut line = Line::new(vec![head, outcome.tail]);
    line.slot = slot;
    let sent = outbox.send(line).await;
    if sent {
        outbox.count_response();
    }
    if let Some(queued) = outcome.queued {
        // A method may wait for this before it sends notifications, so that they come after the answer.
        if sent {
            queued.notify(outcome.success);
        }
    }
    sent
}

/// An entry of a batch.
enum Answer {
    Now(Outcome),
    Later(oneshot::Receiver<Outcome>),
}

/// Puts the answers of a batch on one line, in the order of the requests. What would make the line longer
/// than a response may be becomes an error of its own, so that the others still get through.
async fn assemble(shared: &Shared, outbox: &Outbox, answers: Vec<(Bytes, Answer)>) {
    let most = shared.limits.max_response_bytes;
    let mut parts = Vec::with_capacity(answers.len() * 3 + 1);
    let mut queued = Vec::new();
    let mut length = 2;
    for (place, (head, answer)) in answers.into_iter().enumerate() {
        let outcome = match answer {
            Answer::Now(outcome) => outcome,
            Answer::Later(told) => match told.await {
                Ok(outcome) => outcome,
                Err(_) => shared.failure(WireError::cancelled(Executed::Unknown)),
            },
        };
        let mut tail = outcome.tail;
        let fits = length + head.len() + tail.len() <= most;
        if !fits && (outcome.success || tail.len() > SMALL_ERROR_BYTES) {
            tail = shared.failure(too_large(&tail, outcome.writes, most)).tail;
        } else if let Some(notify) = outcome.queued {
            queued.push((notify, outcome.success));
        }
        length += head.len() + tail.len() + 1;
        parts.push(Bytes::from_static(if place == 0 { b"[" } else { b"," }));
        parts.push(head);
        parts.push(tail);
    }
    parts.push(Bytes::from_static(b"]"));
    if outbox.send(Line::new(parts)).await {
        outbox.count_response();
        for (notify, success) in queued {
            notify.notify(success);
        }
    }
}

/// Notices that the client has closed its end altogether, which end of input alone does not say.
///
/// The kernel reports it as a hang-up. It is watched on a descriptor of its own, so that clearing that
/// one's readiness does not disturb the writer's, and only while nothing is read: otherwise reading tells
/// soon enough.
struct Hangup {
    descriptor: Option<OwnedFd>,
    watched: Option<UnixStream>,
}

impl Hangup {
    async fn wait(&mut self) {
        if let Some(descriptor) = self.descriptor.take() {
            self.watched = UnixStream::from_std(descriptor.into()).ok();
        }
        let Some(watched) = &self.watched else {
            // Without a descriptor to spare, the write timeout and the deadline still end the calls.
            return std::future::pending().await;
        };
        loop {
            match watched.ready(Interest::WRITABLE).await {
                Ok(ready) if !ready.is_write_closed() => {
                    // Writable, which does not matter here: forget it until something changes.
                    let cleared: io::Result<()> =
                        watched.try_io(Interest::WRITABLE, || Err(io::ErrorKind::WouldBlock.into()));
                    debug_assert!(cleared.is_err());
                }
                _ => return,
            }
        }
    }
}

/// Writes lines until the outbox is closed and empty, then closes the socket for writing. If the client
/// does not take anything for `patience`, the connection is given up.
async fn write(
    mut socket: OwnedWriteHalf,
    mut lines: mpsc::Receiver<Line>,
    patience: Duration,
    stats: Arc<ServerStats>,
    gone: CancellationToken,
) {
    let mut small = BytesMut::new();
    let mut written = Vec::new();
    while let Some(line) = lines.recv().await {
        small.clear();
        let mut next = Some(line);
        let mut result = Ok(());
        while let Some(line) = next.take() {
            let large = line.length() > WRITE_BYTES;
            for part in &line.parts {
                if large && part.len() > READ_BYTES {
                    result = put(&mut socket, &small, patience).await;
                    small.clear();
                    if result.is_ok() {
                        result = put(&mut socket, part, patience).await;
                    }
                    if result.is_err() {
                        break;
                    }
                } else {
                    small.extend_from_slice(part);
                }
            }
            small.extend_from_slice(b"\n");
            add(&stats.bytes_written, line.length() + 1);
            written.push(line);
            if result.is_err() || large || small.len() >= WRITE_BYTES {
                break;
            }
            next = lines.try_recv().ok();
        }
        if result.is_ok() {
            result = put(&mut socket, &small, patience).await;
        }
        // Only now do the lines give back their places and bytes.
        written.clear();
        if small.capacity() > 2 * WRITE_BYTES {
            small = BytesMut::new();
        }
        if let Err(error) = result {
            tracing::debug!(%error, "the connection was given up while writing");
            gone.cancel();
            return;
        }
    }
}

/// Writes all of `bytes`; fails when nothing is taken for `patience`.
async fn put(socket: &mut OwnedWriteHalf, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        match tokio::time::timeout(patience, socket.write(bytes)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(count)) => bytes = &bytes[count..],
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
            }
        }
    }
    Ok(())
}
