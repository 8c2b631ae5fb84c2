//! The 8-bit engine, for processors: products of unsigned activations and signed weights, everything between them and
//! attention in float32.
//!
//! * Weights have one scale for each output channel and are packed once, straight from the stored 8-bit blocks.
//! * Activations have a scale and a zero point for each token. They are quantised where they come into being: by the
//!   norm or the GELU that ends the step before.
//! * Texts are packed one after another, so nothing is padded. A token's vector does not depend on its batch.
//! * Buffers belong to the engine and are kept. Threads belong to the model; they sleep between passes.

mod matrix;
mod model;
mod pass;
mod team;

pub use matrix::instructions;
pub use model::{Int8Engine, Int8Model};

/// Whether this processor has instructions for 8-bit products, so that this engine is the quicker one.
pub fn is_supported() -> bool {
    !matrix::instructions().contains("generic")
}
