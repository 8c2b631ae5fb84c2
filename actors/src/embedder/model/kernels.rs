//! The parts of a transformer layer that are not matrix products with weights, for the CPU: fused, vectorised,
//! and without intermediate tensors. The large products stay candle's.
//!
//! Vector instructions are chosen at run time (`pulp`), so one executable uses AVX2 or NEON where there is one
//! and runs without. Work is spread over rayon's threads, as candle's products are, when there is enough of it.
//!
//! The exponential is accurate to 2 ulp and erf to 1.5e-7, far inside what float32 sums of this size keep.

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, InplaceOp2, Layout, Result, Shape};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Values below which a pass over a matrix is not worth waking another thread for.
const PARALLEL_VALUES: usize = 32 * 1024;

/// Rows of a matrix product that are computed together: with two vectors of columns they keep eight
/// accumulators in registers, which hides the latency of the multiply-add.
const TILE_ROWS: usize = 4;

/// Rows of scores that are kept at once; at 256 columns they fit the first-level cache.
const SCORE_ROWS: usize = 16;

/// What masks the columns that pad a row of scores to whole vectors.
const NO_SCORE: f32 = f32::MIN / 2.0;

/// e^x for each lane, by range reduction and the polynomial of Cephes' `expf`.
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding this leaves the nearest integer in the low bits of the mantissa.
    let magic = simd.splat_f32s(12_582_912.0);
    // Outside these bounds the result would leave the normal range.
    let x = simd.max_f32s(simd.min_f32s(x, simd.splat_f32s(88.0)), simd.splat_f32s(-87.0));
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), magic);
    let power = simd.sub_f32s(shifted, magic);
    // ln 2 in two parts, the first of which is exact in few bits.
    let r = simd.mul_add_e_f32s(power, simd.splat_f32s(-355.0 / 512.0), x);
    let r = simd.mul_add_e_f32s(power, simd.splat_f32s(2.121_944_4e-4), r);
    let mut poly = simd.splat_f32s(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        poly = simd.mul_add_e_f32s(poly, r, simd.splat_f32s(coefficient));
    }
    let one_plus_r = simd.add_f32s(r, simd.splat_f32s(1.0));
    let fraction = simd.mul_add_e_f32s(poly, simd.mul_f32s(r, r), one_plus_r);
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(fraction), exponent))
}

/// The exact GELU, x/2 (1 + erf(x/sqrt 2)), with erf by Abramowitz and Stegun 7.1.26.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    let zero = splat(0.0);
    let magnitude = simd.max_f32s(x, simd.sub_f32s(zero, x));
    let z = simd.mul_f32s(magnitude, splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = simd.div_f32s(splat(1.0), simd.mul_add_e_f32s(z, splat(0.327_591_1), splat(1.0)));
    let mut poly = splat(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        poly = simd.mul_add_e_f32s(poly, t, splat(coefficient));
    }
    // 1 - erf(z)
    let tail = simd.mul_f32s(
        simd.mul_f32s(poly, t),
        exp(simd, simd.mul_f32s(simd.sub_f32s(zero, z), z)),
    );
    // x/2 (2 - tail) for positive x and x/2 tail for negative x, in one expression.
    let half = simd.mul_f32s(magnitude, splat(-0.5));
    simd.mul_add_e_f32s(half, tail, simd.max_f32s(x, zero))
}

struct BiasGelu<'a> {
    rows: &'a mut [f32],
    bias: &'a [f32],
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

/// Runs `work` on blocks of whole rows, on several threads if there is enough to do.
fn for_row_blocks(values: &mut [f32], width: usize, work: impl Fn(&mut [f32]) + Send + Sync) {
    if values.len() < PARALLEL_VALUES {
        return work(values);
    }
    let num_rows = values.len() / width;
    let rows_per_block = num_rows.div_ceil(rayon::current_num_threads()).max(1);
    values.par_chunks_mut(rows_per_block * width).for_each(work);
}

/// Weights of a layer norm, on the CPU.
pub(super) struct NormWeights {
    /// Scale per column.
    pub(super) gamma: Vec<f32>,
    /// Shift per column.
    pub(super) beta: Vec<f32>,
    /// Added to the variance.
    pub(super) epsilon: f32,
}

