//! What an embedder holds, and what it does with it: queue, hand to the engine, answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use ccod_model::ModelCell;
use ccod_model::tokenize::TokenizedText;
use ractor::{ActorProcessingErr, RpcReplyPort};

use super::message::{EmbedReply, deadline_exceeded, send};
use super::stats::{Counters, cause_name};
use crate::admission::Permit;
use crate::deadline::Deadline;
use crate::embedder::config::EmbedderConfig;
use crate::embedder::engine::{EngineJob, EngineReport, EngineThread};
use crate::embedder::planner::{CostModel, DropReason, Lane, Planner, PlannerConfig, Queued};
use crate::error::{KnowledgeError, PartFailure};

/// Engine panics in a row, without a good batch in between, after which the actor gives up and leaves the rest
/// to its supervisor.
const MAX_CONSECUTIVE_PANICS: u32 = 2;

/// One text in the queue: its request, and its place there.
#[derive(Debug)]
pub(super) struct Slot {
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
pub(super) struct RunningBatch {
    number: u64,
    slots: Vec<(u64, usize)>,
}

/// State of the actor.
pub struct EmbedderActorState {
    pub(super) model: Arc<ModelCell>,
    pub(super) planner: Planner<Slot>,
    pending: HashMap<u64, PendingRequest>,
    engine: EngineThread,
    pub(super) running: Option<RunningBatch>,
    next_request: u64,
    next_batch: u64,
    consecutive_panics: u32,
    pub(super) drains: Vec<RpcReplyPort<()>>,
    pub(super) draining: bool,
    pub(super) counters: Counters,
}

impl EmbedderActorState {
    pub(super) fn new(model: Arc<ModelCell>, engine: EngineThread, config: &EmbedderConfig) -> Self {
        Self {
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
        }
    }

    pub(super) fn accept(
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
    pub(super) fn run_next(&mut self) -> Result<(), ActorProcessingErr> {
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

    pub(super) fn submit(
        &mut self,
        slots: Vec<(u64, usize)>,
        texts: Vec<TokenizedText>,
    ) -> Result<(), ActorProcessingErr> {
        let number = self.next_batch;
        self.next_batch += 1;
        self.engine
            .submit(EngineJob { batch: number, texts })
            .map_err(PartFailure::new)?;
        self.running = Some(RunningBatch { number, slots });
        Ok(())
    }

    /// Lets go of requests that nobody waits for or that are too late, with all their texts, so that neither
    /// their part of the budget nor their memory is held until their turn comes.
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
    pub(super) fn finish(&mut self, report: EngineReport) -> Result<(), ActorProcessingErr> {
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
}
