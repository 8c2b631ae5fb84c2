//! The supervisor: starts the writer, the readers and the embedder, and starts again what fails.
//!
//! One for one: a failure of one part leaves the others alone. Restarts are prompt but limited (see
//! [`crate::restart`]); past the limit the part is degraded and the daemon goes on without it: no embedder means
//! keyword search only, no writer means read-only. Whatever changes is published on the `watch` channel that
//! the request handlers read. The supervisor itself handles events only and is on nobody's path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::concurrency::JoinHandle;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};

use crate::embedder::{Embedder, EmbedderArgs, EmbedderHandle, EmbedderShared};
use crate::error::PartFailure;
use crate::reader::{Reader, ReaderConfig, ReaderPool};
use crate::restart::{RestartPolicy, RestartTracker};
use crate::routes::{PartState, PartStatus, Routes};
use crate::store::{Store, WriteAccess};
use crate::writer::{Writer, WriterArguments, WriterConfig, WriterHandle};

/// What the parts have to stop, however late it is.
const LEAST_STOP: Duration = Duration::from_millis(100);

/// The supervised parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The writer.
    Writer,
    /// The embedder.
    Embedder,
    /// One of the readers; they share one account of failures.
    Reader,
}

impl Part {
    const ALL: [Self; 3] = [Self::Writer, Self::Embedder, Self::Reader];

    fn name(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Embedder => "embedder",
            Self::Reader => "readers",
        }
    }
}

/// What the supervisor is asked.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// Start this part again; sent by itself after a pause.
    Respawn(Part),
    /// Stop everything within the time, in order, and answer whether all of it was drained.
    Shutdown(Duration, oneshot::Sender<bool>),
}

/// What the supervisor is started with.
pub struct SupervisorArguments {
    /// The projects.
    pub store: Arc<Store>,
    /// The right to write.
    pub access: WriteAccess,
    /// Settings of the writer.
    pub writer: WriterConfig,
    /// Settings of the readers.
    pub readers: ReaderConfig,
    /// Model, tokenizer, caches and budgets of the embedder, which outlive it.
    pub embedder: EmbedderShared,
    /// Limits of restarting.
    pub restarts: RestartPolicy,
}

/// The actor. See the module.
pub struct Supervisor;

struct Child {
    part: Part,
    cell: ActorCell,
    /// Ends when the actor has; awaited at shutdown.
    task: JoinHandle<()>,
}

/// State of the supervisor.
pub struct SupervisorState {
    store: Arc<Store>,
    access: Arc<WriteAccess>,
    writer_config: WriterConfig,
    embedder: EmbedderShared,
    children: BTreeMap<ActorId, Child>,
    trackers: BTreeMap<Part, RestartTracker>,
    /// The parts that have been at work since the daemon started.
    have_run: BTreeSet<Part>,
    routes: Routes,
    publisher: watch::Sender<Routes>,
}

