//! The signs of vectors: one bit for each component, to pass over most rows of a large index.
//!
//! A scan of the codes is bound by memory, and signs are an eighth of them. The product of a query (in four bits) with
//! the signs of a vector stands in for that with the vector. It is rough: with 384 components it is off by 0.04 for
//! most rows, as a cosine, so many more rows than are wanted go on to the codes. (The signs of both sides would be off
//! by 0.06.)

use crate::kernel::{LANES, ROWS};
use crate::wiped::Wiped;

/// Rows from which signs are compared first. Below, the codes take less than a few milliseconds anyway, and what signs
/// miss is not worth it.
pub(crate) const FROM_ROWS: usize = 200_000;

/// The signs of the rows of a block: the first word of each row, then the second of each, and so on. A bit is set
/// where the component is not negative.
#[derive(Clone, Debug)]
pub(crate) struct Signs(Wiped<u64>);

impl Signs {
    pub(crate) const fn new() -> Self {
        Self(Wiped::new())
    }

    /// Takes the signs from the codes of a row.
    pub(crate) fn set(&mut self, row: usize, codes: &[u8]) {
        let words = codes.len() / LANES;
        if self.0.is_empty() {
            self.0.push_filled(words * ROWS, 0);
        }
        for (word, codes) in codes.as_chunks::<LANES>().0.iter().enumerate() {
            self.0[word * ROWS + row] = word_of(codes.map(|code| code >= 128));
        }
    }

    pub(crate) fn clear(&mut self, row: usize) {
        for word in self.0.iter_mut().skip(row).step_by(ROWS) {
            *word = 0;
        }
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.0
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// A word of these bits.
pub(crate) fn word_of(bits: [bool; LANES]) -> u64 {
    let bits = bits.iter().enumerate();
    bits.fold(0, |word, (place, bit)| word | u64::from(*bit) << place)
}
