//! Writes on their way: what waits in a lane, and what is known of a request whose writes may be spread over several
//! groups.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::commit::{DeleteTarget, OpOutcome, UndeleteTarget, WriteOp};
use super::lane::{Touched, Weighed};
use super::message::{ExclusiveRequest, WriteReply};
use crate::admission::Permit;
use crate::deadline::Deadline;
use crate::error::{Executed, KnowledgeError, KnowledgeResult};

/// A request whose items may be spread over several groups. The last outcome sends the reply; dropping it
/// unanswered tells the caller that the outcome is unknown.
pub(super) struct PendingWrite {
    pub(super) deadline: Deadline,
    pub(super) progress: Mutex<Progress>,
    pub(super) _permits: [Permit; 2],
}

pub(super) struct Progress {
    pub(super) outcomes: Vec<Option<KnowledgeResult<OpOutcome>>>,
    pub(super) remaining: usize,
    pub(super) version: i64,
    pub(super) reply: Option<oneshot::Sender<KnowledgeResult<WriteReply<OpOutcome>>>>,
}

impl PendingWrite {
    pub(super) fn record(&self, index: usize, outcome: KnowledgeResult<OpOutcome>, version: i64) {
        let mut progress = self.progress.lock();
        if progress.outcomes[index].replace(outcome).is_none() {
            progress.remaining -= 1;
        }
        progress.version = progress.version.max(version);
        if progress.remaining == 0
            && let Some(reply) = progress.reply.take()
        {
            let items = progress.outcomes.drain(..).flatten().collect();
            let version = progress.version;
            // A failed send only means that the caller has left; the items are stored all the same.
            reply.send(Ok(WriteReply { items, version })).ok();
        }
    }

    /// Says of one write that its outcome is not known, unless it has one.
    pub(super) fn lost(&self, index: usize) {
        let progress = self.progress.lock();
        // Once all have an outcome they are on their way to the caller.
        let open = progress.outcomes.get(index).is_some_and(Option::is_none);
        drop(progress);
        if open {
            self.record(index, Err(KnowledgeError::OutcomeUnknown), 0);
        }
    }

    /// Whether the caller still waits.
    pub(super) fn awaited(&self) -> bool {
        let progress = self.progress.lock();
        progress.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }
}

/// One piece of work on its way through a lane.
pub(super) enum Queued {
    Op(Box<QueuedOp>),
    Exclusive(ExclusiveRequest),
}

/// One write of a request.
pub(super) struct QueuedOp {
    pub(super) op: WriteOp,
    pub(super) index: usize,
    pub(super) pending: Arc<PendingWrite>,
}

impl Queued {
    /// Where the outcome of a write goes. An exclusive task carries its own reply.
    pub(super) fn place(&self) -> Option<(usize, Arc<PendingWrite>)> {
        match self {
            Self::Op(queued) => Some((queued.index, Arc::clone(&queued.pending))),
            Self::Exclusive(_) => None,
        }
    }

    /// Answers with an error what has not been begun.
    pub(super) fn refuse(self, error: KnowledgeError) {
        match self {
            Self::Op(queued) => queued.pending.record(queued.index, Err(error), 0),
            // A failed send only means that the caller has left.
            Self::Exclusive(request) => drop(request.reply.send(Err(error))),
        }
    }
}

impl Weighed for Queued {
    fn rows(&self) -> usize {
        match self {
            Self::Op(queued) => op_rows(&queued.op),
            Self::Exclusive(_) => 1,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Op(queued) => op_bytes(&queued.op),
            Self::Exclusive(_) => 0,
        }
    }

    fn touches(&self) -> Touched<'_> {
        match self {
            Self::Op(queued) => match &queued.op {
                WriteOp::Store(prepared) => prepared
                    .item
                    .id
                    .as_ref()
                    .map_or(Touched::New, |id| Touched::Ids(std::slice::from_ref(id))),
                WriteOp::Update(update) => Touched::Ids(std::slice::from_ref(&update.change.id)),
                WriteOp::Delete(DeleteTarget::Ids(ids), _) | WriteOp::Undelete(UndeleteTarget::Ids(ids)) => {
                    Touched::Ids(ids)
                }
                WriteOp::Delete(DeleteTarget::Matching(_), _) | WriteOp::Undelete(UndeleteTarget::Deletion(_)) => {
                    Touched::Any
                }
            },
            Self::Exclusive(_) => Touched::Any,
        }
    }
}

/// Rows that a write makes, as far as it is known before.
pub(super) fn op_rows(op: &WriteOp) -> usize {
    match op {
        WriteOp::Store(prepared) => prepared.passages.len(),
        WriteOp::Update(update) => update.passages.as_ref().map_or(2, |passages| passages.len() + 1),
        WriteOp::Delete(DeleteTarget::Ids(ids), _) | WriteOp::Undelete(UndeleteTarget::Ids(ids)) => ids.len(),
        WriteOp::Delete(DeleteTarget::Matching(_), _) | WriteOp::Undelete(UndeleteTarget::Deletion(_)) => 1,
    }
}

/// Bytes that a write brings: its text twice (whole and in passages) and its vectors.
pub(super) fn op_bytes(op: &WriteOp) -> usize {
    let vectors = |passages: &[crate::store::table::rows::EmbeddedPassage]| -> usize {
        passages.iter().map(|passage| size_of_val(&*passage.vector)).sum()
    };
    match op {
        WriteOp::Store(prepared) => prepared.item.content.text.len() * 2 + vectors(&prepared.passages),
        WriteOp::Update(update) => {
            update.change.text.as_ref().map_or(0, String::len) * 2 + update.passages.as_deref().map_or(0, vectors)
        }
        WriteOp::Delete(DeleteTarget::Ids(ids), _) | WriteOp::Undelete(UndeleteTarget::Ids(ids)) => {
            ids.iter().map(String::len).sum()
        }
        WriteOp::Delete(DeleteTarget::Matching(_), _) | WriteOp::Undelete(UndeleteTarget::Deletion(_)) => 0,
    }
}

/// Whether a waiting item is still to be written. What expired in the queue is answered and never executed;
/// an item that nobody waits for any more frees its place.
pub(super) fn still_wanted(queued: &Queued) -> bool {
    match queued {
        Queued::Op(op) => {
            if op.pending.deadline.expired() {
                let executed = Executed::No;
                op.pending
                    .record(op.index, Err(KnowledgeError::DeadlineExceeded { executed }), 0);
                return false;
            }
            op.pending.awaited()
        }
        // Its caller's own clock answers it when it is dropped here.
        Queued::Exclusive(request) => !request.deadline.expired() && !request.reply.is_closed(),
    }
}
