//! The parts of a transformer layer that are not matrix products with weights, for the CPU: fused, vectorised,
//! and without intermediate tensors. The large products stay candle's.
//!
//! Vector instructions are chosen at run time (`pulp`), so one executable uses AVX2 or NEON where there is one
//! and runs without. Work is spread over rayon's threads, as candle's products are, when there is enough of it.
//!
//! The exponential is accurate to 2 ulp and erf to 1.5e-7, far inside what float32 sums of this size keep.

mod attention;
mod gelu;
mod math;
mod norm;
mod rows;

#[cfg(test)]
mod tests;

pub(crate) use attention::PackedAttention;
pub(crate) use gelu::BiasGeluOp;
pub(crate) use norm::{AddNormOp, NormWeights, normalize_rows};
