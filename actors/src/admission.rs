//! Admission: work is bounded before it enters an actor's mailbox.
//!
//! ractor's mailboxes have no bound, so each queue has a budget of units (requests, tokens or bytes) here. A
//! [`Permit`] is taken before the message is sent, travels inside it, and gives its units back when dropped,
//! wherever that happens: answered, abandoned, or lost with a crashed actor.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::deadline::Deadline;
use crate::error::{Executed, KnowledgeError};

/// The budget of one queue.
#[derive(Clone, Debug)]
pub struct Admission {
    name: &'static str,
    capacity: u32,
    retry_after_ms: u64,
    semaphore: Arc<Semaphore>,
}

/// Units of a queue's budget, held for as long as the work waits or runs.
#[derive(Debug)]
pub struct Permit(#[allow(dead_code, reason = "held for its Drop")] Option<OwnedSemaphorePermit>);

impl Permit {
    /// A permit of no queue, for work inside the daemon that is bounded otherwise, and for tests.
    pub fn unbounded() -> Self {
        Self(None)
    }
}

impl Admission {
    /// A budget of `capacity` units; a refusal names the queue and asks to retry after `retry_after_ms`.
    pub fn new(name: &'static str, capacity: u32, retry_after_ms: u64) -> Self {
        Self {
            name,
            capacity,
            retry_after_ms,
            semaphore: Arc::new(Semaphore::new(capacity as usize)),
        }
    }

    /// Takes `units`, or refuses at once. More units than the capacity count as the whole capacity, so that a
    /// request that is legal by itself can always enter an empty queue.
    pub fn try_acquire(&self, units: u32) -> Result<Permit, KnowledgeError> {
        let units = units.clamp(1, self.capacity);
        Arc::clone(&self.semaphore)
            .try_acquire_many_owned(units)
            .map(|permit| Permit(Some(permit)))
            .map_err(|_| KnowledgeError::Busy {
                queue: self.name,
                retry_after_ms: self.retry_after_ms,
            })
    }

    /// Waits until nothing is in use.
    pub async fn idle(&self) {
        // The semaphore is never closed, so this cannot fail; all units are given back at once.
        self.semaphore.acquire_many(self.capacity).await.ok();
    }

    /// Takes `units` once they are free, in order of arrival; fails when `deadline` passes before. For work that
    /// is better late than refused.
    pub async fn acquire(&self, units: u32, deadline: Deadline) -> Result<Permit, KnowledgeError> {
        let units = units.clamp(1, self.capacity);
        let permit = Arc::clone(&self.semaphore).acquire_many_owned(units);
        match tokio::time::timeout_at(deadline.instant().into(), permit).await {
            Ok(Ok(permit)) => Ok(Permit(Some(permit))),
            Ok(Err(_closed)) => Err(KnowledgeError::ShuttingDown),
            Err(_elapsed) => Err(KnowledgeError::DeadlineExceeded { executed: Executed::No }),
        }
    }

    /// Units in use.
    pub fn in_use(&self) -> u32 {
        let available = u32::try_from(self.semaphore.available_permits()).unwrap_or(u32::MAX);
        self.capacity.saturating_sub(available)
    }

    /// Units in all.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}