struct NormRows<'a> {
    rows: &'a mut [f32],
    /// Added to every row, with the residual.
    added: Option<(&'a [f32], &'a [f32])>,
    norm: &'a NormWeights,
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
pub(super) fn normalize_rows(values: &mut [f32], norm: &NormWeights) {
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

/// Attention of one text, or of some of its rows.
struct Attend<'a> {
    /// Queries, keys and values of the whole text side by side, `[tokens, 3 * hidden]`, without bias.
    projected: &'a [f32],
    /// Bias of queries, keys and values, `[3 * hidden]`.
    bias: &'a [f32],
    heads: usize,
    /// The first row to compute; as many as `out` has room for.
    first_row: usize,
    /// `[rows, hidden]`.
    out: &'a mut [f32],
}

/// `TILE_ROWS` rows of `a` (each of `inner` values, `a_stride` apart) times a panel of two vectors of columns
/// (`inner` rows of two vectors), written to `out` with rows `out_stride` apart.
#[inline(always)]
fn multiply_tile<S: Simd>(
    simd: S,
    a: &[f32],
    a_stride: usize,
    inner: usize,
    panel: &[f32],
    out: &mut [f32],
    out_stride: usize,
) {
    let (panel, _) = S::as_simd_f32s(panel);
    let row = |index: usize| &a[index * a_stride..index * a_stride + inner];
    let (row0, row1, row2, row3) = (row(0), row(1), row(2), row(3));
    let zero = simd.splat_f32s(0.0);
    let (mut left0, mut left1, mut left2, mut left3) = (zero, zero, zero, zero);
    let (mut right0, mut right1, mut right2, mut right3) = (zero, zero, zero, zero);
    for ((((columns, a0), a1), a2), a3) in panel.chunks_exact(2).zip(row0).zip(row1).zip(row2).zip(row3) {
        let (left, right) = (columns[0], columns[1]);
        let a0 = simd.splat_f32s(*a0);
        left0 = simd.mul_add_e_f32s(a0, left, left0);
        right0 = simd.mul_add_e_f32s(a0, right, right0);
        let a1 = simd.splat_f32s(*a1);
        left1 = simd.mul_add_e_f32s(a1, left, left1);
        right1 = simd.mul_add_e_f32s(a1, right, right1);
        let a2 = simd.splat_f32s(*a2);
        left2 = simd.mul_add_e_f32s(a2, left, left2);
        right2 = simd.mul_add_e_f32s(a2, right, right2);
        let a3 = simd.splat_f32s(*a3);
        left3 = simd.mul_add_e_f32s(a3, left, left3);
        right3 = simd.mul_add_e_f32s(a3, right, right3);
    }
    let lanes = S::F32_LANES;
    for (index, (left, right)) in [(left0, right0), (left1, right1), (left2, right2), (left3, right3)]
        .into_iter()
        .enumerate()
    {
        let start = index * out_stride;
        simd.partial_store_f32s(&mut out[start..start + lanes], left);
        simd.partial_store_f32s(&mut out[start + lanes..start + 2 * lanes], right);
    }
}

