//! The actor: queues texts in the [`planner`](super::planner), hands the engine thread a batch whenever that is idle,
//! and answers requests as [`EmbedderMessage::BatchFinished`] reports come back. It never computes itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use serde::Serialize;

use super::engine::{EngineJob, EngineReport, EngineThread, unavailable};
use super::handle::EmbedderShared;
use super::model::cell::ModelCell;
use super::model::tokenize::TokenizedText;
use super::planner::{CostModel, DropReason, FlushCause, Lane, Planner, PlannerConfig, Queued};
use crate::admission::Permit;
use crate::deadline::Deadline;
use crate::error::{Executed, KnowledgeError, KnowledgeResult, PartFailure};

/// Engine panics in a row, without a good batch in between, after which the actor gives up and leaves the rest
/// to its supervisor.
const MAX_CONSECUTIVE_PANICS: u32 = 2;

/// What a request is answered with: one unit vector per text, in order.
pub type EmbedReply = RpcReplyPort<KnowledgeResult<Vec<Arc<[f32]>>>>;

/// Limits of the embedder. The defaults suit a laptop's CPU; `docs/performance.md` has the measurements.
#[derive(Clone, Debug)]
pub struct EmbedderConfig {
    /// Load the model when the actor starts instead of at the first request. Off: most sessions of the daemon
    /// begin with commands that need no vectors, and loading takes a fraction of a second.
    pub warm: bool,
    /// Texts per forward pass at most. Beyond some dozens nothing gets faster, only the wait longer.
    pub max_batch: usize,
    /// Cost of a forward pass at most, in tokens. It bounds how long queries that arrive together wait for each
    /// other, and the memory of a pass. A CPU does as many tokens a second at 256 as at 1,000, and fewer beyond.
    pub batch_tokens: usize,
    /// Cost of a bulk pass at most while somebody asks, in tokens: the delay that a query meets when it arrives
    /// during one. At 64 a CPU lacks a fifth of its throughput at 128, and a query waits for half as long.
    pub bulk_quantum_tokens: usize,
    /// Time without interactive texts after which bulk gets whole batches.
    pub quiet: Duration,
    /// Tokens of interactive requests that may be queued or running; more is refused as busy. Some seconds of
    /// work: what would wait longer is better refused at once.
    pub interactive_queue_tokens: u32,
    /// Tokens of one request that may be interactive; a larger one is bulk, whatever method brought it. Some four
    /// passages: what takes longer than a few queries must neither fill the lane nor hold them up. One text that
    /// the model takes whole may always be.
    pub interactive_request_tokens: u32,
    /// Tokens of bulk requests that may be queued or running; more waits at the door. Enough to keep the engine
    /// busy for minutes, and a few megabytes.
    pub bulk_queue_tokens: u32,
    /// Tokens of one slice of a bulk request. A request larger than that enters slice by slice, so that it
    /// neither needs the whole budget at once nor keeps others out until its end.
    pub bulk_slice_tokens: u32,
    /// Entries of the cache of query vectors; each takes its text and, at 384 dimensions, 1.5 KiB. 0 switches
    /// it off.
    pub query_cache: usize,
    /// When a refused request should be tried again, in milliseconds.
    pub retry_after_ms: u64,
    /// Batches without bulk, while bulk waits, after which bulk gets half a batch.
    pub max_bulk_skips: u32,
    /// Time without bulk, while bulk waits, after which bulk gets half a batch.
    pub max_bulk_wait: Duration,
}

impl Default for EmbedderConfig {
    fn default() -> Self {
        Self {
            warm: false,
            max_batch: 32,
            batch_tokens: 512,
            bulk_quantum_tokens: 64,
            quiet: Duration::from_secs(10),
            interactive_queue_tokens: 16 * 1024,
            interactive_request_tokens: 1024,
            bulk_queue_tokens: 256 * 1024,
            bulk_slice_tokens: 8 * 1024,
            query_cache: 1024,
            retry_after_ms: 250,
            max_bulk_skips: 4,
            max_bulk_wait: Duration::from_secs(2),
        }
    }
}

