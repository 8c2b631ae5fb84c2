//! One task of a lane: a group of writes, a step of upkeep, or both.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;

use super::commit::{self, Begun, WriteOp, plan};
use super::lane::GroupLimits;
use super::message::{ExclusiveOutcome, ExclusiveRequest, ExclusiveTask, LaneDone};
use super::pending::{PendingWrite, Queued, QueuedOp};
use super::setback::Work;
use super::upkeep::{UpkeepDone, finish_erasing};
use crate::error::{Executed, KnowledgeError, KnowledgeResult};
use crate::panics;
use crate::store::table::table_damage::TableDamage;
use crate::store::upkeep::{Debt, Pace};
use crate::store::{Project, WriteAccess, WriteTable};

/// What a purge has done where its erasing is not finished.
const UNERASED: &str = "the items are removed and can no longer be read, but not all of their bytes are erased yet \
                        (the next write and the next start go on with that, and so does asking again)";
/// What a write in several commits has done that was cut short.
const PARTLY_DONE: &str = "a part of it was carried out; repeating the call carries out the rest";
/// How long a purge waits for readers of older versions.
pub(super) const PURGE_PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a write before anything is written.
#[derive(Default)]
struct Attempt {
    /// The number of the commit that it was to make when it was first tried.
    begun: Option<i64>,
    /// Of a write that is cut into parts, the time of its commits, once it was tried to make one.
    at: Option<DateTime<Utc>>,
    /// And the number of the last that it was to make when it was last tried.
    last: Option<i64>,
    /// What could not be read of the table when it was last tried.
    damage: Option<Arc<TableDamage>>,
}

impl Attempt {
    fn note(&mut self, table: &WriteTable) {
        self.begun.get_or_insert(table.next_sequence());
        self.damage = Some(Arc::clone(table.damage()));
    }

    /// How it has begun, if something of it may be committed.
    fn begun(&self) -> Option<Begun> {
        let (sequence, at) = (self.begun?, self.at?);
        Some(Begun { sequence, at })
    }
}

/// One task of a lane: a group, a step of upkeep, or both.
pub(super) struct LaneTurn {
    pub(super) project: Arc<Project>,
    pub(super) access: Arc<WriteAccess>,
    pub(super) debt: Arc<Mutex<HashMap<String, Debt>>>,
    pub(super) limits: GroupLimits,
    pub(super) upkeep: Option<Pace>,
}

impl LaneTurn {
    pub(super) async fn run(self, mut group: Vec<Queued>) -> LaneDone {
        let mut done = LaneDone {
            project: self.project.name().clone(),
            items: group.len(),
            committed: false,
            upkeep: None,
            panicked: None,
        };
        let places: Vec<(usize, Arc<PendingWrite>)> = group.iter().filter_map(Queued::place).collect();
        let work = match group.as_slice() {
            [Queued::Exclusive(request)] if matches!(request.task, ExclusiveTask::Optimize(_)) => Work::Upkeep,
            _ => Work::Writes,
        };
        let writing = async {
            match group.pop() {
                None => false,
                Some(Queued::Exclusive(request)) => self.exclusive(request).await,
                Some(last) => {
                    group.push(last);
                    self.commit(group).await
                }
            }
        };
        match panics::catch(writing).await {
            Ok(committed) => {
                done.committed = committed;
                // The writes are answered: their space in the queue is not kept for the upkeep below.
                drop(places);
            }
            Err(_) => {
                done.panicked = Some(work);
                // What the table holds now is not known: the next user opens it from disk.
                self.access.forget(&self.project).await;
                for (index, pending) in places {
                    pending.lost(index);
                }
                return done;
            }
        }
        if let Some(pace) = self.upkeep {
            match panics::catch(self.upkeep(pace)).await {
                Ok(found) => done.upkeep = Some(found),
                Err(_) => {
                    done.upkeep = Some(UpkeepDone::failed(pace));
                    done.panicked = Some(Work::Upkeep);
                    self.access.forget(&self.project).await;
                }
            }
        }
        done
    }

    /// Commits the group and answers its writes. True if a version was written.
    async fn commit(&self, group: Vec<Queued>) -> bool {
        let (ops, places): (Vec<WriteOp>, Vec<(usize, Arc<PendingWrite>)>) = group
            .into_iter()
            .filter_map(|queued| match queued {
                Queued::Op(queued) => {
                    let QueuedOp { op, index, pending } = *queued;
                    Some((op, (index, pending)))
                }
                // Alone in its group, see `lane`.
                Queued::Exclusive(_) => None,
            })
            .unzip();
        let (ops, places) = self.with_space(ops, places).await;
        if ops.is_empty() {
            return false;
        }
        match self.try_commit(&ops).await {
            Ok(outcome) => {
                for ((index, pending), item) in places.into_iter().zip(outcome.items) {
                    pending.record(index, item, outcome.version);
                }
                outcome.committed
            }
            Err(error) => {
                tracing::error!(project = %self.project.name(), writes = places.len(), %error, "a commit failed");
                for (index, pending) in places {
                    pending.record(index, Err(error.clone()), 0);
                }
                false
            }
        }
    }

