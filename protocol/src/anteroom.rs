//! Where connections beyond the limit wait until they have sent a request.
//!
//! A few places are for operators, who ask at once. Nobody knows beforehand which connection is an operator's: of a
//! burst of connections, most send nothing for a while, or only a part of a request. So a connection that has not sent
//! a whole request takes none of the places for operators. It waits here for a second at most, and where many wait,
//! the newest is let in and the oldest is refused.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Weak};

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::codec::Framer;
use crate::connection::Shared;
use crate::error::WireError;
use crate::places::{Place, SPARE_PATIENCE};

/// The longest request that counts as an operator's: theirs are short. A connection that sends a longer one waits like
/// one that sends nothing.
const OPERATORS_REQUEST: usize = 16 << 10;

/// The connections that wait, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Anteroom {
    waiting: VecDeque<Weak<CancellationToken>>,
}

/// A connection that waits; cancelled when it has to go.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<CancellationToken>);

/// What becomes of a connection beyond the limit.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It is served.
    To(Place),
    /// It is refused, and told why.
    Refused {
        error: WireError,
        /// Whether it is given time to read that.
        lingers: bool,
    },
}

impl Anteroom {
    /// How many may wait. Each holds a file descriptor.
    pub(crate) const MOST: usize = 64;

    /// Lets one more in.
    pub(crate) fn enter(&mut self) -> Waiting {
        self.waiting.retain(|waiting| waiting.strong_count() > 0);
        while self.waiting.len() >= Self::MOST {
            self.send_one_away();
        }
        let waiting = Arc::new(CancellationToken::new());
        self.waiting.push_back(Arc::downgrade(&waiting));
        Waiting(waiting)
    }

    /// Refuses the one that has waited for the longest time.
    pub(crate) fn send_one_away(&mut self) {
        while let Some(oldest) = self.waiting.pop_front() {
            if let Some(oldest) = oldest.upgrade() {
                oldest.cancel();
                return;
            }
        }
    }
}

impl Waiting {
    /// Waits until the connection asks something and there is a place for it. `reason` says why there was no full
    /// place; a connection on a `scarce` descriptor never gets one.
    pub(crate) async fn admit(self, shared: &Shared, stream: &UnixStream, reason: &str, scarce: bool) -> Admission {
        let busy = |lingers| Admission::Refused {
            error: WireError::busy(reason, shared.service.limits.busy_retry_after_ms),
            lingers,
        };
        let stopping = || Admission::Refused {
            error: WireError::shutting_down(),
            lingers: false,
        };
        tokio::select! {
            biased;
            () = asks(stream, shared.service.limits.max_depth) => {}
            () = shared.service.shutdown.cancelled() => return stopping(),
            // What has arrived may not be known to tokio yet.
            () = self.0.cancelled() => if peek(stream, shared.service.limits.max_depth).is_err() {
                return busy(false);
            },
            () = tokio::time::sleep(SPARE_PATIENCE) => {
                return match Arc::clone(&shared.places).try_acquire_owned() {
                    Ok(permit) if !scarce => Admission::To(Place::Full(permit)),
                    _ => busy(!scarce),
                };
            }
        }
        tokio::select! {
            biased;
            Ok(permit) = Arc::clone(&shared.places).acquire_owned(), if !scarce => Admission::To(Place::Full(permit)),
            place = shared.spare_places.take() => Admission::To(Place::Spare {
                place: Some(place),
                reason: reason.to_owned(),
                may_grow: !scarce,
            }),
            () = shared.service.shutdown.cancelled() => stopping(),
            () = tokio::time::sleep(SPARE_PATIENCE) => busy(!scarce),
        }
    }
}

/// Waits until a whole request has arrived, or the end. It stays to be read.
async fn asks(stream: &UnixStream, max_depth: usize) {
    while let Ok(ready) = stream.ready(Interest::READABLE).await {
        // Whatever has arrived, nothing more will; and this stays ready, so nothing could be waited for.
        if ready.is_read_closed() {
            return;
        }
        // Being readable may be a mistake, or mean a part of a request: then this waits for more.
        match stream.try_io(Interest::READABLE, || peek(stream, max_depth)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

/// Whether a whole request waits to be read, or the end of input; `WouldBlock` if neither does.
fn peek(stream: &UnixStream, max_depth: usize) -> io::Result<()> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let mut seen = [0; OPERATORS_REQUEST];
    let count = recv(stream.as_raw_fd(), &mut seen, flags)?;
    let mut framer = Framer::new(OPERATORS_REQUEST, max_depth);
    framer.push(&seen[..count]);
    if count == 0 || framer.next().is_some() {
        Ok(())
    } else {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room_for_the_newest() {
        let mut anteroom = Anteroom::default();
        let mut waiting: VecDeque<Waiting> = (0..Anteroom::MOST).map(|_| anteroom.enter()).collect();
        assert!(waiting.iter().all(|one| !one.0.is_cancelled()));
        let newest = anteroom.enter();
        let gone: Vec<bool> = waiting.iter().map(|one| one.0.is_cancelled()).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 1);
        assert!(gone[0]);
        // A connection that has left by itself makes room as well.
        waiting.drain(..2);
        let next = anteroom.enter();
        assert!(waiting.iter().chain([&newest, &next]).all(|one| !one.0.is_cancelled()));
        anteroom.send_one_away();
        assert!(waiting[0].0.is_cancelled() && !waiting[1].0.is_cancelled());
    }
}
