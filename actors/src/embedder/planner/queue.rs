//! The queue: texts by lane, deadline, origin and length.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use super::types::{CostModel, Lane, LaneDepth, PlannerConfig, Queued};
use crate::deadline::Deadline;

#[derive(Debug)]
pub(super) struct Item<T> {
    pub(super) payload: T,
    pub(super) tokens: usize,
    pub(super) deadline: Deadline,
    pub(super) sequence: u64,
}

/// Bulk texts of one origin.
#[derive(Debug)]
pub(super) struct OriginQueue<T> {
    /// By length bucket, oldest first. No bucket is empty.
    pub(super) buckets: BTreeMap<usize, VecDeque<Item<T>>>,
    /// Tokens that the origin may still take in its turn.
    pub(super) deficit: usize,
    /// Whether this turn's share was already added to the deficit.
    pub(super) turn_started: bool,
}

/// The queue and its policy. `T` identifies a text to the caller.
#[derive(Debug)]
pub struct Planner<T> {
    pub(super) config: PlannerConfig,
    pub(super) next_sequence: u64,
    /// Earliest deadline first; the sequence number keeps arrivals of one deadline in order.
    pub(super) interactive: BTreeMap<(Deadline, u64), Item<T>>,
    pub(super) bulk: HashMap<u64, OriginQueue<T>>,
    /// Origins with bulk texts, in the order of their turns. The same set as the keys of `bulk`.
    pub(super) turns: VecDeque<u64>,
    pub(super) interactive_depth: LaneDepth,
    pub(super) bulk_depth: LaneDepth,
    /// Batches since bulk was last served, while bulk waited.
    pub(super) bulk_skips: u32,
    /// Since when bulk waits unserved.
    pub(super) bulk_waits_since: Option<Instant>,
    /// When an interactive text was last queued.
    pub(super) last_interactive: Option<Instant>,
    pub(super) draining: bool,
}

impl<T> Planner<T> {
    /// An empty queue.
    pub fn new(config: PlannerConfig) -> Self {
        Self {
            config,
            next_sequence: 0,
            interactive: BTreeMap::new(),
            bulk: HashMap::new(),
            turns: VecDeque::new(),
            interactive_depth: LaneDepth::default(),
            bulk_depth: LaneDepth::default(),
            bulk_skips: 0,
            bulk_waits_since: None,
            last_interactive: None,
            draining: false,
        }
    }

    /// Queues a text at `now`.
    pub fn push(&mut self, queued: Queued<T>, now: Instant) {
        let Queued {
            payload,
            tokens,
            lane,
            origin,
            deadline,
        } = queued;
        if lane == Lane::Interactive {
            self.last_interactive = Some(now);
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let item = Item {
            payload,
            tokens,
            deadline,
            sequence,
        };
        match lane {
            Lane::Interactive => {
                self.interactive_depth.add(tokens);
                self.interactive.insert((deadline, sequence), item);
            }
            Lane::Bulk => {
                self.bulk_depth.add(tokens);
                self.bulk_waits_since.get_or_insert(now);
                let bucket = self.bucket_of(tokens);
                let queue = self.bulk.entry(origin).or_insert_with(|| {
                    self.turns.push_back(origin);
                    OriginQueue {
                        buckets: BTreeMap::new(),
                        deficit: 0,
                        turn_started: false,
                    }
                });
                queue.buckets.entry(bucket).or_default().push_back(item);
            }
        }
    }

    /// Depths of the interactive and the bulk lane.
    pub fn depths(&self) -> (LaneDepth, LaneDepth) {
        (self.interactive_depth, self.bulk_depth)
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.interactive_depth.texts == 0 && self.bulk_depth.texts == 0
    }

    /// From now on batches count as flushed by the drain.
    pub fn start_draining(&mut self) {
        self.draining = true;
    }

    /// Removes every text for which `gone` holds, wherever it stands. Linear in the queue; for the rare moments
    /// in which whole requests vanish.
    pub fn purge(&mut self, mut gone: impl FnMut(&T) -> bool) {
        let interactive_depth = &mut self.interactive_depth;
        self.interactive.retain(|_, item| {
            let keep = !gone(&item.payload);
            if !keep {
                interactive_depth.remove(item.tokens);
            }
            keep
        });
        let bulk_depth = &mut self.bulk_depth;
        for queue in self.bulk.values_mut() {
            queue.buckets.retain(|_, items| {
                items.retain(|item| {
                    let keep = !gone(&item.payload);
                    if !keep {
                        bulk_depth.remove(item.tokens);
                    }
                    keep
                });
                !items.is_empty()
            });
        }
        self.bulk.retain(|_, queue| !queue.buckets.is_empty());
        self.turns.retain(|origin| self.bulk.contains_key(origin));
        self.forget_empty_bulk();
    }

    pub(super) fn bucket_of(&self, tokens: usize) -> usize {
        match self.config.cost {
            // One bucket: length does not matter, so plain order of arrival.
            CostModel::Packed => 0,
            CostModel::Padded => tokens.div_ceil(self.config.bucket_tokens),
        }
    }

    pub(super) fn forget_empty_bulk(&mut self) {
        if self.bulk_depth.texts == 0 {
            self.bulk_skips = 0;
            self.bulk_waits_since = None;
        }
    }
}

impl<T> OriginQueue<T> {
    /// The bucket to take from: with no limit the one with the oldest text, otherwise the longest whose oldest
    /// text is within `longest_allowed` tokens.
    pub(super) fn pick_bucket(&self, longest_allowed: Option<usize>) -> Option<usize> {
        let heads = self
            .buckets
            .iter()
            .filter_map(|(bucket, items)| Some((*bucket, items.front()?)));
        match longest_allowed {
            None => heads.min_by_key(|(_, head)| head.sequence).map(|(bucket, _)| bucket),
            Some(longest) => heads
                .filter(|(_, head)| head.tokens <= longest)
                .map(|(bucket, _)| bucket)
                .max(),
        }
    }

    /// The oldest text of `bucket`, if there is such a bucket.
    pub(super) fn head(&self, bucket: usize) -> Option<&Item<T>> {
        self.buckets.get(&bucket)?.front()
    }

    /// Takes the oldest text of `bucket`, if there is such a bucket.
    pub(super) fn pop(&mut self, bucket: usize) -> Option<Item<T>> {
        let items = self.buckets.get_mut(&bucket)?;
        let item = items.pop_front();
        if items.is_empty() {
            self.buckets.remove(&bucket);
        }
        item
    }
}
