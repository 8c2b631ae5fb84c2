//! The clock: what time it is, whether that can be, and how far it is believed when it says that something has expired.
//!
//! The clock of a machine may show any time. All code takes the time from [`now_ms`], which gives whatever the clock
//! shows; `chrono::Utc::now` and LanceDB panic before 1970, so code that needs LanceDB calls [`check`] first.
//!
//! What has expired is forgotten for good, and a clock can be wrong: set by a mistyped date, or years ahead at the
//! start of a machine whose battery is empty, until the network corrects it. So a time that runs ahead of what was
//! seen to pass is believed only once it has stood for an hour; until then time goes on from where it was known to
//! be. Passing time is counted by a clock that nobody sets, from the start of the daemon; and before that, from the
//! last commit of any project. A day more or less is believed at once: it costs a part of the retention, not
//! all of it.
//!
//! A clock that is still wrong after an hour, or at the second start in a row with commits in between, cannot be told
//! from one that is right.

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::domain::format_time;
use crate::error::{KnowledgeError, KnowledgeResult};

/// How far ahead of what was expected a time is believed at once.
const BELIEVED_AT_ONCE: TimeDelta = TimeDelta::days(1);
/// How long a time further ahead must stand before it is believed.
const SETTLED: Duration = Duration::from_secs(60 * 60);

static CLOCK: Mutex<Option<Clock>> = Mutex::new(None);

/// The present moment in the resolution that is stored (milliseconds), as the clock says it.
pub fn now_ms() -> DateTime<Utc> {
    let now = DateTime::<Utc>::from(SystemTime::now()).trunc_subsecs(3);
    // Tests of what happens after days set the clock on.
    fail::fail_point!("clock::days_ahead", |days: Option<String>| {
        let days = days.and_then(|days| days.parse().ok()).unwrap_or(0);
        now + TimeDelta::days(days)
    });
    now
}

/// Starts again from what is known: the time of the last commit before this process. Without one the present time is
/// believed.
pub fn begin(last_commit: Option<DateTime<Utc>>) {
    let clock = Clock::new(last_commit.unwrap_or_else(now_ms), Instant::now());
    *CLOCK.lock() = Some(clock);
}

/// The present time, as far as it is believed: never after [`now_ms`]. For what is forgotten for good when its time
/// has come, and for nothing else.
pub fn believed_now() -> DateTime<Utc> {
    let (wall, steady) = (now_ms(), Instant::now());
    let mut clock = CLOCK.lock();
    clock
        .get_or_insert_with(|| Clock::new(wall, steady))
        .believed(wall, steady, settled())
}

fn settled() -> Duration {
    // Tests do not wait.
    fail::fail_point!("writer::hasten", |_| Duration::from_millis(20));
    SETTLED
}

/// Refuses while the clock stands before 1970: what LanceDB writes, and what it reads, has a time that counts from
/// there, and it panics. That says nothing about what is stored.
///
/// # Errors
/// [`KnowledgeError::Unavailable`], until the clock is set.
pub fn check() -> KnowledgeResult<()> {
    check_at(now_ms())
}

fn check_at(now: DateTime<Utc>) -> KnowledgeResult<()> {
    if now >= DateTime::<Utc>::UNIX_EPOCH {
        return Ok(());
    }
    Err(KnowledgeError::Unavailable {
        part: "the store",
        reason: format!(
            "the clock of this machine says {}, which cannot be; set the clock",
            format_time(now)
        ),
    })
}

/// Pure: it takes the times.
#[derive(Debug)]
struct Clock {
    /// A time that was believed, and when by the clock that nobody sets.
    known: (DateTime<Utc>, Instant),
    /// Since when the clock has been ahead of what is believed, if it is.
    ahead_since: Option<Instant>,
}

impl Clock {
    fn new(known: DateTime<Utc>, steady: Instant) -> Self {
        Self {
            known: (known, steady),
            ahead_since: None,
        }
    }

