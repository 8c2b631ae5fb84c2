//! What is queued, what leaves the queue, and the limits.

use std::time::Duration;

use serde::Serialize;

use crate::deadline::Deadline;

/// Whom a text is embedded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Somebody waits for this one answer: a search, a single store.
    Interactive,
    /// One of many: a batch, an import, a re-embedding.
    Bulk,
}

/// What the engine pays for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostModel {
    /// The sum of the tokens.
    Packed,
    /// Number of texts times the longest of them.
    Padded,
}

/// Limits of the planner. `EmbedderConfig` holds the defaults and their reasons.
#[derive(Clone, Debug)]
pub struct PlannerConfig {
    /// How tokens add up.
    pub cost: CostModel,
    /// Texts per batch at most.
    pub max_batch_texts: usize,
    /// Cost of a batch at most, in tokens; a single text may cost more.
    pub max_batch_tokens: usize,
    /// Cost of a batch without interactive texts at most, and of a topped-up one; a single text may cost more.
    pub bulk_quantum_tokens: usize,
    /// Time without interactive texts after which bulk gets whole batches instead of the quantum.
    pub quiet: Duration,
    /// Width of a length bucket, in tokens (with [`CostModel::Padded`]).
    pub bucket_tokens: usize,
    /// Batches without bulk, while bulk waits, after which bulk is served.
    pub max_bulk_skips: u32,
    /// Time without bulk, while bulk waits, after which bulk is served.
    pub max_bulk_wait: Duration,
}

/// A text to be queued.
#[derive(Debug)]
pub struct Queued<T> {
    /// What identifies the text to the caller.
    pub payload: T,
    /// Tokens of the text.
    pub tokens: usize,
    /// Its lane.
    pub lane: Lane,
    /// Who sent it; origins share the bulk lane fairly.
    pub origin: u64,
    /// After this it is dropped.
    pub deadline: Deadline,
}

/// Why a text left the queue without running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Nobody waits for it any more.
    Abandoned,
    /// Its deadline passed.
    Expired,
}

/// Why a batch ended where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FlushCause {
    /// The engine was idle and everything that could join has joined.
    EngineIdle,
    /// The token budget is used up.
    BudgetFull,
    /// The limit of texts per batch is reached.
    TextsFull,
    /// The bulk quantum is used up.
    QuantumFull,
    /// The queue is being emptied for shutdown.
    Drain,
}

/// Texts that run together.
#[derive(Debug)]
pub struct PlannedBatch<T> {
    /// Their payloads; never empty.
    pub items: Vec<T>,
    /// Why it ended where it did.
    pub cause: FlushCause,
    /// How many of them are interactive; they come first unless bulk had to be served.
    pub interactive: usize,
    /// Tokens of the texts themselves.
    pub real_tokens: usize,
    /// What the engine pays, in tokens.
    pub cost_tokens: usize,
}

/// The outcome of asking for a batch.
#[derive(Debug)]
pub struct Formation<T> {
    /// The batch; none when nothing live is queued.
    pub batch: Option<PlannedBatch<T>>,
    /// Texts that were met and dropped.
    pub dropped: Vec<(T, DropReason)>,
}

/// Texts and tokens that wait in one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LaneDepth {
    /// Number of texts.
    pub texts: usize,
    /// Their tokens.
    pub tokens: usize,
}

impl LaneDepth {
    pub(super) fn add(&mut self, tokens: usize) {
        self.texts += 1;
        self.tokens += tokens;
    }

    pub(super) fn remove(&mut self, tokens: usize) {
        self.texts -= 1;
        self.tokens -= tokens;
    }
}
