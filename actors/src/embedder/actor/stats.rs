//! What an embedder reports about itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::state::EmbedderActorState;
use crate::embedder::planner::FlushCause;

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

#[derive(Default)]
pub(super) struct Counters {
    pub(super) forward_passes: u64,
    pub(super) requests: u64,
    pub(super) texts: u64,
    pub(super) failed_texts: u64,
    pub(super) abandoned_texts: u64,
    pub(super) expired_texts: u64,
    pub(super) flush_causes: BTreeMap<&'static str, u64>,
    pub(super) real_tokens: u64,
    pub(super) cost_tokens: u64,
    pub(super) engine_time: Duration,
    pub(super) engine_panics: u64,
}

impl EmbedderActorState {
    pub(super) fn stats(&self) -> EmbedderStats {
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
pub(super) fn cause_name(cause: FlushCause) -> &'static str {
    match cause {
        FlushCause::EngineIdle => "engine_idle",
        FlushCause::BudgetFull => "budget_full",
        FlushCause::TextsFull => "texts_full",
        FlushCause::QuantumFull => "quantum_full",
        FlushCause::Drain => "drain",
    }
}