    fn believed(&mut self, wall: DateTime<Utc>, steady: Instant, settled: Duration) -> DateTime<Utc> {
        let (known, at) = self.known;
        let passed = TimeDelta::from_std(steady.saturating_duration_since(at)).unwrap_or(TimeDelta::MAX);
        let expected = known.checked_add_signed(passed).unwrap_or(wall);
        let latest = expected.checked_add_signed(BELIEVED_AT_ONCE).unwrap_or(wall);
        if wall > latest {
            let since = *self.ahead_since.get_or_insert(steady);
            if steady.saturating_duration_since(since) < settled {
                return latest;
            }
            tracing::info!(%wall, %expected, "the clock is ahead of what was expected and has stood: it is believed");
        }
        // As expected, set back, or settled.
        self.known = (wall, steady);
        self.ahead_since = None;
        wall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    struct Rig {
        clock: Clock,
        begun: Instant,
        time: DateTime<Utc>,
    }

    impl Rig {
        /// A clock that is started so long after the last commit.
        fn started_after(pause: TimeDelta) -> Self {
            let (begun, time) = (Instant::now(), now_ms());
            Self {
                clock: Clock::new(time - pause, begun),
                begun,
                time,
            }
        }

        /// How far the believed time is from the true one where the clock is wrong by `error`, after `passed`.
        fn error(&mut self, passed: Duration, error: TimeDelta) -> TimeDelta {
            let truth = self.time + TimeDelta::from_std(passed).unwrap();
            self.clock.believed(truth + error, self.begun + passed, HOUR) - truth
        }
    }

    #[test]
    fn a_time_before_1970_cannot_be() {
        let epoch = DateTime::<Utc>::UNIX_EPOCH;
        assert!(check_at(epoch).is_ok());
        for before in [TimeDelta::milliseconds(1), TimeDelta::days(40_000)] {
            let error = check_at(epoch - before).unwrap_err();
            assert!(matches!(error, KnowledgeError::Unavailable { .. }), "{error}");
            assert!(error.to_string().contains("set the clock"), "{error}");
        }
    }

    #[test]
    fn time_that_passes_is_believed() {
        let mut rig = Rig::started_after(TimeDelta::hours(10));
        for day in 0..40 {
            assert_eq!(rig.error(24 * HOUR * day, TimeDelta::zero()), TimeDelta::zero());
        }
        // A machine that slept for a night, and a clock that is set back.
        assert_eq!(rig.error(960 * HOUR, TimeDelta::hours(9)), TimeDelta::hours(9));
        assert_eq!(rig.error(961 * HOUR, TimeDelta::days(-3)), TimeDelta::days(-3));
    }

    #[test]
    fn a_jump_that_is_corrected_costs_nothing() {
        let mut rig = Rig::started_after(TimeDelta::zero());
        let year = TimeDelta::days(365);
        rig.error(HOUR, TimeDelta::zero());
        for minute in 0..50 {
            let error = rig.error(HOUR + Duration::from_secs(60 * minute), year);
            assert_eq!(error, BELIEVED_AT_ONCE, "in minute {minute}");
        }
        assert_eq!(rig.error(2 * HOUR, TimeDelta::zero()), TimeDelta::zero());
        // The next jump stands for itself.
        assert_eq!(rig.error(3 * HOUR, year), BELIEVED_AT_ONCE);
        assert_eq!(rig.error(4 * HOUR - Duration::from_secs(1), year), BELIEVED_AT_ONCE);
        // What has stood for an hour is the time.
        assert_eq!(rig.error(4 * HOUR, year), year);
        assert_eq!(rig.error(5 * HOUR, year), year);
    }

    #[test]
    fn after_a_long_pause_of_the_daemon_the_clock_is_believed_when_it_has_stood() {
        let pause = TimeDelta::days(30);
        let mut rig = Rig::started_after(pause);
        assert_eq!(rig.error(Duration::ZERO, TimeDelta::zero()), BELIEVED_AT_ONCE - pause);
        assert_eq!(rig.error(HOUR / 2, TimeDelta::zero()), BELIEVED_AT_ONCE - pause);
        assert_eq!(rig.error(HOUR, TimeDelta::zero()), TimeDelta::zero());
    }
}
