//! The places of a connection: its own among the connections, and those that its calls wait for.

use std::sync::Arc;

use super::Connection;
use super::queue::Reply;
use crate::error::WireError;
use crate::limits::add;
use crate::places::{Place, SparePlace};

impl Connection {
    /// Takes a full place if this connection has a spare one. Returns the refusal if there is no full place; none means
    /// that the connection has one now.
    pub(super) fn grow(&mut self) -> Option<WireError> {
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
    pub(super) fn spare_place_wanted(&self) -> impl Future<Output = ()> + use<> {
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

    /// Hands the spare place over to a connection that waits for it. Returns why this connection ends then; none if it
    /// goes on.
    pub(super) fn leave(&mut self) -> Option<WireError> {
        let Place::Spare { place, .. } = &mut self.place else {
            return None;
        };
        *place = place.take()?.hand_over();
        if place.is_some() { None } else { self.grow() }
    }

    /// Ready when the call at the front of the queue may have what it lacked.
    pub(super) fn place_for_the_next(&self) -> impl Future<Output = ()> + use<> {
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
}