impl EmbedderConfig {
    /// Checks the limits against each other and against the model's token limit; the message names the culprit.
    pub fn validate(&self, max_tokens: usize) -> Result<(), String> {
        if self.max_batch == 0 {
            return Err("max_batch must be at least 1".to_owned());
        }
        if self.batch_tokens < max_tokens {
            return Err(format!(
                "batch_tokens must be at least {max_tokens}, the model's limit per text"
            ));
        }
        if self.bulk_quantum_tokens == 0 || self.bulk_quantum_tokens > self.batch_tokens {
            return Err("bulk_quantum_tokens must be between 1 and batch_tokens".to_owned());
        }
        if self.interactive_queue_tokens == 0 || self.bulk_slice_tokens == 0 {
            return Err("interactive_queue_tokens and bulk_slice_tokens must be at least 1".to_owned());
        }
        if self.bulk_slice_tokens > self.bulk_queue_tokens {
            return Err("bulk_slice_tokens must be at most bulk_queue_tokens".to_owned());
        }
        Ok(())
    }
}

/// What an embedder is started with.
#[derive(Debug)]
pub struct EmbedderArgs {
    /// Its limits.
    pub config: EmbedderConfig,
    /// The model, which outlives the actor.
    pub model: Arc<ModelCell>,
}

impl EmbedderArgs {
    /// The arguments that belong to `shared`.
    pub fn new(shared: &EmbedderShared) -> Self {
        Self {
            config: shared.config().clone(),
            model: Arc::clone(shared.model()),
        }
    }
}

/// Messages of the embedder. All but `BatchFinished` come from an [`super::EmbedderHandle`].
#[derive(Debug)]
pub enum EmbedderMessage {
    /// Embeds texts; answered once, when all are done or one has failed.
    Embed {
        /// The texts.
        texts: Vec<TokenizedText>,
        /// Their lane.
        lane: Lane,
        /// Who asks, for fairness in the bulk lane: a number per connection.
        origin: u64,
        /// After this the texts do not run any more.
        deadline: Deadline,
        /// The room that the request takes in its lane's budget; held until it is answered.
        permit: Permit,
        /// Where the vectors go.
        reply: EmbedReply,
    },
    /// The engine thread reports a batch.
    BatchFinished(EngineReport),
    /// Finishes what was accepted, answers, and refuses what comes after.
    Drain(RpcReplyPort<()>),
    /// Reports counters and depths.
    Stats(RpcReplyPort<EmbedderStats>),
}

/// What the engine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedderState {
    /// Nothing to do.
    Idle,
    /// A batch is running, or the model is being loaded.
    Busy,
    /// What is left is being finished; nothing new is taken.
    Draining,
}

/// Counters since the actor started, and depths now.
#[derive(Clone, Debug, Serialize)]
pub struct EmbedderStats {
    /// What the engine is doing.
    pub state: EmbedderState,
    /// Name and hash of the model.
    pub model: String,
    /// Whether the model is loaded.
    pub loaded: bool,
    /// How long loading it took, in milliseconds.
    pub load_ms: Option<f64>,
    /// Tokens per text that the model takes, special ones included.
    pub max_tokens: usize,
    /// Forward passes of the engine.
    pub forward_passes: u64,
    /// Requests accepted.
    pub requests: u64,
    /// Texts embedded.
    pub texts: u64,
    /// Texts that failed.
    pub failed_texts: u64,
    /// Texts dropped because nobody waited for them any more.
    pub abandoned_texts: u64,
    /// Texts dropped because their deadline passed.
    pub expired_texts: u64,
    /// Batches, by why they ended where they did.
    pub flush_causes: BTreeMap<&'static str, u64>,
    /// Tokens embedded.
    pub real_tokens: u64,
    /// What the engine paid for them, in tokens; more than `real_tokens` where it pads.
    pub cost_tokens: u64,
    /// Time that the engine spent on batches, in milliseconds.
    pub engine_ms: u64,
    /// What waits, in texts and in tokens, by lane.
    pub queue_depth: BTreeMap<&'static str, u64>,
    /// Panics of the engine.
    pub engine_panics: u64,
    /// Queries answered from the cache (since the daemon started).
    pub cache_hits: u64,
    /// Queries that were not in the cache.
    pub cache_misses: u64,
}

