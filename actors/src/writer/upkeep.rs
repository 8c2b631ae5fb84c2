//! Upkeep in the lanes: a step at a time after writes, and, in projects that nobody writes to, when something is due
//! (see [`super::agenda`]).

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use ractor::ActorRef;

use super::actor::WriterState;
use super::message::WriterMessage;
use super::turn::{LaneTurn, PURGE_PATIENCE};
use crate::clock::believed_now;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::table::schema::TableShape;
use crate::store::upkeep::{Pace, Step, due_steps};
use crate::store::{WriteAccess, WriteGuard};

/// How long after its start the writer looks at the projects that nobody writes to: the requests that the daemon was
/// started for go first.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// The longest that the timer sleeps: the clock may be set forward, and the timer stands still while the machine
/// sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// What a turn of upkeep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upkeep {
    /// No debt worth a step, or none that a step could change.
    NothingDue,
    /// One step was run; there may be more.
    Stepped,
    /// The step failed; it is tried again after a while, or the next commit.
    Failed,
}

/// What a turn of upkeep found.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpkeepDone {
    pub(super) pace: Pace,
    pub(super) outcome: Upkeep,
    /// When rows are next to be forgotten.
    pub(super) forgets_at: Option<DateTime<Utc>>,
}

impl UpkeepDone {
    /// A turn that came to nothing.
    pub(super) fn failed(pace: Pace) -> Self {
        Self {
            pace,
            outcome: Upkeep::Failed,
            forgets_at: None,
        }
    }
}

/// Pause between two projects that nobody writes to and that need upkeep, so that a home full of them is not a burden.
const BETWEEN: Duration = Duration::from_millis(500);

/// How long to wait before the first look.
pub(super) fn first_look() -> Duration {
    hastened(FIRST_LOOK)
}

/// How long the timer sleeps until `next`.
fn sleep_until(next: DateTime<Utc>) -> Duration {
    let left = (next - believed_now()).to_std().unwrap_or_default();
    left.min(hastened(LONGEST_SLEEP))
}

/// Tests do not wait.
fn hastened(pause: Duration) -> Duration {
    fail::fail_point!("writer::hasten", |_| Duration::from_millis(20));
    pause
}

/// Looks at every project, one after another, and has upkeep run where it is due.
pub(super) async fn survey(access: Arc<WriteAccess>, writer: ActorRef<WriterMessage>) {
    for project in access.store().projects() {
        let mut looked = access.survey(&project).await;
        if let Err(error) = &looked {
            tracing::warn!(project = %project.name(), %error, "a project cannot be looked at; it is opened");
            // As its first use would: recovery mends what it can, and `admin.health` reports the rest.
            if project.view().await.is_ok() {
                looked = access.survey(&project).await;
            }
        }
        match looked {
            Ok(found) => {
                let forgets_at = found.forgets_at.filter(|_| !found.due);
                let report = WriterMessage::Surveyed(project.name().clone(), forgets_at);
                if writer.cast(report).is_err() {
                    return; // Restarted: the new writer looks for itself.
                }
                if found.due {
                    wake(&access, project.name(), &writer).await;
                }
            }
            Err(error) => {
                tracing::warn!(project = %project.name(), %error, "a project cannot be looked at; it is tried again");
                if writer.cast(WriterMessage::NotLookedAt(project.name().clone())).is_err() {
                    return;
                }
            }
        }
    }
}

/// Has upkeep run on a project that nobody has written to, if it may.
async fn wake(access: &WriteAccess, project: &ProjectName, writer: &ActorRef<WriterMessage>) {
    let Ok(known) = access.project(project) else { return };
    // A failed send only means that the writer was restarted; the new one looks for itself.
    match access.may_be_kept_up(&known).await {
        Ok(true) => {
            writer.cast(WriterMessage::Upkeep(project.clone())).ok();
            tokio::time::sleep(hastened(BETWEEN)).await;
        }
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(%project, %error, "a project cannot be opened for its upkeep; it is tried again");
            writer.cast(WriterMessage::NotLookedAt(project.clone())).ok();
        }
    }
}

/// When the agenda is looked at next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    at: DateTime<Utc>,
    /// Tells it from those that were set before.
    number: u64,
}

impl WriterState {
    /// Takes note of when a project is next due.
    pub(super) fn surveyed(
        &mut self,
        myself: &ActorRef<WriterMessage>,
        project: &ProjectName,
        next: Option<DateTime<Utc>>,
    ) {
        self.agenda.learned(project, next);
        self.set_timer(myself);
    }

