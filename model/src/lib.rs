//! From texts to vectors: sentence models of the BERT family, and one of them inside.
//!
//! Nothing here knows of stores, actors, queues or the wire. The parts, each of which may use those before it and none
//! of those after it:
//!
//! | part | what is in it |
//! |---|---|
//! | [`error`], `bundled` | what can go wrong; the files of the model inside the executable |
//! | [`config`], [`tokenize`], [`weights`], [`pooling`], `kernels` | what a checkpoint says; texts to tokens; reading weights; tokens to one vector; fused operations for the CPU |
//! | [`engine`] | what an engine is |
//! | [`exact`] | the engine on candle, in float32 |
//! | [`loader`] | which model is run, and keeping it once it is loaded |

mod bundled;
pub mod config;
mod embeddings;
pub mod engine;
pub mod error;
pub mod exact;
pub mod int8;
mod kernels;
pub mod loader;
pub mod pooling;
pub mod tokenize;
pub mod weights;

pub use engine::{EmbedEngine, Precision};
pub use error::EngineError;
pub use loader::{ModelCell, PrecisionChoice};
