//! The scan of a search: over the blocks, from masks to the best rows.
//!
//! Blocks lie anywhere in memory, so the scan runs in three steps that are some blocks apart: the head of a block is
//! asked for, then the codes (and signs) that its head points to, then they are read.

use crate::best::{Collect, Scored};
use crate::block::{Block, HEAD_BYTES, ROWS, bits, mask_of};
use crate::codes::PreparedQuery;
use crate::kernel::{Planes, agreements, prefetch, prefetch_start};

/// How many blocks ahead heads are asked for.
const HEADS_AHEAD: usize = 12;

/// How many blocks ahead codes and signs are asked for.
const VALUES_AHEAD: usize = 4;

/// With more rows than this in a block, the machine notices by itself that they are read in order.
const SPARSE: u32 = 24;

/// One block of so many is looked into to find out how much agreement is enough.
const SAMPLED: usize = 16;

/// Blocks, and which of their rows take part.
pub(crate) struct Scan<'a> {
    pub(crate) blocks: &'a [&'a Block],
    pub(crate) masks: &'a [u64],
    pub(crate) query: &'a PreparedQuery,
}

impl Scan<'_> {
    /// Offers all rows to `best`.
    pub(crate) fn all(&self, best: &mut impl Collect) {
        for number in 0..self.blocks.len() {
            self.ask_for_head(number + HEADS_AHEAD);
            let ahead = number + VALUES_AHEAD;
            if let Some(mask) = self.masks.get(ahead) {
                self.ask_for_codes(ahead, *mask);
            }
            self.offer(number, self.masks[number], best);
        }
    }

    /// Offers about `enough` rows to `best`, those whose signs agree most with the query; `rows` is how many there are.
    /// A sample of the blocks says how much that is. Where the sample was far off, more rows are offered, or all rows
    /// are looked at for it and the scan is done again.
    pub(crate) fn near(&self, rows: usize, enough: usize, best: &mut impl Collect) {
        let planes = self.query.planes();
        let share = enough as f64 / rows as f64;
        if self.from(&planes, self.limit_of(&planes, SAMPLED, share), best) < enough / 2 {
            self.from(&planes, self.limit_of(&planes, 1, share), best);
        }
    }

    /// Offers the rows to `best` that agree with the query at least so much. How many there are.
    fn from(&self, planes: &[Planes], limit: i32, best: &mut impl Collect) -> usize {
        let mut found = 0;
        let mut near = [0; VALUES_AHEAD];
        for number in 0..self.blocks.len() + VALUES_AHEAD {
            self.ask_for_head(number + HEADS_AHEAD);
            self.ask_for_signs(number + VALUES_AHEAD);
            // Codes are read when they had time to come.
            let mask = std::mem::take(&mut near[number % VALUES_AHEAD]);
            if let Some(number) = number.checked_sub(VALUES_AHEAD) {
                self.offer(number, mask, best);
            }
            let Some(mask) = self.masks.get(number).filter(|mask| **mask != 0) else {
                continue;
            };
            let mut sums = [0; ROWS];
            agreements(self.blocks[number].signs.words(), planes, &mut sums);
            let mask = mask & mask_of(&sums, |sum| sum >= limit);
            found += mask.count_ones() as usize;
            self.ask_for_codes(number, mask);
            near[number % VALUES_AHEAD] = mask;
        }
        found
    }

    /// How much this share of the rows agrees with the query at least, as one block of each `step` has them.
    fn limit_of(&self, planes: &[Planes], step: usize, share: f64) -> i32 {
        // No sum is farther from 0 than 8 times the count of components.
        let most = planes.len() as i32 * 64 * 8;
        let mut rows_at = vec![0_usize; 2 * most as usize + 1];
        let mut rows = 0;
        for number in (0..self.blocks.len()).step_by(step) {
            self.ask_for_head(number + 3 * step);
            self.ask_for_signs(number + step);
            let mut sums = [0; ROWS];
            agreements(self.blocks[number].signs.words(), planes, &mut sums);
            for row in bits(self.masks[number]) {
                rows_at[(most - sums[row]) as usize] += 1;
                rows += 1;
            }
        }
        let wanted = (rows as f64 * share).ceil() as usize;
        let mut above = 0;
        let place = rows_at.iter().position(|rows| {
            above += rows;
            above >= wanted
        });
        place.map_or(-most, |place| most - place as i32)
    }

    fn offer(&self, number: usize, mask: u64, best: &mut impl Collect) {
        if mask == 0 {
            return;
        }
        let block = self.blocks[number];
        let mut scores = [0.0; ROWS];
        self.query.scores(&block.codes, &block.scales, mask, &mut scores);
        let bound = self.query.bound(block.extent);
        let threshold = best.threshold() - bound;
        for row in bits(mask & mask_of(&scores, |score| score >= threshold)) {
            best.push(Scored {
                score: scores[row],
                bound,
                item: block.items[row],
                passage: block.passages[row],
                place: (number * ROWS + row) as u32,
            });
        }
    }

    /// Asks for all that is known of a row's vector.
    #[inline]
    pub(crate) fn ask_for_digits(&self, place: usize) {
        let digits = self.blocks[place / ROWS].digits(place % ROWS);
        prefetch(digits.codes);
        prefetch(digits.first);
        prefetch(digits.second);
    }

    #[inline]
    fn ask_for_head(&self, number: usize) {
        if let Some(block) = self.blocks.get(number) {
            prefetch_start(*block, HEAD_BYTES);
        }
    }

    #[inline]
    fn ask_for_signs(&self, number: usize) {
        if let Some(block) = self.blocks.get(number) {
            prefetch(block.signs.words());
        }
    }

    #[inline]
    fn ask_for_codes(&self, number: usize, mask: u64) {
        let block = self.blocks[number];
        if mask == 0 {
            return;
        }
        prefetch(&block.scales);
        let width = self.query.width();
        if mask.count_ones() > SPARSE {
            prefetch(&block.codes[..width]);
            return;
        }
        for row in bits(mask) {
            prefetch(&block.codes[row * width..(row + 1) * width]);
        }
    }
}
