//! Attention of texts that lie one after another.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::math::{exp, largest};
use super::rows::{PARALLEL_VALUES, values};

/// Rows of a matrix product that are computed together: as many accumulators hide the latency of the multiply-add.
const TILE_ROWS: usize = 8;

/// Rows of scores that are kept at once; at 256 columns they fit the first-level cache.
const SCORE_ROWS: usize = 16;

/// What masks the columns that pad a row of scores to whole vectors.
const NO_SCORE: f32 = f32::MIN / 2.0;

/// What attention needs for one head of one text. Kept, it saves allocations.
#[derive(Default)]
pub(crate) struct AttentionBuffers {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    context: Vec<f32>,
}

/// Attention of one text, or of some of its rows.
pub(crate) struct Attend<'a> {
    /// Queries, keys and values of the whole text side by side, `[tokens, 3 * hidden]`, without bias.
    pub(crate) projected: &'a [f32],
    /// Bias of queries, keys and values, `[3 * hidden]`.
    pub(crate) bias: &'a [f32],
    /// Attention heads.
    pub(crate) heads: usize,
    /// The first row to compute; as many are computed as `out` holds.
    pub(crate) first_row: usize,
    /// Whatever they hold is overwritten.
    pub(crate) buffers: &'a mut AttentionBuffers,
    /// `[rows, hidden]`.
    pub(crate) out: &'a mut [f32],
}

/// At least `length` values; what they are does not matter.
fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

/// `TILE_ROWS` rows of `a` (each of `inner` values, `a_stride` apart) times a panel of one vector of columns (`inner`
/// vectors), written to `out` with rows `out_stride` apart.
#[inline(always)]
fn multiply_tile<I: Isa>(
    isa: I,
    a: &[f32],
    a_stride: usize,
    inner: usize,
    panel: &[f32],
    out: &mut [f32],
    out_stride: usize,
) {
    let ops = isa.f32();
    let rows: [&[f32]; TILE_ROWS] = std::array::from_fn(|index| &a[index * a_stride..][..inner]);
    let mut sums = [ops.zero(); TILE_ROWS];
    for (index, columns) in panel[..inner * ops.len()].chunks_exact(ops.len()).enumerate() {
        let columns = ops.load(columns);
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum = ops.mul_add(ops.splat(row[index]), columns, *sum);
        }
    }
    for (index, sum) in sums.into_iter().enumerate() {
        ops.store(sum, &mut out[index * out_stride..][..ops.len()]);
    }
}

/// Turns a row of scores into weights that are not yet divided by their sum, which it returns.
#[inline(always)]
fn exponentials<I: Isa>(isa: I, scores: &mut [f32]) -> f32 {
    let ops = isa.f32();
    let mut maximum = ops.splat(NO_SCORE);
    for part in scores.chunks_exact(ops.len()) {
        maximum = ops.max(maximum, ops.load(part));
    }
    let maximum = ops.splat(largest(maximum));
    let mut sum = ops.zero();
    for part in scores.chunks_exact_mut(ops.len()) {
        let weight = exp(isa, ops.sub(ops.load(part), maximum));
        ops.store(weight, part);
        sum = ops.add(sum, weight);
    }
    ops.sum(sum)
}

impl SimdOp for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let Self {
            projected,
            bias,
            heads,
            first_row,
            buffers,
            out,
        } = self;
        let lanes = isa.f32().len();
        let stride = bias.len();
        let hidden = stride / 3;
        let width = hidden / heads;
        let tokens = projected.len() / stride;
        let num_rows = out.len() / hidden;
        let key_panels = tokens.div_ceil(lanes);
        let value_panels = width.div_ceil(lanes);
        let padded_tokens = key_panels * lanes;
        let padded_width = value_panels * lanes;
        let scale = 1.0 / (width as f32).sqrt();

        let keys = sized(&mut buffers.keys, padded_tokens * width);
        let values = sized(&mut buffers.values, padded_width * tokens);
        let queries = sized(&mut buffers.queries, SCORE_ROWS * width);
        let scores = sized(&mut buffers.scores, SCORE_ROWS * padded_tokens);
        let context = sized(&mut buffers.context, SCORE_ROWS * padded_width);
        for head in 0..heads {
            let column = head * width;
            // Panels of keys: for each dimension the values of some tokens side by side. The keys' bias adds the
            // same to all scores of a row, which the softmax takes out again, so it is left out.
            for (token, row) in projected.chunks_exact(stride).enumerate() {
                let key = &row[hidden + column..hidden + column + width];
                let panel = &mut keys[token / lanes * lanes * width..];
                let slots = panel[token % lanes..].iter_mut().step_by(lanes);
                for (slot, value) in slots.zip(key) {
                    *slot = *value;
                }
                let value = &row[2 * hidden + column..2 * hidden + column + width];
                for (part, values_part) in value.chunks(lanes).enumerate() {
                    let start = (part * tokens + token) * lanes;
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
                // Rows past `rows` in the last tile, and columns past the text, hold what was there before: computed,
                // never read.
                for tile in (0..rows).step_by(TILE_ROWS) {
                    for panel in 0..key_panels {
                        multiply_tile(
                            isa,
                            &queries[tile * width..],
                            width,
                            width,
                            &keys[panel * lanes * width..][..lanes * width],
                            &mut scores[tile * padded_tokens + panel * lanes..],
                            padded_tokens,
                        );
                    }
                }
                let mut sums = [0f32; SCORE_ROWS];
                for (row, sum) in scores.chunks_exact_mut(padded_tokens).zip(&mut sums).take(rows) {
                    row[tokens..].fill(NO_SCORE);
                    *sum = exponentials(isa, row);
                }
                for tile in (0..rows).step_by(TILE_ROWS) {
                    for panel in 0..value_panels {
                        multiply_tile(
                            isa,
                            &scores[tile * padded_tokens..],
                            padded_tokens,
                            tokens,
                            &values[panel * tokens * lanes..][..tokens * lanes],
                            &mut context[tile * padded_width + panel * lanes..],
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
                tasks.push((text, first_row, part));
            }
            start += length;
        }
        let attend = |buffers: &mut AttentionBuffers, (projected, first_row, out)| {
            Attend {
                projected,
                bias: self.bias,
                heads: self.heads,
                first_row,
                buffers,
                out,
            }
            .dispatch();
        };
        if projected.len() < PARALLEL_VALUES {
            let mut buffers = AttentionBuffers::default();
            for task in tasks {
                attend(&mut buffers, task);
            }
        } else {
            tasks.into_par_iter().for_each_init(AttentionBuffers::default, attend);
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
