//! Who makes a call, as the service sees them.
//!
//! Each transport makes a [`Caller`] of what is at its other end: the Unix socket one for each connection, which its
//! calls share but for their id and their token. A transport that cannot send anything by itself takes
//! [`Service::caller`]; one that can takes [`Service::caller_with_notifications`] and sends what the
//! [`Notifications`] give.

use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::budget::Share;
use crate::context::{ConnectionId, Line, Notifier, Outbox, Subscriptions};
use crate::peer::PeerIdentity;
use crate::service::Service;

/// Who makes a call, how they are reached meanwhile, and how they end it.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who it is. The rate of requests counts by this.
    pub who: PeerIdentity,
    /// The connection, or whatever stands for one; fairness counts by this.
    pub connection: ConnectionId,
    /// The call's id as raw JSON, which its progress names; without an id no progress is sent.
    pub request_id: Option<Arc<str>>,
    /// Cancelling it ends the calls that are made with it.
    pub cancelled: CancellationToken,
    /// Sends notifications to the caller.
    pub notifier: Notifier,
    /// The change feeds of the connection.
    pub subscriptions: Subscriptions,
    /// Its share of the memory for answers.
    pub(crate) share: Arc<Share>,
}

/// What a caller is notified of, in order. Dropping it ends the caller: its feeds, and the calls of its tokens.
#[derive(Debug)]
pub struct Notifications {
    lines: mpsc::Receiver<Line>,
    /// Keeps the channel open.
    _outbox: Outbox,
    _gone: DropGuard,
}

impl Notifications {
    /// The next notification. It never ends by itself: drop it when the caller is gone.
    ///
    /// Cancel safe: a notification is not lost where the future is dropped.
    pub async fn next(&mut self) -> Notification {
        match self.lines.recv().await {
            Some(line) => Notification(line),
            // The outbox is here, so there is a sender.
            None => std::future::pending().await,
        }
    }
}

/// A notification, whose bytes count as waiting until it is dropped.
#[derive(Debug)]
pub struct Notification(Line);

impl Notification {
    /// The JSON-RPC notification, on one line.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.0.parts.first().cloned().unwrap_or_default()
    }
}

impl Service {
    /// A caller that cannot be notified: no feed can be opened for it, and no progress is sent.
    #[must_use]
    pub fn caller(&self, who: PeerIdentity) -> Caller {
        let share = Share::new(&self.limits, Arc::clone(&self.stats));
        let (outbox, _) = Outbox::new(&self.limits, Arc::clone(&self.stats), Arc::clone(&share));
        Caller {
            who,
            connection: self.next_connection(),
            request_id: None,
            notifier: outbox.notifier(),
            subscriptions: Subscriptions::refused(),
            cancelled: CancellationToken::new(),
            share,
        }
    }

    /// A caller that is notified, with its end of the notifications.
    #[must_use]
    pub fn caller_with_notifications(&self, who: PeerIdentity) -> (Caller, Notifications) {
        let gone = CancellationToken::new();
        let share = Share::new(&self.limits, Arc::clone(&self.stats));
        let (outbox, lines) = Outbox::new(&self.limits, Arc::clone(&self.stats), Arc::clone(&share));
        let caller = Caller {
            who,
            connection: self.next_connection(),
            request_id: None,
            notifier: outbox.notifier(),
            subscriptions: Subscriptions::new(gone.clone(), self.limits.max_subscriptions_per_connection),
            cancelled: gone.clone(),
            share,
        };
        let notifications = Notifications {
            lines,
            _outbox: outbox,
            _gone: gone.drop_guard(),
        };
        (caller, notifications)
    }
}
