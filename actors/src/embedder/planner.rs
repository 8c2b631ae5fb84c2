//! Decides which queued texts run together next. Pure: no clock, no channels, no threads.
//!
//! The actor pushes texts as they arrive and asks for a batch whenever the engine is idle, never before: what
//! arrives during a forward pass can still join the next one, so requests coalesce by themselves and an idle
//! engine starts at once. No timer is involved.
//!
//! * **Two lanes.** Interactive texts go first, earliest deadline first. A batch with room is topped up with
//!   bulk texts, up to the bulk quantum in all.
//! * **Small bulk batches.** A forward pass cannot be interrupted, so a bulk batch is the delay that a query
//!   meets; it is held to a quantum that costs about one idle query, unless nobody has asked anything for a
//!   while.
//! * **No starvation.** After some batches without bulk, or some seconds in which bulk waited unserved, half of
//!   the next batch is bulk's.
//! * **Fair bulk.** Origins (connections) share the bulk lane by deficit round-robin over tokens, so one agent
//!   that re-indexes a repository does not hold up another.
//! * **Cost.** An engine that pads pays `texts x longest`; then bulk is also kept in buckets of similar length,
//!   a batch starts with the oldest text's bucket and extends to shorter ones only, and a top-up is never longer
//!   than what is already there. An engine that packs pays for real tokens, and none of that is needed.
//! * **Nothing for nobody.** Abandoned and expired texts are dropped when they are met, and never run.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::deadline::Deadline;

/// Whom a text is embedded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Somebody waits for this one answer: a search, a single store.
    Interactive,
    /// One of many: a batch, an import, a re-embedding.
    Bulk,
}

/// What the engine pays for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CostModel {
    /// The sum of the tokens.
    Packed,
    /// Number of texts times the longest of them.
    Padded,
}

/// Limits of the planner. `EmbedderConfig` holds the defaults and their reasons.
#[derive(Clone, Debug)]
pub struct PlannerConfig {
    /// How tokens add up.
    pub cost: CostModel,
    /// Texts per batch at most.
    pub max_batch_texts: usize,
    /// Cost of a batch at most, in tokens; a single text may cost more.
    pub max_batch_tokens: usize,
    /// Cost of a batch without interactive texts at most, and of a topped-up one; a single text may cost more.
    pub bulk_quantum_tokens: usize,
    /// Time without interactive texts after which bulk gets whole batches instead of the quantum.
    pub quiet: Duration,
    /// Width of a length bucket, in tokens (with [`CostModel::Padded`]).
    pub bucket_tokens: usize,
    /// Batches without bulk, while bulk waits, after which bulk is served.
    pub max_bulk_skips: u32,
    /// Time without bulk, while bulk waits, after which bulk is served.
    pub max_bulk_wait: Duration,
}

/// A text to be queued.
#[derive(Debug)]
pub struct Queued<T> {
    /// What identifies the text to the caller.
    pub payload: T,
    /// Tokens of the text.
    pub tokens: usize,
    /// Its lane.
    pub lane: Lane,
    /// Who sent it; origins share the bulk lane fairly.
    pub origin: u64,
    /// After this it is dropped.
    pub deadline: Deadline,
}

/// Why a text left the queue without running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Nobody waits for it any more.
    Abandoned,
    /// Its deadline passed.
    Expired,
}

/// Why a batch ended where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FlushCause {
    /// The engine was idle and everything that could join has joined.
    EngineIdle,
    /// The token budget is used up.
    BudgetFull,
    /// The limit of texts per batch is reached.
    TextsFull,
    /// The bulk quantum is used up.
    QuantumFull,
    /// The queue is being emptied for shutdown.
    Drain,
}

