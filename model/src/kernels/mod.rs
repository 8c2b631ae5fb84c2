//! The parts of a transformer layer that are not matrix products with weights, for the CPU: fused, vectorised,
//! and without intermediate tensors. The large products are candle's or rten's.
//!
//! Vector instructions are chosen at run time (`rten-simd`), so one executable uses AVX-512, AVX2 or NEON where there is
//! one and runs without. What serves the exact engine is spread over rayon's threads, as candle's products are, when
//! there is enough of it; what serves the 8-bit engine works on the rows that it is given.
//!
//! The exponential is accurate to 2 ulp and the GELU to 1e-6, inside what float32 sums of this size keep.

mod attention;
mod gelu;
mod math;
mod norm;
mod quantized;
mod rows;

#[cfg(test)]
mod tests;

pub(crate) use attention::{Attend, AttentionBuffers, PackedAttention};
pub(crate) use gelu::BiasGeluOp;
pub(crate) use norm::{AddNormOp, NormWeights, normalize_rows};
pub(crate) use quantized::{AddNorm, BiasGeluQuantize, Quantize, QuantizedRows, Rescale, Sums};