/// Turns a row of scores into weights that are not yet divided by their sum, which it returns.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32]) -> f32 {
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let mut largest = simd.splat_f32s(NO_SCORE);
    for score in scores.iter() {
        largest = simd.max_f32s(largest, *score);
    }
    let largest = simd.splat_f32s(simd.reduce_max_f32s(largest));
    let mut sum = simd.splat_f32s(0.0);
    for score in scores.iter_mut() {
        *score = exp(simd, simd.sub_f32s(*score, largest));
        sum = simd.add_f32s(sum, *score);
    }
    simd.reduce_sum_f32s(sum)
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            projected,
            bias,
            heads,
            first_row,
            out,
        } = self;
        let stride = bias.len();
        let hidden = stride / 3;
        let width = hidden / heads;
        let tokens = projected.len() / stride;
        let num_rows = out.len() / hidden;
        let panel_width = 2 * S::F32_LANES;
        let key_panels = tokens.div_ceil(panel_width);
        let value_panels = width.div_ceil(panel_width);
        let padded_tokens = key_panels * panel_width;
        let padded_width = value_panels * panel_width;
        let scale = 1.0 / (width as f32).sqrt();

        let mut keys = vec![0f32; padded_tokens * width];
        let mut values = vec![0f32; padded_width * tokens];
        let mut queries = vec![0f32; SCORE_ROWS * width];
        let mut scores = vec![0f32; SCORE_ROWS * padded_tokens];
        let mut context = vec![0f32; SCORE_ROWS * padded_width];
        for head in 0..heads {
            let column = head * width;
            // Panels of keys: for each dimension the values of some tokens side by side. The keys' bias adds the
            // same to all scores of a row, which the softmax takes out again, so it is left out.
            for (token, row) in projected.chunks_exact(stride).enumerate() {
                let key = &row[hidden + column..hidden + column + width];
                let panel = &mut keys[token / panel_width * panel_width * width..];
                let slots = panel[token % panel_width..].iter_mut().step_by(panel_width);
                for (slot, value) in slots.zip(key) {
                    *slot = *value;
                }
                let value = &row[2 * hidden + column..2 * hidden + column + width];
                for (part, values_part) in value.chunks(panel_width).enumerate() {
                    let start = (part * tokens + token) * panel_width;
                    values[start..start + values_part.len()].copy_from_slice(values_part);
                }
            }
            let query_bias = &bias[column..column + width];
            let value_bias = &bias[2 * hidden + column..2 * hidden + column + width];
            for block in (0..num_rows).step_by(SCORE_ROWS) {
                let rows = SCORE_ROWS.min(num_rows - block);
                for (index, query) in queries.chunks_exact_mut(width).take(rows).enumerate() {
                    let start = (first_row + block + index) * stride + column;
                    let source = &projected[start..start + width];
                    for ((slot, value), bias) in query.iter_mut().zip(source).zip(query_bias) {
                        *slot = (value + bias) * scale;
                    }
                }
                // Rows past `rows` in the last tile hold what was there before: computed, never read.
                for tile in (0..rows).step_by(TILE_ROWS) {
                    for panel in 0..key_panels {
                        multiply_tile(
                            simd,
                            &queries[tile * width..],
                            width,
                            width,
                            &keys[panel * panel_width * width..][..panel_width * width],
                            &mut scores[tile * padded_tokens + panel * panel_width..],
                            padded_tokens,
                        );
                    }
                }
                let mut sums = [0f32; SCORE_ROWS];
                for (row, sum) in scores.chunks_exact_mut(padded_tokens).zip(&mut sums).take(rows) {
                    row[tokens..].fill(NO_SCORE);
                    *sum = exponentials(simd, row);
                }
                for tile in (0..rows).step_by(TILE_ROWS) {
                    for panel in 0..value_panels {
                        multiply_tile(
                            simd,
                            &scores[tile * padded_tokens..],
                            padded_tokens,
                            tokens,
                            &values[panel * tokens * panel_width..][..tokens * panel_width],
                            &mut context[tile * padded_width + panel * panel_width..],
                            padded_width,
                        );
                    }
                }
                for (index, (row, sum)) in context.chunks_exact(padded_width).zip(sums).take(rows).enumerate() {
                    let start = (block + index) * hidden + column;
                    let share = 1.0 / sum;
                    // The weights of a row sum to one, so the values' bias can be added at the end.
                    for ((slot, value), bias) in out[start..start + width].iter_mut().zip(row).zip(value_bias) {
                        *slot = value * share + bias;
                    }
                }
            }
        }
    }
}

/// Attention of consecutive texts over `[tokens, 3 * hidden]` (queries, keys, values side by side, without their
/// bias) to `[tokens, hidden]`. No text sees another.
pub(super) struct PackedAttention<'a> {
    /// Tokens of each text.
    pub(super) lengths: &'a [usize],
    /// Attention heads.
    pub(super) heads: usize,
    /// Bias of queries, keys and values, `[3 * hidden]`.
    pub(super) bias: &'a [f32],
}

