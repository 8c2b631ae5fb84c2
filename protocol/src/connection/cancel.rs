//! `rpc.cancel`, which the connection itself answers.

use serde_json::value::RawValue;
use std::sync::atomic::Ordering;

use super::Connection;
use super::batch::{self, Entries};
use super::outcome::Outcome;
use crate::api::{self, CancelResult};
use crate::envelope::{self, IdKey};
use crate::error::WireError;

impl Connection {
    /// `rpc.cancel`. Answered here, without a slot: it frees some.
    pub(super) fn cancel(&self, params: Option<&str>) -> Outcome {
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
}
