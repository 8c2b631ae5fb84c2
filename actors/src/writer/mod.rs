//! The writer: the only actor that changes tables.
//!
//! Each project has a lane with at most one commit in flight, run as a task that reports back, so that
//! projects do not wait for each other and the actor never blocks. What arrives meanwhile forms the next group
//! (see [`lane`]); one group is one version (see [`commit`]). The reply of a write goes out after its last group
//! is durable and published to the readers. Upkeep runs in the same lane, a step at a time, between commits.
//!
//! A task that panics takes its group's replies with it (the callers see `OutcomeUnknown`), the table is
//! forgotten and opened anew, and the actor fails, so that the supervisor counts the restart. Business errors
//! never end it.

pub mod commit;
pub mod lane;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::Serialize;
use tokio::sync::oneshot;

use commit::commit_group;
pub use commit::{ItemOutcome, PreparedItem};
use lane::{GroupLimits, Lane, Weighed};

use crate::admission::{Admission, Permit};
use crate::deadline::Deadline;
use crate::domain::ProjectName;
use crate::error::{Executed, KnowledgeError, KnowledgeResult};
use crate::store::maintenance::{Debt, next_step};
use crate::store::{Project, WriteAccess};

/// Commits of a busy lane after which one step of upkeep may come between: often enough that debt stays
/// bounded under load, rarely enough that measuring it costs little.
const COMMITS_PER_UPKEEP: u32 = 16;

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
}

/// What the writer is asked.
pub enum WriterMessage {
    /// Store these items.
    Write(WriteRequest),
    /// Remove this project and everything in it.
    DropProject(ProjectName, oneshot::Sender<KnowledgeResult<()>>),
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
            Self::DropProject(..) => "DropProject",
            Self::LaneDone(_) => "LaneDone",
            Self::Drain(_) => "Drain",
            Self::Stats(_) => "Stats",
        })
    }
}

/// Items of one request, for one project.
pub struct WriteRequest {
    project: ProjectName,
    items: Vec<PreparedItem>,
    pending: Arc<PendingWrite>,
}

/// The answer to a write.
#[derive(Debug)]
pub struct WriteReply {
    /// One for each item, in the order of the request.
    pub items: Vec<KnowledgeResult<ItemOutcome>>,
    /// The project's newest commit.
    pub version: i64,
}

/// Report of a lane's task.
pub struct LaneDone {
    project: ProjectName,
    /// Items that the group held; 0 for upkeep alone.
    items: usize,
    committed: bool,
    /// What upkeep found, if it was its turn.
    upkeep: Option<Upkeep>,
    panicked: Option<String>,
}

/// What a turn of upkeep found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upkeep {
    /// No debt worth a step.
    NothingDue,
    /// One step was run; there may be more.
    Stepped,
    /// The step failed; it is tried again after the next commit.
    Failed,
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
    outcomes: Vec<Option<KnowledgeResult<ItemOutcome>>>,
    remaining: usize,
    version: i64,
    reply: Option<oneshot::Sender<KnowledgeResult<WriteReply>>>,
}

impl PendingWrite {
    fn record(&self, index: usize, outcome: KnowledgeResult<ItemOutcome>, version: i64) {
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

    /// Whether the caller still waits.
    fn awaited(&self) -> bool {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }
}

/// One item on its way through a lane.
struct QueuedItem {
    prepared: PreparedItem,
    index: usize,
    pending: Arc<PendingWrite>,
}

impl Weighed for QueuedItem {
    fn rows(&self) -> usize {
        self.prepared.passages.len()
    }

    fn bytes(&self) -> usize {
        item_bytes(&self.prepared)
    }
}

/// Bytes that an item brings: its text twice (whole and in passages) and its vectors.
fn item_bytes(prepared: &PreparedItem) -> usize {
    let vectors: usize = prepared
        .passages
        .iter()
        .map(|passage| size_of_val(&*passage.vector))
        .sum();
    prepared.item.text.len() * 2 + vectors
}

/// Sends writes to the writer, within its bounds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WriterHandle {
    actor: ActorRef<WriterMessage>,
    requests: Admission,
    bytes: Admission,
}

impl WriterHandle {
    /// A handle to a running writer.
    pub fn new(actor: ActorRef<WriterMessage>, config: &WriterConfig) -> Self {
        Self {
            actor,
            requests: Admission::new("the writer's queue", config.queue_requests, 100),
            bytes: Admission::new("the writer's buffer", config.queue_bytes, 250),
        }
    }

