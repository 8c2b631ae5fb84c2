//! The calls of a connection, from the request that was read to the answer that is queued.

use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::outcome::{Outcome, head};
use super::queue::{Call, Listed, Reply};
use super::{Connection, Gone};
use crate::api::{self, Method};
use crate::caller::Caller;
use crate::context::{Guard, Line, Outbox};
use crate::envelope::{self, IdKey, Request};
use crate::error::{Executed, WireError};
use crate::limits::add;
use crate::params::peek_trace_id;

impl Connection {
    pub(super) async fn single(&mut self, json: &str) -> Result<(), Gone> {
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

    /// Makes a call of a request, or the answer that takes no place.
    pub(super) fn prepare(&mut self, request: &Request<'_>) -> Prepared {
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

    /// Starts what waits, as far as there are places.
    pub(super) fn start_waiting(&mut self) {
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
    pub(super) async fn answer_what_was_cancelled(&mut self) -> Result<(), Gone> {
        for call in self.waiting.take_cancelled() {
            self.answer_unstarted(call, WireError::cancelled(Executed::No)).await?;
        }
        Ok(())
    }

    pub(super) async fn refuse_what_waits(&mut self) -> Result<(), Gone> {
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
}

/// What becomes of a request.
pub(super) enum Prepared {
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
pub(super) async fn send(outbox: &Outbox, head: Bytes, outcome: Outcome, slot: Option<OwnedSemaphorePermit>) -> bool {
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
