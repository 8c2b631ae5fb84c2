//! Turns: of each origin (a connection) at most one waits in a shared queue.
//!
//! A queue that serves its waiters in order of arrival is fair among requests, not among connections: a batch
//! of a thousand items would stand in it a thousand times, and everybody else behind all of them. With a turn
//! per origin in front, a connection that wants much waits for itself, and the queue goes round the connections.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The turns of all origins that want one. Bounded by the number of requests that wait.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// A semaphore of one permit for each origin; it lives for as long as somebody holds it or waits for it.
    origins: Mutex<HashMap<u64, Weak<Semaphore>>>,
}

/// The turn of an origin, held until dropped.
#[derive(Debug)]
pub(super) struct Turn(#[allow(dead_code, reason = "held for its Drop")] Option<OwnedSemaphorePermit>);

impl Turns {
    /// Waits until nobody else of this origin has the turn; those of one origin get it in order of arrival.
    pub(super) async fn wait(&self, origin: u64) -> Turn {
        // The semaphore is never closed.
        Turn(self.of(origin).acquire_owned().await.ok())
    }

    fn of(&self, origin: u64) -> Arc<Semaphore> {
        let mut origins = self.origins.lock();
        if let Some(turn) = origins.get(&origin).and_then(Weak::upgrade) {
            return turn;
        }
        // As often as an origin comes that was not there, so the map holds those at work and few others.
        origins.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        origins.insert(origin, Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_origin_has_one_turn_and_the_others_have_theirs() {
        let turns = Arc::new(Turns::default());
        let first = turns.wait(1).await;
        let second = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.wait(1).await }
        });
        let _other = turns.wait(2).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!second.is_finished());
        drop(first);
        drop(second.await.unwrap());
        let _third = turns.wait(3).await;
        assert_eq!(turns.origins.lock().len(), 2, "origins that left are forgotten");
    }
}
