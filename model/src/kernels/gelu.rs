//! The activation of the feed-forward layer, with the bias before it.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::math::{gelu, load, store};
use super::rows::{for_row_blocks, values_mut};

pub(super) struct BiasGelu<'a> {
    pub(super) rows: &'a mut [f32],
    pub(super) bias: &'a [f32],
}

impl SimdOp for BiasGelu<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        for row in self.rows.chunks_exact_mut(self.bias.len()) {
            for (part, bias) in row.chunks_mut(ops.len()).zip(self.bias.chunks(ops.len())) {
                let value = gelu(isa, ops.add(load(isa, part), load(isa, bias)));
                store(isa, value, part);
            }
        }
    }
}

/// Adds `bias` to every row of `values` and applies the exact GELU.
pub(super) fn add_bias_and_gelu(values: &mut [f32], bias: &[f32]) {
    for_row_blocks(values, bias.len(), |rows| BiasGelu { rows, bias }.dispatch());
}

/// [`add_bias_and_gelu`] on a tensor.
pub(crate) struct BiasGeluOp<'a> {
    /// One value per column.
    pub(crate) bias: &'a [f32],
}

impl InplaceOp1 for BiasGeluOp<'_> {
    fn name(&self) -> &'static str {
        "bias-gelu"
    }

    fn cpu_fwd(&self, target: &mut CpuStorage, layout: &Layout) -> Result<()> {
        add_bias_and_gelu(values_mut(target, layout)?, self.bias);
        Ok(())
    }
}