impl PackedAttention<'_> {
    fn run(&self, projected: &[f32]) -> Vec<f32> {
        let stride = self.bias.len();
        let hidden = stride / 3;
        let tokens: usize = self.lengths.iter().sum();
        let mut out = vec![0f32; tokens * hidden];
        // A task per text, or several for a long text when there are few.
        let rows_per_task = tokens
            .div_ceil(rayon::current_num_threads())
            .next_multiple_of(SCORE_ROWS);
        let mut tasks = Vec::new();
        let mut rest = out.as_mut_slice();
        let mut start = 0;
        for length in self.lengths {
            let text = &projected[start * stride..(start + length) * stride];
            for first_row in (0..*length).step_by(rows_per_task) {
                let rows = rows_per_task.min(length - first_row);
                let (part, others) = rest.split_at_mut(rows * hidden);
                rest = others;
                tasks.push(Attend {
                    projected: text,
                    bias: self.bias,
                    heads: self.heads,
                    first_row,
                    out: part,
                });
            }
            start += length;
        }
        let arch = Arch::new();
        if projected.len() < PARALLEL_VALUES {
            for task in tasks {
                arch.dispatch(task);
            }
        } else {
            tasks.into_par_iter().for_each(|task| arch.dispatch(task));
        }
        out
    }
}

/// The values of a contiguous float32 tensor.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a fused kernel needs a contiguous tensor"),
    }
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("a fused kernel needs a contiguous float32 tensor"),
    }
}

impl CustomOp1 for PackedAttention<'_> {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.run(values(storage, layout)?);
        let hidden = self.bias.len() / 3;
        let shape = Shape::from((out.len() / hidden, hidden));
        Ok((CpuStorage::F32(out), shape))
    }
}

/// [`add_bias_and_gelu`] on a tensor.
pub(super) struct BiasGeluOp<'a> {
    /// One value per column.
    pub(super) bias: &'a [f32],
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

/// [`add_and_normalize_rows`] on a tensor, with the residual as the source.
pub(super) struct AddNormOp<'a> {
    /// One value per column.
    pub(super) bias: &'a [f32],
    /// The norm.
    pub(super) norm: &'a NormWeights,
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

#[cfg(test)]
mod tests {
    use candle_core::{D, Device, Tensor};
    use proptest::prelude::*;
    use pulp::Scalar;

    use super::*;