/// One text in the queue: its request, and its place there.
#[derive(Debug)]
struct Slot {
    request: u64,
    index: usize,
    text: TokenizedText,
}

/// A request that is not answered yet.
struct PendingRequest {
    vectors: Vec<Option<Arc<[f32]>>>,
    num_missing: usize,
    deadline: Deadline,
    reply: EmbedReply,
    #[allow(dead_code, reason = "held until the request is answered")]
    permit: Permit,
}

/// The batch that the engine has.
struct RunningBatch {
    number: u64,
    slots: Vec<(u64, usize)>,
}

/// State of the actor.
pub struct EmbedderActorState {
    model: Arc<ModelCell>,
    planner: Planner<Slot>,
    pending: HashMap<u64, PendingRequest>,
    engine: EngineThread,
    running: Option<RunningBatch>,
    next_request: u64,
    next_batch: u64,
    consecutive_panics: u32,
    drains: Vec<RpcReplyPort<()>>,
    draining: bool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    forward_passes: u64,
    requests: u64,
    texts: u64,
    failed_texts: u64,
    abandoned_texts: u64,
    expired_texts: u64,
    flush_causes: BTreeMap<&'static str, u64>,
    real_tokens: u64,
    cost_tokens: u64,
    engine_time: Duration,
    engine_panics: u64,
}

/// The embedder actor. Spawned by the supervisor:
/// `Actor::spawn_linked(None, Embedder, EmbedderArgs { config, model }, supervisor_cell)`.
#[derive(Debug)]
pub struct Embedder;

impl Actor for Embedder {
    type Msg = EmbedderMessage;
    type State = EmbedderActorState;
    type Arguments = EmbedderArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        fail::fail_point!("embedder::pre_start", |message: Option<String>| {
            Err(PartFailure::new(message.unwrap_or_default()).into())
        });
        let EmbedderArgs { config, model } = args;
        let reports_to = myself.clone();
        let engine = EngineThread::spawn(Arc::clone(&model), move |report| {
            // A failed send means that the actor is gone, and with it everybody who waited for this batch.
            if reports_to.cast(EmbedderMessage::BatchFinished(report)).is_err() {
                tracing::debug!("a batch finished after its actor had stopped");
            }
        })
        .map_err(PartFailure::new)?;
        let mut state = EmbedderActorState {
            model,
            planner: Planner::new(PlannerConfig {
                // The CPU engine packs. An engine on a device that wants padded tensors would say so here.
                cost: CostModel::Packed,
                max_batch_texts: config.max_batch,
                max_batch_tokens: config.batch_tokens,
                bulk_quantum_tokens: config.bulk_quantum_tokens,
                quiet: config.quiet,
                bucket_tokens: 32,
                max_bulk_skips: config.max_bulk_skips,
                max_bulk_wait: config.max_bulk_wait,
            }),
            pending: HashMap::new(),
            engine,
            running: None,
            next_request: 0,
            next_batch: 0,
            consecutive_panics: 0,
            drains: Vec::new(),
            draining: false,
            counters: Counters::default(),
        };
        if config.warm {
            state.submit(Vec::new(), Vec::new())?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            EmbedderMessage::Embed {
                texts,
                lane,
                origin,
                deadline,
                permit,
                reply,
            } => {
                state.accept(texts, lane, origin, deadline, permit, reply);
                state.run_next()
            }
            EmbedderMessage::BatchFinished(report) => {
                state.finish(report)?;
                state.run_next()
            }
            EmbedderMessage::Drain(reply) => {
                state.draining = true;
                state.planner.start_draining();
                state.drains.push(reply);
                state.run_next()
            }
            EmbedderMessage::Stats(reply) => {
                send(reply, state.stats());
                Ok(())
            }
        }
    }
}

/// Answers; a failure only means that the caller left.
fn send<T>(reply: RpcReplyPort<T>, answer: T) {
    if reply.send(answer).is_err() {
        tracing::trace!("the caller left before its answer");
    }
}

pub(super) fn deadline_exceeded() -> KnowledgeError {
    KnowledgeError::DeadlineExceeded { executed: Executed::No }
}

