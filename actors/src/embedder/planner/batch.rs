//! The policy: which of the queued texts make the next batch.

use std::time::Instant;

use super::queue::{Item, Planner};
use super::types::{CostModel, DropReason, FlushCause, Formation, PlannedBatch};

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
            let bucket = queue.pick_bucket(longest_allowed);
            let Some((bucket, head)) = bucket.and_then(|bucket| Some((bucket, queue.head(bucket)?))) else {
                self.turns.pop_front();
                if queue.buckets.is_empty() {
                    self.bulk.remove(&origin);
                } else {
                    passed_over.push(origin);
                }
                continue;
            };
            let tokens = head.tokens;
            if let Some(reason) = gone(head) {
                dropped.extend(queue.pop(bucket).map(|item| (item.payload, reason)));
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
            if let Some(item) = queue.pop(bucket) {
                self.bulk_depth.remove(tokens);
                builder.push(item);
            }
        }
        for origin in passed_over.into_iter().rev() {
            self.turns.push_front(origin);
        }
        self.turns.extend(had_their_turn);
    }
}