/// Texts that run together.
#[derive(Debug)]
pub struct PlannedBatch<T> {
    /// Their payloads; never empty.
    pub items: Vec<T>,
    /// Why it ended where it did.
    pub cause: FlushCause,
    /// How many of them are interactive; they come first unless bulk had to be served.
    pub interactive: usize,
    /// Tokens of the texts themselves.
    pub real_tokens: usize,
    /// What the engine pays, in tokens.
    pub cost_tokens: usize,
}

/// The outcome of asking for a batch.
#[derive(Debug)]
pub struct Formation<T> {
    /// The batch; none when nothing live is queued.
    pub batch: Option<PlannedBatch<T>>,
    /// Texts that were met and dropped.
    pub dropped: Vec<(T, DropReason)>,
}

/// Texts and tokens that wait in one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LaneDepth {
    /// Number of texts.
    pub texts: usize,
    /// Their tokens.
    pub tokens: usize,
}

impl LaneDepth {
    fn add(&mut self, tokens: usize) {
        self.texts += 1;
        self.tokens += tokens;
    }

    fn remove(&mut self, tokens: usize) {
        self.texts -= 1;
        self.tokens -= tokens;
    }
}

#[derive(Debug)]
struct Item<T> {
    payload: T,
    tokens: usize,
    deadline: Deadline,
    sequence: u64,
}

/// Bulk texts of one origin.
#[derive(Debug)]
struct OriginQueue<T> {
    /// By length bucket, oldest first. No bucket is empty.
    buckets: BTreeMap<usize, VecDeque<Item<T>>>,
    /// Tokens that the origin may still take in its turn.
    deficit: usize,
    /// Whether this turn's share was already added to the deficit.
    turn_started: bool,
}

/// The queue and its policy. `T` identifies a text to the caller.
#[derive(Debug)]
pub struct Planner<T> {
    config: PlannerConfig,
    next_sequence: u64,
    /// Earliest deadline first; the sequence number keeps arrivals of one deadline in order.
    interactive: BTreeMap<(Deadline, u64), Item<T>>,
    bulk: HashMap<u64, OriginQueue<T>>,
    /// Origins with bulk texts, in the order of their turns. The same set as the keys of `bulk`.
    turns: VecDeque<u64>,
    interactive_depth: LaneDepth,
    bulk_depth: LaneDepth,
    /// Batches since bulk was last served, while bulk waited.
    bulk_skips: u32,
    /// Since when bulk waits unserved.
    bulk_waits_since: Option<Instant>,
    /// When an interactive text was last queued.
    last_interactive: Option<Instant>,
    draining: bool,
}

/// The batch under construction.
struct Builder<T> {
    cost: CostModel,
    max_texts: usize,
    items: Vec<T>,
    sum: usize,
    longest: usize,
    stopped_by: Option<FlushCause>,
}

impl<T> Builder<T> {
    fn cost_tokens(&self) -> usize {
        match self.cost {
            CostModel::Packed => self.sum,
            CostModel::Padded => self.items.len() * self.longest,
        }
    }

    /// Whether a text of `tokens` may join under `budget`; remembers `full` as the reason if it may not. The
    /// first text always may, or one that is larger than the budget would wait for ever.
    fn admits(&mut self, tokens: usize, budget: usize, full: FlushCause) -> bool {
        if self.items.is_empty() {
            return true;
        }
        if self.items.len() >= self.max_texts {
            self.stopped_by = Some(FlushCause::TextsFull);
            return false;
        }
        let cost = match self.cost {
            CostModel::Packed => self.sum + tokens,
            CostModel::Padded => (self.items.len() + 1) * self.longest.max(tokens),
        };
        if cost > budget {
            self.stopped_by = Some(full);
            return false;
        }
        true
    }

    fn push(&mut self, item: Item<T>) {
        self.sum += item.tokens;
        self.longest = self.longest.max(item.tokens);
        self.items.push(item.payload);
    }
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

