//! The best items of a stream of rows.

use std::cmp::Ordering;

use crate::index::State;

/// A row with its score.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scored {
    pub(crate) score: f32,
    /// How far the score may be from the exact one; 0 if that is not wanted.
    pub(crate) bound: f32,
    pub(crate) item: u32,
    pub(crate) passage: u32,
    pub(crate) place: u32,
}

/// What a scan offers rows to.
pub(crate) trait Collect {
    /// A row whose score and bound do not reach this together need not be offered.
    fn threshold(&self) -> f32;

    /// Takes a row.
    fn push(&mut self, scored: Scored);
}

/// Collects rows and keeps the `wanted` best items, each with its best row. Rows that cannot be among them any more
/// are refused by one comparison; the others wait until there are enough of them to be sorted out at once, so n rows
/// cost O(n) whatever `wanted` is.
pub(crate) struct Best<'a> {
    state: &'a State,
    wanted: usize,
    /// No row with a lower score can be among the best.
    threshold: f32,
    kept: Vec<Scored>,
    /// How many rows may wait.
    limit: usize,
}

impl<'a> Best<'a> {
    pub(crate) fn new(state: &'a State, wanted: usize) -> Self {
        Self {
            state,
            wanted,
            threshold: f32::NEG_INFINITY,
            kept: Vec::new(),
            limit: wanted.saturating_mul(2).max(512),
        }
    }

    /// Raises the threshold as far as what came so far allows.
    pub(crate) fn sort_out(&mut self) {
        // One row for each item: the best of it.
        self.kept.sort_unstable_by(|a, b| {
            let best_first = b.score.total_cmp(&a.score).then(a.passage.cmp(&b.passage));
            a.item.cmp(&b.item).then(best_first).then(a.place.cmp(&b.place))
        });
        self.kept.dedup_by_key(|scored| scored.item);
        if self.kept.len() > self.wanted
            && let Some(last) = self.wanted.checked_sub(1)
        {
            let (_, worst, _) = self.kept.select_nth_unstable_by(last, |a, b| order(self.state, a, b));
            self.threshold = worst.score;
        }
        self.kept.truncate(self.wanted);
    }

    /// The best items, best first; ids decide between equal scores.
    pub(crate) fn finish(mut self) -> Vec<Scored> {
        self.sort_out();
        self.kept.sort_unstable_by(|a, b| order(self.state, a, b));
        self.kept
    }
}

impl Collect for Best<'_> {
    fn threshold(&self) -> f32 {
        self.threshold
    }

    fn push(&mut self, scored: Scored) {
        self.kept.push(scored);
        if self.kept.len() >= self.limit {
            self.sort_out();
            self.limit = (self.kept.len() * 2).max(512);
        }
    }
}

/// Collects all rows that may be among the best `wanted` items once their scores are exact: those whose score and bound
/// together reach what the `wanted`-th best item has at least.
pub(crate) struct Candidates<'a> {
    /// Of the lowest scores that rows may have.
    least: Best<'a>,
    kept: Vec<Scored>,
    /// How many rows are kept until some are sorted out.
    limit: usize,
}

impl<'a> Candidates<'a> {
    pub(crate) fn new(state: &'a State, wanted: usize) -> Self {
        Self {
            least: Best::new(state, wanted),
            kept: Vec::new(),
            limit: 1_024,
        }
    }

    fn sort_out(&mut self) {
        let threshold = self.least.threshold;
        self.kept.retain(|scored| scored.score + scored.bound >= threshold);
    }

    /// The candidates, in no particular order.
    pub(crate) fn finish(mut self) -> Vec<Scored> {
        self.least.sort_out();
        self.sort_out();
        self.kept
    }
}

impl Collect for Candidates<'_> {
    fn threshold(&self) -> f32 {
        self.least.threshold
    }

    fn push(&mut self, scored: Scored) {
        let score = scored.score - scored.bound;
        if score >= self.least.threshold {
            self.least.push(Scored { score, ..scored });
        }
        self.kept.push(scored);
        if self.kept.len() >= self.limit {
            self.sort_out();
            self.limit = (self.kept.len() * 2).max(1_024);
        }
    }
}

fn order(state: &State, a: &Scored, b: &Scored) -> Ordering {
    let ids = || state.ids.text_bytes(a.item).cmp(state.ids.text_bytes(b.item));
    b.score.total_cmp(&a.score).then_with(ids)
}
