//! The actor: one lane for each project, with one task in flight at most.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::agenda::Agenda;
use super::commit::WriteOp;
use super::incoming::IncomingStores;
use super::lane::{GroupLimits, Lane};
use super::message::{ExclusiveRequest, LaneDone, WriteRequest, WriterMessage, WriterStats};
use super::pending::{Queued, QueuedOp, still_wanted};
use super::setback::{Setbacks, Troubles, Work};
use super::turn::LaneTurn;
use super::upkeep::{self, Upkeep};
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult, PartFailure};
use crate::restart::RestartPolicy;
use crate::store::WriteAccess;
use crate::store::upkeep::{Debt, Pace};

/// Commits of a busy lane after which one step of upkeep may come between: often enough that debt stays
/// bounded under load, rarely enough that measuring it costs little.
const COMMITS_PER_UPKEEP: u32 = 16;
/// Stores that make a group worth its commit without waiting for more: one version for 32 of them.
const FULL_GROUP: usize = 32;
/// How long a group waits for each incoming store (admitted, being embedded): about what one more commit would cost
/// both.
const HOLD_PER_STORE: Duration = Duration::from_millis(10);
/// How long a group waits at most.
const HOLD_MAX: Duration = Duration::from_millis(250);
/// How long nobody writes to a project before its upkeep takes on smaller debts.
const QUIET: Duration = Duration::from_secs(1);

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

/// The actor. See the module.
pub struct Writer;

/// What the writer is started with.
pub struct WriterArguments {
    /// Settings.
    pub config: WriterConfig,
    /// The right to write.
    pub access: Arc<WriteAccess>,
    /// Shared with the handle.
    pub(crate) incoming: Arc<IncomingStores>,
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

/// A group that waits for incoming stores.
struct Hold {
    /// Stores that were incoming when it began; later ones are not waited for.
    expected: usize,
    /// Those that have come since.
    arrived: usize,
    until: Instant,
}

/// State of the writer.
pub struct WriterState {
    incoming: Arc<IncomingStores>,
    troubles: Arc<Troubles>,
    config: WriterConfig,
    pub(super) access: Arc<WriteAccess>,
    lanes: HashMap<ProjectName, LaneState>,
    stats: WriterStats,
    debt: Arc<Mutex<HashMap<String, Debt>>>,
    pub(super) agenda: Agenda,
    /// When the agenda is looked at next; none where nothing is on it.
    pub(super) timer: Option<upkeep::Timer>,
    /// How often that was set.
    pub(super) timers_set: u64,
    drain: Option<oneshot::Sender<()>>,
    pub(super) draining: bool,
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
            incoming: arguments.incoming,
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
                    debt.lock().remove(project.as_str());
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
            incoming,
        } = request;
        if let Some(incoming) = incoming {
            incoming.arrived();
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
            Queued::Op(Box::new(QueuedOp {
                op,
                index,
                pending: Arc::clone(&pending),
            }))
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

    /// Whether the waiting stores are held back a moment for incoming ones. One client alone never waits: its own
    /// store is no longer incoming.
    fn hold(&mut self, myself: &ActorRef<WriterMessage>, project: &ProjectName) -> bool {
        let incoming = self.incoming.of(project);
        let draining = self.draining;
        let Some(lane) = self.lanes.get_mut(project) else {
            return false;
        };
        let now = Instant::now();
        let waits_for_nothing =
            lane.waiting.is_empty() || lane.urgent || draining || incoming == 0 || lane.waiting.len() >= FULL_GROUP;
        let held = match &lane.hold {
            _ if waits_for_nothing => false,
            Some(hold) => now < hold.until && hold.arrived < hold.expected,
            None => {
                let patience = HOLD_MAX.min(HOLD_PER_STORE * u32::try_from(incoming).unwrap_or(u32::MAX));
                lane.hold = Some(Hold {
                    expected: incoming,
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
        // Looked up again each time: the project may have been dropped and made again.
        let Ok(known) = self.access.project(project) else {
            return;
        };
        lane.busy = true;
        let turn = LaneTurn {
            project: known,
            access: Arc::clone(&self.access),
            debt: Arc::clone(&self.debt),
            limits,
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
        // The payload of the panic is not logged: it may quote what was to be written.
        tracing::error!(
            %project,
            ?work,
            again_in_ms = restart.after.as_millis() as u64,
            degraded = restart.degraded,
            "the work of a project panicked; its table is reopened"
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
            debt: self.debt.lock().clone(),
            ..self.stats.clone()
        }
    }
}
