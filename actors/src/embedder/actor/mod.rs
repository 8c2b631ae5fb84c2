//! The actor: queues texts in the [`planner`](super::planner), hands the engine thread a batch whenever that is idle,
//! and answers requests as [`EmbedderMessage::BatchFinished`] reports come back. It never computes itself.

mod embedder;
mod message;
mod state;
mod stats;

pub use embedder::Embedder;
pub use message::{EmbedReply, EmbedderArgs, EmbedderMessage};
pub(super) use message::{actor_gone, deadline_exceeded};
pub use state::EmbedderActorState;
pub use stats::{EmbedderState, EmbedderStats};
