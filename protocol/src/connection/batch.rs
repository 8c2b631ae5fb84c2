//! Batches: an array of requests, answered by one line.

use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::sync::Arc;
use tokio::sync::oneshot;

use super::calls::Prepared;
use super::outcome::{Outcome, head};
use super::queue::{BatchPlace, Reply};
use super::{Connection, Gone, Shared};
use crate::context::{Guard, Line, Outbox};
use crate::envelope;
use crate::error::{Executed, WireError};
use crate::oversized::SMALL_ERROR_BYTES;

/// The requests of a batch; none is kept if there are more than `most`.
pub(super) enum Entries<'a> {
    Some(Vec<&'a RawValue>),
    TooMany,
}

/// Reads the requests of a batch, and keeps none if there are more than `most`.
pub(super) fn entries(json: &str, most: usize) -> Result<Entries<'_>, serde_json::Error> {
    struct UpTo(usize);

    impl<'de> Visitor<'de> for UpTo {
        type Value = Entries<'de>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a batch")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = list.next_element()? {
                if entries.len() == self.0 {
                    while list.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(Entries::TooMany);
                }
                entries.push(entry);
            }
            Ok(Entries::Some(entries))
        }
    }

    serde_json::Deserializer::from_str(json).deserialize_seq(UpTo(most))
}

/// An entry of a batch.
enum Answer {
    Now(Outcome),
    Later(oneshot::Receiver<Outcome>),
}

impl Connection {
    pub(super) async fn batch(&mut self, json: &str) -> Result<(), Gone> {
        let most = self.shared.service.limits.max_batch_requests;
        let entries = match entries(json, most) {
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
        // Only the space for their lines bounds how many of these there are.
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Gone),
            () = assembled => Ok(()),
        }
    }
}

/// Puts the answers of a batch on one line, in the order of the requests. What would make the line longer
/// than a response may be becomes an error of its own, so that the others still get through; of a write the error
/// says what was done. True if an answer was one after which the connection is closed.
async fn assemble(shared: &Shared, outbox: &Outbox, answers: Vec<(Bytes, Answer)>, place: BatchPlace) -> bool {
    let most = shared.service.limits.max_response_bytes;
    let mut parts = Vec::with_capacity(answers.len() * 5 + 1);
    let mut guards = vec![Guard::Batch(place)];
    let mut queued = Vec::new();
    let mut length = 2;
    let mut closes = false;
    for (place, (mut start, answer)) in answers.into_iter().enumerate() {
        let mut outcome = match answer {
            Answer::Now(outcome) => outcome,
            Answer::Later(told) => match told.await {
                Ok(outcome) => outcome,
                Err(_) => shared.failure(WireError::cancelled(Executed::Unknown)),
            },
        };
        let fits = length + start.len() + outcome.length() <= most;
        if !fits && (outcome.success || outcome.length() > SMALL_ERROR_BYTES) {
            outcome = shared.too_large(&outcome);
        }
        if outcome.closes {
            start = head(None);
            closes = true;
        }
        length += start.len() + outcome.length() + 1;
        parts.push(Bytes::from_static(if place == 0 { b"[" } else { b"," }));
        parts.push(start);
        parts.extend(outcome.parts());
        queued.extend(outcome.queued);
        guards.extend(outcome.held.map(Guard::Bytes));
    }
    parts.push(Bytes::from_static(b"]"));
    let mut line = Line::new(parts);
    line.guards = guards;
    if outbox.send(line).await {
        outbox.count_response();
        for queued in queued {
            let _begun = queued.send(());
        }
    }
    closes
}
