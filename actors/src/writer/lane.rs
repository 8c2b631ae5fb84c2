//! How the writes of one project form groups. Pure.
//!
//! While a commit is in flight everything that arrives waits here; when it is done, what waits becomes the next
//! group, up to the bounds. A store of one item goes before the rest of a bulk store, so that it waits for one
//! group at most; a bulk store advances by at least [`BULK_SHARE`] of each group, so that it is never starved.
//!
//! A group is one commit, so two writes of one item cannot both be in it: the second begins the next group. What
//! may concern any item (a delete by filter, a purge) is a group of its own.

use std::collections::{HashSet, VecDeque};

/// Part of a group (1/n of its rows) that waiting bulk stores are sure of.
const BULK_SHARE: usize = 4;

/// What the lane needs to know of an item.
pub trait Weighed {
    /// Rows that it makes.
    fn rows(&self) -> usize;
    /// Bytes that it brings.
    fn bytes(&self) -> usize;
    /// Which items it concerns.
    fn touches(&self) -> Touched<'_>;
}

/// Which items a write concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touched<'a> {
    /// A new one.
    New,
    /// These.
    Ids(&'a [String]),
    /// Maybe any.
    Any,
}

/// Bounds of a group. An item that alone exceeds them is a group of its own: items are never split.
#[derive(Clone, Copy, Debug)]
pub struct GroupLimits {
    /// Rows at most.
    pub max_rows: usize,
    /// Bytes at most.
    pub max_bytes: usize,
}

/// The waiting items of one project, in two queues.
#[derive(Debug)]
pub struct Lane<T> {
    single: VecDeque<T>,
    bulk: VecDeque<T>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            single: VecDeque::new(),
            bulk: VecDeque::new(),
        }
    }
}

impl<T: Weighed> Lane<T> {
    /// Queues the items of one request.
    pub fn push(&mut self, items: impl IntoIterator<Item = T>, bulk: bool) {
        if bulk {
            self.bulk.extend(items);
        } else {
            self.single.extend(items);
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.single.is_empty() && self.bulk.is_empty()
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.single.len() + self.bulk.len()
    }

    /// Drops the waiting items that `keep` does not keep.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.single.retain(&mut keep);
        self.bulk.retain(&mut keep);
    }

    /// Takes everything that waits.
    pub fn take_all(&mut self) -> Vec<T> {
        self.single.drain(..).chain(self.bulk.drain(..)).collect()
    }

    /// Takes the next group; empty only if nothing waits.
    pub fn next_group(&mut self, limits: GroupLimits) -> Vec<T> {
        let mut group = Group {
            items: Vec::new(),
            rows: 0,
            bytes: 0,
            ids: HashSet::new(),
            closed: false,
        };
        let reserved_rows = if self.bulk.is_empty() {
            0
        } else {
            limits.max_rows / BULK_SHARE
        };
        let single_limits = GroupLimits {
            max_rows: limits.max_rows - reserved_rows,
            ..limits
        };
        group.fill(&mut self.single, single_limits);
        group.fill(&mut self.bulk, limits);
        // What the bulk queue did not need is for the single ones.
        group.fill(&mut self.single, limits);
        group.items
    }
}

struct Group<T> {
    items: Vec<T>,
    rows: usize,
    bytes: usize,
    /// The items that are concerned so far.
    ids: HashSet<String>,
    /// Whether it holds something that wants to be alone.
    closed: bool,
}