    /// Refuses what adds to the project where the disk is nearly full; deleting goes on.
    async fn with_space(
        &self,
        ops: Vec<WriteOp>,
        places: Vec<(usize, Arc<PendingWrite>)>,
    ) -> (Vec<WriteOp>, Vec<(usize, Arc<PendingWrite>)>) {
        let deletes = |op: &WriteOp| matches!(op, WriteOp::Delete(..));
        if ops.iter().all(deletes) {
            return (ops, places);
        }
        let Some(shortage) = self.access.shortage(&self.project).await else {
            return (ops, places);
        };
        let all = ops.into_iter().zip(places);
        let (kept, refused): (Vec<_>, Vec<_>) = all.partition(|(op, _)| deletes(op));
        for (_, (index, pending)) in refused {
            pending.record(index, Err(shortage.clone()), 0);
        }
        kept.into_iter().unzip()
    }

    /// Runs an exclusive task and answers it. True if the project may have changed.
    async fn exclusive(&self, request: ExclusiveRequest) -> bool {
        let outcome = self.try_exclusive(&request.task).await;
        if let Err(error) = &outcome {
            tracing::error!(project = %self.project.name(), task = ?request.task, %error, "a task failed");
        }
        // A failed send only means that the caller has left.
        request.reply.send(outcome).ok();
        true
    }

    async fn try_exclusive(&self, task: &ExclusiveTask) -> KnowledgeResult<ExclusiveOutcome> {
        let mut attempt = Attempt::default();
        let outcome = match self.exclusive_once(task, &mut attempt).await {
            Err(error) if self.mend(task, error.root(), &attempt).await => {
                let removed = matches!(error, KnowledgeError::Incomplete { .. });
                match self.exclusive_once(task, &mut attempt).await {
                    // The first try has removed the items, and the caller must not take them for untouched.
                    Err(error) if removed && !matches!(error, KnowledgeError::Incomplete { .. }) => {
                        Err(error.after(UNERASED))
                    }
                    outcome => outcome,
                }
            }
            outcome => outcome,
        };
        match (outcome, task) {
            (Err(error), ExclusiveTask::Purge(_)) => Err(self.with_effect(error, &attempt).await),
            // Where it found that a file is missing, the error says that and what to do.
            (Err(error), ExclusiveTask::Optimize(_)) => {
                let refused = self.access.lock_for_upkeep(&self.project).await.err();
                Err(refused.unwrap_or(error))
            }
            (outcome, _) => outcome,
        }
    }

    /// Takes what is damaged out of the way of a task that has failed, as far as that task may.
    async fn mend(&self, task: &ExclusiveTask, error: &KnowledgeError, attempt: &Attempt) -> bool {
        let (access, before) = (&self.access, attempt.damage.as_deref());
        match task {
            ExclusiveTask::Purge(_) => access.mend(&self.project, error, before).await,
            ExclusiveTask::Optimize(_) => access.mend_for_upkeep(&self.project, error, before).await,
        }
    }

    async fn exclusive_once(&self, task: &ExclusiveTask, attempt: &mut Attempt) -> KnowledgeResult<ExclusiveOutcome> {
        let mut guard = match task {
            ExclusiveTask::Purge(_) => self.access.lock(&self.project, false).await?,
            ExclusiveTask::Optimize(_) => {
                // A project that cannot be read is an error here; below, it would only have nothing to do.
                self.project.view().await?;
                self.access.lock_for_upkeep(&self.project).await?
            }
        };
        let Some(table) = guard.table() else {
            return Ok(ExclusiveOutcome::default());
        };
        table.snapshot().await?.check_shape()?;
        fail::fail_point!("writer::before_exclusive", |_| Err(KnowledgeError::internal(
            "failpoint writer::before_exclusive"
        )));
        hold("writer::hold_exclusive").await;
        if matches!(task, ExclusiveTask::Optimize(upkeep) if !upkeep.steps.is_empty()) {
            hold("writer::hold_next_step").await;
        }
        let mut outcome = ExclusiveOutcome::default();
        attempt.note(table);
        let done = async {
            match task {
                ExclusiveTask::Purge(ids) => {
                    let table = guard.table().ok_or_else(no_table)?;
                    if !table.holds_any(ids).await? && !table.is_erasing().await? {
                        return Ok(false);
                    }
                    guard.accept_losses().await?;
                    outcome.purged = guard.table().ok_or_else(no_table)?.purge(ids).await?;
                }
                ExclusiveTask::Optimize(before) => {
                    let mut upkeep = before.clone();
                    let table = guard.table().ok_or_else(no_table)?;
                    if table.maintain_thoroughly(&mut upkeep).await? {
                        outcome.more = Some(upkeep);
                    } else {
                        outcome.steps = upkeep.steps;
                    }
                }
            }
            Ok(true)
        };
        match done.await {
            Ok(true) => {}
            // Nothing to purge: what was set aside stays, too.
            Ok(false) => return Ok(outcome),
            Err(error) => return Err(guard.failed(error)),
        }
        let table = guard.table().ok_or_else(no_table)?;
        // The items of a purge are gone from here on. An error has to say so, or the caller takes them for untouched.
        let purging = matches!(task, ExclusiveTask::Purge(_));
        let unerased = |error: KnowledgeError| if purging { error.after(UNERASED) } else { error };
        let erasing = table.is_erasing().await;
        if let Ok(true) = &erasing
            && let Err(error) = table.erase_removed().await
        {
            return Err(unerased(guard.failed(error)));
        }
        guard.publish().await.map_err(unerased)?;
        if erasing.map_err(unerased)? {
            finish_erasing(&mut guard).await.map_err(unerased)?;
        } else if purging {
            // What recovery has set aside may hold items that the table no longer has.
            guard.discard_set_aside().await.map_err(unerased)?;
        }
        if outcome.more.is_none()
            && let (ExclusiveTask::Optimize(_), Some(table)) = (task, guard.table())
        {
            if table.prune().await? {
                outcome.steps.insert("prune".to_owned(), 1);
            }
            guard.sweep_caches();
        }
        Ok(outcome)
    }

