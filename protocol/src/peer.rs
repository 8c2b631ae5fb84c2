//! Which process is at the other end, as the kernel reports it, and whether it may use the socket.
//!
//! The socket's directory and mode already keep other users out. The check here holds where they do not:
//! a directory opened by mistake, a shared daemon, a descriptor passed on. Nothing is taken from what the
//! peer sends.

use interprocess::local_socket::traits::StreamCommon;
use interprocess::os::unix::uds_local_socket::tokio::Stream;
use std::collections::BTreeSet;
use std::io;

use crate::error::WireError;

/// A process, as the kernel knew it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process, where the system reports it. For logs and fairness only: numbers are reused.
    pub pid: Option<i32>,
}

impl PeerIdentity {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When the kernel does not say, for example because the peer lives in another process namespace. Such a
    /// peer must be refused.
    pub fn of(stream: &Stream) -> io::Result<Self> {
        let credentials = stream.peer_creds()?;
        let missing = || io::Error::other("the kernel did not name the peer's user");
        Ok(Self {
            uid: credentials.euid().ok_or_else(missing)?,
            gid: credentials.egid().ok_or_else(missing)?,
            pid: credentials.pid(),
        })
    }
}

/// Which users may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    allowed_uids: BTreeSet<u32>,
}

impl PeerPolicy {
    /// The daemon's own user and no other; user 0 neither, unless it is the daemon's own.
    #[must_use]
    pub fn own_user() -> Self {
        Self::only([nix::unistd::geteuid().as_raw()])
    }

    /// The daemon's own user and these.
    #[must_use]
    pub fn own_user_and(uids: impl IntoIterator<Item = u32>) -> Self {
        let mut policy = Self::own_user();
        policy.allowed_uids.extend(uids);
        policy
    }

    /// These users and no other, not even the daemon's own.
    #[must_use]
    pub fn only(uids: impl IntoIterator<Item = u32>) -> Self {
        Self {
            allowed_uids: uids.into_iter().collect(),
        }
    }

    /// Checks whether `peer` may use the socket.
    ///
    /// # Errors
    /// -32026, which says how to be let in.
    pub fn check(&self, peer: &PeerIdentity) -> Result<(), WireError> {
        if self.allowed_uids.contains(&peer.uid) {
            Ok(())
        } else {
            Err(WireError::forbidden(Some(peer.uid)))
        }
    }
}

impl Default for PeerPolicy {
    fn default() -> Self {
        Self::own_user()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32) -> PeerIdentity {
        PeerIdentity { uid, gid: 0, pid: None }
    }

    #[test]
    fn only_the_own_user_by_default() {
        let own = nix::unistd::geteuid().as_raw();
        let policy = PeerPolicy::default();
        policy.check(&peer(own)).unwrap();
        let error = policy.check(&peer(own + 1)).unwrap_err();
        assert_eq!(error.code, -32026);
        assert!(error.message.contains("allowed_uids"));
    }

    #[test]
    fn user_0_is_a_user_like_any_other() {
        let policy = PeerPolicy::only([1000]);
        assert!(policy.check(&peer(0)).is_err());
        assert!(PeerPolicy::only([1000, 0]).check(&peer(0)).is_ok());
        assert!(PeerPolicy::own_user_and([4_000_000]).check(&peer(4_000_000)).is_ok());
    }
}
