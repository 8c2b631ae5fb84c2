//! The writer: the only actor that changes tables.
//!
//! Each project has a lane with at most one commit in flight, run as a task that reports back, so that
//! projects do not wait for each other and the actor never blocks. What arrives meanwhile forms the next group
//! (see [`lane`]); one group is one version (see [`commit`]). The reply of a write goes out after its last group
//! is durable and published to the readers. Upkeep runs in the same lane, a step at a time, between commits.
//!
//! A task that panics costs its lane a pause and nobody else anything: its group is answered `OutcomeUnknown`, the
//! table is forgotten and opened anew, and the other lanes do not notice (see [`setback`]). Business errors never
//! end anything.

mod agenda;
mod announce;
pub mod commit;
pub mod lane;
mod setback;
mod undo;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use agenda::Agenda;
pub use announce::Announcement;
use announce::Announcements;
use commit::commit_group;
pub use commit::{DeleteTarget, ItemOutcome, OpOutcome, PreparedItem, PreparedUpdate, UndeleteTarget, WriteOp};
use lane::{GroupLimits, Lane, Touched, Weighed};
pub(crate) use setback::Troubles;
use setback::{Setbacks, Work};
use undo::{UndoNote, Undoing};
use upkeep::{Upkeep, UpkeepDone, finish_erasing};

use crate::admission::{Admission, Permit};
use crate::deadline::Deadline;
use crate::domain::ProjectName;
use crate::error::{Executed, KnowledgeError, KnowledgeResult, PartFailure};
use crate::panics;
use crate::restart::RestartPolicy;
use crate::store::maintenance::{Debt, Pace};
use crate::store::{Project, WriteAccess};

/// Commits of a busy lane after which one step of upkeep may come between: often enough that debt stays
/// bounded under load, rarely enough that measuring it costs little.
const COMMITS_PER_UPKEEP: u32 = 16;
/// Stores that make a group worth its commit without waiting for more: one version for 32 of them.
const FULL_GROUP: usize = 32;
/// How long a group waits for each store that is on its way (admitted, being embedded): about what one more
/// commit would cost both.
const HOLD_PER_STORE: Duration = Duration::from_millis(10);
/// How long a group waits at most.
const HOLD_MAX: Duration = Duration::from_millis(250);
/// How long nobody writes to a project before its upkeep takes on smaller debts.
const QUIET: Duration = Duration::from_secs(1);
/// What a purge has done whose erasing does not come to its end.
const UNERASED: &str = "the items are removed and can be read no more, but not all of their bytes are erased yet \
                        (the next write and the next start go on with that, and so does asking again)";
/// How long a purge waits for readers of older versions.
const PURGE_PATIENCE: Duration = Duration::from_secs(10);

/// Settings of the writer.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// Rows of one commit at most: bounds what a store may have to wait for.
    pub max_group_rows: usize,
    /// Bytes of one commit at most.
    pub max_group_bytes: usize,
    /// Requests that may wait or run.
    pub queue_requests: u32,
    /// Bytes that may wait or run.
    pub queue_bytes: u32,
    /// How a lane goes on after a panic.
    pub setbacks: RestartPolicy,
}

