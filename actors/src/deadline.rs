//! The time by which a request must have been answered.
//!
//! Fixed once, when the request is parsed, and carried in every message: each hop checks it before it starts
//! work, so what expires in a queue is never executed.

use std::time::{Duration, Instant};

/// An absolute deadline on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `timeout` from now.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// The deadline at `instant`.
    pub fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The instant itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left; zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn expired(self) -> bool {
        self.expired_at(Instant::now())
    }

    /// Whether it has passed at `now` (for the pure state machines, which take the time).
    pub fn expired_at(self, now: Instant) -> bool {
        self.0 <= now
    }
}