    /// Stores items and waits until they are durable. Errors of single items stand in the reply.
    pub async fn write(
        &self,
        project: ProjectName,
        items: Vec<PreparedItem>,
        deadline: Deadline,
    ) -> KnowledgeResult<WriteReply> {
        let total_bytes: usize = items.iter().map(item_bytes).sum();
        let total_bytes = u32::try_from(total_bytes).unwrap_or(u32::MAX);
        let permits = if items.len() > 1 {
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
                outcomes: vec![None; items.len()],
                remaining: items.len(),
                version: 0,
                reply: Some(reply),
            }),
            _permits: permits,
        });
        let request = WriteRequest {
            project,
            items,
            pending,
        };
        self.actor
            .cast(WriterMessage::Write(request))
            .map_err(|_| KnowledgeError::Unavailable {
                part: "writer",
                reason: "it is restarting, nothing was written".to_owned(),
            })?;
        match tokio::time::timeout(deadline.remaining(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(KnowledgeError::OutcomeUnknown),
            Err(_) => Err(KnowledgeError::DeadlineExceeded {
                executed: Executed::Unknown,
            }),
        }
    }

    /// Removes a project and everything in it.
    pub async fn drop_project(&self, project: ProjectName, deadline: Deadline) -> KnowledgeResult<()> {
        let (reply, answer) = oneshot::channel();
        self.actor
            .cast(WriterMessage::DropProject(project, reply))
            .map_err(|_| KnowledgeError::Unavailable {
                part: "writer",
                reason: "it is restarting, nothing was removed".to_owned(),
            })?;
        match tokio::time::timeout(deadline.remaining(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(KnowledgeError::OutcomeUnknown),
            Err(_) => Err(KnowledgeError::DeadlineExceeded {
                executed: Executed::Unknown,
            }),
        }
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
}

struct LaneState {
    waiting: Lane<QueuedItem>,
    busy: bool,
    commits_since_upkeep: u32,
    /// Whether something was committed since the last time there was no debt.
    dirty: bool,
}

/// State of the writer.
pub struct WriterState {
    config: WriterConfig,
    access: Arc<WriteAccess>,
    lanes: HashMap<ProjectName, LaneState>,
    stats: WriterStats,
    debt: Arc<Mutex<HashMap<String, Debt>>>,
    drain: Option<oneshot::Sender<()>>,
    draining: bool,
}

impl Actor for Writer {
    type Msg = WriterMessage;
    type State = WriterState;
    type Arguments = WriterArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        fail::fail_point!("writer::pre_start", |_| Err("failpoint writer::pre_start".into()));
        Ok(WriterState {
            config: arguments.config,
            access: arguments.access,
            lanes: HashMap::new(),
            stats: WriterStats::default(),
            debt: Arc::default(),
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
            WriterMessage::DropProject(project, reply) => {
                let access = Arc::clone(&state.access);
                // A lane that is left without its project makes itself a new one with the next store.
                if state
                    .lanes
                    .get(&project)
                    .is_some_and(|lane| !lane.busy && lane.waiting.is_empty())
                {
                    state.lanes.remove(&project);
                }
                tokio::spawn(async move {
                    reply.send(access.drop_project(&project).await).ok();
                });
            }
            WriterMessage::LaneDone(done) => state.lane_done(&myself, done)?,
            WriterMessage::Stats(reply) => {
                reply.send(state.current_stats()).ok();
            }
            WriterMessage::Drain(reply) => {
                state.draining = true;
                state.drain = Some(reply);
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
            items,
            pending,
        } = request;
        let refusal = if self.draining {
            Some(KnowledgeError::ShuttingDown)
        } else {
            self.ensure_lane(&project).err()
        };
        if let Some(error) = refusal {
            for index in 0..items.len() {
                pending.record(index, Err(error.clone()), 0);
            }
            return;
        }
        let Some(lane) = self.lanes.get_mut(&project) else {
            return;
        };
        let bulk = items.len() > 1;
        let queued = items.into_iter().enumerate().map(|(index, prepared)| QueuedItem {
            prepared,
            index,
            pending: Arc::clone(&pending),
        });
        lane.waiting.push(queued, bulk);
        self.start(myself, &project);
    }

    fn ensure_lane(&mut self, project: &ProjectName) -> KnowledgeResult<()> {
        self.access.project(project)?;
        if !self.lanes.contains_key(project) {
            let lane = LaneState {
                waiting: Lane::default(),
                busy: false,
                commits_since_upkeep: 0,
                dirty: false,
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
        lane.waiting.retain(still_wanted);
        let group = lane.waiting.next_group(limits);
        let idle = group.is_empty();
        let upkeep = lane.dirty && !draining && (idle || lane.commits_since_upkeep >= COMMITS_PER_UPKEEP);
        if idle && !upkeep {
            return;
        }
        if upkeep {
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

    fn lane_done(&mut self, myself: &ActorRef<WriterMessage>, done: LaneDone) -> Result<(), ActorProcessingErr> {
        if let Some(reason) = done.panicked {
            return Err(format!("a commit of project {} panicked: {reason}", done.project).into());
        }
        if let Some(lane) = self.lanes.get_mut(&done.project) {
            lane.busy = false;
            if done.committed {
                lane.dirty = true;
                lane.commits_since_upkeep += 1;
                self.stats.commits += 1;
            }
            if let Some(upkeep) = done.upkeep {
                lane.dirty = upkeep == Upkeep::Stepped;
                self.stats.upkeep_steps += u64::from(upkeep == Upkeep::Stepped);
            }
            self.stats.items += done.items as u64;
        }
        self.start(myself, &done.project);
        self.finish_drain();
        Ok(())
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
fn still_wanted(queued: &QueuedItem) -> bool {
    if queued.pending.deadline.expired() {
        let executed = Executed::No;
        queued
            .pending
            .record(queued.index, Err(KnowledgeError::DeadlineExceeded { executed }), 0);
        return false;
    }
    queued.pending.awaited()
}

/// One task of a lane: a group, a step of upkeep, or both.
struct LaneTurn {
    project: Arc<Project>,
    access: Arc<WriteAccess>,
    debt: Arc<Mutex<HashMap<String, Debt>>>,
    upkeep: bool,
}

impl LaneTurn {
    async fn run(self, group: Vec<QueuedItem>) -> LaneDone {
        let mut done = LaneDone {
            project: self.project.name().clone(),
            items: group.len(),
            committed: false,
            upkeep: None,
            panicked: None,
        };
        let work = async {
            let committed = if group.is_empty() {
                false
            } else {
                self.commit(group).await
            };
            let upkeep = if self.upkeep { Some(self.upkeep().await) } else { None };
            (committed, upkeep)
        };
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok((committed, upkeep)) => {
                done.committed = committed;
                done.upkeep = upkeep;
            }
            Err(panic) => {
                // What the table holds now is not known: the next user opens it from disk.
                if let Ok(guard) = self.access.lock(&self.project, false).await {
                    guard.forget();
                }
                done.panicked = Some(panic_text(&panic));
            }
        }
        done
    }

    /// Commits the group and answers its items. True if a version was written.
    async fn commit(&self, group: Vec<QueuedItem>) -> bool {
        let (prepared, places): (Vec<PreparedItem>, Vec<(usize, Arc<PendingWrite>)>) = group
            .into_iter()
            .map(|queued| (queued.prepared, (queued.index, queued.pending)))
            .unzip();
        match self.try_commit(&prepared).await {
            Ok(outcome) => {
                for ((index, pending), item) in places.into_iter().zip(outcome.items) {
                    pending.record(index, item, outcome.version);
                }
                outcome.committed
            }
            Err(error) => {
                tracing::error!(project = %self.project.name(), items = places.len(), %error, "a commit failed");
                for (index, pending) in places {
                    pending.record(index, Err(error.clone()), 0);
                }
                false
            }
        }
    }

    async fn try_commit(&self, prepared: &[PreparedItem]) -> KnowledgeResult<commit::GroupOutcome> {
        let mut guard = self.access.lock(&self.project, true).await?;
        let table = guard
            .table()
            .ok_or_else(|| KnowledgeError::internal("the project's table was not created"))?;
        let view = table.view().await?;
        view.check_shape()?;
        view.check_model(&self.access.store().config().model.name)?;
        drop(view);
        fail::fail_point!("writer::before_commit");
        match commit_group(table, prepared).await {
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
            Err(error) => {
                guard.forget();
                Err(error)
            }
        }
    }

    /// Runs one step of upkeep if there is debt.
    async fn upkeep(&self) -> Upkeep {
        let step = async {
            let mut guard = self.access.lock(&self.project, false).await?;
            let Some(table) = guard.table() else {
                return Ok(Upkeep::NothingDue);
            };
            let debt = table.debt().await?;
            let step = next_step(&debt);
            self.debt
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(self.project.name().to_string(), debt);
            let Some(step) = step else {
                return Ok(Upkeep::NothingDue);
            };
            tracing::debug!(project = %self.project.name(), ?step, "upkeep");
            table.maintain(step).await?;
            guard.publish().await?;
            Ok::<Upkeep, KnowledgeError>(Upkeep::Stepped)
        };
        match step.await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(project = %self.project.name(), %error, "upkeep failed, it is tried again after the next store");
                Upkeep::Failed
            }
        }
    }
}

/// The words of a panic.
pub(crate) fn panic_text(panic: &Box<dyn std::any::Any + Send>) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no reason given".to_owned())
}