impl<T: Weighed> Group<T> {
    fn fill(&mut self, queue: &mut VecDeque<T>, limits: GroupLimits) {
        while let Some(next) = queue.front() {
            let (rows, bytes) = (next.rows(), next.bytes());
            let fits = self.rows + rows <= limits.max_rows && self.bytes + bytes <= limits.max_bytes;
            let joins = match next.touches() {
                Touched::New => true,
                Touched::Ids(ids) => !ids.iter().any(|id| self.ids.contains(id)),
                Touched::Any => false,
            };
            if (!fits || !joins || self.closed) && !self.items.is_empty() {
                return;
            }
            match next.touches() {
                Touched::New => {}
                Touched::Ids(ids) => self.ids.extend(ids.iter().cloned()),
                Touched::Any => self.closed = true,
            }
            self.rows += rows;
            self.bytes += bytes;
            self.items.extend(queue.pop_front());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Entry {
        name: usize,
        rows: usize,
        bytes: usize,
        ids: Vec<String>,
        any: bool,
    }

    impl Weighed for Entry {
        fn rows(&self) -> usize {
            self.rows
        }
        fn bytes(&self) -> usize {
            self.bytes
        }
        fn touches(&self) -> Touched<'_> {
            match (self.any, self.ids.as_slice()) {
                (true, _) => Touched::Any,
                (false, []) => Touched::New,
                (false, ids) => Touched::Ids(ids),
            }
        }
    }

    const LIMITS: GroupLimits = GroupLimits {
        max_rows: 40,
        max_bytes: 1_000,
    };

    fn entries(range: std::ops::Range<usize>) -> Vec<Entry> {
        range
            .map(|name| Entry {
                name,
                rows: 1,
                bytes: 1,
                ..Entry::default()
            })
            .collect()
    }

    fn names(group: &[Entry]) -> Vec<usize> {
        group.iter().map(|entry| entry.name).collect()
    }

    #[test]
    fn two_writes_of_one_item_are_two_groups() {
        let of = |name: usize, ids: &[&str]| Entry {
            name,
            rows: 1,
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..Entry::default()
        };
        let mut lane = Lane::default();
        lane.push(
            [
                of(0, &["a"]),
                of(1, &["b"]),
                of(2, &[]),
                of(3, &["c", "a"]),
                of(4, &["d"]),
            ],
            false,
        );
        assert_eq!(names(&lane.next_group(LIMITS)), [0, 1, 2]);
        assert_eq!(names(&lane.next_group(LIMITS)), [3, 4]);
    }

    #[test]
    fn what_may_concern_any_item_is_alone() {
        let mut lane = Lane::default();
        let any = Entry {
            name: 9,
            rows: 1,
            any: true,
            ..Entry::default()
        };
        lane.push(entries(0..2).into_iter().chain([any]).chain(entries(2..4)), false);
        assert_eq!(names(&lane.next_group(LIMITS)), [0, 1]);
        assert_eq!(names(&lane.next_group(LIMITS)), [9]);
        assert_eq!(names(&lane.next_group(LIMITS)), [2, 3]);
    }

    #[test]
    fn everything_that_waits_is_one_group() {
        let mut lane = Lane::default();
        for entry in entries(0..10) {
            lane.push([entry], false);
        }
        assert_eq!(lane.next_group(LIMITS).len(), 10);
        assert!(lane.is_empty());
    }

    #[test]
    fn single_stores_go_before_a_bulk_store_but_do_not_starve_it() {
        let mut lane = Lane::default();
        lane.push(entries(1_000..2_000), true);
        lane.push(entries(0..1), false);
        assert_eq!(lane.next_group(LIMITS)[0].name, 0);
        lane.push(entries(0..200), false);
        let bulk = lane
            .next_group(LIMITS)
            .iter()
            .filter(|entry| entry.name >= 1_000)
            .count();
        assert_eq!(bulk, LIMITS.max_rows / BULK_SHARE);
    }

    proptest! {
        #[test]
        fn each_item_leaves_once_in_order_within_the_bounds(
            singles in prop::collection::vec((1usize..60, 1usize..1_500), 0..40),
            bulks in prop::collection::vec((1usize..60, 1usize..1_500), 0..40),
        ) {
            let mut lane = Lane::default();
            let make = |offset: usize, sizes: &[(usize, usize)]| -> Vec<Entry> {
                sizes.iter().enumerate()
                    .map(|(index, (rows, bytes))| Entry { name: offset + index, rows: *rows, bytes: *bytes, ..Entry::default() })
                    .collect()
            };
            lane.push(make(0, &singles), false);
            lane.push(make(1_000, &bulks), true);
            let mut left = Vec::new();
            while !lane.is_empty() {
                let group = lane.next_group(LIMITS);
                prop_assert!(!group.is_empty());
                let rows: usize = group.iter().map(|entry| entry.rows).sum();
                let bytes: usize = group.iter().map(|entry| entry.bytes).sum();
                prop_assert!(group.len() == 1 || (rows <= LIMITS.max_rows && bytes <= LIMITS.max_bytes));
                left.extend(group.into_iter().map(|entry| entry.name));
            }
            let of = |low: usize, high: usize| -> Vec<usize> {
                left.iter().copied().filter(|name| (low..high).contains(name)).collect()
            };
            prop_assert_eq!(of(0, 1_000), (0..singles.len()).collect::<Vec<_>>());
            prop_assert_eq!(of(1_000, 2_000), (1_000..1_000 + bulks.len()).collect::<Vec<_>>());
        }
    }
}