    /// Forms the next batch; to be called when the engine is idle. `is_abandoned` tells whether nobody waits for
    /// a text any more.
    pub fn next_batch(&mut self, now: Instant, mut is_abandoned: impl FnMut(&T) -> bool) -> Formation<T> {
        let mut dropped = Vec::new();
        let mut gone = |item: &Item<T>| {
            if is_abandoned(&item.payload) {
                Some(DropReason::Abandoned)
            } else if item.deadline.expired_at(now) {
                Some(DropReason::Expired)
            } else {
                None
            }
        };
        let mut builder = Builder {
            cost: self.config.cost,
            max_texts: self.config.max_batch_texts,
            items: Vec::new(),
            sum: 0,
            longest: 0,
            stopped_by: None,
        };
        let budget = self.config.max_batch_tokens;
        let bulk_due = self.bulk_is_due(now);
        if bulk_due {
            // Bulk first, or a padded batch of short texts could never afford its long ones.
            builder.max_texts = self.config.max_batch_texts.div_ceil(2);
            self.take_bulk(&mut builder, budget / 2, &mut gone, &mut dropped);
            builder.max_texts = self.config.max_batch_texts;
            builder.stopped_by = None;
        }
        let num_reserved = builder.items.len();
        self.take_interactive(&mut builder, budget, &mut gone, &mut dropped);
        let interactive = builder.items.len() - num_reserved;
        if !bulk_due {
            let quantum = if self.is_quiet(now) {
                budget
            } else {
                self.config.bulk_quantum_tokens.min(budget)
            };
            self.take_bulk(&mut builder, quantum, &mut gone, &mut dropped);
        }
        let num_bulk = builder.items.len() - interactive;
        if self.bulk_depth.texts == 0 {
            self.forget_empty_bulk();
        } else if num_bulk > 0 {
            self.bulk_skips = 0;
            self.bulk_waits_since = Some(now);
        } else if interactive > 0 {
            self.bulk_skips += 1;
        }
        let cost_tokens = builder.cost_tokens();
        let cause = if self.draining {
            FlushCause::Drain
        } else if self.is_empty() {
            FlushCause::EngineIdle
        } else {
            builder.stopped_by.unwrap_or(FlushCause::EngineIdle)
        };
        let batch = (!builder.items.is_empty()).then_some(PlannedBatch {
            items: builder.items,
            cause,
            interactive,
            real_tokens: builder.sum,
            cost_tokens,
        });
        Formation { batch, dropped }
    }

    fn bucket_of(&self, tokens: usize) -> usize {
        match self.config.cost {
            // One bucket: length does not matter, so plain order of arrival.
            CostModel::Packed => 0,
            CostModel::Padded => tokens.div_ceil(self.config.bucket_tokens),
        }
    }

    /// Whether nobody is likely to wait for a large bulk batch. The first search after a quiet time may, once.
    fn is_quiet(&self, now: Instant) -> bool {
        self.last_interactive
            .is_none_or(|last| now.saturating_duration_since(last) >= self.config.quiet)
    }

    /// Whether bulk waited long enough to be served beside, or before, interactive texts.
    fn bulk_is_due(&self, now: Instant) -> bool {
        self.bulk_depth.texts > 0
            && self.interactive_depth.texts > 0
            && (self.bulk_skips >= self.config.max_bulk_skips
                || self
                    .bulk_waits_since
                    .is_some_and(|since| now.saturating_duration_since(since) >= self.config.max_bulk_wait))
    }

    fn forget_empty_bulk(&mut self) {
        if self.bulk_depth.texts == 0 {
            self.bulk_skips = 0;
            self.bulk_waits_since = None;
        }
    }

    fn take_interactive(
        &mut self,
        builder: &mut Builder<T>,
        budget: usize,
        gone: &mut impl FnMut(&Item<T>) -> Option<DropReason>,
        dropped: &mut Vec<(T, DropReason)>,
    ) {
        while let Some(entry) = self.interactive.first_entry() {
            let reason = gone(entry.get());
            let tokens = entry.get().tokens;
            if reason.is_none() && !builder.admits(tokens, budget, FlushCause::BudgetFull) {
                // Taking a shorter one from behind instead would let long texts starve.
                return;
            }
            let item = entry.remove();
            self.interactive_depth.remove(tokens);
            match reason {
                Some(reason) => dropped.push((item.payload, reason)),
                None => builder.push(item),
            }
        }
    }

