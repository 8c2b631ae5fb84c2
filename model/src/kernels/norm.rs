//! The layer norm, alone and with the bias and the residual before it.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result};
use rayon::prelude::*;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::math::{largest, load, load_or, smallest, store};
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

/// Smallest and largest value of a row.
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) low: f32,
    pub(super) high: f32,
}

/// Normalises one row, the values of which sum up to `sum`, in place.
#[inline(always)]
pub(super) fn normalize_row<I: Isa>(isa: I, row: &mut [f32], sum: f32, norm: &NormWeights) -> Range {
    let ops = isa.f32();
    let width = row.len();
    let mean = ops.splat(sum / width as f32);
    let mut squares = ops.zero();
    for part in row.chunks(ops.len()) {
        // What is outside the row adds nothing.
        let difference = ops.sub(load_or(isa, part, mean), mean);
        squares = ops.mul_add(difference, difference, squares);
    }
    let variance = ops.sum(squares) / width as f32;
    let scale = ops.splat(1.0 / (variance + norm.epsilon).sqrt());
    let (mut low, mut high) = (ops.splat(f32::INFINITY), ops.splat(f32::NEG_INFINITY));
    let weights = norm.gamma.chunks(ops.len()).zip(norm.beta.chunks(ops.len()));
    for (part, (gamma, beta)) in row.chunks_mut(ops.len()).zip(weights) {
        let unit = ops.mul(ops.sub(load(isa, part), mean), scale);
        let value = ops.mul_add(unit, load(isa, gamma), load(isa, beta));
        store(isa, value, part);
        low = ops.min(low, load_or(isa, part, low));
        high = ops.max(high, load_or(isa, part, high));
    }
    Range {
        low: smallest(low),
        high: largest(high),
    }
}

pub(super) struct NormRows<'a> {
    pub(super) rows: &'a mut [f32],
    /// Added to every row, with the residual.
    pub(super) added: Option<(&'a [f32], &'a [f32])>,
    pub(super) norm: &'a NormWeights,
}

impl SimdOp for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let width = self.norm.gamma.len();
        for (index, row) in self.rows.chunks_exact_mut(width).enumerate() {
            let mut sum = ops.zero();
            match self.added {
                Some((bias, residual)) => {
                    let residual = &residual[index * width..(index + 1) * width];
                    let added = bias.chunks(ops.len()).zip(residual.chunks(ops.len()));
                    for (part, (bias, residual)) in row.chunks_mut(ops.len()).zip(added) {
                        let added = ops.add(load(isa, bias), load(isa, residual));
                        let value = ops.add(load(isa, part), added);
                        store(isa, value, part);
                        sum = ops.add(sum, value);
                    }
                }
                None => {
                    for part in row.chunks(ops.len()) {
                        sum = ops.add(sum, load(isa, part));
                    }
                }
            }
            normalize_row(isa, row, ops.sum(sum), self.norm);
        }
    }
}

/// Layer norm of every row of `values`, in place.
pub(crate) fn normalize_rows(values: &mut [f32], norm: &NormWeights) {
    for_row_blocks(values, norm.gamma.len(), |rows| {
        NormRows {
            rows,
            added: None,
            norm,
        }
        .dispatch();
    });
}

/// Adds `bias` and the rows of `residual` to the rows of `values`, and normalises them, in place.
pub(super) fn add_and_normalize_rows(values: &mut [f32], bias: &[f32], residual: &[f32], norm: &NormWeights) {
    let width = norm.gamma.len();
    let work = |rows: &mut [f32], residual: &[f32]| {
        NormRows {
            rows,
            added: Some((bias, residual)),
            norm,
        }
        .dispatch();
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
