//! Items in the order of their creation.

use std::cmp::Ordering;

use ccod_words::{Filter, Order};

use crate::Index;
use crate::block::{Block, ROWS, bits};
use crate::index::State;

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The items of the page, in order.
    pub items: Vec<Listed>,
    /// How many items match in all, on whatever page.
    pub total: u64,
    /// Whether there are more behind this page.
    pub more: bool,
}

/// An item of a [`Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where Lance has the row of the item's first passage.
    pub address: u64,
    /// The item's id.
    pub id: String,
    /// When the item was created, in milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// An item that may be on the page.
#[derive(Clone, Copy)]
struct Candidate {
    key: i64,
    item: u32,
    place: u32,
}

impl Index {
    /// The items that pass `filter`, by creation and then by id (ids go up in both orders), from behind `after`: the
    /// creation and the id of the last item of the page before, which need not be there any more.
    ///
    /// O(n), but blocks in which all items are behind the page's end are not looked into.
    #[must_use]
    pub fn list(&self, filter: &Filter, order: Order, after: Option<(i64, &str)>, limit: usize) -> Page {
        let state = self.state();
        let masks = self.masks(filter);
        // Ascending in both orders, and every value has one.
        let key_of = |time: i64| match order {
            Order::Oldest => time,
            Order::Newest => !time,
        };
        let after = after.map(|(time, id)| (key_of(time), id));
        let mut first = First::new(state, limit.saturating_add(1));
        let mut total = 0;
        let mut look_into = |number: usize, block: &Block| {
            let mask = masks[number] & block.firsts;
            total += u64::from(mask.count_ones());
            let Some((oldest, newest)) = block.span.filter(|_| mask != 0) else {
                return;
            };
            let (low, high) = match order {
                Order::Oldest => (key_of(oldest), key_of(newest)),
                Order::Newest => (key_of(newest), key_of(oldest)),
            };
            if low > first.threshold || after.is_some_and(|(key, _)| high < key) {
                return;
            }
            for row in bits(mask) {
                let key = key_of(block.timestamps[row]);
                let item = block.items[row];
                let is_behind = after.is_none_or(|(after, id)| {
                    key.cmp(&after)
                        .then_with(|| state.ids.text_bytes(item).cmp(id.as_bytes()))
                        .is_gt()
                });
                if is_behind && key <= first.threshold {
                    first.push(Candidate {
                        key,
                        item,
                        place: (number * ROWS + row) as u32,
                    });
                }
            }
        };
        // Rows come about in the order of their creation: where the page is to be found, so that the rest is skipped.
        match order {
            Order::Oldest => (state.blocks.iter().enumerate()).for_each(|(number, block)| look_into(number, block)),
            Order::Newest => (0..masks.len())
                .rev()
                .for_each(|number| look_into(number, state.blocks.get(number))),
        }
        let mut candidates = first.finish();
        let more = candidates.len() > limit;
        candidates.truncate(limit);
        let listed = candidates.into_iter().map(|candidate| {
            let entry = state.entry(candidate.place as usize);
            Listed {
                address: entry.address,
                id: entry.id.to_owned(),
                timestamp_ms: entry.timestamp_ms,
            }
        });
        Page {
            items: listed.collect(),
            total,
            more,
        }
    }

    /// How many items pass `filter`. O(n); without a condition O(1).
    #[must_use]
    pub fn count(&self, filter: &Filter) -> u64 {
        let state = self.state();
        if filter.is_empty() {
            return state.totals.items();
        }
        let masks = self.masks(filter).into_iter();
        let items = masks.zip(state.blocks.iter());
        items
            .map(|(mask, block)| u64::from((mask & block.firsts).count_ones()))
            .sum()
    }
}

/// Keeps the first `wanted` of the candidates that come; as [`crate::best::Best`] does for scores.
struct First<'a> {
    state: &'a State,
    wanted: usize,
    /// No candidate with a larger key can be among the first.
    threshold: i64,
    kept: Vec<Candidate>,
    limit: usize,
}

impl<'a> First<'a> {
    fn new(state: &'a State, wanted: usize) -> Self {
        Self {
            state,
            wanted,
            threshold: i64::MAX,
            kept: Vec::new(),
            limit: wanted.saturating_mul(2).max(256),
        }
    }

    fn push(&mut self, candidate: Candidate) {
        self.kept.push(candidate);
        if self.kept.len() >= self.limit && self.kept.len() > self.wanted {
            let last = self.wanted - 1;
            let (_, last, _) = self.kept.select_nth_unstable_by(last, |a, b| compare(self.state, a, b));
            self.threshold = last.key;
            self.kept.truncate(self.wanted);
        }
    }

    fn finish(mut self) -> Vec<Candidate> {
        self.kept.sort_unstable_by(|a, b| compare(self.state, a, b));
        self.kept.truncate(self.wanted);
        self.kept
    }
}

fn compare(state: &State, a: &Candidate, b: &Candidate) -> Ordering {
    let ids = || state.ids.text_bytes(a.item).cmp(state.ids.text_bytes(b.item));
    a.key.cmp(&b.key).then_with(ids)
}
