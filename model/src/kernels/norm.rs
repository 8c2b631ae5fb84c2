//! The layer norm, alone and with the bias and the residual before it.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::rows::{PARALLEL_VALUES, for_row_blocks, values, values_mut};

/// Weights of a layer norm, on the CPU.
pub(crate) struct NormWeights {
    /// Scale per column.
    pub(crate) gamma: Vec<f32>,
    /// Shift per column.
    pub(crate) beta: Vec<f32>,
    /// Added to the variance.
    pub(crate) epsilon: f32,
}

pub(super) struct NormRows<'a> {
    pub(super) rows: &'a mut [f32],
    /// Added to every row, with the residual.
    pub(super) added: Option<(&'a [f32], &'a [f32])>,
    pub(super) norm: &'a NormWeights,
}

impl WithSimd for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.norm.gamma.len();
        for (index, row) in self.rows.chunks_exact_mut(width).enumerate() {
            if let Some((bias, residual)) = self.added {
                let residual = &residual[index * width..(index + 1) * width];
                let (values, values_rest) = S::as_mut_simd_f32s(row);
                let (bias, bias_rest) = S::as_simd_f32s(bias);
                let (residual, residual_rest) = S::as_simd_f32s(residual);
                for ((value, bias), residual) in values.iter_mut().zip(bias).zip(residual) {
                    *value = simd.add_f32s(simd.add_f32s(*value, *bias), *residual);
                }
                for ((value, bias), residual) in values_rest.iter_mut().zip(bias_rest).zip(residual_rest) {
                    *value += bias + residual;
                }
            }
            let (values, values_rest) = S::as_mut_simd_f32s(row);
            let mut sum = simd.splat_f32s(0.0);
            for value in values.iter() {
                sum = simd.add_f32s(sum, *value);
            }
            let total = simd.reduce_sum_f32s(sum) + values_rest.iter().sum::<f32>();
            let mean = total / width as f32;
            let mean_lanes = simd.splat_f32s(mean);
            let mut squares = simd.splat_f32s(0.0);
            for value in values.iter() {
                let difference = simd.sub_f32s(*value, mean_lanes);
                squares = simd.mul_add_e_f32s(difference, difference, squares);
            }
            let squares_rest: f32 = values_rest.iter().map(|x| (x - mean) * (x - mean)).sum();
            let variance = (simd.reduce_sum_f32s(squares) + squares_rest) / width as f32;
            let scale = 1.0 / (variance + self.norm.epsilon).sqrt();
            let scale_lanes = simd.splat_f32s(scale);
            let (gamma, gamma_rest) = S::as_simd_f32s(&self.norm.gamma);
            let (beta, beta_rest) = S::as_simd_f32s(&self.norm.beta);
            for ((value, gamma), beta) in values.iter_mut().zip(gamma).zip(beta) {
                let unit = simd.mul_f32s(simd.sub_f32s(*value, mean_lanes), scale_lanes);
                *value = simd.mul_add_e_f32s(unit, *gamma, *beta);
            }
            for ((value, gamma), beta) in values_rest.iter_mut().zip(gamma_rest).zip(beta_rest) {
                *value = (*value - mean) * scale * gamma + beta;
            }
        }
    }
}

/// Layer norm of every row of `values`, in place.
pub(crate) fn normalize_rows(values: &mut [f32], norm: &NormWeights) {
    let arch = Arch::new();
    for_row_blocks(values, norm.gamma.len(), |rows| {
        arch.dispatch(NormRows {
            rows,
            added: None,
            norm,
        });
    });
}

/// Adds `bias` and the rows of `residual` to the rows of `values`, and normalises them, in place.
pub(super) fn add_and_normalize_rows(values: &mut [f32], bias: &[f32], residual: &[f32], norm: &NormWeights) {
    let arch = Arch::new();
    let width = norm.gamma.len();
    let work = |rows: &mut [f32], residual: &[f32]| {
        arch.dispatch(NormRows {
            rows,
            added: Some((bias, residual)),
            norm,
        });
    };
    if values.len() < PARALLEL_VALUES {
        return work(values, residual);
    }
    let rows_per_block = (values.len() / width).div_ceil(rayon::current_num_threads());
    values
        .par_chunks_mut(rows_per_block * width)
        .zip(residual.par_chunks(rows_per_block * width))
        .for_each(|(rows, residual)| work(rows, residual));
}

/// [`add_and_normalize_rows`] on a tensor, with the residual as the source.
pub(crate) struct AddNormOp<'a> {
    /// One value per column.
    pub(crate) bias: &'a [f32],
    /// The norm.
    pub(crate) norm: &'a NormWeights,
}

impl InplaceOp2 for AddNormOp<'_> {
    fn name(&self) -> &'static str {
        "bias-residual-norm"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<()> {
        let residual = values(residual, residual_layout)?;
        add_and_normalize_rows(values_mut(target, layout)?, self.bias, residual, self.norm);
        Ok(())
    }
}
