//! What an embedder is asked, and how it answers.

use std::sync::Arc;

use ccod_model::ModelCell;
use ccod_model::tokenize::TokenizedText;
use ractor::RpcReplyPort;

use super::stats::EmbedderStats;
use crate::admission::Permit;
use crate::deadline::Deadline;
use crate::embedder::config::EmbedderConfig;
use crate::embedder::engine::{EngineReport, unavailable};
use crate::embedder::handle::EmbedderShared;
use crate::embedder::planner::Lane;
use crate::error::{Executed, KnowledgeError, KnowledgeResult};

/// What a request is answered with: one unit vector per text, in order.
pub type EmbedReply = RpcReplyPort<KnowledgeResult<Vec<Arc<[f32]>>>>;

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

/// Messages of the embedder. All but `BatchFinished` come from an [`EmbedderHandle`](crate::embedder::EmbedderHandle).
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
        /// The tokens that the request takes of its lane's budget; held until it is answered.
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

/// Answers; a failure only means that the caller left.
pub(super) fn send<T>(reply: RpcReplyPort<T>, answer: T) {
    if reply.send(answer).is_err() {
        tracing::trace!("the caller left before its answer");
    }
}

pub(in crate::embedder) fn deadline_exceeded() -> KnowledgeError {
    KnowledgeError::DeadlineExceeded { executed: Executed::No }
}

/// The answer when the actor is gone or lost the request in a crash: nothing was written, so retrying is safe.
pub(in crate::embedder) fn actor_gone() -> KnowledgeError {
    unavailable("it is restarting")
}