impl EmbedderActorState {
    fn accept(
        &mut self,
        texts: Vec<TokenizedText>,
        lane: Lane,
        origin: u64,
        deadline: Deadline,
        permit: Permit,
        reply: EmbedReply,
    ) {
        let now = Instant::now();
        if self.draining {
            return send(reply, Err(KnowledgeError::ShuttingDown));
        }
        if deadline.expired_at(now) {
            return send(reply, Err(deadline_exceeded()));
        }
        if texts.is_empty() {
            return send(reply, Ok(Vec::new()));
        }
        let request = self.next_request;
        self.next_request += 1;
        self.counters.requests += 1;
        self.pending.insert(
            request,
            PendingRequest {
                vectors: vec![None; texts.len()],
                num_missing: texts.len(),
                deadline,
                reply,
                permit,
            },
        );
        for (index, text) in texts.into_iter().enumerate() {
            let tokens = text.len();
            let payload = Slot { request, index, text };
            self.planner.push(
                Queued {
                    payload,
                    tokens,
                    lane,
                    origin,
                    deadline,
                },
                now,
            );
        }
    }

    /// Gives the engine its next batch if it is idle and there is one. Errors only when the engine thread is
    /// gone, which the supervisor has to repair.
    fn run_next(&mut self) -> Result<(), ActorProcessingErr> {
        if self.running.is_none() {
            let now = Instant::now();
            self.forget_lost_requests(now);
            let pending = &self.pending;
            let formation = self.planner.next_batch(now, |slot| {
                pending
                    .get(&slot.request)
                    .is_none_or(|request| request.reply.is_closed())
            });
            for (slot, reason) in formation.dropped {
                self.drop_slot(slot, reason);
            }
            if let Some(batch) = formation.batch {
                *self.counters.flush_causes.entry(cause_name(batch.cause)).or_default() += 1;
                self.counters.real_tokens += batch.real_tokens as u64;
                self.counters.cost_tokens += batch.cost_tokens as u64;
                let (slots, texts) = batch
                    .items
                    .into_iter()
                    .map(|slot| ((slot.request, slot.index), slot.text))
                    .unzip();
                self.submit(slots, texts)?;
            }
        }
        if self.running.is_none() && self.planner.is_empty() {
            for drain in self.drains.drain(..) {
                send(drain, ());
            }
        }
        Ok(())
    }

    fn submit(&mut self, slots: Vec<(u64, usize)>, texts: Vec<TokenizedText>) -> Result<(), ActorProcessingErr> {
        let number = self.next_batch;
        self.next_batch += 1;
        self.engine
            .submit(EngineJob { batch: number, texts })
            .map_err(PartFailure::new)?;
        self.running = Some(RunningBatch { number, slots });
        Ok(())
    }

