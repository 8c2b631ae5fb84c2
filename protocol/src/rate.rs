//! The rate of requests of one peer, as a token bucket. Off unless configured.

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter as Governor};
use std::num::NonZeroU32;

use crate::error::WireError;
use crate::limits::Limits;
use crate::peer::PeerIdentity;

/// A bucket per peer process.
pub(crate) struct RateLimiter {
    buckets: Governor<PeerIdentity, HashMapStateStore<PeerIdentity>, DefaultClock>,
    clock: DefaultClock,
}

impl RateLimiter {
    /// None if no rate is configured.
    pub(crate) fn new(limits: &Limits) -> Option<Self> {
        let rate = NonZeroU32::new(limits.rate_limit_per_second?)?;
        let burst = limits.rate_limit_burst.and_then(NonZeroU32::new).unwrap_or(rate);
        let clock = DefaultClock::default();
        let quota = Quota::per_second(rate).allow_burst(burst);
        Some(Self {
            buckets: Governor::hashmap_with_clock(quota, clock.clone()),
            clock,
        })
    }

    /// Takes a token of `peer`'s bucket.
    ///
    /// # Errors
    /// `rate_limited` with the time until there is one.
    pub(crate) fn check(&self, peer: &PeerIdentity) -> Result<(), WireError> {
        self.buckets.check_key(peer).map_err(|not_until| {
            let wait = not_until.wait_time_from(self.clock.now());
            WireError::rate_limited(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1))
        })
    }

    /// Forgets peers whose buckets are full again.
    pub(crate) fn forget_idle(&self) {
        self.buckets.retain_recent();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_passes_and_then_the_rate_counts_by_peer() {
        let limits = Limits {
            rate_limit_per_second: Some(1),
            rate_limit_burst: Some(3),
            ..Limits::default()
        };
        let rate = RateLimiter::new(&limits).unwrap();
        let peer = |pid| PeerIdentity {
            uid: 1,
            gid: 1,
            pid: Some(pid),
        };
        for _ in 0..3 {
            rate.check(&peer(1)).unwrap();
        }
        let error = rate.check(&peer(1)).unwrap_err();
        assert_eq!(error.code, -32025);
        assert!(error.data.retry_after_ms.is_some_and(|wait| (1..=1000).contains(&wait)));
        rate.check(&peer(2)).unwrap();
        rate.forget_idle();
        assert!(rate.check(&peer(1)).is_err());
        assert!(RateLimiter::new(&Limits::default()).is_none());
    }
}
