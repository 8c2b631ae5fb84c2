//! What the codes of vectors leave over, so that cosines come out nearly as from the vectors themselves.
//!
//! A component x of a row with the scale s is `s * (c + d / 254 + e / 254^2)`. c is its code, from -127 to 127
//! (`codes`). d is the first residual: what rounding to c left over, at most half a step, in steps of 1/254, so it is
//! from -127 to 127 too. e is the second, the same of d; only rows with a large scale have it.
//!
//! **How exact that is.** With d, a component is off by at most s / 508, which is a 64,516th of the largest component
//! of the vector; the cosine with a query of length 1 by a standard deviation of s / 880. Up to a largest component of
//! 0.2 that is less than 2e-6. Where it is larger, which is rare with hundreds of components, there is a second
//! residual, and 32-bit floating point is all that is left of the error.
//!
//! Residuals stand in columns of their own: the scan of the codes does not read them.

use crate::codes::{ZERO, width};
use crate::wiped::{Lists, Wiped};

/// Steps of a residual in one step of the code before it: half a step on each side becomes 127.
pub(crate) const STEPS: f32 = 254.0;

/// The scale from which rows have a second residual: that of a vector whose largest component is 0.2. Up to it a
/// cosine's standard error is 1.8e-6, so that 1e-5 is far out in its tail.
const SECOND_FROM: f32 = 0.2 / 127.0;

/// The residuals of rows, row after row, as bytes with 128 for 0 and as long as the rows' codes.
#[derive(Clone, Debug)]
pub(crate) struct Residuals {
    first: Wiped<u8>,
    /// Of rows that have none, an empty list.
    second: Lists<u8>,
}

/// A row: its codes and its residuals. The residuals are empty where there are none.
#[derive(Clone, Copy)]
pub(crate) struct Digits<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) first: &'a [u8],
    pub(crate) second: &'a [u8],
}

impl Residuals {
    pub(crate) const fn new() -> Self {
        Self {
            first: Wiped::new(),
            second: Lists::new(),
        }
    }

    /// Appends the residuals of a row with these codes. Place is made for `rows` rows.
    pub(crate) fn push(&mut self, vector: &[f32], codes: &[u8], scale: f32, rows: usize) {
        let width = width(vector.len());
        self.first.reserve_total(rows * width);
        let start = self.first.len();
        self.first.push_filled(width, ZERO);
        if scale == 0.0 {
            self.second.push(&[]);
            return;
        }
        // In 64 bits: 32 have three digits at most.
        let factor = 1.0 / f64::from(scale);
        let steps = f64::from(STEPS);
        let left = |component: f32, code: u8| {
            let left = (f64::from(component) * factor - f64::from((code ^ ZERO).cast_signed())) * steps;
            let rounded = nearest(left);
            (rounded, (left - f64::from(rounded)) * steps)
        };
        let rows = self.first[start..].iter_mut().zip(vector).zip(codes);
        for ((first, component), code) in rows {
            *first = left(*component, *code).0.cast_unsigned() ^ ZERO;
        }
        let mut second = Wiped::new();
        if scale > SECOND_FROM {
            second.push_filled(width, ZERO);
            for ((second, component), code) in second.iter_mut().zip(vector).zip(codes) {
                *second = nearest(left(*component, *code).1).cast_unsigned() ^ ZERO;
            }
        }
        self.second.push(&second);
    }

    /// The digits of a row with these codes.
    pub(crate) fn row<'a>(&'a self, row: usize, codes: &'a [u8]) -> Digits<'a> {
        let range = row * codes.len()..(row + 1) * codes.len();
        let Some(first) = self.first.get(range) else {
            return Digits {
                codes,
                first: &[],
                second: &[],
            };
        };
        Digits {
            codes,
            first,
            second: self.second.get(row),
        }
    }

    /// Takes the last row out.
    pub(crate) fn pop(&mut self) -> Self {
        let mut taken = Self::new();
        if let Some(last) = self.second.len().checked_sub(1) {
            let start = self.first.len() / (last + 1) * last;
            taken.first.push_all(&self.first[start..]);
            taken.second.push(self.second.get(last));
            self.first.truncate(start);
            self.second.pop();
        }
        taken
    }

    /// Overwrites a row with the only one in `taken`.
    pub(crate) fn replace(&mut self, row: usize, taken: &Self) {
        let width = taken.first.len();
        self.first[row * width..(row + 1) * width].copy_from_slice(&taken.first);
        self.second.set(row, taken.second.get(0));
    }

    pub(crate) fn bytes(&self) -> usize {
        self.first.bytes() + self.second.bytes()
    }
}

impl<'a> Digits<'a> {
    /// What the digits say, component by component.
    pub(crate) fn components(self, scale: f32) -> impl Iterator<Item = f32> + use<'a> {
        let digit = |column: &[u8], at: usize| {
            let code = column.get(at).copied().unwrap_or(ZERO);
            f32::from((code ^ ZERO).cast_signed())
        };
        (0..self.codes.len()).map(move |at| {
            let residual = (digit(self.first, at) + digit(self.second, at) / STEPS) / STEPS;
            (digit(self.codes, at) + residual) * scale
        })
    }
}

/// The integer nearest to a number from -127.5 to 127.5, as a byte.
fn nearest(number: f64) -> i8 {
    // With this added, the last bits of the sum are the integer, in two's complement.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    // Rounding the code in 32 bits may have left a little more than half a step.
    (number.clamp(-127.0, 127.0) + MAGIC).to_bits() as i8
}