    /// Adds bulk texts by deficit round-robin until `budget` is reached or no origin has a text that fits.
    fn take_bulk(
        &mut self,
        builder: &mut Builder<T>,
        budget: usize,
        gone: &mut impl FnMut(&Item<T>) -> Option<DropReason>,
        dropped: &mut Vec<(T, DropReason)>,
    ) {
        let padded = self.config.cost == CostModel::Padded;
        // The longest text that may join. A padded batch must not grow longer than its first texts, and its
        // first bulk text sets the length by its bucket.
        let mut longest_allowed = (padded && !builder.items.is_empty()).then_some(builder.longest);
        // Origins whose texts are all too long for this batch, and those behind them. They keep their turns: the
        // next batch is theirs.
        let mut passed_over = Vec::new();
        // Origins that ended a turn in this round. Another round begins only if nobody was passed over in this one.
        let mut had_their_turn = Vec::new();
        loop {
            let Some(origin) = self.turns.front().copied() else {
                if passed_over.is_empty() && !had_their_turn.is_empty() {
                    self.turns.extend(had_their_turn.drain(..));
                    continue;
                }
                break;
            };
            let Some(queue) = self.bulk.get_mut(&origin) else {
                self.turns.pop_front();
                continue;
            };
            let Some(bucket) = queue.pick_bucket(longest_allowed) else {
                self.turns.pop_front();
                if queue.buckets.is_empty() {
                    self.bulk.remove(&origin);
                } else {
                    passed_over.push(origin);
                }
                continue;
            };
            let head = queue.head(bucket);
            let tokens = head.tokens;
            if let Some(reason) = gone(head) {
                dropped.push((queue.pop(bucket).payload, reason));
                self.bulk_depth.remove(tokens);
                continue;
            }
            if !queue.turn_started && !passed_over.is_empty() {
                // A turn that began now would come before that of an origin whose turn it was.
                self.turns.pop_front();
                passed_over.push(origin);
                continue;
            }
            if !queue.turn_started {
                queue.deficit += self.config.bulk_quantum_tokens.max(1);
                queue.turn_started = true;
            }
            if tokens > queue.deficit {
                // What is left is kept: a text longer than a turn's share runs after some turns.
                queue.turn_started = false;
                self.turns.pop_front();
                had_their_turn.push(origin);
                continue;
            }
            if !builder.admits(tokens, budget, FlushCause::QuantumFull) {
                break;
            }
            queue.deficit -= tokens;
            if padded && longest_allowed.is_none() {
                longest_allowed = Some(bucket * self.config.bucket_tokens);
            }
            let item = queue.pop(bucket);
            self.bulk_depth.remove(tokens);
            builder.push(item);
        }
        for origin in passed_over.into_iter().rev() {
            self.turns.push_front(origin);
        }
        self.turns.extend(had_their_turn);
    }
}

