//! The embedder: turns text into vectors, many requests at a time.
//!
//! ```text
//! EmbedderHandle -- tokenise -- query cache -- admission (tokens) --\
//!                                                                    Embedder (actor)
//!                                                                      planner: what runs next (pure)
//!                                                                      engine thread: one batch at a time
//! ```
//!
//! The actor never computes: it queues texts in the [`planner`], hands the engine thread a batch whenever that
//! is idle, and answers requests as [`EmbedderMessage::BatchFinished`] reports come back. So it takes new
//! requests, statistics and a drain at any moment, and what arrives during a forward pass joins the next one.
//!
//! Every request is answered exactly once: with all its vectors, or with the first failure among its texts. A
//! request that nobody waits for any more is dropped and gives its permit back. When the actor itself fails
//! (the engine panicked twice in a row), the reply ports of what it held are dropped, which the handle maps to
//! a retryable error.

mod actor;
mod config;
pub mod engine;
pub mod handle;
pub mod planner;
mod turns;

#[cfg(test)]
mod tests;

pub use ccod_model::tokenize::{Passage, TokenizedText};
pub use ccod_model::{ModelCell, PrecisionChoice};

pub use actor::{
    EmbedReply, Embedder, EmbedderActorState, EmbedderArgs, EmbedderMessage, EmbedderState, EmbedderStats,
};
pub use config::EmbedderConfig;
pub use handle::{EmbedderHandle, EmbedderShared, QueryCache};
pub use planner::Lane;
