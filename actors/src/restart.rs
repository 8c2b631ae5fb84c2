//! When a failed part is started again. Pure: it takes the time.
//!
//! Each failure is followed by a restart after a pause that doubles, up to a cap. More failures within the
//! window than the intensity allows mean that restarting does not help: the part is degraded, and tried again
//! only once in a long while.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How restarts are limited.
#[derive(Clone, Copy, Debug)]
pub struct RestartPolicy {
    /// Failures within the window that are answered by a prompt restart.
    pub max_restarts: usize,
    /// The window.
    pub window: Duration,
    /// Pause after the first failure; doubles with each further one in the window.
    pub backoff: Duration,
    /// Longest pause.
    pub backoff_cap: Duration,
    /// Pause between tries of a degraded part.
    pub degraded_retry: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_restarts: 3,
            window: Duration::from_secs(30),
            backoff: Duration::from_millis(100),
            backoff_cap: Duration::from_secs(5),
            degraded_retry: Duration::from_secs(60),
        }
    }
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// When to try again.
    pub after: Duration,
    /// Whether the part counts as degraded until that try succeeds.
    pub degraded: bool,
}

/// The failures of one part. See the module.
#[derive(Clone, Debug)]
pub struct RestartTracker {
    policy: RestartPolicy,
    failures: VecDeque<Instant>,
    total: u64,
}

impl RestartTracker {
    /// A tracker that has seen no failure.
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            failures: VecDeque::new(),
            total: 0,
        }
    }

    /// Failures since the daemon started.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Records a failure at `now` and decides.
    pub fn failed(&mut self, now: Instant) -> Restart {
        self.total += 1;
        self.failures.push_back(now);
        while self
            .failures
            .front()
            .is_some_and(|first| now.saturating_duration_since(*first) > self.policy.window)
        {
            self.failures.pop_front();
        }
        let recent = self.failures.len();
        if recent > self.policy.max_restarts {
            // Only the newest failures decide whether it is still failing at the next try.
            while self.failures.len() > self.policy.max_restarts {
                self.failures.pop_front();
            }
            return Restart {
                after: self.policy.degraded_retry,
                degraded: true,
            };
        }
        let doublings = u32::try_from(recent - 1).unwrap_or(u32::MAX).min(16);
        Restart {
            after: (self.policy.backoff * 2_u32.pow(doublings)).min(self.policy.backoff_cap),
            degraded: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        max_restarts: 3,
        window: Duration::from_secs(30),
        backoff: Duration::from_millis(100),
        backoff_cap: Duration::from_millis(250),
        degraded_retry: Duration::from_secs(60),
    };

    #[test]
    fn pauses_double_to_the_cap_then_it_is_degraded() {
        let start = Instant::now();
        let mut tracker = RestartTracker::new(POLICY);
        let decisions: Vec<Restart> = (0..4)
            .map(|second| tracker.failed(start + Duration::from_secs(second)))
            .collect();
        let pauses: Vec<u128> = decisions.iter().map(|restart| restart.after.as_millis()).collect();
        assert_eq!(pauses, [100, 200, 250, 60_000]);
        assert_eq!(decisions.iter().filter(|restart| restart.degraded).count(), 1);
        assert_eq!(tracker.total(), 4);
    }

    #[test]
    fn failures_outside_the_window_are_forgiven() {
        let start = Instant::now();
        let mut tracker = RestartTracker::new(POLICY);
        for minute in 0..20 {
            let restart = tracker.failed(start + Duration::from_secs(60 * minute));
            assert_eq!((restart.after, restart.degraded), (POLICY.backoff, false));
        }
    }

    proptest! {
        #[test]
        fn never_more_prompt_restarts_in_a_window_than_allowed(gaps in prop::collection::vec(0u64..40_000, 1..60)) {
            let mut now = Instant::now();
            let mut tracker = RestartTracker::new(POLICY);
            let mut prompt: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                let restart = tracker.failed(now);
                if restart.degraded {
                    now += restart.after;
                } else {
                    prop_assert!(restart.after <= POLICY.backoff_cap);
                    prompt.push(now);
                    let recent = prompt.iter().filter(|at| now.duration_since(**at) <= POLICY.window).count();
                    prop_assert!(recent <= POLICY.max_restarts);
                }
            }
        }
    }
}
