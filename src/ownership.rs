//! Watches that the home is still this daemon's.
//!
//! The store's lock decides who writes. As long as it is held, nobody else can be the daemon of this home, so a run
//! directory that was removed (a tidy-up, a cleaner of temporary files) is made again, with the lock and the log in
//! it, and the server does the same for its socket. Once the store's lock is lost, with the directory of the projects,
//! or the endpoint's lock to another process, the daemon ends.

use std::time::Duration;

use ccod_actors::store::StoreLock;
use ccod_protocol::endpoint::{BindOptions, EndpointError, EndpointLock};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::log_file::LogFile;

/// What makes this process the daemon of its home.
pub(crate) struct Ownership {
    pub(crate) store: StoreLock,
    pub(crate) endpoint: EndpointLock,
    pub(crate) options: BindOptions,
    pub(crate) log: Option<LogFile>,
}

impl Ownership {
    /// Checks every `period` until `stop` is cancelled. False if this check cancelled it, because the home is no longer
    /// this daemon's.
    pub(crate) async fn watch(self, period: Duration, stop: CancellationToken) -> bool {
        let mut look = tokio::time::interval(period);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Whether the present trouble was logged.
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return true,
                _ = look.tick() => {}
            }
            if let Err(error) = self.store.check() {
                tracing::error!(%error, "the store is not this daemon's any more, so it ends");
                stop.cancel();
                return false;
            }
            match self.endpoint.renew(&self.options) {
                Ok(renewed) => {
                    if renewed {
                        self.follow_log();
                        let lock = self.endpoint.path().display();
                        tracing::warn!(%lock, "the lock file was removed or replaced, and has been taken again");
                    }
                    told = false;
                }
                Err(error @ EndpointError::Locked { .. }) => {
                    tracing::error!(%error, "another daemon has taken this one's place, so it ends");
                    stop.cancel();
                    return false;
                }
                Err(error) => {
                    if !told {
                        tracing::error!(%error, "the lock file is gone and cannot be made again; trying on");
                    }
                    told = true;
                }
            }
            self.follow_log();
        }
    }

    fn follow_log(&self) {
        // What fails is tried again at the next look; the lines go on into the file that is open.
        if let Some(log) = &self.log {
            log.follow().unwrap_or_default();
        }
    }
}
