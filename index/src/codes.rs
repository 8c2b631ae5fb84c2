//! Vectors as bytes: eight bits for each component, and one scale for the vector.
//!
//! A row's component x becomes `round(x / scale) + 128` as an unsigned byte, a query's `round(x / scale)` as a signed
//! one, with `scale = max |x| / 127`; the instructions that multiply bytes want one side of each kind. The rows of a
//! block are padded to a multiple of 64 bytes, with codes that a padded query multiplies by 0.

use crate::kernel::{Kernel, LANES, Planes, ROWS};
use crate::signs::word_of;
use crate::wiped::Wiped;

/// The code of zero.
const ZERO: u8 = 128;

/// Bytes of a row with so many components.
pub(crate) fn width(dimensions: usize) -> usize {
    dimensions.next_multiple_of(LANES)
}

/// The codes of a vector, appended, and its scale. A vector that is not finite counts as zero: its row is listed, and
/// no search prefers it.
pub(crate) fn push_codes(codes: &mut Wiped<u8>, vector: &[f32]) -> f32 {
    let start = codes.len();
    codes.push_filled(width(vector.len()), ZERO);
    let Some(scale) = scale(vector) else { return 0.0 };
    let factor = 1.0 / scale;
    for (code, component) in codes[start..].iter_mut().zip(vector) {
        *code = rounded(*component, factor).cast_unsigned().wrapping_add(ZERO);
    }
    scale
}

/// None where there is no direction: all is zero, or something is not finite.
fn scale(vector: &[f32]) -> Option<f32> {
    // The bits of positive numbers are in the order of the numbers, with those that are not finite at the end.
    let bits = vector.iter().map(|component| component.abs().to_bits());
    let largest = f32::from_bits(bits.fold(0, u32::max));
    // What is smaller has no reciprocal, and is nothing beside a length of 1.
    (largest.is_finite() && largest > 1e-30).then_some(largest / 127.0)
}

/// The integer nearest to `component * factor`, from -127 to 127.
fn rounded(component: f32, factor: f32) -> i8 {
    // With this added, the last bits of the sum are the integer, in two's complement.
    const MAGIC: f32 = 12_582_912.0;
    (component * factor + MAGIC).to_bits() as i8
}

/// A query as bytes.
pub(crate) struct Query {
    codes: Wiped<i8>,
    scale: f32,
    /// What the offset of the rows' codes adds to each sum.
    offset: i32,
    /// The length of the query.
    length: f32,
    kernel: Kernel,
}

impl Query {
    pub(crate) fn new(vector: &[f32]) -> Self {
        let mut codes = Wiped::new();
        codes.push_filled(width(vector.len()), 0_i8);
        let scale = scale(vector).unwrap_or(0.0);
        if scale > 0.0 {
            for (code, component) in codes.iter_mut().zip(vector) {
                *code = rounded(*component, 1.0 / scale);
            }
        }
        let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
        Self {
            offset: i32::from(ZERO) * sum,
            codes,
            scale,
            length: vector.iter().map(|component| component * component).sum::<f32>().sqrt(),
            kernel: Kernel::best(),
        }
    }

    /// The approximate products with the rows in `mask`; what stands in other places means nothing.
    #[inline]
    pub(crate) fn scores(&self, codes: &[u8], scales: &[f32; ROWS], mask: u64, scores: &mut [f32; ROWS]) {
        let mut sums = [0; ROWS];
        self.kernel.products(codes, &self.codes, mask, &mut sums);
        for ((score, sum), scale) in scores.iter_mut().zip(&sums).zip(scales) {
            *score = (sum - self.offset) as f32 * (scale * self.scale);
        }
    }

    /// Bytes of a row.
    pub(crate) fn width(&self) -> usize {
        self.codes.len()
    }

    /// The query in four bits: each component is from -7 to 7.
    pub(crate) fn planes(&self) -> Vec<Planes> {
        let codes = || self.codes.iter().map(|code| f32::from(*code));
        let mean_square = codes().map(|code| code * code).sum::<f32>() / self.codes.len() as f32;
        // A component far larger than the others would leave nothing of them.
        let largest = codes()
            .fold(0.0, |largest: f32, code| largest.max(code.abs()))
            .min(4.0 * mean_square.sqrt())
            .max(1.0);
        let words = self.codes.as_chunks::<LANES>().0.iter();
        words
            .map(|codes| {
                let small = codes.map(|code| (f32::from(code) * 7.0 / largest).round().clamp(-7.0, 7.0) as i8);
                [1, 2, 4, 8].map(|bit| word_of(small.map(|code| code & bit != 0)))
            })
            .collect()
    }

    /// How far the approximate product with a row of this scale may be from the exact one, whatever the vectors are
    /// (Cauchy and Schwarz on the rounding errors; the usual error is a tenth of it). The row has length 1.
    pub(crate) fn error_bound(&self, scale: f32, dimensions: usize) -> f32 {
        let root = (dimensions as f32).sqrt();
        let (row_error, query_error) = (scale / 2.0 * root, self.scale / 2.0 * root);
        // The last part is what 32-bit floating point adds.
        row_error * self.length + query_error * (1.0 + row_error) + 1e-4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_within_the_bound() {
        let vectors: Vec<Vec<f32>> = (0..64)
            .map(|row| {
                let vector: Vec<f32> = (0..100).map(|at| ((row * 131 + at * 17) as f32).sin()).collect();
                let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
                vector.iter().map(|x| x / length).collect()
            })
            .collect();
        let (mut codes, mut scales) = (Wiped::new(), [0.0; ROWS]);
        for (scale, vector) in scales.iter_mut().zip(&vectors) {
            *scale = push_codes(&mut codes, vector);
        }
        let query = Query::new(&vectors[5]);
        let mut scores = [0.0; ROWS];
        query.scores(&codes, &scales, u64::MAX, &mut scores);
        for (row, vector) in vectors.iter().enumerate() {
            let exact: f32 = vector.iter().zip(&vectors[5]).map(|(a, b)| a * b).sum();
            assert!((exact - scores[row]).abs() <= query.error_bound(scales[row], 100));
        }
        assert!((scores[5] - 1.0).abs() < 0.01);
    }

    #[test]
    fn what_has_no_direction_scores_zero() {
        let mut codes = Wiped::new();
        let scales = [f32::NAN, f32::INFINITY, 0.0].map(|bad| push_codes(&mut codes, &[0.0, bad]));
        assert_eq!(scales, [0.0; 3]);
        let mut scores = [1.0; ROWS];
        let query = Query::new(&[1.0, f32::NAN]);
        query.scores(&codes, &[0.0; ROWS], 0b111, &mut scores);
        assert_eq!(scores[..3], [0.0; 3]);
    }
}
