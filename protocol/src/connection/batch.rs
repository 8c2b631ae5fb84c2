//! Batches: an array of requests, answered by one line.

use bytes::Bytes;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use tokio::sync::oneshot;

use super::Shared;
use super::outcome::{Outcome, head};
use super::queue::BatchPlace;
use crate::context::{Guard, Line, Outbox};
use crate::error::{Executed, WireError};
use crate::oversized::SMALL_ERROR_BYTES;

/// The requests of a batch; of more than `most` none is kept.
pub(super) enum Entries<'a> {
    Some(Vec<&'a RawValue>),
    TooMany,
}

/// Reads the requests of a batch, and stops to keep them when there are more than `most`.
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
pub(super) enum Answer {
    Now(Outcome),
    Later(oneshot::Receiver<Outcome>),
}

/// Puts the answers of a batch on one line, in the order of the requests. What would make the line longer
/// than a response may be becomes an error of its own, so that the others still get through; of a write the error
/// says what was done. True if an answer was one after which the connection is closed.
pub(super) async fn assemble(
    shared: &Shared,
    outbox: &Outbox,
    answers: Vec<(Bytes, Answer)>,
    place: BatchPlace,
) -> bool {
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
