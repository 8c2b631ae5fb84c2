//! The way in: what the rest of the daemon calls to write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use ractor::ActorRef;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::actor::WriterConfig;
use super::commit::{
    DeleteTarget, Deleted, ItemOutcome, OpOutcome, PreparedItem, PreparedUpdate, UndeleteTarget, Undeleted, Updated,
    WriteOp,
};
use super::incoming::{IncomingStore, IncomingStores};
use super::message::{
    AccessWork, ExclusiveOutcome, ExclusiveRequest, ExclusiveTask, WriteReply, WriteRequest, WriterMessage, WriterStats,
};
use super::pending::{PendingWrite, Progress, op_bytes};
use super::setback::Troubles;
use super::undo::{UndoNote, Undoing};
use crate::admission::Admission;
use crate::deadline::Deadline;
use crate::domain::ProjectName;
use crate::error::{Executed, KnowledgeError, KnowledgeResult};
use crate::store::WriteAccess;
use crate::store::upkeep::Thorough;

/// Sends writes to the writer, within its bounds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WriterHandle {
    actor: ActorRef<WriterMessage>,
    requests: Admission,
    bytes: Admission,
    incoming: Arc<IncomingStores>,
    troubles: Arc<Troubles>,
}

impl WriterHandle {
    /// A handle to a running writer, which was started with the same `incoming` and `troubles`.
    pub(crate) fn new(
        actor: ActorRef<WriterMessage>,
        config: &WriterConfig,
        incoming: Arc<IncomingStores>,
        troubles: Arc<Troubles>,
    ) -> Self {
        Self {
            actor,
            requests: Admission::new("the writer's queue", config.queue_requests, 100),
            bytes: Admission::new("the writer's buffer", config.queue_bytes, 250),
            incoming,
            troubles,
        }
    }

    /// Which projects take no writes now, or get no upkeep, though the writer works: a sentence each, for
    /// `admin.health`.
    pub fn troubles(&self) -> Vec<String> {
        self.troubles.sentences(Instant::now())
    }

    /// Makes the writer expect a store of one item, which is being embedded now: it may hold a group open for it.
    /// Give the result to [`WriterHandle::store`], or drop it if the store does not come.
    pub fn expect_store(&self, project: &ProjectName) -> IncomingStore {
        IncomingStore::new(Arc::clone(&self.incoming), project.clone(), self.actor.clone())
    }

