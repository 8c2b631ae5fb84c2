//! Gives back what the daemon has taken for work that is over: projects that nobody uses are closed, and memory that was
//! freed goes back to the system.

use std::sync::Arc;
use std::time::Duration;

use ccod_actors::memory;
use ccod_actors::store::Store;
use ccod_protocol::limits::ServerStats;
use tokio_util::sync::CancellationToken;

/// How often it is looked, at most.
const PERIOD: Duration = Duration::from_secs(5);
/// How often it is looked, at least.
const SHORTEST_PERIOD: Duration = Duration::from_millis(250);
/// Quiet periods in which memory is given back: threads that were asleep in the first one are reached in the next ones,
/// and some end only after ten seconds.
const QUIET_PERIODS: u32 = 4;
/// Periods after which memory is given back though there is no quiet.
const BUSY_PERIODS: u32 = 12;

/// What is looked at.
pub(crate) struct Housekeeping {
    pub(crate) store: Arc<Store>,
    pub(crate) stats: Arc<ServerStats>,
    /// How long a project is unused before it is closed; none keeps it open.
    pub(crate) close_after: Option<Duration>,
}

/// Decides when memory is given back.
#[derive(Debug, Default)]
struct Pauses {
    /// Bytes that had been read from clients at the last look.
    read: u64,
    /// Looks since something was read.
    quiet: u32,
    /// Looks since memory was given back while clients went on.
    busy: u32,
}

impl Pauses {
    /// Whether memory is given back now. `read` are the bytes read from clients so far, `freed` whether something large
    /// was just freed.
    fn look(&mut self, read: u64, freed: bool) -> bool {
        if read != self.read || freed {
            self.read = read;
            self.quiet = 0;
            self.busy += 1;
            if self.busy < BUSY_PERIODS {
                return false;
            }
            self.busy = 0;
            return true;
        }
        self.busy = 0;
        self.quiet = self.quiet.saturating_add(1);
        self.quiet <= QUIET_PERIODS
    }
}

impl Housekeeping {
    /// Looks again and again until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let period = self
            .close_after
            .map_or(PERIOD, |after| (after / 4).clamp(SHORTEST_PERIOD, PERIOD));
        let mut pauses = Pauses::default();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(period) => {}
            }
            let mut closed = 0;
            if let Some(after) = self.close_after {
                closed = self.store.close_unused(after).await;
            }
            if pauses.look(self.stats.snapshot().bytes_read, closed > 0) {
                memory::give_back().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_clients_pause_and_sometimes_while_they_do_not() {
        let mut pauses = Pauses::default();
        let quiet: Vec<bool> = (0..6).map(|_| pauses.look(0, false)).collect();
        assert_eq!(quiet, [true, true, true, true, false, false]);
        // What was freed without a request is given back, too.
        assert_eq!([pauses.look(0, true), pauses.look(0, false)], [false, true]);
        let given = (1..=3 * u64::from(BUSY_PERIODS)).filter(|read| pauses.look(*read, false));
        assert_eq!(given.count(), 3);
        assert!(pauses.look(3 * u64::from(BUSY_PERIODS), false));
    }
}
