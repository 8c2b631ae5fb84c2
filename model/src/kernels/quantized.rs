//! What stands between two products of 8-bit integers: sums back to values, the operation on them, and values to 8 bits
//! again, in one go.
//!
//! A row of activations is quantised by itself: `value = scale * (byte - zero)`, where the scale covers the row's range
//! from its smallest to its largest value. So a token's bytes do not depend on what else is in the batch.

use rten_simd::ops::{BitOps, FloatOps, NarrowSaturate, NumOps, ToFloat};
use rten_simd::{Isa, SimdOp};

use super::math::{gelu, largest, load, load_or, smallest, store};
use super::norm::{NormWeights, Range, normalize_row};

/// Rows of bytes, and what they stand for.
#[derive(Default)]
pub(crate) struct QuantizedRows {
    /// `[rows, width]`.
    pub(crate) bytes: Vec<u8>,
    /// Scale of each row.
    pub(crate) scales: Vec<f32>,
    /// The byte that stands for 0 in each row.
    pub(crate) zeros: Vec<u8>,
}

impl QuantizedRows {
    /// Makes it `rows` rows of `width` bytes; what they are is left open.
    pub(crate) fn resize(&mut self, rows: usize, width: usize) {
        self.bytes.resize(rows * width, 0);
        self.scales.resize(rows, 0.0);
        self.zeros.resize(rows, 0);
    }
}

/// Sums of products of activations and weights, as bytes.
#[derive(Clone, Copy)]
pub(crate) struct Sums<'a> {
    /// `[rows, columns]`.
    pub(crate) sums: &'a [i32],
    /// Scale of each row of activations.
    pub(crate) row_scales: &'a [f32],
    /// The byte that stands for 0 in each row of activations.
    pub(crate) row_zeros: &'a [u8],
    /// Scale of each column of weights.
    pub(crate) column_scales: &'a [f32],
    /// Sum of the bytes of each column of weights: as often as that, a row's zero is in a sum and must be taken out.
    pub(crate) column_sums: &'a [f32],
}

/// A row of sums, its scale and its zero.
type SumsRow<'a> = (&'a [i32], f32, f32);

impl<'a> Sums<'a> {
    fn rows(self) -> impl Iterator<Item = SumsRow<'a>> {
        let rows = self.sums.chunks_exact(self.column_scales.len());
        let quantized = self.row_scales.iter().zip(self.row_zeros);
        rows.zip(quantized)
            .map(|(sums, (scale, zero))| (sums, *scale, f32::from(*zero)))
    }

    /// Scales and sums of the columns, `lanes` at a time.
    fn columns(self, lanes: usize) -> impl Iterator<Item = (&'a [f32], &'a [f32])> {
        self.column_scales.chunks(lanes).zip(self.column_sums.chunks(lanes))
    }
}

/// The values that some sums of a row stand for.
#[inline(always)]
fn rescale<I: Isa>(
    isa: I,
    sums: &[i32],
    (scale, zero): (I::F32, I::F32),
    (column_scales, column_sums): (&[f32], &[f32]),
) -> I::F32 {
    let integers = isa.i32();
    let sums = if sums.len() >= integers.len() {
        integers.load(sums)
    } else {
        integers.load_pad(sums).0
    };
    let ops = isa.f32();
    let zeros = ops.mul(zero, load(isa, column_sums));
    let scale = ops.mul(scale, load(isa, column_scales));
    ops.mul(ops.sub(integers.to_float(sums), zeros), scale)
}

/// Writes `row`, the values of which lie in `range`, as bytes; gives their scale and the byte that stands for 0.
#[inline(always)]
fn quantize_row<I: Isa>(isa: I, row: &[f32], range: Range, out: &mut [u8]) -> (f32, u8) {
    let ops = isa.f32();
    // With 0 in the range, it has a byte. A row of zeros alone may have any scale.
    let (low, high) = (range.low.min(0.0), range.high.max(0.0));
    let scale = if high > low { (high - low) / 255.0 } else { 1.0 };
    let zero = (-low / scale).round_ties_even();
    let (factor, shift) = (ops.splat(1.0 / scale), ops.splat(zero));
    let quantize = |part: &[f32]| ops.to_int_round(ops.mul_add(ops.load(part), factor, shift));
    let lanes = ops.len();
    let (mut row, mut out) = (row, out);
    while row.len() >= 4 * lanes {
        let low = isa.i32().narrow_saturate(quantize(row), quantize(&row[lanes..]));
        let high = isa
            .i32()
            .narrow_saturate(quantize(&row[2 * lanes..]), quantize(&row[3 * lanes..]));
        isa.u8().store(isa.i16().narrow_saturate(low, high), out);
        row = &row[4 * lanes..];
        out = &mut out[4 * lanes..];
    }
    for (byte, value) in out.iter_mut().zip(row) {
        *byte = (value / scale + zero).round_ties_even() as u8;
    }
    (scale, zero as u8)
}

