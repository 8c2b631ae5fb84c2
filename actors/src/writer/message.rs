//! What the writer is asked and what it answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use serde::Serialize;
use tokio::sync::oneshot;

use super::commit::WriteOp;
use super::incoming::IncomingStore;
use super::pending::PendingWrite;
use super::setback::Work;
use super::upkeep::UpkeepDone;
use crate::admission::Permit;
use crate::deadline::Deadline;
use crate::domain::ProjectName;
use crate::error::KnowledgeResult;
use crate::store::WriteAccess;
use crate::store::upkeep::{Debt, Thorough};

/// What the writer is asked.
pub enum WriterMessage {
    /// Store, change or delete items.
    Write(WriteRequest),
    /// Do something with the whole project, when it is its turn.
    Exclusive(ExclusiveRequest),
    /// Look at a lane again: a store that it waited for has come, or will not come.
    Nudge(ProjectName),
    /// Look whether upkeep is due.
    Upkeep(ProjectName),
    /// A while has passed since the lane had made this many commits.
    Quiet(ProjectName, u64),
    /// Look which upkeep is due in projects that nobody writes to.
    Survey,
    /// When rows of one of them are next to be forgotten.
    Surveyed(ProjectName, Option<DateTime<Utc>>),
    /// A project could not be opened for a look at it.
    NotLookedAt(ProjectName),
    /// Look whether something on the agenda is due; the number of the timer.
    Agenda(u64),
    /// Remove this project of the daemon's own and everything in it.
    DropProject(ProjectName, oneshot::Sender<KnowledgeResult<()>>),
    /// Run this with the right to write, beside the lanes; what it changes it locks.
    WithAccess(AccessWork),
    /// A lane's task has ended.
    LaneDone(LaneDone),
    /// Finish what was accepted, take nothing more, then answer.
    Drain(oneshot::Sender<()>),
    /// Report the numbers.
    Stats(oneshot::Sender<WriterStats>),
}

impl std::fmt::Debug for WriterMessage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Write(_) => "Write",
            Self::Exclusive(_) => "Exclusive",
            Self::Nudge(_) => "Nudge",
            Self::Upkeep(_) => "Upkeep",
            Self::Quiet(..) => "Quiet",
            Self::Survey => "Survey",
            Self::Surveyed(..) => "Surveyed",
            Self::NotLookedAt(..) => "NotLookedAt",
            Self::Agenda(_) => "Agenda",
            Self::DropProject(..) => "DropProject",
            Self::WithAccess(_) => "WithAccess",
            Self::LaneDone(_) => "LaneDone",
            Self::Drain(_) => "Drain",
            Self::Stats(_) => "Stats",
        })
    }
}

/// Work that needs the right to write; it gets an error instead where the writer takes nothing more.
pub(super) type AccessWork = Box<dyn FnOnce(KnowledgeResult<Arc<WriteAccess>>) -> BoxFuture<'static, ()> + Send>;

/// Writes of one request, for one project.
pub struct WriteRequest {
    pub(super) project: ProjectName,
    pub(super) ops: Vec<WriteOp>,
    pub(super) pending: Arc<PendingWrite>,
    pub(super) incoming: Option<IncomingStore>,
}

/// The answer to writes.
#[derive(Debug)]
pub struct WriteReply<T> {
    /// One for each write, in the order of the request.
    pub items: Vec<KnowledgeResult<T>>,
    /// The project's newest commit.
    pub version: i64,
}

/// Work on a project as a whole, which nothing else shares a turn with.
#[derive(Clone, Debug)]
pub(super) enum ExclusiveTask {
    /// Remove every trace of these items.
    Purge(Vec<String>),
    /// The next step of all the upkeep there is to do.
    Optimize(Thorough),
}

/// What came of an [`ExclusiveTask`].
#[derive(Clone, Debug, Default)]
pub(super) struct ExclusiveOutcome {
    /// The items that were purged.
    pub(super) purged: Vec<String>,
    /// The upkeep, if there is more of it to do.
    pub(super) more: Option<Thorough>,
    /// The steps of all of it, by name, once there is no more.
    pub(super) steps: BTreeMap<String, u64>,
}

/// Work on a project as a whole, and where its answer goes.
pub struct ExclusiveRequest {
    pub(super) project: ProjectName,
    pub(super) task: ExclusiveTask,
    pub(super) deadline: Deadline,
    pub(super) reply: oneshot::Sender<KnowledgeResult<ExclusiveOutcome>>,
    pub(super) _permit: Permit,
}

/// Report of a lane's task.
pub struct LaneDone {
    pub(super) project: ProjectName,
    /// Items that the group held; 0 for upkeep alone.
    pub(super) items: usize,
    pub(super) committed: bool,
    /// What upkeep found, if it was its turn.
    pub(super) upkeep: Option<UpkeepDone>,
    /// What panicked, if something did.
    pub(super) panicked: Option<Work>,
}

/// Counters of the writer, since it was started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WriterStats {
    /// Commits (versions) of stores.
    pub commits: u64,
    /// Items in those commits, duplicates included.
    pub items: u64,
    /// Steps of upkeep.
    pub upkeep_steps: u64,
    /// Panics in the work of single projects, each of which cost its lane alone.
    pub lane_panics: u64,
    /// Items that wait.
    pub queued_items: usize,
    /// Lanes with a task in flight.
    pub busy_lanes: usize,
    /// Debt of each project when it was last measured.
    pub debt: HashMap<String, Debt>,
}