    /// Lets go of requests that nobody waits for or that are too late, with all their texts, so that neither
    /// their room in the budget nor their memory is held until their turn comes.
    fn forget_lost_requests(&mut self, now: Instant) {
        let lost: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, request)| request.reply.is_closed() || request.deadline.expired_at(now))
            .map(|(number, _)| *number)
            .collect();
        if lost.is_empty() {
            return;
        }
        for number in lost {
            let Some(request) = self.pending.remove(&number) else {
                continue;
            };
            let num_texts = request.num_missing as u64;
            if request.reply.is_closed() {
                self.counters.abandoned_texts += num_texts;
            } else {
                self.counters.expired_texts += num_texts;
                send(request.reply, Err(deadline_exceeded()));
            }
        }
        self.purge_answered();
    }

    /// A text that the planner dropped. Its request is usually gone already; if not, it fails here.
    fn drop_slot(&mut self, slot: Slot, reason: DropReason) {
        let counter = match reason {
            DropReason::Abandoned => &mut self.counters.abandoned_texts,
            DropReason::Expired => &mut self.counters.expired_texts,
        };
        *counter += 1;
        if let Some(request) = self.pending.remove(&slot.request) {
            send(request.reply, Err(deadline_exceeded()));
        }
    }

    /// Delivers a batch. Errors when the engine panicked too often in a row, after everybody was answered.
    fn finish(&mut self, report: EngineReport) -> Result<(), ActorProcessingErr> {
        let EngineReport {
            batch,
            outcomes,
            forward_passes,
            panicked,
            busy,
        } = report;
        let Some(running) = self.running.take_if(|running| running.number == batch) else {
            tracing::warn!(batch, "a report for a batch that is not running");
            return Ok(());
        };
        self.counters.forward_passes += forward_passes;
        self.counters.engine_time += busy;
        let mut request_failed = false;
        for ((request, index), outcome) in running.slots.into_iter().zip(outcomes) {
            match outcome {
                Ok(vector) => {
                    self.counters.texts += 1;
                    self.deliver(request, index, vector);
                }
                Err(error) => {
                    self.counters.failed_texts += 1;
                    if let Some(request) = self.pending.remove(&request) {
                        request_failed = true;
                        send(request.reply, Err(error));
                    }
                }
            }
        }
        if request_failed {
            // Its other texts must not run for nothing.
            self.purge_answered();
        }
        if panicked {
            self.counters.engine_panics += 1;
            self.consecutive_panics += 1;
            if self.consecutive_panics >= MAX_CONSECUTIVE_PANICS {
                let times = MAX_CONSECUTIVE_PANICS;
                return Err(
                    PartFailure::new(format_args!("the embedding engine panicked {times} times in a row")).into(),
                );
            }
        } else if forward_passes > 0 {
            self.consecutive_panics = 0;
        }
        Ok(())
    }

    fn deliver(&mut self, number: u64, index: usize, vector: Arc<[f32]>) {
        let Some(request) = self.pending.get_mut(&number) else {
            // Failed or lost meanwhile; its vector is of no use.
            return;
        };
        debug_assert!(request.vectors[index].is_none(), "each text runs exactly once");
        request.vectors[index] = Some(vector);
        request.num_missing -= 1;
        if request.num_missing == 0
            && let Some(request) = self.pending.remove(&number)
        {
            let vectors = request.vectors.into_iter().flatten().collect();
            send(request.reply, Ok(vectors));
        }
    }

    /// Removes the texts of requests that are answered.
    fn purge_answered(&mut self) {
        let pending = &self.pending;
        self.planner.purge(|slot| !pending.contains_key(&slot.request));
    }

    fn stats(&self) -> EmbedderStats {
        let load_time = self.model.load_time();
        let (interactive, bulk) = self.planner.depths();
        let counters = &self.counters;
        EmbedderStats {
            state: if self.draining {
                EmbedderState::Draining
            } else if self.running.is_some() {
                EmbedderState::Busy
            } else {
                EmbedderState::Idle
            },
            model: self.model.identity().to_owned(),
            loaded: load_time.is_some(),
            load_ms: load_time.map(|time| time.as_secs_f64() * 1e3),
            max_tokens: self.model.max_tokens(),
            forward_passes: counters.forward_passes,
            requests: counters.requests,
            texts: counters.texts,
            failed_texts: counters.failed_texts,
            abandoned_texts: counters.abandoned_texts,
            expired_texts: counters.expired_texts,
            flush_causes: counters.flush_causes.clone(),
            real_tokens: counters.real_tokens,
            cost_tokens: counters.cost_tokens,
            engine_ms: counters.engine_time.as_millis() as u64,
            queue_depth: BTreeMap::from([
                ("interactive_texts", interactive.texts as u64),
                ("interactive_tokens", interactive.tokens as u64),
                ("bulk_texts", bulk.texts as u64),
                ("bulk_tokens", bulk.tokens as u64),
            ]),
            engine_panics: counters.engine_panics,
            cache_hits: 0,
            cache_misses: 0,
        }
    }
}

/// The name of a cause in the statistics.
fn cause_name(cause: FlushCause) -> &'static str {
    match cause {
        FlushCause::EngineIdle => "engine_idle",
        FlushCause::BudgetFull => "budget_full",
        FlushCause::TextsFull => "texts_full",
        FlushCause::QuantumFull => "quantum_full",
        FlushCause::Drain => "drain",
    }
}

/// The answer when the actor is gone or lost the request in a crash: nothing was written, so retrying is safe.
pub(super) fn actor_gone() -> KnowledgeError {
    unavailable("it is restarting")
}