/// What the writer is asked.
pub enum WriterMessage {
    /// Store, change or delete items.
    Write(WriteRequest),
    /// Do something with the whole project, when it is its turn.
    Exclusive(ExclusiveRequest),
    /// Look at a lane again: what it waited for has come, or does not come.
    Nudge(ProjectName),
    /// Look whether upkeep is due.
    Upkeep(ProjectName),
    /// A while has passed since the lane had made this many commits.
    Quiet(ProjectName, u64),
    /// Look what upkeep the projects need that nobody writes to.
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
    /// Tell the numbers.
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
type AccessWork = Box<dyn FnOnce(KnowledgeResult<Arc<WriteAccess>>) -> BoxFuture<'static, ()> + Send>;

/// Writes of one request, for one project.
pub struct WriteRequest {
    project: ProjectName,
    ops: Vec<WriteOp>,
    pending: Arc<PendingWrite>,
    announcement: Option<Announcement>,
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
pub enum ExclusiveTask {
    /// Remove every trace of these items.
    Purge(Vec<String>),
    /// All the upkeep there is to do.
    Optimize,
}

/// What came of an [`ExclusiveTask`].
#[derive(Clone, Debug, Default)]
pub struct ExclusiveOutcome {
    /// The items that were purged.
    pub purged: Vec<String>,
    /// Steps of upkeep, by name.
    pub steps: BTreeMap<String, u64>,
}

/// An [`ExclusiveTask`] and where its answer goes.
pub struct ExclusiveRequest {
    project: ProjectName,
    task: ExclusiveTask,
    deadline: Deadline,
    reply: oneshot::Sender<KnowledgeResult<ExclusiveOutcome>>,
    _permit: Permit,
}

/// Report of a lane's task.
pub struct LaneDone {
    project: ProjectName,
    /// Items that the group held; 0 for upkeep alone.
    items: usize,
    committed: bool,
    /// What upkeep found, if it was its turn.
    upkeep: Option<UpkeepDone>,
    /// What panicked, if something did.
    panicked: Option<Work>,
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

/// A request whose items may be spread over several groups. The last outcome sends the reply; dropping it
/// unanswered tells the caller that the outcome is unknown.
struct PendingWrite {
    deadline: Deadline,
    progress: Mutex<Progress>,
    _permits: [Permit; 2],
}

struct Progress {
    outcomes: Vec<Option<KnowledgeResult<OpOutcome>>>,
    remaining: usize,
    version: i64,
    reply: Option<oneshot::Sender<KnowledgeResult<WriteReply<OpOutcome>>>>,
}

impl PendingWrite {
    fn record(&self, index: usize, outcome: KnowledgeResult<OpOutcome>, version: i64) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
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
    fn lost(&self, index: usize) {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        // Once all have an outcome they are on their way to the caller.
        let open = progress.outcomes.get(index).is_some_and(Option::is_none);
        drop(progress);
        if open {
            self.record(index, Err(KnowledgeError::OutcomeUnknown), 0);
        }
    }

    /// Whether the caller still waits.
    fn awaited(&self) -> bool {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }
}

/// One piece of work on its way through a lane.
enum Queued {
    Op(QueuedOp),
    Exclusive(ExclusiveRequest),
}

/// One write of a request.
struct QueuedOp {
    op: WriteOp,
    index: usize,
    pending: Arc<PendingWrite>,
}

impl Queued {
    /// Where the outcome of a write goes. An exclusive task carries its own reply.
    fn place(&self) -> Option<(usize, Arc<PendingWrite>)> {
        match self {
            Self::Op(queued) => Some((queued.index, Arc::clone(&queued.pending))),
            Self::Exclusive(_) => None,
        }
    }

    /// Answers with an error what has not been begun.
    fn refuse(self, error: KnowledgeError) {
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
                WriteOp::Update(update) => Touched::Ids(&update.ids),
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
fn op_rows(op: &WriteOp) -> usize {
    match op {
        WriteOp::Store(prepared) => prepared.passages.len(),
        WriteOp::Update(update) => update.passages.as_ref().map_or(2, |passages| passages.len() + 1),
        WriteOp::Delete(DeleteTarget::Ids(ids), _) | WriteOp::Undelete(UndeleteTarget::Ids(ids)) => ids.len(),
        WriteOp::Delete(DeleteTarget::Matching(_), _) | WriteOp::Undelete(UndeleteTarget::Deletion(_)) => 1,
    }
}

/// Bytes that a write brings: its text twice (whole and in passages) and its vectors.
fn op_bytes(op: &WriteOp) -> usize {
    let vectors = |passages: &[crate::store::rows::EmbeddedPassage]| -> usize {
        passages.iter().map(|passage| size_of_val(&*passage.vector)).sum()
    };
    match op {
        WriteOp::Store(prepared) => prepared.item.text.len() * 2 + vectors(&prepared.passages),
        WriteOp::Update(update) => {
            update.patch.text.as_ref().map_or(0, String::len) * 2 + update.passages.as_deref().map_or(0, vectors)
        }
        WriteOp::Delete(DeleteTarget::Ids(ids), _) | WriteOp::Undelete(UndeleteTarget::Ids(ids)) => {
            ids.iter().map(String::len).sum()
        }
        WriteOp::Delete(DeleteTarget::Matching(_), _) | WriteOp::Undelete(UndeleteTarget::Deletion(_)) => 0,
    }
}

/// Sends writes to the writer, within its bounds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WriterHandle {
    actor: ActorRef<WriterMessage>,
    requests: Admission,
    bytes: Admission,
    announcements: Arc<Announcements>,
    troubles: Arc<Troubles>,
}

impl WriterHandle {
    /// A handle to a running writer, which was started with the same `announcements` and `troubles`.
    pub(crate) fn new(
        actor: ActorRef<WriterMessage>,
        config: &WriterConfig,
        announcements: Arc<Announcements>,
        troubles: Arc<Troubles>,
    ) -> Self {
        Self {
            actor,
            requests: Admission::new("the writer's queue", config.queue_requests, 100),
            bytes: Admission::new("the writer's buffer", config.queue_bytes, 250),
            announcements,
            troubles,
        }
    }

