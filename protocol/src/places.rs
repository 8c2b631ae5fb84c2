//! The places of connections: many for everybody, and a few more for what an operator needs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

/// How long a connection on a spare place may be without a call, and how long one waits for such a place. That is
/// enough for a program to ask after it has connected.
pub(crate) const SPARE_PATIENCE: Duration = Duration::from_secs(1);

/// A connection's place among all of them.
#[derive(Debug)]
pub(crate) enum Place {
    /// One of those of [`crate::limits::Limits::max_connections`].
    Full(#[allow(dead_code, reason = "held for its Drop")] OwnedSemaphorePermit),
    /// One of the few beyond: only what an operator needs is served. It becomes a full one when one is free.
    Spare {
        /// None once it is handed over to another connection.
        place: Option<SparePlace>,
        /// Why there was no full place.
        reason: String,
        /// Whether a full place may be taken later.
        may_grow: bool,
    },
}

/// All spare places. Connections that wait for one get it in the order of arrival.
///
/// A place is lent for a call, not for as long as the connection lasts: a connection that has been answered hands its
/// place over as soon as somebody else waits. Otherwise those who ask once and stay would keep the next operator out.
#[derive(Debug)]
pub(crate) struct SparePlaces {
    state: Mutex<State>,
    /// Notifies the connections that have a place that another one waits.
    wanted: Notify,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Empty unless `free` is 0.
    queue: VecDeque<oneshot::Sender<SparePlace>>,
}

impl State {
    /// The next one that still waits.
    fn next(&mut self) -> Option<oneshot::Sender<SparePlace>> {
        while let Some(next) = self.queue.pop_front() {
            if !next.is_closed() {
                return Some(next);
            }
        }
        None
    }
}

/// One spare place; dropped, it goes to the next one that waits.
#[derive(Debug)]
pub(crate) struct SparePlace(Arc<SparePlaces>);

impl SparePlaces {
    pub(crate) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                free: count,
                queue: VecDeque::new(),
            }),
            wanted: Notify::new(),
        })
    }

    /// A place, when there is one.
    pub(crate) async fn take(self: &Arc<Self>) -> SparePlace {
        let told = match self.take_or_queue() {
            Ok(place) => return place,
            Err(told) => told,
        };
        self.wanted.notify_waiters();
        match told.await {
            Ok(place) => place,
            // Senders leave the queue to send, so this does not happen while the places exist.
            Err(_) => std::future::pending().await,
        }
    }

    fn take_or_queue(self: &Arc<Self>) -> Result<SparePlace, oneshot::Receiver<SparePlace>> {
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            return Ok(SparePlace(Arc::clone(self)));
        }
        // Those that have given up leave here, for no place may be free for long.
        state.queue.retain(|one| !one.is_closed());
        let (tell, told) = oneshot::channel();
        state.queue.push_back(tell);
        Err(told)
    }
}

impl SparePlace {
    /// Ready when somebody waits for a place.
    pub(crate) fn wanted(&self) -> impl Future<Output = ()> + use<> {
        let places = Arc::clone(&self.0);
        async move {
            loop {
                // Registered before the queue is looked at, so that no notification is missed.
                let told = places.wanted.notified();
                if places.state.lock().queue.iter().any(|one| !one.is_closed()) {
                    return;
                }
                told.await;
            }
        }
    }

    /// Gives the place to the next one that waits; back if nobody does.
    pub(crate) fn hand_over(mut self) -> Option<Self> {
        loop {
            let Some(next) = self.0.state.lock().next() else {
                return Some(self);
            };
            match next.send(self) {
                Ok(()) => return None,
                Err(back) => self = back,
            }
        }
    }
}

impl Drop for SparePlace {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.state.lock();
            let next = state.next();
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        if let Some(next) = next {
            // A connection that has given up meanwhile drops the place, which brings it here again.
            drop(next.send(Self(Arc::clone(&self.0))));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_place_goes_to_those_who_wait_in_their_order_and_past_who_has_given_up() {
        let places = SparePlaces::new(1);
        let first = places.take().now_or_never().unwrap();
        assert!(first.wanted().now_or_never().is_none());
        let first = first.hand_over().unwrap();

        let mut given_up = Box::pin(places.take());
        let mut second = Box::pin(places.take());
        let mut third = Box::pin(places.take());
        assert!(given_up.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        first.wanted().now_or_never().unwrap();
        drop(given_up);
        drop(Box::pin(places.take()).as_mut().now_or_never());
        let mut fourth = Box::pin(places.take());
        assert!(fourth.as_mut().now_or_never().is_none());
        assert_eq!(places.state.lock().queue.len(), 3, "who has given up is not kept");
        drop(fourth);
        assert!(first.hand_over().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        let second = second.now_or_never().unwrap();
        drop(second);
        // Nobody has looked at it yet, and it comes back.
        drop(third);
        assert_eq!(places.state.lock().free, 1);
        assert!(places.take().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_has_a_place_is_told_that_it_is_wanted() {
        let places = SparePlaces::new(1);
        let first = places.take().await;
        let mut wanted = Box::pin(first.wanted());
        assert!(wanted.as_mut().now_or_never().is_none());
        let waits = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take().await }
        });
        wanted.await;
        assert!(first.hand_over().is_none());
        drop(waits.await.unwrap());
        assert_eq!(places.state.lock().free, 1);
    }
}
