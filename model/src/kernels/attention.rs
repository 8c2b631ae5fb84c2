//! Attention of texts that lie one after another.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, Simd, SimdOp};

use super::math::{exp, load, store};
use super::rows::{PARALLEL_VALUES, values};

/// The rows of a task, when a text is divided, are a multiple of this: of the lanes of any vector.
const TASK_ROWS: usize = 16;

/// Keys, or queries, that are computed together: as many accumulators hide the latency of the multiply-add.
const TILE: usize = 8;
/// The same where there are 32 registers and a load feeds fewer additions.
const LONG_TILE: usize = 16;

/// What attention needs for one head and as many queries as a vector has lanes. Kept, it saves allocations.
#[derive(Default)]
pub(crate) struct AttentionBuffers {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
}

/// Attention of one text, or of some of its rows.
///
/// A vector holds the same for some queries, side by side: so the softmax needs no sums across lanes, and what each key
/// weighs for the queries is at hand when the values are summed up. Keys and values of a head are copied together first:
/// where they lie, they are a row of all heads apart, and rows so long fall on a few sets of the cache.
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

/// Scores of a tile of keys, `[width, TILE]`, for the queries side by side in `queries`, a vector of them for each
/// dimension; a vector of scores for each key goes to `scores`.
#[inline(always)]
fn score<I: Isa, const TILE: usize>(isa: I, keys: &[[f32; TILE]], queries: &[f32], scores: &mut [f32]) {
    let ops = isa.f32();
    let mut sums = [ops.zero(); TILE];
    for (queries, keys) in queries.chunks_exact(ops.len()).zip(keys) {
        let queries = ops.load(queries);
        for (sum, key) in sums.iter_mut().zip(keys) {
            *sum = ops.mul_add(ops.splat(*key), queries, *sum);
        }
    }
    for (sum, scores) in sums.into_iter().zip(scores.chunks_exact_mut(ops.len())) {
        ops.store(sum, scores);
    }
}

/// Turns the scores of all keys into weights that are not yet divided by their sum, which it returns for each query.
#[inline(always)]
fn exponentials<I: Isa>(isa: I, scores: &mut [f32]) -> I::F32 {
    let ops = isa.f32();
    let mut most = ops.splat(f32::MIN);
    for scores in scores.chunks_exact(ops.len()) {
        most = ops.max(most, ops.load(scores));
    }
    let mut sum = ops.zero();
    for scores in scores.chunks_exact_mut(ops.len()) {
        let weights = exp(isa, ops.sub(ops.load(scores), most));
        ops.store(weights, scores);
        sum = ops.add(sum, weights);
    }
    sum
}

impl SimdOp for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        if isa.f32().len() >= LONG_TILE {
            self.attend::<I, LONG_TILE>(isa);
        } else {
            self.attend::<I, TILE>(isa);
        }
    }
}

impl Attend<'_> {
    #[inline(always)]
    fn attend<I: Isa, const TILE: usize>(self, isa: I) {
        let Self {
            projected,
            bias,
            heads,
            first_row,
            buffers,
            out,
        } = self;
        let ops = isa.f32();
        let lanes = ops.len();
        let stride = bias.len();
        let hidden = stride / 3;
        let width = hidden / heads;
        let tokens = projected.len() / stride;
        let num_rows = out.len() / hidden;
        let scale = 1.0 / (width as f32).sqrt();

        let value_panels = width.div_ceil(lanes);
        // Past the last key, the last tile holds what was there before, and so do the lanes past the width: computed,
        // never read.
        let keys = sized(&mut buffers.keys, tokens.next_multiple_of(TILE) * width);
        let (keys, _) = keys.as_chunks_mut::<TILE>();
        let values = sized(&mut buffers.values, value_panels * tokens * lanes);
        let queries = sized(&mut buffers.queries, width * lanes);
        let scores = sized(&mut buffers.scores, tokens.next_multiple_of(TILE) * lanes);
        for head in 0..heads {
            let column = head * width;
            let part = |token: usize, which: usize| -> &[f32] {
                let start = token * stride + which * hidden + column;
                &projected[start..start + width]
            };
            for token in 0..tokens {
                let tile = &mut keys[token / TILE * width..][..width];
                for (slots, value) in tile.iter_mut().zip(part(token, 1)) {
                    slots[token % TILE] = *value;
                }
                for (panel, value) in part(token, 2).chunks(lanes).enumerate() {
                    values[(panel * tokens + token) * lanes..][..value.len()].copy_from_slice(value);
                }
            }
            let query_bias = &bias[column..column + width];
            let value_bias = &bias[2 * hidden + column..2 * hidden + column + width];
            for block in (0..num_rows).step_by(lanes) {
                // Lanes past `rows` hold what was there before: computed, never read.
                let rows = lanes.min(num_rows - block);
                for lane in 0..rows {
                    let slots = queries[lane..].iter_mut().step_by(lanes);
                    let query = part(first_row + block + lane, 0).iter().zip(query_bias);
                    for (slot, (value, bias)) in slots.zip(query) {
                        *slot = (value + bias) * scale;
                    }
                }
                // The keys' bias adds the same to all scores of a query, which the softmax takes out again, so it is
                // left out.
                let tiles = keys.chunks_exact(width).zip(scores.chunks_exact_mut(TILE * lanes));
                for (keys, scores) in tiles {
                    score(isa, keys, queries, scores);
                }
                let sums = exponentials(isa, &mut scores[..tokens * lanes]).to_array();
                for (panel, values) in values.chunks_exact(tokens * lanes).enumerate() {
                    let start = panel * lanes;
                    let end = width.min(start + lanes);
                    let value_bias = load(isa, &value_bias[start..end]);
                    for query in (0..rows).step_by(TILE) {
                        let mut totals = [ops.zero(); TILE];
                        for (weights, values) in scores.chunks_exact(lanes).zip(values.chunks_exact(lanes)) {
                            let values = ops.load(values);
                            // A tile may be wider than a vector; then its second half is not read.
                            for (index, total) in totals.iter_mut().enumerate() {
                                let weight = weights[(query + index) % lanes];
                                *total = ops.mul_add(ops.splat(weight), values, *total);
                            }
                        }
                        for (index, total) in totals.into_iter().enumerate().take(rows - query) {
                            let row = query + index;
                            // The weights of a row sum to one, so the values' bias can be added at the end.
                            let context = ops.mul_add(total, ops.splat(1.0 / sums[row]), value_bias);
                            let out = &mut out[(block + row) * hidden + column..];
                            store(isa, context, &mut out[start..end]);
                        }
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
            .next_multiple_of(TASK_ROWS);
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