/// Starts the supervisor and its parts. The routes are complete when it returns.
pub async fn start(
    arguments: SupervisorArguments,
) -> Result<(ActorRef<SupervisorMessage>, JoinHandle<()>, watch::Receiver<Routes>), ractor::SpawnErr> {
    let routes = Routes {
        writer: None,
        embedder: None,
        readers: ReaderPool::new(&arguments.readers),
        parts: BTreeMap::new(),
        stopping: false,
    };
    let (publisher, subscriber) = watch::channel(routes);
    let (actor, task) = Actor::spawn(None, Supervisor, (arguments, publisher)).await?;
    Ok((actor, task, subscriber))
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = (SupervisorArguments, watch::Sender<Routes>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (arguments, publisher): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let routes = publisher.borrow().clone();
        let mut state = SupervisorState {
            store: arguments.store,
            access: Arc::new(arguments.access),
            writer_config: arguments.writer,
            embedder: arguments.embedder,
            children: BTreeMap::new(),
            trackers: Part::ALL
                .into_iter()
                .map(|part| (part, RestartTracker::new(arguments.restarts)))
                .collect(),
            have_run: BTreeSet::new(),
            routes,
            publisher,
        };
        for part in Part::ALL {
            state.set_state(part, PartState::Running);
        }
        let readers = std::iter::repeat_n(Part::Reader, arguments.readers.workers.max(1));
        for part in [Part::Embedder, Part::Writer].into_iter().chain(readers) {
            state.spawn_or_schedule(&myself, part).await;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Respawn(part) => {
                if !state.routes.stopping {
                    state.spawn_or_schedule(&myself, part).await;
                }
            }
            SupervisorMessage::Shutdown(grace, reply) => {
                let drained = state.shut_down(grace).await;
                reply.send(drained).ok();
                myself.stop(None);
            }
        }
        Ok(())
    }

    // The default would stop the supervisor, and with it everything, when any child ends.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, reason) => state.child_ended(&myself, &cell, why(&reason)),
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                let reason = reason.unwrap_or_else(|| "it stopped unasked".to_owned());
                state.child_ended(&myself, &cell, reason);
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

/// Why a part has failed. ractor makes an error of what a panic says, which stays inside.
fn why(reason: &ActorProcessingErr) -> String {
    match reason.downcast_ref::<PartFailure>() {
        Some(failure) => failure.to_string(),
        None => "it panicked; the log says where".to_owned(),
    }
}

impl SupervisorState {
    fn publish(&self) {
        // Nobody may be listening during shutdown.
        self.publisher.send_replace(self.routes.clone());
    }

    fn set_state(&mut self, part: Part, state: PartState) {
        let status = PartStatus {
            state,
            restarts: self.trackers.get(&part).map_or(0, RestartTracker::total),
            has_run: self.have_run.contains(&part),
        };
        self.routes.parts.insert(part.name(), status);
        self.publish();
    }

    /// Starts a part; a failure to start counts as a failure of the part.
    async fn spawn_or_schedule(&mut self, myself: &ActorRef<SupervisorMessage>, part: Part) {
        match self.spawn(myself, part).await {
            Ok(child) => {
                self.children.insert(child.cell.get_id(), child);
                self.have_run.insert(part);
                self.set_state(part, PartState::Running);
            }
            Err(ractor::SpawnErr::StartupFailed(reason)) => self.failed(myself, part, why(&reason)),
            Err(error) => self.failed(myself, part, error.to_string()),
        }
    }

    async fn spawn(&mut self, myself: &ActorRef<SupervisorMessage>, part: Part) -> Result<Child, ractor::SpawnErr> {
        let supervisor = myself.get_cell();
        let (cell, task) = match part {
            Part::Writer => {
                let (incoming, troubles) = (Arc::default(), Arc::default());
                let arguments = WriterArguments {
                    config: self.writer_config.clone(),
                    access: Arc::clone(&self.access),
                    incoming: Arc::clone(&incoming),
                    troubles: Arc::clone(&troubles),
                };
                let (actor, task) = Actor::spawn_linked(None, Writer, arguments, supervisor).await?;
                let handle = WriterHandle::new(actor.clone(), &self.writer_config, incoming, troubles);
                self.routes.writer = Some(handle);
                (actor.get_cell(), task)
            }
            Part::Embedder => {
                let arguments = EmbedderArgs::new(&self.embedder);
                let (actor, task) = Actor::spawn_linked(None, Embedder, arguments, supervisor).await?;
                self.routes.embedder = Some(EmbedderHandle::new(actor.clone(), &self.embedder));
                (actor.get_cell(), task)
            }
            Part::Reader => {
                let (actor, task) = Actor::spawn_linked(None, Reader, Arc::clone(&self.store), supervisor).await?;
                self.routes.readers.add(actor.clone());
                (actor.get_cell(), task)
            }
        };
        Ok(Child { part, cell, task })
    }

    fn child_ended(&mut self, myself: &ActorRef<SupervisorMessage>, cell: &ActorCell, reason: String) {
        let Some(child) = self.children.remove(&cell.get_id()) else {
            return;
        };
        if self.routes.stopping {
            return;
        }
        match child.part {
            Part::Writer => self.routes.writer = None,
            Part::Embedder => self.routes.embedder = None,
            Part::Reader => {}
        }
        self.failed(myself, child.part, reason);
    }

    fn failed(&mut self, myself: &ActorRef<SupervisorMessage>, part: Part, reason: String) {
        let Some(tracker) = self.trackers.get_mut(&part) else {
            return;
        };
        let restart = tracker.failed(Instant::now());
        tracing::error!(
            part = part.name(),
            %reason,
            again_in_ms = restart.after.as_millis() as u64,
            degraded = restart.degraded,
            "a part failed"
        );
        let state = if restart.degraded {
            // The first fault of a series is kept: it is nearer to the cause.
            let first = match self.routes.parts.get(part.name()).map(|status| &status.state) {
                Some(PartState::Restarting { reason } | PartState::Degraded { reason }) => reason.clone(),
                _ => reason,
            };
            PartState::Degraded { reason: first }
        } else {
            PartState::Restarting { reason }
        };
        self.set_state(part, state);
        myself.send_after(restart.after, move || SupervisorMessage::Respawn(part));
    }

    /// Drains embedder, readers and writer in this order (a store needs the embedder, then the writer), then
    /// stops them. True if all of it was done within the time.
    async fn shut_down(&mut self, grace: Duration) -> bool {
        self.routes.stopping = true;
        self.publish();
        let routes = self.routes.clone();
        let drain = async {
            let embedder = match &routes.embedder {
                Some(embedder) => embedder.drain().await,
                None => true,
            };
            routes.readers.drain().await;
            let writer = match &routes.writer {
                Some(writer) => writer.drain().await,
                None => true,
            };
            embedder && writer
        };
        let end = tokio::time::Instant::now() + grace;
        let drained = tokio::time::timeout_at(end, drain).await.unwrap_or(false);
        let children = std::mem::take(&mut self.children);
        for child in children.values() {
            child.cell.stop(Some("shutdown".to_owned()));
        }
        // All at once, and within the time that is left; what was drained stops in no time.
        let end = end.max(tokio::time::Instant::now() + LEAST_STOP);
        for child in children.into_values() {
            if tokio::time::timeout_at(end, child.task).await.is_err() {
                child.cell.kill();
                tracing::warn!(part = child.part.name(), "a part did not stop in time");
            }
        }
        for part in Part::ALL {
            self.set_state(part, PartState::Stopped);
        }
        drained
    }
}