    fn random(count: usize, seed: u64, range: f32) -> Vec<f32> {
        // A linear congruential sequence: reproducible and even enough.
        let mut state = seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493);
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * range
            })
            .collect()
    }

    fn assert_close(left: &[f32], right: &[f32], tolerance: f32) {
        assert_eq!(left.len(), right.len());
        for (index, (a, b)) in left.iter().zip(right).enumerate() {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} and {b} at {index}");
        }
    }

    fn tensor(values: &[f32], shape: (usize, usize)) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn to_vec(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    struct Exp<'a>(&'a mut [f32]);

    impl WithSimd for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for value in self.0 {
                let mut lanes = [0f32; 64];
                simd.partial_store_f32s(&mut lanes[..S::F32_LANES], exp(simd, simd.splat_f32s(*value)));
                *value = lanes[0];
            }
        }
    }

    #[test]
    fn the_exponential_is_accurate_over_its_range() {
        let inputs: Vec<f32> = (-8700..=8800).map(|step| step as f32 / 100.0).collect();
        let mut outputs = inputs.clone();
        Arch::new().dispatch(Exp(&mut outputs));
        for (input, output) in inputs.iter().zip(outputs) {
            let expected = f64::from(*input).exp();
            let error = (f64::from(output) / expected - 1.0).abs();
            assert!(error < 3e-7, "e^{input} is off by {error}");
        }
        let mut extremes = [f32::MIN, -1e10, 1e10, f32::MAX];
        Arch::new().dispatch(Exp(&mut extremes));
        assert!(extremes.iter().all(|value| value.is_finite() && *value >= 0.0));
        assert!(extremes[0] < 1e-37 && extremes[3] > 1e37);
    }

    #[test]
    fn gelu_is_the_exact_one() {
        let inputs: Vec<f32> = (-1200..=1200).map(|step| step as f32 / 100.0).collect();
        let expected = to_vec(&tensor(&inputs, (1, inputs.len())).gelu_erf().unwrap());
        let mut outputs = inputs.clone();
        add_bias_and_gelu(&mut outputs, &vec![0.0; inputs.len()]);
        assert_close(&outputs, &expected, 1e-6);
    }

    /// Attention by candle's general operations.
    fn plain_attention(projected: &[f32], bias: &[f32], heads: usize) -> Vec<f32> {
        let stride = bias.len();
        let (hidden, tokens) = (stride / 3, projected.len() / stride);
        let width = hidden / heads;
        let bias = Tensor::from_slice(bias, stride, &Device::Cpu).unwrap();
        let parts = tensor(projected, (tokens, stride))
            .broadcast_add(&bias)
            .unwrap()
            .reshape((tokens, 3, heads, width))
            .unwrap()
            .permute((1, 2, 0, 3))
            .unwrap()
            .contiguous()
            .unwrap();
        let part = |index: usize| parts.get(index).unwrap();
        let scores = part(0)
            .matmul(&part(1).transpose(D::Minus1, D::Minus2).unwrap())
            .unwrap();
        let scores = (scores * (1.0 / (width as f64).sqrt())).unwrap();
        let shares = candle_nn::ops::softmax_last_dim(&scores).unwrap();
        let context = shares.matmul(&part(2)).unwrap();
        to_vec(&context.transpose(0, 1).unwrap().contiguous().unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn attention_agrees_with_the_general_operations(
            lengths in proptest::collection::vec(1usize..70, 1..5),
            heads in 1usize..4,
            // Widths that are no multiple of a vector, too.
            width in prop_oneof![Just(5usize), Just(8), Just(16), Just(32), Just(40)],
            seed in any::<u64>(),
        ) {
            let stride = 3 * heads * width;
            let tokens: usize = lengths.iter().sum();
            let projected = random(tokens * stride, seed, 3.0);
            let bias = random(stride, seed ^ 1, 1.0);
            let packed = PackedAttention { lengths: &lengths, heads, bias: &bias }.run(&projected);
            let mut expected = Vec::new();
            let mut start = 0;
            for length in &lengths {
                let text = &projected[start * stride..(start + length) * stride];
                let plain = plain_attention(text, &bias, heads);
                // The same code without vector instructions.
                let mut scalar = vec![0f32; plain.len()];
                Attend { projected: text, bias: &bias, heads, first_row: 0, out: &mut scalar }.with_simd(Scalar);
                assert_close(&scalar, &plain, 1e-5);
                expected.extend(plain);
                start += length;
            }
            assert_close(&packed, &expected, 1e-5);
        }

        #[test]
        fn the_norm_agrees_with_the_general_operation(
            rows in 1usize..40,
            width in prop_oneof![Just(7usize), Just(32), Just(100), Just(384)],
            seed in any::<u64>(),
        ) {
            let values = random(rows * width, seed, 5.0);
            let residual = random(rows * width, seed ^ 1, 5.0);
            let bias = random(width, seed ^ 2, 1.0);
            let norm = NormWeights {
                gamma: random(width, seed ^ 3, 2.0),
                beta: random(width, seed ^ 4, 2.0),
                epsilon: 1e-12,
            };
            let vector = |values: &[f32]| Tensor::from_slice(values, width, &Device::Cpu).unwrap();
            let plain = candle_nn::LayerNorm::new(vector(&norm.gamma), vector(&norm.beta), 1e-12);
            let apply = |input: &Tensor| to_vec(&candle_nn::Module::forward(&plain, input).unwrap());
            let input = tensor(&values, (rows, width));

            let mut alone = values.clone();
            normalize_rows(&mut alone, &norm);
            assert_close(&alone, &apply(&input), 1e-4);

            let sum = (input + tensor(&residual, (rows, width))).unwrap();
            let sum = sum.broadcast_add(&vector(&bias)).unwrap();
            let mut added = values.clone();
            add_and_normalize_rows(&mut added, &bias, &residual, &norm);
            assert_close(&added, &apply(&sum), 1e-4);
            let mut scalar = values;
            NormRows { rows: &mut scalar, added: Some((&bias, &residual)), norm: &norm }.with_simd(Scalar);
            assert_close(&scalar, &added, 1e-4);
        }

        #[test]
        fn rows_that_are_no_multiple_of_a_vector_get_the_same_gelu(
            rows in 1usize..5,
            width in 1usize..70,
            seed in any::<u64>(),
        ) {
            let values = random(rows * width, seed, 6.0);
            let bias = random(width, seed ^ 1, 1.0);
            let mut vectors = values.clone();
            add_bias_and_gelu(&mut vectors, &bias);
            let mut scalar = values;
            BiasGelu { rows: &mut scalar, bias: &bias }.with_simd(Scalar);
            assert_close(&vectors, &scalar, 1e-6);
        }
    }
}
