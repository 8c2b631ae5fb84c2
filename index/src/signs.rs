//! The signs of vectors: one bit for each component, to pass over most rows of a large index.
//!
//! A scan of the codes is bound by memory, and signs are an eighth of them. Two vectors at an angle a differ in about
//! a share a/180 degrees of their signs. From the rows that pass a filter, those with the fewest differing signs go on
//! to the codes: many more than are wanted, because the share is only a rough estimate.

use crate::index::State;
use crate::kernel::{LANES, ROWS, distances};
use crate::wiped::Wiped;

/// Rows from which signs are compared first. Below, the codes take less than a few milliseconds anyway, and what signs
/// miss is not worth it.
pub(crate) const FROM_ROWS: u64 = 200_000;

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
            self.0[word * ROWS + row] = signs(codes.map(|code| code >= 128));
        }
    }

    pub(crate) fn clear(&mut self, row: usize) {
        for word in self.0.iter_mut().skip(row).step_by(ROWS) {
            *word = 0;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

pub(crate) fn signs(is_positive: [bool; LANES]) -> u64 {
    let bits = is_positive.iter().enumerate();
    bits.fold(0, |word, (bit, positive)| word | u64::from(*positive) << bit)
}

/// Leaves of the rows in `masks` the `wanted` ones whose signs are nearest to those of the query, and those that are as
/// near as the last of them.
pub(crate) fn keep_nearest(state: &State, masks: &mut [u64], query: &[u64], wanted: usize) {
    // 2 bytes a row: read several times, and small enough to stay in the cache.
    let mut all = vec![[u16::MAX; ROWS]; masks.len()];
    for ((block, mask), found) in state.blocks.iter().zip(&*masks).zip(&mut all) {
        if *mask == 0 {
            continue;
        }
        distances(&block.signs.0, query, found);
        if *mask != u64::MAX {
            for (row, distance) in found.iter_mut().enumerate() {
                if mask >> row & 1 == 0 {
                    *distance = u16::MAX;
                }
            }
        }
    }
    // The smallest distance within which there are enough.
    let (mut low, mut high) = (0, (query.len() * 64) as u16);
    while low < high {
        let middle = low + (high - low) / 2;
        if count_within(&all, middle) >= wanted {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    for (mask, found) in masks.iter_mut().zip(&all) {
        let near = found.iter().enumerate();
        *mask &= near.fold(0, |near, (row, distance)| near | u64::from(*distance <= low) << row);
    }
}

fn count_within(all: &[[u16; ROWS]], limit: u16) -> usize {
    let near = all.iter().map(|distances| {
        let near = distances.iter().map(|distance| u16::from(*distance <= limit));
        usize::from(near.sum::<u16>())
    });
    near.sum()
}