    /// Stores items and waits until they are durable. Errors of single items stand in the reply.
    pub async fn store(
        &self,
        project: ProjectName,
        items: Vec<PreparedItem>,
        incoming: Option<IncomingStore>,
        deadline: Deadline,
    ) -> KnowledgeResult<WriteReply<ItemOutcome>> {
        let ops = items.into_iter().map(WriteOp::Store).collect();
        let reply = self.submit(project, ops, incoming, deadline).await?;
        let items = reply.items.into_iter().map(|item| match item? {
            OpOutcome::Stored(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        });
        Ok(WriteReply {
            items: items.collect(),
            version: reply.version,
        })
    }

    /// Changes an item and waits until that is durable. With it comes the project's newest commit. None where the
    /// item's text is not the update's and the update came without the passages of its text: nothing was changed, and
    /// with them it can be repeated.
    pub async fn update(
        &self,
        project: ProjectName,
        update: PreparedUpdate,
        deadline: Deadline,
    ) -> KnowledgeResult<(Option<Updated>, i64)> {
        let (outcome, version) = self.change(project, WriteOp::Update(update), deadline).await?;
        match outcome {
            OpOutcome::Updated(updated) => Ok((Some(updated), version)),
            OpOutcome::NotEmbedded => Ok((None, version)),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes, and waits until that is durable, or until the call is `cancelled`. With it comes the project's newest
    /// commit. An error has the undo token where the delete may have happened.
    pub async fn delete(
        &self,
        project: ProjectName,
        target: DeleteTarget,
        deadline: Deadline,
        cancelled: &CancellationToken,
    ) -> KnowledgeResult<(Deleted, i64)> {
        let note = UndoNote::default();
        let undoing = Undoing(note.clone());
        let outcome = tokio::select! {
            biased;
            outcome = self.change(project, WriteOp::Delete(target, note), deadline) => outcome,
            () = cancelled.cancelled() => Err(KnowledgeError::Cancelled),
        };
        match outcome.map_err(|error| undoing.ended_with(error))? {
            (OpOutcome::Deleted(deleted), version) => Ok((deleted, version)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Brings deleted items back and waits until that is durable. With it comes the project's newest commit.
    pub async fn undelete(
        &self,
        project: ProjectName,
        target: UndeleteTarget,
        deadline: Deadline,
    ) -> KnowledgeResult<(Undeleted, i64)> {
        match self.change(project, WriteOp::Undelete(target), deadline).await? {
            (OpOutcome::Undeleted(undeleted), version) => Ok((undeleted, version)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Removes every trace of these items, after what waits before it. Gives back those that were there.
    pub async fn purge(
        &self,
        project: ProjectName,
        ids: Vec<String>,
        deadline: Deadline,
    ) -> KnowledgeResult<Vec<String>> {
        let outcome = self.exclusive(project, ExclusiveTask::Purge(ids), deadline).await?;
        Ok(outcome.purged)
    }

    /// Does all the upkeep there is to do, after what waits before it. Gives back its steps, by name. Each step is a
    /// turn of its own, so others write between them; where the caller no longer waits, those to come are not done.
    pub async fn optimize(&self, project: ProjectName, deadline: Deadline) -> KnowledgeResult<BTreeMap<String, u64>> {
        let mut upkeep = Thorough::default();
        loop {
            let task = ExclusiveTask::Optimize(upkeep);
            let outcome = self.exclusive(project.clone(), task, deadline).await?;
            match outcome.more {
                Some(more) => upkeep = more,
                None => return Ok(outcome.steps),
            }
        }
    }

    async fn change(&self, project: ProjectName, op: WriteOp, deadline: Deadline) -> KnowledgeResult<(OpOutcome, i64)> {
        let reply = self.submit(project, vec![op], None, deadline).await?;
        let outcome = reply.items.into_iter().next();
        let outcome = outcome.ok_or_else(|| KnowledgeError::internal("the writer gave no answer"))??;
        Ok((outcome, reply.version))
    }

    async fn submit(
        &self,
        project: ProjectName,
        ops: Vec<WriteOp>,
        incoming: Option<IncomingStore>,
        deadline: Deadline,
    ) -> KnowledgeResult<WriteReply<OpOutcome>> {
        let total_bytes: usize = ops.iter().map(op_bytes).sum();
        let total_bytes = u32::try_from(total_bytes).unwrap_or(u32::MAX);
        let permits = if ops.len() > 1 {
            // A bulk store has been embedded by now, which is the expensive part: it waits for space in the buffer, up
            // to its deadline.
            [
                self.requests.acquire(1, deadline).await?,
                self.bytes.acquire(total_bytes, deadline).await?,
            ]
        } else {
            [self.requests.try_acquire(1)?, self.bytes.try_acquire(total_bytes)?]
        };
        let (reply, answer) = oneshot::channel();
        let pending = Arc::new(PendingWrite {
            deadline,
            progress: Mutex::new(Progress {
                outcomes: vec![None; ops.len()],
                remaining: ops.len(),
                version: 0,
                reply: Some(reply),
            }),
            _permits: permits,
        });
        let request = WriteRequest {
            project,
            ops,
            pending,
            incoming,
        };
        self.send(WriterMessage::Write(request), answer, deadline).await
    }

    async fn exclusive(
        &self,
        project: ProjectName,
        task: ExclusiveTask,
        deadline: Deadline,
    ) -> KnowledgeResult<ExclusiveOutcome> {
        let permit = match &task {
            // What is begun is not given up because the queue is full.
            ExclusiveTask::Optimize(upkeep) if !upkeep.steps.is_empty() => self.requests.acquire(1, deadline).await?,
            _ => self.requests.try_acquire(1)?,
        };
        let (reply, answer) = oneshot::channel();
        let request = ExclusiveRequest {
            project,
            task,
            deadline,
            reply,
            _permit: permit,
        };
        self.send(WriterMessage::Exclusive(request), answer, deadline).await
    }

    async fn send<T>(
        &self,
        message: WriterMessage,
        answer: oneshot::Receiver<KnowledgeResult<T>>,
        deadline: Deadline,
    ) -> KnowledgeResult<T> {
        self.actor.cast(message).map_err(|_| KnowledgeError::Unavailable {
            part: "writer",
            reason: "it is restarting, nothing was changed".to_owned(),
        })?;
        match tokio::time::timeout(deadline.remaining(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(KnowledgeError::OutcomeUnknown),
            Err(_) => Err(KnowledgeError::DeadlineExceeded {
                executed: Executed::Unknown,
            }),
        }
    }

    /// Removes a project of the daemon's own and everything in it.
    pub async fn drop_own_project(&self, project: ProjectName, deadline: Deadline) -> KnowledgeResult<()> {
        let (reply, answer) = oneshot::channel();
        self.send(WriterMessage::DropProject(project, reply), answer, deadline)
            .await
    }

    /// Runs `work` with the right to write, to its end, whether or not the caller still waits then.
    pub async fn with_access<T, F>(
        &self,
        work: impl FnOnce(Arc<WriteAccess>) -> F + Send + 'static,
    ) -> KnowledgeResult<T>
    where
        T: Send + 'static,
        F: Future<Output = KnowledgeResult<T>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work: AccessWork = Box::new(move |access| {
            Box::pin(async move {
                let result = match access {
                    Ok(access) => work(access).await,
                    Err(error) => Err(error),
                };
                reply.send(result).ok();
            })
        });
        self.actor
            .cast(WriterMessage::WithAccess(work))
            .map_err(|_| KnowledgeError::Unavailable {
                part: "writer",
                reason: "it is restarting, nothing was changed".to_owned(),
            })?;
        answer.await.unwrap_or(Err(KnowledgeError::OutcomeUnknown))
    }

    /// The numbers; none while the writer is away.
    pub async fn stats(&self) -> Option<WriterStats> {
        let (reply, answer) = oneshot::channel();
        self.actor.cast(WriterMessage::Stats(reply)).ok()?;
        answer.await.ok()
    }

    /// Finishes what was accepted. True when it has.
    pub async fn drain(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.actor.cast(WriterMessage::Drain(reply)).is_ok() && answer.await.is_ok()
    }

    /// Requests in the queue or running.
    pub fn requests_in_use(&self) -> u32 {
        self.requests.in_use()
    }
}

/// The error where a write was answered as another one.
fn unexpected(outcome: &OpOutcome) -> KnowledgeError {
    KnowledgeError::internal(format!("the writer answered {outcome:?}"))
}
