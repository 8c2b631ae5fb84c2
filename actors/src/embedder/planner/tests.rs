use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::deadline::Deadline;

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
