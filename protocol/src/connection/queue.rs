//! Calls that have been read: those that wait for a place, and how one runs.
//!
//! Reading goes on for a while when all places are taken, because what comes next may be an `rpc.cancel` that frees
//! one. What waits is bounded in number and bytes; beyond that the kernel makes the client wait.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::outcome::Outcome;
use crate::envelope::IdKey;
use crate::service::PendingCall;

/// Calls that wait; more than anybody pipelines, and a few hundred bytes each.
const WAITING_CALLS: usize = 1024;
/// Bytes of parameters that wait, besides the last call's.
const WAITING_BYTES: usize = 1 << 20;

/// The place of a batch among those whose answers are not written yet; taken with its first call.
pub(crate) type BatchPlace = Arc<OnceLock<OwnedSemaphorePermit>>;

/// Where the outcome of a call goes.
pub(super) enum Reply {
    /// Into a line that begins like this.
    Line(Bytes),
    /// To the others of its batch.
    Batch(oneshot::Sender<Outcome>, BatchPlace),
    /// Nowhere: it is a notification.
    Nothing,
}

/// A call that was read.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) pending: PendingCall,
    pub(super) listed: Option<Listed>,
    pub(super) reply: Reply,
}

impl Call {
    /// Runs it; everything but its reply is given back when it has an outcome.
    pub(super) async fn run(self, admitted: OwnedSemaphorePermit) -> (Outcome, Reply) {
        let Self {
            shared,
            pending,
            listed,
            reply,
        } = self;
        let share = Arc::clone(&pending.share);
        let ended = shared.service.run(pending, admitted).await;
        drop(listed);
        (shared.outcome(ended, &share), reply)
    }
}

/// The calls that wait for a place, in the order in which they came.
#[derive(Default)]
pub(super) struct Queue {
    calls: VecDeque<Call>,
    bytes: usize,
}

fn weight(call: &Call) -> usize {
    call.pending.params_bytes()
}

impl Queue {
    pub(super) fn push(&mut self, call: Call) {
        self.bytes += weight(&call);
        self.calls.push_back(call);
    }

    pub(super) fn front(&self) -> Option<&Call> {
        self.calls.front()
    }

    pub(super) fn pop(&mut self) -> Option<Call> {
        let call = self.calls.pop_front()?;
        self.bytes -= weight(&call);
        Some(call)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether there is space for what is read next.
    pub(super) fn has_space(&self) -> bool {
        self.calls.len() < WAITING_CALLS && self.bytes < WAITING_BYTES
    }

    /// Takes out those that were cancelled.
    pub(super) fn take_cancelled(&mut self) -> Vec<Call> {
        let is_over = |call: &Call| call.pending.context.cancelled.is_cancelled();
        if !self.calls.iter().any(is_over) {
            return Vec::new();
        }
        let (over, left) = std::mem::take(&mut self.calls)
            .into_iter()
            .partition::<Vec<_>, _>(is_over);
        self.calls = left.into();
        self.bytes -= over.iter().map(weight).sum::<usize>();
        over
    }
}

/// The calls that `rpc.cancel` can name.
pub(super) type Running = Arc<Mutex<RunningCalls>>;

#[derive(Default)]
pub(super) struct RunningCalls {
    calls: Vec<(u64, IdKey, CancellationToken)>,
    next: u64,
}

impl RunningCalls {
    /// Cancels the calls of this id; how many they are.
    pub(super) fn cancel(&self, id: &IdKey) -> u64 {
        let mut cancelled = 0;
        for (_, _, token) in self.calls.iter().filter(|(_, other, _)| other == id) {
            token.cancel();
            cancelled += 1;
        }
        cancelled
    }
}

/// Keeps a call in the list of those that can be cancelled.
pub(super) struct Listed {
    running: Running,
    number: u64,
}

impl Listed {
    pub(super) fn new(running: &Running, id: IdKey, token: CancellationToken) -> Self {
        let mut list = running.lock();
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
        let mut list = self.running.lock();
        if let Some(place) = list.calls.iter().position(|(number, ..)| *number == self.number) {
            list.calls.swap_remove(place);
        }
    }
}