/// Writes rows of values as bytes.
pub(crate) struct Quantize<'a> {
    /// `[rows, width]`.
    pub(crate) rows: &'a [f32],
    /// Values of a row.
    pub(crate) width: usize,
    /// As many rows.
    pub(crate) out: &'a mut QuantizedRows,
}

impl SimdOp for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let rows = self.rows.chunks_exact(self.width);
        for (index, (row, bytes)) in rows.zip(self.out.bytes.chunks_exact_mut(self.width)).enumerate() {
            let (mut low, mut high) = (ops.zero(), ops.zero());
            for part in row.chunks(ops.len()) {
                let values = load(isa, part);
                low = ops.min(low, values);
                high = ops.max(high, values);
            }
            let range = Range {
                low: smallest(low),
                high: largest(high),
            };
            (self.out.scales[index], self.out.zeros[index]) = quantize_row(isa, row, range, bytes);
        }
    }
}

/// Turns sums into values, without a bias.
pub(crate) struct Rescale<'a> {
    /// The sums.
    pub(crate) sums: Sums<'a>,
    /// Of the same shape.
    pub(crate) out: &'a mut [f32],
}

impl SimdOp for Rescale<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let width = self.sums.column_scales.len();
        for ((sums, scale, zero), out) in self.sums.rows().zip(self.out.chunks_exact_mut(width)) {
            let row = (ops.splat(scale), ops.splat(zero));
            let columns = sums.chunks(ops.len()).zip(self.sums.columns(ops.len()));
            for (out, (sums, columns)) in out.chunks_mut(ops.len()).zip(columns) {
                store(isa, rescale(isa, sums, row, columns), out);
            }
        }
    }
}

/// Turns sums into values, adds the bias and the residual, and normalises.
pub(crate) struct AddNorm<'a> {
    /// The sums.
    pub(crate) sums: Sums<'a>,
    /// One value for each column.
    pub(crate) bias: &'a [f32],
    /// The residual; overwritten with the result.
    pub(crate) state: &'a mut [f32],
    /// The norm.
    pub(crate) norm: &'a NormWeights,
    /// The result as bytes, if the next product needs them.
    pub(crate) out: Option<&'a mut QuantizedRows>,
}

impl SimdOp for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let mut out = self.out;
        let width = self.bias.len();
        let rows = self.sums.rows().zip(self.state.chunks_exact_mut(width));
        for (index, ((sums, scale, zero), state)) in rows.enumerate() {
            let row = (ops.splat(scale), ops.splat(zero));
            let mut total = ops.zero();
            let columns = sums.chunks(ops.len()).zip(self.sums.columns(ops.len()));
            let columns = columns.zip(self.bias.chunks(ops.len()));
            for (part, ((sums, columns), bias)) in state.chunks_mut(ops.len()).zip(columns) {
                let added = ops.add(load(isa, part), load(isa, bias));
                let value = ops.add(rescale(isa, sums, row, columns), added);
                store(isa, value, part);
                total = ops.add(total, value);
            }
            let range = normalize_row(isa, state, ops.sum(total), self.norm);
            if let Some(out) = out.as_deref_mut() {
                let bytes = &mut out.bytes[index * width..(index + 1) * width];
                (out.scales[index], out.zeros[index]) = quantize_row(isa, state, range, bytes);
            }
        }
    }
}

/// Turns sums into values, adds the bias, applies the exact GELU and writes bytes.
pub(crate) struct BiasGeluQuantize<'a> {
    /// The sums.
    pub(crate) sums: Sums<'a>,
    /// One value for each column.
    pub(crate) bias: &'a [f32],
    /// For one row of values.
    pub(crate) row: &'a mut [f32],
    /// As many rows.
    pub(crate) out: &'a mut QuantizedRows,
}

impl SimdOp for BiasGeluQuantize<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let width = self.bias.len();
        let rows = self.sums.rows().zip(self.out.bytes.chunks_exact_mut(width));
        for (index, ((sums, scale, zero), bytes)) in rows.enumerate() {
            let row = (ops.splat(scale), ops.splat(zero));
            let (mut low, mut high) = (ops.zero(), ops.zero());
            let columns = sums.chunks(ops.len()).zip(self.sums.columns(ops.len()));
            let columns = columns.zip(self.bias.chunks(ops.len()));
            for (part, ((sums, columns), bias)) in self.row.chunks_mut(ops.len()).zip(columns) {
                let value = ops.add(rescale(isa, sums, row, columns), load(isa, bias));
                store(isa, gelu(isa, value), part);
                low = ops.min(low, load_or(isa, part, low));
                high = ops.max(high, load_or(isa, part, high));
            }
            let range = Range {
                low: smallest(low),
                high: largest(high),
            };
            (self.out.scales[index], self.out.zeros[index]) = quantize_row(isa, self.row, range, bytes);
        }
    }
}