impl<T> OriginQueue<T> {
    /// The bucket to take from: with no limit the one with the oldest text, otherwise the longest whose oldest
    /// text is within `longest_allowed` tokens.
    fn pick_bucket(&self, longest_allowed: Option<usize>) -> Option<usize> {
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

    fn head(&self, bucket: usize) -> &Item<T> {
        &self.buckets[&bucket][0]
    }

    /// Takes the oldest text of `bucket`, which must have one.
    fn pop(&mut self, bucket: usize) -> Item<T> {
        let items = self
            .buckets
            .get_mut(&bucket)
            .expect("pick_bucket returned a bucket that exists");
        let item = items.pop_front().expect("no bucket is kept once it is empty");
        if items.is_empty() {
            self.buckets.remove(&bucket);
        }
        item
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const LONGEST: usize = 256;
    /// Longer than any test but that of the quiet time pretends to last.
    const QUIET: Duration = Duration::from_secs(100_000);

    fn config(cost: CostModel) -> PlannerConfig {
        PlannerConfig {
            cost,
            max_batch_texts: 8,
            max_batch_tokens: 1024,
            bulk_quantum_tokens: 128,
            quiet: QUIET,
            bucket_tokens: 32,
            max_bulk_skips: 4,
            max_bulk_wait: Duration::from_secs(2),
        }
    }

    /// A text in a test, with all that the assertions need to know.
    #[derive(Clone, Debug, PartialEq)]
    struct Text {
        number: usize,
        tokens: usize,
        lane: Lane,
        origin: u64,
    }

    struct Harness {
        planner: Planner<Text>,
        start: Instant,
        pushed: usize,
    }

    impl Harness {
        fn new(cost: CostModel) -> Self {
            let start = Instant::now();
            let mut planner = Planner::new(config(cost));
            planner.last_interactive = Some(start);
            Self {
                planner,
                start,
                pushed: 0,
            }
        }

        fn push(&mut self, lane: Lane, origin: u64, tokens: usize) -> usize {
            self.push_at(lane, origin, tokens, self.start, Duration::from_secs(3600))
        }

        fn push_at(&mut self, lane: Lane, origin: u64, tokens: usize, now: Instant, time_left: Duration) -> usize {
            let number = self.pushed;
            self.pushed += 1;
            self.planner.push(
                Queued {
                    payload: Text {
                        number,
                        tokens,
                        lane,
                        origin,
                    },
                    tokens,
                    lane,
                    origin,
                    deadline: Deadline::at(now + time_left),
                },
                now,
            );
            number
        }

        fn batch(&mut self) -> PlannedBatch<Text> {
            self.planner
                .next_batch(self.start, |_| false)
                .batch
                .expect("something is queued")
        }
    }

    fn numbers(batch: &PlannedBatch<Text>) -> Vec<usize> {
        batch.items.iter().map(|text| text.number).collect()
    }

    #[test]
    fn interactive_goes_first_and_bulk_fills_up_to_the_quantum() {
        let mut harness = Harness::new(CostModel::Packed);
        for _ in 0..4 {
            harness.push(Lane::Bulk, 1, 40);
        }
        let query = harness.push(Lane::Interactive, 2, 20);
        let batch = harness.batch();
        assert_eq!(numbers(&batch), [query, 0, 1]);
        assert_eq!(batch.cost_tokens, 100);
        assert_eq!(batch.interactive, 1);
        assert_eq!(batch.cause, FlushCause::QuantumFull);
        let rest = harness.batch();
        assert_eq!(numbers(&rest), [2, 3]);
        assert_eq!(rest.cause, FlushCause::EngineIdle);
    }

    #[test]
    fn bulk_gets_whole_batches_when_nobody_asks() {
        let mut harness = Harness::new(CostModel::Packed);
        for _ in 0..16 {
            harness.push_at(Lane::Bulk, 1, 100, harness.start, QUIET * 2);
        }
        assert_eq!(harness.batch().items.len(), 1, "somebody has just asked");
        let quiet = harness.start + QUIET;
        let batch = harness.planner.next_batch(quiet, |_| false).batch.unwrap();
        assert_eq!((batch.items.len(), batch.cause), (8, FlushCause::TextsFull));
        harness.push_at(Lane::Interactive, 2, 10, quiet, Duration::from_secs(3600));
        let batch = harness.planner.next_batch(quiet, |_| false).batch.unwrap();
        assert_eq!((batch.interactive, batch.items.len()), (1, 2));
    }

    #[test]
    fn interactive_runs_by_deadline() {
        let mut harness = Harness::new(CostModel::Packed);
        let start = harness.start;
        let store = harness.push_at(Lane::Interactive, 1, 10, start, Duration::from_secs(30));
        let search = harness.push_at(Lane::Interactive, 1, 10, start, Duration::from_secs(5));
        assert_eq!(numbers(&harness.batch()), [search, store]);
    }

    #[test]
    fn a_padded_top_up_is_never_longer_than_the_batch() {
        let mut harness = Harness::new(CostModel::Padded);
        let long = harness.push(Lane::Bulk, 1, 41);
        let short = harness.push(Lane::Bulk, 1, 30);
        let query = harness.push(Lane::Interactive, 2, 40);
        assert_eq!(numbers(&harness.batch()), [query, short]);
        assert_eq!(numbers(&harness.batch()), [long]);
    }

    #[test]
    fn a_padded_bulk_batch_starts_with_the_oldest_and_extends_to_shorter_ones() {
        let mut harness = Harness::new(CostModel::Padded);
        let first = harness.push(Lane::Bulk, 1, 20);
        let longer = harness.push(Lane::Bulk, 1, 60);
        let shorter = harness.push(Lane::Bulk, 1, 5);
        assert_eq!(numbers(&harness.batch()), [first, shorter]);
        assert_eq!(numbers(&harness.batch()), [longer]);
    }

    #[test]
    fn a_text_over_every_budget_runs_alone() {
        for cost in [CostModel::Packed, CostModel::Padded] {
            let mut harness = Harness::new(cost);
            harness.push(Lane::Bulk, 1, 4000);
            harness.push(Lane::Bulk, 1, 4000);
            harness.push(Lane::Interactive, 1, 4000);
            for _ in 0..3 {
                assert_eq!(harness.batch().items.len(), 1);
            }
            assert!(harness.planner.is_empty());
        }
    }

    #[test]
    fn bulk_is_served_after_four_batches_without_it() {
        let mut harness = Harness::new(CostModel::Packed);
        for _ in 0..10 {
            harness.push(Lane::Bulk, 1, 100);
        }
        let mut with_bulk = Vec::new();
        for _ in 0..10 {
            for _ in 0..8 {
                harness.push(Lane::Interactive, 2, 100);
            }
            let batch = harness.batch();
            with_bulk.push(batch.items.len() - batch.interactive);
        }
        assert_eq!(with_bulk, [0, 0, 0, 0, 4, 0, 0, 0, 0, 4]);
    }

    #[test]
    fn bulk_that_waited_unserved_for_two_seconds_gets_half_a_batch() {
        let mut harness = Harness::new(CostModel::Packed);
        harness.push(Lane::Bulk, 1, 100);
        for _ in 0..8 {
            harness.push(Lane::Interactive, 2, 100);
        }
        let later = harness.start + Duration::from_secs(2);
        let batch = harness
            .planner
            .next_batch(later, |_| false)
            .batch
            .expect("nine texts are queued");
        assert_eq!(batch.items.len() - batch.interactive, 1);
    }

    #[test]
    fn abandoned_and_expired_texts_never_run() {
        let mut harness = Harness::new(CostModel::Packed);
        let start = harness.start;
        for lane in [Lane::Interactive, Lane::Bulk] {
            harness.push_at(lane, 1, 10, start, Duration::from_secs(1));
            harness.push_at(lane, 1, 10, start, Duration::from_secs(60));
            harness.push_at(lane, 1, 10, start, Duration::from_secs(60));
        }
        let formation = harness
            .planner
            .next_batch(start + Duration::from_secs(5), |text| text.number % 3 == 1);
        let batch = formation.batch.expect("two texts are live");
        // Bulk first: it has waited for five seconds.
        assert_eq!(numbers(&batch), [5, 2]);
        let dropped: HashSet<(usize, bool)> = formation
            .dropped
            .iter()
            .map(|(text, reason)| (text.number, *reason == DropReason::Expired))
            .collect();
        assert_eq!(dropped, HashSet::from([(0, true), (1, false), (3, true), (4, false)]));
    }

    #[test]
    fn purge_removes_whole_requests() {
        let mut harness = Harness::new(CostModel::Padded);
        for origin in 0..4 {
            harness.push(Lane::Bulk, origin, 10);
            harness.push(Lane::Interactive, origin, 10);
        }
        harness.planner.purge(|text| text.origin != 2);
        assert_eq!(harness.planner.depths().0.texts, 1);
        assert_eq!(harness.planner.depths().1.texts, 1);
        assert!(harness.batch().items.iter().all(|text| text.origin == 2));
        assert!(harness.planner.is_empty());
    }

    #[test]
    fn draining_is_named_as_the_cause() {
        let mut harness = Harness::new(CostModel::Packed);
        harness.push(Lane::Bulk, 1, 10);
        harness.planner.start_draining();
        assert_eq!(harness.batch().cause, FlushCause::Drain);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push { lane: Lane, origin: u64, tokens: usize },
        Form,
        Wait { millis: u64 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let lane = prop_oneof![Just(Lane::Interactive), Just(Lane::Bulk)];
        let step = prop_oneof![
            6 => (lane, 0..4u64, 2..=LONGEST).prop_map(|(lane, origin, tokens)| Step::Push {
                lane,
                origin,
                tokens
            }),
            2 => Just(Step::Form),
            1 => (0..3000u64).prop_map(|millis| Step::Wait { millis }),
        ];
        proptest::collection::vec(step, 0..200)
    }

    fn cost_model() -> impl Strategy<Value = CostModel> {
        prop_oneof![Just(CostModel::Packed), Just(CostModel::Padded)]
    }

    fn check_batch(planner_config: &PlannerConfig, batch: &PlannedBatch<Text>) {
        let num = batch.items.len();
        let sum: usize = batch.items.iter().map(|text| text.tokens).sum();
        let longest = batch.items.iter().map(|text| text.tokens).max().unwrap_or(0);
        let cost = match planner_config.cost {
            CostModel::Packed => sum,
            CostModel::Padded => num * longest,
        };
        assert!(num >= 1 && num <= planner_config.max_batch_texts);
        assert_eq!(batch.cost_tokens, cost);
        assert_eq!(batch.real_tokens, sum);
        assert!(num == 1 || cost <= planner_config.max_batch_tokens);
        let num_interactive = batch.items.iter().filter(|text| text.lane == Lane::Interactive).count();
        assert_eq!(batch.interactive, num_interactive);
        if num_interactive == 0 && num > 1 {
            assert!(cost <= planner_config.max_batch_tokens / 2);
        }
    }

    proptest! {
        #[test]
        fn every_text_leaves_exactly_once_in_order_and_within_budget(
            cost in cost_model(),
            steps in steps(),
        ) {
            let mut harness = Harness::new(cost);
            let planner_config = config(cost);
            let mut now = harness.start;
            let mut left = Vec::new();
            let mut last_by_queue: HashMap<(Lane, u64, usize), usize> = HashMap::new();
            let mut forms = steps.iter().cloned().chain(std::iter::repeat_n(Step::Form, 400));
            loop {
                match forms.next() {
                    None => break,
                    Some(Step::Push { lane, origin, tokens }) => {
                        // One deadline for all: the order of arrival is what is looked at here.
                        let time_left = Duration::from_secs(7200) - (now - harness.start);
                        harness.push_at(lane, origin, tokens, now, time_left);
                    }
                    Some(Step::Wait { millis }) => now += Duration::from_millis(millis),
                    Some(Step::Form) => {
                        let waiting = !harness.planner.is_empty();
                        let formation = harness.planner.next_batch(now, |_| false);
                        prop_assert_eq!(formation.batch.is_some(), waiting, "an idle engine gets work when there is some");
                        prop_assert!(formation.dropped.is_empty());
                        let Some(batch) = formation.batch else { continue };
                        check_batch(&planner_config, &batch);
                        for text in batch.items {
                            let bucket = harness.planner.bucket_of(text.tokens);
                            let last = last_by_queue.insert((text.lane, text.origin, bucket), text.number);
                            prop_assert!(last.is_none_or(|last| last < text.number), "first in, first out");
                            left.push(text.number);
                        }
                    }
                }
            }
            prop_assert!(harness.planner.is_empty());
            let (interactive, bulk) = harness.planner.depths();
            prop_assert_eq!((interactive, bulk), (LaneDepth::default(), LaneDepth::default()));
            left.sort_unstable();
            prop_assert_eq!(left, (0..harness.pushed).collect::<Vec<_>>());
        }

        #[test]
        fn cancelled_and_expired_texts_never_reach_the_engine(
            cost in cost_model(),
            texts in proptest::collection::vec((any::<bool>(), 0..3u64, 2..=LONGEST, any::<bool>(), 0..20u64), 0..100),
        ) {
            let mut harness = Harness::new(cost);
            let start = harness.start;
            let mut cancelled = HashSet::new();
            let mut deadlines = Vec::new();
            for (bulk, origin, tokens, is_cancelled, seconds) in texts {
                let lane = if bulk { Lane::Bulk } else { Lane::Interactive };
                let number = harness.push_at(lane, origin, tokens, start, Duration::from_secs(seconds));
                deadlines.push(start + Duration::from_secs(seconds));
                if is_cancelled {
                    cancelled.insert(number);
                }
            }
            let mut seen = 0;
            for second in 0..200 {
                let now = start + Duration::from_millis(second * 100);
                let formation = harness.planner.next_batch(now, |text| cancelled.contains(&text.number));
                for text in formation.batch.iter().flat_map(|batch| &batch.items) {
                    prop_assert!(!cancelled.contains(&text.number));
                    prop_assert!(deadlines[text.number] > now);
                    seen += 1;
                }
                for (text, reason) in &formation.dropped {
                    match reason {
                        DropReason::Abandoned => prop_assert!(cancelled.contains(&text.number)),
                        DropReason::Expired => prop_assert!(deadlines[text.number] <= now),
                    }
                    seen += 1;
                }
            }
            prop_assert_eq!(seen, harness.pushed);
        }

        #[test]
        fn saturation_by_interactive_texts_does_not_starve_bulk(
            cost in cost_model(),
            bulk_tokens in proptest::collection::vec(2..=LONGEST, 1..20),
            query_tokens in 2..=LONGEST,
        ) {
            let mut harness = Harness::new(cost);
            for tokens in &bulk_tokens {
                harness.push(Lane::Bulk, 7, *tokens);
            }
            // Each due batch serves one bulk text at least, and one batch in five is due.
            for _ in 0..bulk_tokens.len() * 5 {
                for _ in 0..8 {
                    harness.push(Lane::Interactive, 1, query_tokens);
                }
                harness.batch();
            }
            prop_assert_eq!(harness.planner.depths().1.texts, 0);
        }

        #[test]
        fn origins_share_the_bulk_lane(
            cost in cost_model(),
            first in 2..=LONGEST,
            second in 2..=LONGEST,
        ) {
            let mut harness = Harness::new(cost);
            // More than sixty batches can serve, so that nobody runs out of texts.
            for (origin, tokens) in [(1, first), (2, second)] {
                for _ in 0..(60 * LONGEST).div_ceil(tokens) {
                    harness.push(Lane::Bulk, origin, tokens);
                }
            }
            let mut served = [0usize; 2];
            for _ in 0..60 {
                for text in harness.batch().items {
                    served[text.origin as usize - 1] += text.tokens;
                }
            }
            // Each is ahead by a turn and a text at most.
            let share = LONGEST + config(cost).bulk_quantum_tokens;
            prop_assert!(served[0].abs_diff(served[1]) <= share, "{served:?}");
        }
    }
}