    /// A project could not be looked at: it is tried again after a while, or what is due there would be forgotten.
    pub(super) fn not_looked_at(&mut self, myself: &ActorRef<WriterMessage>, project: &ProjectName) {
        self.agenda.failed(project, believed_now());
        self.set_timer(myself);
    }

    /// Looks at what is due by now.
    pub(super) fn look_at_agenda(&mut self, myself: &ActorRef<WriterMessage>, number: u64) {
        if self.draining || self.timer.is_none_or(|timer| timer.number != number) {
            return;
        }
        self.timer = None;
        let due = self.agenda.take_due(believed_now());
        if !due.is_empty() {
            let (access, writer) = (Arc::clone(&self.access), myself.clone());
            tokio::spawn(async move {
                for project in &due {
                    wake(&access, project, &writer).await;
                }
            });
        }
        self.set_timer(myself);
    }

    /// Takes note of what a turn of upkeep found.
    pub(super) fn upkeep_done(&mut self, myself: &ActorRef<WriterMessage>, project: &ProjectName, done: UpkeepDone) {
        match done.outcome {
            Upkeep::Failed => self.agenda.failed(project, believed_now()),
            Upkeep::NothingDue | Upkeep::Stepped => self.agenda.in_order(project, done.forgets_at),
        }
        self.set_timer(myself);
    }

    /// Sees that the agenda is looked at when something in it is due: one timer for all of it.
    fn set_timer(&mut self, myself: &ActorRef<WriterMessage>) {
        let Some(next) = self.agenda.next() else { return };
        if self.timer.is_some_and(|timer| timer.at <= next) {
            return; // It fires early enough, and is then set again.
        }
        self.timers_set += 1;
        let number = self.timers_set;
        self.timer = Some(Timer { at: next, number });
        myself.send_after(sleep_until(next), move || WriterMessage::Agenda(number));
    }
}

impl LaneTurn {
    /// Runs one step of upkeep if there is debt.
    pub(super) async fn upkeep(&self, pace: Pace) -> UpkeepDone {
        let mut forgets_at = None;
        let outcome = match self.try_upkeep(pace, &mut forgets_at).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::warn!(project = %self.project.name(), %error, "upkeep failed, it is tried again");
                Upkeep::Failed
            }
        };
        UpkeepDone {
            pace,
            outcome,
            forgets_at,
        }
    }

    async fn try_upkeep(&self, pace: Pace, forgets_at: &mut Option<DateTime<Utc>>) -> KnowledgeResult<Upkeep> {
        if !self.access.may_be_kept_up(&self.project).await? {
            return Ok(Upkeep::NothingDue);
        }
        let mut guard = self.access.lock_for_upkeep(&self.project).await?;
        let Some(table) = guard.table() else {
            return Ok(Upkeep::NothingDue);
        };
        // A table of another shape is left as it is.
        if let TableShape::Foreign { .. } = table.shape() {
            return Ok(Upkeep::NothingDue);
        }
        let debt = table.debt().await?;
        let steps = due_steps(&debt, pace);
        self.note_debt(debt);
        let mut stepped = None;
        for step in steps {
            tracing::debug!(project = %self.project.name(), ?step, "upkeep");
            let changed = match table.maintain(step).await {
                Ok(changed) => changed,
                Err(error) => return Err(guard.failed(error)),
            };
            // What a purge left is finished below, whether or not anything had to be rewritten.
            if changed || step == Step::Erase {
                stepped = Some(step);
                break;
            }
        }
        *forgets_at = table.forgets_at();
        let Some(step) = stepped else {
            return Ok(Upkeep::NothingDue);
        };
        guard.publish().await?;
        match step {
            Step::Erase => finish_erasing(&mut guard).await?,
            Step::Prune => guard.sweep_caches(),
            _ => {}
        }
        Ok::<Upkeep, KnowledgeError>(Upkeep::Stepped)
    }
}

/// Removes all files that may still hold what a purge removed; the table without it is published.
pub(super) async fn finish_erasing(guard: &mut WriteGuard<'_>) -> KnowledgeResult<()> {
    let finished = erase_files(guard).await;
    guard.note_erasing(finished.as_ref().err());
    finished
}

async fn erase_files(guard: &mut WriteGuard<'_>) -> KnowledgeResult<()> {
    guard.discard_set_aside().await?;
    let Some(table) = guard.table() else { return Ok(()) };
    let finished = table.finish_erasing(PURGE_PATIENCE).await;
    guard.empty_caches();
    finished
}
