//! Vectors as bytes: eight bits for each component, and one scale for the vector.
//!
//! A row's component x becomes `round(x / scale) + 128` as an unsigned byte, a query's `round(x / scale)` as a signed
//! one, with `scale = max |x| / 127`; the instructions that multiply bytes want one side of each kind. The rows of a
//! block are padded to a multiple of 64 bytes, with codes that a padded query multiplies by 0.
//!
//! The product of codes is off by some thousandths; `residuals` has what makes it exact.

use std::fmt;

use crate::kernel::{Kernel, LANES, Planes, ROWS, dot};
use crate::residuals::{Digits, STEPS};
use crate::signs::word_of;
use crate::wiped::Wiped;

/// The code of zero.
pub(crate) const ZERO: u8 = 128;

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

/// How long rows are at most, to bound what is not known of a cosine before the residuals are read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extent {
    /// The length of the row.
    length: f32,
    /// The length of what its residuals say.
    residual: f32,
}

impl Extent {
    /// Of one row.
    pub(crate) fn of(digits: Digits<'_>, scale: f32) -> Self {
        let length_of = |column: &[u8]| {
            let squares = column.iter().map(|code| i32::from((code ^ ZERO).cast_signed()).pow(2));
            squares.sum::<i32>() as f32
        };
        let steps = length_of(digits.first).sqrt() / STEPS;
        // Half a step of the first residual is the most that a second one says.
        let second = (digits.second.len() as f32).sqrt() / 2.0 / STEPS;
        // For what floating point takes off.
        let residual = (steps + second) * scale * 1.000_1;
        Self {
            length: length_of(digits.codes).sqrt() * scale * 1.000_1 + residual,
            residual,
        }
    }

    /// Of both.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            length: self.length.max(other.length),
            residual: self.residual.max(other.residual),
        }
    }
}

/// A query vector, made ready to be compared with the rows of any index. It is overwritten when it is dropped.
#[derive(Clone)]
pub struct PreparedQuery {
    dimensions: usize,
    /// The query itself, padded as the codes are.
    components: Wiped<f32>,
    codes: Wiped<i8>,
    scale: f32,
    /// What the offset of the rows' codes adds to each sum.
    offset: i32,
    /// The length of the query.
    length: f32,
    /// The length of what the codes say.
    coded: f32,
    /// The length of what rounding to the codes left over.
    residual: f32,
    kernel: Kernel,
}

impl fmt::Debug for PreparedQuery {
    /// Not what it says.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PreparedQuery({} components)", self.dimensions)
    }
}

impl PreparedQuery {
    /// Takes some time in which a few dozen rows are compared. `vector` should have length 1, since what is called a
    /// cosine is the product with the vector as it is. One with a component that is not finite counts as zero: all
    /// cosines are 0.
    #[must_use]
    pub fn new(vector: &[f32]) -> Self {
        let (mut codes, mut components) = (Wiped::new(), Wiped::new());
        codes.push_filled(width(vector.len()), 0_i8);
        components.push_filled(width(vector.len()), 0.0_f32);
        let scale = scale(vector).unwrap_or(0.0);
        // Squares in steps of the scale, which are neither too large nor too small for a float.
        let [mut length, mut coded, mut residual] = [0.0; 3];
        if scale > 0.0 {
            let factor = 1.0 / scale;
            components[..vector.len()].copy_from_slice(vector);
            for (code, component) in codes.iter_mut().zip(vector) {
                *code = rounded(*component, factor);
                let steps = component * factor;
                length += steps.powi(2);
                coded += f32::from(*code).powi(2);
                residual += (steps - f32::from(*code)).powi(2);
            }
        }
        let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
        Self {
            dimensions: vector.len(),
            components,
            offset: i32::from(ZERO) * sum,
            codes,
            scale,
            // For what floating point takes off.
            length: length.sqrt() * scale * 1.000_1,
            coded: coded.sqrt() * scale * 1.000_1,
            residual: residual.sqrt() * scale * 1.000_1,
            kernel: Kernel::best(),
        }
    }

    /// How many components the query has.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.dimensions
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

    /// The product with a row, from all that is known of it.
    pub(crate) fn product(&self, row: Digits<'_>, scale: f32) -> f32 {
        let digit = |column: &[u8]| {
            if column.is_empty() {
                0.0
            } else {
                dot(column, &self.components)
            }
        };
        (digit(row.codes) + (digit(row.first) + digit(row.second) / STEPS) / STEPS) * scale
    }

    /// How far [`Self::scores`] may be from [`Self::product`] for rows of at most this extent. With the query as
    /// `codes + residual` and the row too, the difference is `residual * row + codes * (residual of the row)`, and no
    /// product is larger than that of the lengths (Cauchy and Schwarz). The residuals' lengths are known, not guessed:
    /// of vectors with 384 components and length 1 each is 0.008, so the bound is 0.016. The usual difference is less
    /// than a twentieth of that.
    pub(crate) fn bound(&self, extent: Extent) -> f32 {
        // What `dot` and the products after it may lose.
        let float = (self.codes.len() / LANES + 16) as f32 * f32::EPSILON * self.length * extent.length;
        let bound = self.residual * extent.length + self.coded * extent.residual + float;
        // Nothing is known where numbers have left what floats can say.
        if bound.is_nan() { f32::INFINITY } else { bound }
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
    use crate::residuals::Residuals;

    fn vectors() -> Vec<Vec<f32>> {
        let of_length_1 = |row: usize| {
            // The later, the more of it is in few components: the residuals of the last ones are the longest.
            let power = 1 + row as i32 / 16 * 4;
            let vector = (0..100).map(|at| ((row * 131 + at * 17) as f32).sin().powi(power));
            let vector: Vec<f32> = vector.collect();
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.iter().map(|x| x / length).collect()
        };
        (0..64).map(of_length_1).collect()
    }

    #[test]
    fn scores_are_within_the_bounds() {
        let vectors = vectors();
        let (mut codes, mut scales) = (Wiped::new(), [0.0; ROWS]);
        let mut residuals = Residuals::new();
        for (scale, vector) in scales.iter_mut().zip(&vectors) {
            let start = codes.len();
            *scale = push_codes(&mut codes, vector);
            residuals.push(vector, &codes[start..], *scale, 64);
        }
        for vector in &vectors {
            let query = PreparedQuery::new(vector);
            let mut scores = [0.0; ROWS];
            query.scores(&codes, &scales, u64::MAX, &mut scores);
            for (row, other) in vectors.iter().enumerate() {
                let exact: f32 = other.iter().zip(vector).map(|(a, b)| a * b).sum();
                assert!((exact - scores[row]).abs() <= query.error_bound(scales[row], 100));
                let digits = residuals.row(row, &codes[row * width(100)..(row + 1) * width(100)]);
                let product = query.product(digits, scales[row]);
                assert!((exact - product).abs() < 1e-5);
                let bound = query.bound(Extent::of(digits, scales[row]));
                assert!((product - scores[row]).abs() <= bound);
                assert!(bound <= query.error_bound(scales[row], 100));
            }
        }
    }

    #[test]
    fn what_has_no_direction_scores_zero() {
        let mut codes = Wiped::new();
        let scales = [f32::NAN, f32::INFINITY, 0.0].map(|bad| push_codes(&mut codes, &[0.0, bad]));
        assert_eq!(scales, [0.0; 3]);
        let mut scores = [1.0; ROWS];
        let query = PreparedQuery::new(&[1.0, f32::NAN]);
        query.scores(&codes, &[0.0; ROWS], 0b111, &mut scores);
        assert_eq!(scores[..3], [0.0; 3]);
    }
}
