//! The model: what an engine is ([`EmbedEngine`]), and the one that there is, a BERT-family encoder on candle.
//!
//! Nothing here knows of actors, queues or threads.

pub mod bert;
pub mod cell;
mod embed_engine;
mod kernels;
pub mod pooling;
pub mod tokenize;
pub mod weights;

pub use embed_engine::{EmbedEngine, EngineError};