    /// Which projects take no writes now, or get no upkeep, though the writer works: a sentence each, for
    /// `admin.health`.
    pub fn troubles(&self) -> Vec<String> {
        self.troubles.told(Instant::now())
    }

    /// Says that a store of one item is on its way: it is being embedded now. While one is, the writer may hold
    /// a group open for it. Give it to [`WriterHandle::store`], or drop it if the store does not come.
    pub fn announce(&self, project: &ProjectName) -> Announcement {
        Announcement::new(Arc::clone(&self.announcements), project.clone(), self.actor.clone())
    }

    /// Stores items and waits until they are durable. Errors of single items stand in the reply.
    pub async fn store(
        &self,
        project: ProjectName,
        items: Vec<PreparedItem>,
        announcement: Option<Announcement>,
        deadline: Deadline,
    ) -> KnowledgeResult<WriteReply<ItemOutcome>> {
        let ops = items.into_iter().map(WriteOp::Store).collect();
        let reply = self.submit(project, ops, announcement, deadline).await?;
        let items = reply.items.into_iter().map(|item| match item? {
            OpOutcome::Stored(outcome) => Ok(outcome),
            other => Err(KnowledgeError::internal(format!("a store became {other:?}"))),
        });
        Ok(WriteReply {
            items: items.collect(),
            version: reply.version,
        })
    }

    /// Changes, deletes or undeletes, and waits until it is durable.
    pub async fn change(
        &self,
        project: ProjectName,
        op: WriteOp,
        deadline: Deadline,
    ) -> KnowledgeResult<(OpOutcome, i64)> {
        let reply = self.submit(project, vec![op], None, deadline).await?;
        let outcome = reply.items.into_iter().next();
        let outcome = outcome.ok_or_else(|| KnowledgeError::internal("the writer gave no answer"))??;
        Ok((outcome, reply.version))
    }

    /// Deletes, and waits until that is durable, or until the call is `cancelled`. An error has the undo token where the
    /// delete may have happened.
    pub async fn delete(
        &self,
        project: ProjectName,
        target: DeleteTarget,
        deadline: Deadline,
        cancelled: &CancellationToken,
    ) -> KnowledgeResult<(OpOutcome, i64)> {
        let note = UndoNote::default();
        let undoing = Undoing(note.clone());
        let outcome = tokio::select! {
            biased;
            outcome = self.change(project, WriteOp::Delete(target, note), deadline) => outcome,
            () = cancelled.cancelled() => Err(KnowledgeError::Cancelled),
        };
        outcome.map_err(|error| undoing.ended_with(error))
    }

    async fn submit(
        &self,
        project: ProjectName,
        ops: Vec<WriteOp>,
        announcement: Option<Announcement>,
        deadline: Deadline,
    ) -> KnowledgeResult<WriteReply<OpOutcome>> {
        let total_bytes: usize = ops.iter().map(op_bytes).sum();
        let total_bytes = u32::try_from(total_bytes).unwrap_or(u32::MAX);
        let permits = if ops.len() > 1 {
            // A bulk store has been embedded by now, which is the dear part: it waits for room, within its time.
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
            announcement,
        };
        self.send(WriterMessage::Write(request), answer, deadline).await
    }