    async fn try_commit(&self, ops: &[WriteOp]) -> KnowledgeResult<commit::GroupOutcome> {
        let mut attempt = Attempt::default();
        let mut outcome = self.commit_once(ops, &mut attempt).await;
        if let Err(error) = &outcome
            && self.access.mend(&self.project, error, attempt.damage.as_deref()).await
        {
            outcome = self.commit_once(ops, &mut attempt).await;
        }
        match outcome {
            Err(error) => Err(self.with_effect(error, &attempt).await),
            outcome => outcome,
        }
    }

    /// The error of a failed write with what is known of its effect: it has had one if the commit that it had begun to
    /// make is there, and only a part of it if its last one is not.
    async fn with_effect(&self, error: KnowledgeError, attempt: &Attempt) -> KnowledgeError {
        if !matches!(
            error,
            KnowledgeError::Internal { .. }
                | KnowledgeError::Unreadable { .. }
                | KnowledgeError::OutOfReach { .. }
                | KnowledgeError::ReadOnly { .. }
                | KnowledgeError::NoDescriptors
        ) {
            return error;
        }
        let executed = match attempt.begun {
            None => Executed::No,
            // The table was forgotten if it may have changed, so this is what is on disk.
            Some(number) => match self.project.view().await {
                Ok(Some(view)) if view.sequence() < number => Executed::No,
                Ok(Some(view)) if attempt.last.is_some_and(|last| view.sequence() < last) => {
                    return error.after(PARTLY_DONE).of_write(Executed::Unknown, None);
                }
                Ok(Some(view)) if view.damage().gaps.is_empty() => Executed::Yes,
                _ => Executed::Unknown,
            },
        };
        error.of_write(executed, None)
    }

    async fn commit_once(&self, ops: &[WriteOp], attempt: &mut Attempt) -> KnowledgeResult<commit::GroupOutcome> {
        let mut guard = self.access.lock(&self.project, true).await?;
        let table = guard.table().ok_or_else(no_table)?;
        let view = table.view().await?;
        view.check_shape()?;
        view.check_model(&self.access.store().config().model.name)?;
        drop(view);
        fail::fail_point!("writer::before_commit");
        fail::fail_point!(&format!("writer::before_commit/{}", self.project.name()));
        hold("writer::hold_commit").await;
        attempt.note(table);
        let committed = async {
            let begun = attempt.begun();
            let (limits, begun) = (self.limits, begun.as_ref());
            let mut planned = plan(guard.table().ok_or_else(no_table)?, ops, limits, begun).await?;
            // A write without effect must not cost a project the files that may still be put back.
            if !planned.is_empty() && guard.accept_losses().await? {
                planned = plan(guard.table().ok_or_else(no_table)?, ops, limits, begun).await?;
            }
            if let Some((at, last)) = planned.parts() {
                attempt.at.get_or_insert(at);
                attempt.last = Some(last);
            }
            planned.commit(guard.table().ok_or_else(no_table)?).await
        };
        match committed.await {
            Ok(outcome) => {
                fail::fail_point!("writer::after_commit");
                // Published before it is acknowledged: the very next search sees it.
                if let Err(error) = guard.publish().await {
                    // It is on disk and cannot be shown: to call it failed would be as wrong as to call it done.
                    tracing::error!(project = %self.project.name(), %error, "a commit could not be published");
                    guard.forget();
                    return Err(KnowledgeError::OutcomeUnknown);
                }
                Ok(outcome)
            }
            Err(error) => Err(guard.failed(error)),
        }
    }

    pub(super) fn note_debt(&self, debt: Debt) {
        let mut debts = self.debt.lock();
        debts.insert(self.project.name().to_string(), debt);
    }
}

fn no_table() -> KnowledgeError {
    KnowledgeError::internal("the project's table was not created")
}

/// Waits here for as long as this fail point says `return`. `pause` would keep a thread of the runtime, and with it
/// perhaps the timers of all tasks.
pub(super) async fn hold(point: &'static str) {
    while is_held(point) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_held(point: &'static str) -> bool {
    let _name = point; // Without fail points nothing is made of it.
    fail::fail_point!(_name, |_| true);
    false
}
