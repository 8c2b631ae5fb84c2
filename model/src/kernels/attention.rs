//! Attention of texts that lie one after another.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::math::exp;
use super::rows::{PARALLEL_VALUES, values};

/// Rows of a matrix product that are computed together: with two vectors of columns they keep eight
/// accumulators in registers, which hides the latency of the multiply-add.
const TILE_ROWS: usize = 4;

/// Rows of scores that are kept at once; at 256 columns they fit the first-level cache.
const SCORE_ROWS: usize = 16;

/// What masks the columns that pad a row of scores to whole vectors.
const NO_SCORE: f32 = f32::MIN / 2.0;

/// Attention of one text, or of some of its rows.
pub(super) struct Attend<'a> {
    /// Queries, keys and values of the whole text side by side, `[tokens, 3 * hidden]`, without bias.
    pub(super) projected: &'a [f32],
    /// Bias of queries, keys and values, `[3 * hidden]`.
    pub(super) bias: &'a [f32],
    pub(super) heads: usize,
    /// The first row to compute; as many are computed as `out` holds.
    pub(super) first_row: usize,
    /// `[rows, hidden]`.
    pub(super) out: &'a mut [f32],
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
pub(crate) struct PackedAttention<'a> {
    /// Tokens of each text.
    pub(crate) lengths: &'a [usize],
    /// Attention heads.
    pub(crate) heads: usize,
    /// Bias of queries, keys and values, `[3 * hidden]`.
    pub(crate) bias: &'a [f32],
}

impl PackedAttention<'_> {
    pub(super) fn run(&self, projected: &[f32]) -> Vec<f32> {
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
