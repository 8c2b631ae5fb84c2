//! The activation of the feed-forward layer, with the bias before it.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result};
use pulp::{Arch, Simd, WithSimd};

use super::math::gelu;
use super::rows::{for_row_blocks, values_mut};

pub(super) struct BiasGelu<'a> {
    pub(super) rows: &'a mut [f32],
    pub(super) bias: &'a [f32],
}

impl WithSimd for BiasGelu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for row in self.rows.chunks_exact_mut(self.bias.len()) {
            let (values, values_rest) = S::as_mut_simd_f32s(row);
            let (bias, bias_rest) = S::as_simd_f32s(self.bias);
            for (value, bias) in values.iter_mut().zip(bias) {
                *value = gelu(simd, simd.add_f32s(*value, *bias));
            }
            if !values_rest.is_empty() {
                let value = simd.add_f32s(simd.partial_load_f32s(values_rest), simd.partial_load_f32s(bias_rest));
                simd.partial_store_f32s(values_rest, gelu(simd, value));
            }
        }
    }
}

/// Adds `bias` to every row of `values` and applies the exact GELU.
pub(super) fn add_bias_and_gelu(values: &mut [f32], bias: &[f32]) {
    let arch = Arch::new();
    for_row_blocks(values, bias.len(), |rows| arch.dispatch(BiasGelu { rows, bias }));
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