    /// Does something with the whole project, after what waits before it.
    pub async fn exclusive(
        &self,
        project: ProjectName,
        task: ExclusiveTask,
        deadline: Deadline,
    ) -> KnowledgeResult<ExclusiveOutcome> {
        let (reply, answer) = oneshot::channel();
        let request = ExclusiveRequest {
            project,
            task,
            deadline,
            reply,
            _permit: self.requests.try_acquire(1)?,
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

/// The actor. See the module.
pub struct Writer;

/// What the writer is started with.
pub struct WriterArguments {
    /// Settings.
    pub config: WriterConfig,
    /// The right to write.
    pub access: Arc<WriteAccess>,
    /// Shared with the handle.
    pub(crate) announcements: Arc<Announcements>,
    /// Shared with the handle.
    pub(crate) troubles: Arc<Troubles>,
}

struct LaneState {
    waiting: Lane<Queued>,
    busy: bool,
    /// The group that is held open, if one is.
    hold: Option<Hold>,
    /// Whether something waits that no group is held open for.
    urgent: bool,
    commits_since_upkeep: u32,
    /// Commits so far.
    commits: u64,
    /// Whether something was committed since the last time there was no debt.
    dirty: bool,
    /// Whether nobody has written for a while, and smaller debts are looked at.
    quiet: bool,
    /// Panics of its writes.
    write_setbacks: Setbacks,
    /// Panics of its upkeep.
    upkeep_setbacks: Setbacks,
    /// Whether its project was dropped while a task was in flight: the lane ends with it.
    dropped: bool,
}

/// A group that waits for stores that are on their way.
struct Hold {
    /// Stores that were on their way when it began; later ones are not waited for.
    expected: usize,
    /// Those that have come since.
    arrived: usize,
    until: Instant,
}

/// State of the writer.
pub struct WriterState {
    announcements: Arc<Announcements>,
    troubles: Arc<Troubles>,
    config: WriterConfig,
    access: Arc<WriteAccess>,
    lanes: HashMap<ProjectName, LaneState>,
    stats: WriterStats,
    debt: Arc<Mutex<HashMap<String, Debt>>>,
    agenda: Agenda,
    /// When the agenda is looked at next; none where nothing is on it.
    timer: Option<upkeep::Timer>,
    /// How often that was set.
    timers_set: u64,
    drain: Option<oneshot::Sender<()>>,
    draining: bool,
}

impl Actor for Writer {
    type Msg = WriterMessage;
    type State = WriterState;
    type Arguments = WriterArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        fail::fail_point!("writer::pre_start", |_| Err(PartFailure::new(
            "failpoint writer::pre_start"
        )
        .into()));
        for project in arguments.access.unfinished_purges() {
            tracing::warn!(%project, "a purge was cut short, it is being finished");
            myself.cast(WriterMessage::Upkeep(project)).map_err(PartFailure::new)?;
        }
        myself.send_after(upkeep::first_look(), || WriterMessage::Survey);
        Ok(WriterState {
            announcements: arguments.announcements,
            troubles: arguments.troubles,
            config: arguments.config,
            access: arguments.access,
            lanes: HashMap::new(),
            stats: WriterStats::default(),
            debt: Arc::default(),
            agenda: Agenda::default(),
            timer: None,
            timers_set: 0,
            drain: None,
            draining: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WriterMessage::Write(request) => {
                fail::fail_point!("writer::handle");
                state.accept(&myself, request);
            }
            WriterMessage::Exclusive(request) => state.accept_exclusive(&myself, request),
            WriterMessage::Nudge(project) => state.start(&myself, &project),
            // The project of a probe that is over is not made known again.
            WriterMessage::Upkeep(project) if project.is_own() && !state.lanes.contains_key(&project) => {}
            WriterMessage::Upkeep(project) => {
                if state.ensure_lane(&project).is_ok()
                    && let Some(lane) = state.lanes.get_mut(&project)
                {
                    lane.dirty = true;
                    state.start(&myself, &project);
                }
            }
            WriterMessage::Quiet(project, commits) => {
                if let Some(lane) = state.lanes.get_mut(&project)
                    && lane.commits == commits
                {
                    lane.quiet = true;
                    state.start(&myself, &project);
                }
            }
            WriterMessage::Survey => {
                if !state.draining {
                    tokio::spawn(upkeep::survey(Arc::clone(&state.access), myself));
                }
            }
            WriterMessage::Surveyed(project, next) => state.surveyed(&myself, &project, next),
            WriterMessage::NotLookedAt(project) => state.not_looked_at(&myself, &project),
            WriterMessage::Agenda(number) => state.look_at_agenda(&myself, number),
            WriterMessage::DropProject(project, reply) => {
                // What waits is of a probe that is over; a task in flight takes its lane along when it ends.
                match state.lanes.get_mut(&project) {
                    Some(lane) if lane.busy => {
                        lane.waiting = Lane::default();
                        lane.dropped = true;
                    }
                    _ => {
                        state.lanes.remove(&project);
                    }
                }
                state.agenda.remove(&project);
                let (access, debt) = (Arc::clone(&state.access), Arc::clone(&state.debt));
                tokio::spawn(async move {
                    let dropped = access.drop_own_project(&project).await;
                    debt.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .remove(project.as_str());
                    reply.send(dropped).ok();
                });
            }
            WriterMessage::WithAccess(work) => {
                let access = if state.draining {
                    Err(KnowledgeError::ShuttingDown)
                } else {
                    Ok(Arc::clone(&state.access))
                };
                tokio::spawn(async move {
                    work(access).await;
                    // Other tables may be in the places of those that were known.
                    myself.cast(WriterMessage::Survey).ok();
                });
            }
            WriterMessage::LaneDone(done) => state.lane_done(&myself, done),
            WriterMessage::Stats(reply) => {
                reply.send(state.current_stats()).ok();
            }
            WriterMessage::Drain(reply) => {
                state.draining = true;
                state.drain = Some(reply);
                // What is held open waits no longer.
                let projects: Vec<ProjectName> = state.lanes.keys().cloned().collect();
                for project in projects {
                    state.start(&myself, &project);
                }
                state.finish_drain();
            }
        }
        Ok(())
    }
}

impl WriterState {
    fn accept(&mut self, myself: &ActorRef<WriterMessage>, request: WriteRequest) {
        let WriteRequest {
            project,
            ops,
            pending,
            announcement,
        } = request;
        if let Some(announcement) = announcement {
            announcement.arrived();
        }
        if let Some(error) = self.refusal(&project) {
            for index in 0..ops.len() {
                pending.record(index, Err(error.clone()), 0);
            }
            return;
        }
        let Some(lane) = self.lanes.get_mut(&project) else {
            return;
        };
        let bulk = ops.len() > 1;
        match ops.as_slice() {
            [WriteOp::Store(_)] => {
                if let Some(hold) = &mut lane.hold {
                    hold.arrived += 1;
                }
            }
            // Only single stores wait for one another.
            _ => lane.urgent = true,
        }
        let queued = ops.into_iter().enumerate().map(|(index, op)| {
            Queued::Op(QueuedOp {
                op,
                index,
                pending: Arc::clone(&pending),
            })
        });
        lane.waiting.push(queued, bulk);
        self.start(myself, &project);
    }

    fn accept_exclusive(&mut self, myself: &ActorRef<WriterMessage>, request: ExclusiveRequest) {
        if let Some(error) = self.refusal(&request.project) {
            request.reply.send(Err(error)).ok();
            return;
        }
        let project = request.project.clone();
        if let Some(lane) = self.lanes.get_mut(&project) {
            lane.urgent = true;
            lane.waiting.push([Queued::Exclusive(request)], false);
        }
        self.start(myself, &project);
    }

    /// Whether the waiting stores are held back a moment for those on their way. One client alone never waits:
    /// its own store is no longer on its way.
    fn hold(&mut self, myself: &ActorRef<WriterMessage>, project: &ProjectName) -> bool {
        let announced = self.announcements.of(project);
        let draining = self.draining;
        let Some(lane) = self.lanes.get_mut(project) else {
            return false;
        };
        let now = Instant::now();
        let waits_for_nothing =
            lane.waiting.is_empty() || lane.urgent || draining || announced == 0 || lane.waiting.len() >= FULL_GROUP;
        let held = match &lane.hold {
            _ if waits_for_nothing => false,
            Some(hold) => now < hold.until && hold.arrived < hold.expected,
            None => {
                let patience = HOLD_MAX.min(HOLD_PER_STORE * u32::try_from(announced).unwrap_or(u32::MAX));
                lane.hold = Some(Hold {
                    expected: announced,
                    arrived: 0,
                    until: now + patience,
                });
                let project = project.clone();
                myself.send_after(patience, move || WriterMessage::Nudge(project));
                true
            }
        };
        if !held {
            lane.hold = None;
            lane.urgent = false;
        }
        held
    }

    /// Why nothing is accepted for a project now, if so.
    fn refusal(&mut self, project: &ProjectName) -> Option<KnowledgeError> {
        if self.draining {
            return Some(KnowledgeError::ShuttingDown);
        }
        if let Err(error) = self.ensure_lane(project) {
            return Some(error);
        }
        let pause = self.lanes.get(project)?.write_setbacks.pauses(Instant::now())?;
        pause.degraded.then(|| pause.refusal(project))
    }

    fn ensure_lane(&mut self, project: &ProjectName) -> KnowledgeResult<()> {
        self.access.project(project)?;
        if !self.lanes.contains_key(project) {
            let lane = LaneState {
                waiting: Lane::default(),
                busy: false,
                hold: None,
                urgent: false,
                commits_since_upkeep: 0,
                commits: 0,
                dirty: false,
                quiet: false,
                write_setbacks: Setbacks::new(self.config.setbacks),
                upkeep_setbacks: Setbacks::new(self.config.setbacks),
                dropped: false,
            };
            self.lanes.insert(project.clone(), lane);
        }
        Ok(())
    }

    /// Starts the lane's next task if it has none: the next group, or upkeep when nothing waits.
    fn start(&mut self, myself: &ActorRef<WriterMessage>, project: &ProjectName) {
        let limits = GroupLimits {
            max_rows: self.config.max_group_rows,
            max_bytes: self.config.max_group_bytes,
        };
        let draining = self.draining;
        let Some(lane) = self.lanes.get_mut(project) else {
            return;
        };
        if lane.busy {
            return;
        }
        let now = Instant::now();
        // It is looked at again when the pause is over. The end of the daemon waits for nothing.
        if !draining && lane.write_setbacks.pauses(now).is_some() {
            return;
        }
        lane.waiting.retain(still_wanted);
        if self.hold(myself, project) {
            return;
        }
        let Some(lane) = self.lanes.get_mut(project) else {
            return;
        };
        let group = lane.waiting.next_group(limits);
        let idle = group.is_empty();
        lane.quiet &= idle;
        let pace = if lane.dirty && (idle || lane.commits_since_upkeep >= COMMITS_PER_UPKEEP) {
            Some(Pace::Busy)
        } else {
            lane.quiet.then_some(Pace::Quiet)
        };
        let upkeep = pace.filter(|_| !draining && lane.upkeep_setbacks.pauses(now).is_none());
        if idle && upkeep.is_none() {
            return;
        }
        if upkeep.is_some() {
            lane.commits_since_upkeep = 0;
        }
        // Looked up anew each time: the project may have been dropped and made again.
        let Ok(known) = self.access.project(project) else {
            return;
        };
        lane.busy = true;
        let turn = LaneTurn {
            project: known,
            access: Arc::clone(&self.access),
            debt: Arc::clone(&self.debt),
            upkeep,
        };
        let writer = myself.clone();
        tokio::spawn(async move {
            let done = turn.run(group).await;
            // The writer may have been restarted meanwhile; the new one has lanes of its own.
            writer.cast(WriterMessage::LaneDone(done)).ok();
        });
    }

    fn lane_done(&mut self, myself: &ActorRef<WriterMessage>, done: LaneDone) {
        if let Some(lane) = self.lanes.get_mut(&done.project) {
            lane.busy = false;
            if done.committed {
                lane.dirty = true;
                lane.commits_since_upkeep += 1;
                lane.commits += 1;
                self.stats.commits += 1;
            }
            if let Some(upkeep) = done.upkeep {
                let stepped = upkeep.outcome == Upkeep::Stepped;
                self.stats.upkeep_steps += u64::from(stepped);
                match upkeep.pace {
                    Pace::Busy => lane.dirty = stepped,
                    Pace::Quiet => lane.quiet &= stepped,
                }
                if (upkeep.pace, upkeep.outcome) == (Pace::Busy, Upkeep::NothingDue) {
                    let quiet = WriterMessage::Quiet(done.project.clone(), lane.commits);
                    myself.send_after(QUIET, move || quiet);
                }
            }
            self.stats.items += done.items as u64;
            if lane.dropped {
                self.lanes.remove(&done.project);
            } else if let Some(upkeep) = done.upkeep {
                self.upkeep_done(myself, &done.project, upkeep);
            }
        }
        if let Some(work) = done.panicked {
            self.set_back(myself, &done.project, work);
        }
        self.start(myself, &done.project);
        self.finish_drain();
    }

    /// After a panic in a lane: it pauses, and if that was not the first one it may be closed for a while. In any
    /// case its upkeep looks whether something was left half done.
    fn set_back(&mut self, myself: &ActorRef<WriterMessage>, project: &ProjectName, work: Work) {
        self.stats.lane_panics += 1;
        let Some(lane) = self.lanes.get_mut(project) else {
            return;
        };
        let now = Instant::now();
        let setbacks = match work {
            Work::Writes => &mut lane.write_setbacks,
            Work::Upkeep => &mut lane.upkeep_setbacks,
        };
        let restart = setbacks.panicked(now);
        // What it said is in the panic hook's hands: it may quote what was to be written.
        tracing::error!(
            %project,
            ?work,
            again_in_ms = restart.after.as_millis() as u64,
            degraded = restart.degraded,
            "the work of a project panicked; its table is opened anew"
        );
        if restart.degraded {
            self.troubles.add(project, work, now + restart.after);
        }
        if let (Work::Writes, Some(pause)) = (work, setbacks.pauses(now).filter(|pause| pause.degraded)) {
            for queued in lane.waiting.take_all() {
                queued.refuse(pause.refusal(project));
            }
        }
        let project = project.clone();
        myself.send_after(restart.after, move || WriterMessage::Upkeep(project));
    }

    fn finish_drain(&mut self) {
        let idle = self.lanes.values().all(|lane| !lane.busy && lane.waiting.is_empty());
        if idle && let Some(reply) = self.drain.take() {
            reply.send(()).ok();
        }
    }

    fn current_stats(&self) -> WriterStats {
        WriterStats {
            queued_items: self.lanes.values().map(|lane| lane.waiting.len()).sum(),
            busy_lanes: self.lanes.values().filter(|lane| lane.busy).count(),
            debt: self.debt.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..self.stats.clone()
        }
    }
}

/// Whether a waiting item is still to be written. What expired in the queue is answered and never executed;
/// what nobody waits for any more frees its place.
fn still_wanted(queued: &Queued) -> bool {
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

/// One task of a lane: a group, a step of upkeep, or both.
struct LaneTurn {
    project: Arc<Project>,
    access: Arc<WriteAccess>,
    debt: Arc<Mutex<HashMap<String, Debt>>>,
    upkeep: Option<Pace>,
}

impl LaneTurn {
    async fn run(self, mut group: Vec<Queued>) -> LaneDone {
        let mut done = LaneDone {
            project: self.project.name().clone(),
            items: group.len(),
            committed: false,
            upkeep: None,
            panicked: None,
        };
        let places: Vec<(usize, Arc<PendingWrite>)> = group.iter().filter_map(Queued::place).collect();
        let work = match group.as_slice() {
            [Queued::Exclusive(request)] if matches!(request.task, ExclusiveTask::Optimize) => Work::Upkeep,
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
                // The writes are answered: the room that they took is not kept for the upkeep below.
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
                Queued::Op(queued) => Some((queued.op, (queued.index, queued.pending))),
                // Alone in its group, see `lane`.
                Queued::Exclusive(_) => None,
            })
            .unzip();
        let (ops, places) = self.with_room(ops, places).await;
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
    async fn with_room(
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
        let mut begun = None;
        let outcome = match self.exclusive_once(task, &mut begun).await {
            Err(error) if self.mend(task, error.root()).await => {
                let removed = matches!(error, KnowledgeError::Incomplete { .. });
                match self.exclusive_once(task, &mut begun).await {
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
            (Err(error), ExclusiveTask::Purge(_)) => Err(self.with_effect(error, begun).await),
            // Where it came upon a file that is missing, that and what to do is told.
            (Err(error), ExclusiveTask::Optimize) => {
                let refused = self.access.lock_for_upkeep(&self.project).await.err();
                Err(refused.unwrap_or(error))
            }
            (outcome, _) => outcome,
        }
    }

    /// Takes what is damaged out of the way of a task that has failed, as far as the task may.
    async fn mend(&self, task: &ExclusiveTask, error: &KnowledgeError) -> bool {
        match task {
            ExclusiveTask::Purge(_) => self.access.mend(&self.project, error).await,
            ExclusiveTask::Optimize => self.access.mend_for_upkeep(&self.project, error).await,
        }
    }

    /// `begun` becomes the number of the commit that the task is to make, before it is made.
    async fn exclusive_once(&self, task: &ExclusiveTask, begun: &mut Option<i64>) -> KnowledgeResult<ExclusiveOutcome> {
        let mut guard = match task {
            ExclusiveTask::Purge(_) => self.access.lock(&self.project, false).await?,
            ExclusiveTask::Optimize => {
                // What cannot be read is told of, before nothing is done.
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
        let mut outcome = ExclusiveOutcome::default();
        begun.get_or_insert(table.next_sequence());
        let done = match task {
            ExclusiveTask::Purge(ids) => table.purge(ids).await.map(|purged| outcome.purged = purged),
            ExclusiveTask::Optimize => table.maintain_thoroughly().await.map(|steps| outcome.steps = steps),
        };
        if let Err(error) = done {
            return Err(guard.failed(error));
        }
        // The items of a purge are gone from here on. What fails now is to be told as what it is, or the caller
        // takes them for untouched.
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
            // What recovery has set aside may hold what the table does not any more.
            guard.discard_set_aside().await.map_err(unerased)?;
        }
        if let (ExclusiveTask::Optimize, Some(table)) = (task, guard.table()) {
            if table.prune().await? {
                outcome.steps.insert("prune".to_owned(), 1);
            }
            guard.sweep_caches();
        }
        Ok(outcome)
    }

    async fn try_commit(&self, ops: &[WriteOp]) -> KnowledgeResult<commit::GroupOutcome> {
        let mut begun = None;
        let outcome = match self.commit_once(ops, &mut begun).await {
            Err(error) if self.access.mend(&self.project, &error).await => self.commit_once(ops, &mut begun).await,
            outcome => outcome,
        };
        match outcome {
            Err(error) => Err(self.with_effect(error, begun).await),
            outcome => outcome,
        }
    }

    /// The error of a failed write with what is known of its effect: it has had one if the commit that it had `begun`
    /// to make is there.
    async fn with_effect(&self, error: KnowledgeError, begun: Option<i64>) -> KnowledgeError {
        if !matches!(
            error,
            KnowledgeError::Internal { .. }
                | KnowledgeError::Unreadable { .. }
                | KnowledgeError::ReadOnly { .. }
                | KnowledgeError::NoDescriptors
        ) {
            return error;
        }
        let executed = match begun {
            None => Executed::No,
            // The table was forgotten, so this is what is on disk.
            Some(number) => match self.project.view().await {
                Ok(Some(view)) if view.sequence() < number => Executed::No,
                Ok(Some(view)) if view.condition().gaps.is_empty() => Executed::Yes,
                _ => Executed::Unknown,
            },
        };
        error.of_write(executed, None)
    }

    /// `begun` becomes the number of the commit that is to be made, before it is made.
    async fn commit_once(&self, ops: &[WriteOp], begun: &mut Option<i64>) -> KnowledgeResult<commit::GroupOutcome> {
        let mut guard = self.access.lock(&self.project, true).await?;
        let table = guard
            .table()
            .ok_or_else(|| KnowledgeError::internal("the project's table was not created"))?;
        let view = table.view().await?;
        view.check_shape()?;
        view.check_model(&self.access.store().config().model.name)?;
        drop(view);
        fail::fail_point!("writer::before_commit");
        fail::fail_point!(&format!("writer::before_commit/{}", self.project.name()));
        hold("writer::hold_commit").await;
        begun.get_or_insert(table.next_sequence());
        match commit_group(table, ops).await {
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

    fn note_debt(&self, debt: Debt) {
        let mut debts = self.debt.lock().unwrap_or_else(PoisonError::into_inner);
        debts.insert(self.project.name().to_string(), debt);
    }
}

/// Waits here for as long as this fail point says `return`. `pause` would keep a thread of the runtime, and with it
/// maybe the timers of everybody.
async fn hold(point: &'static str) {
    while is_held(point) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_held(point: &'static str) -> bool {
    let _name = point; // Without fail points nothing is made of it.
    fail::fail_point!(_name, |_| true);
    false
}
