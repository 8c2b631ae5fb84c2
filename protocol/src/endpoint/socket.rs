//! Sockets: bound under a name, or adopted.

use interprocess::ConnectWaitMode;
use interprocess::local_socket::traits::Stream as _;
use interprocess::local_socket::{ConnectOptions, GenericFilePath, ListenerOptions, ToFsName};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use interprocess::os::unix::uds_local_socket::{Listener, Stream};
use nix::sys::socket::{AddressFamily, SockaddrLike, UnixAddr, getsockname, getsockopt, sockopt};
use nix::unistd::{Gid, chown};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::failed;
use super::lock::same_file;
use super::{BindOptions, EndpointError, EndpointLock, check_socket_path, prepare_run_dir};
use crate::peer::PeerPolicy;

/// A listening socket, with its name if it is ours to remove.
#[derive(Debug)]
pub struct BoundSocket {
    pub(crate) listener: Listener,
    policy: PeerPolicy,
    name: Option<Name>,
}

/// A name that [`bind`] made.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    /// Device and inode, by which the socket is recognised.
    identity: (u64, u64),
    lock: EndpointLock,
    options: BindOptions,
}

/// Binds the socket at `path`, which must be in a directory that [`prepare_run_dir`] has accepted. The
/// lock shows that nobody else is doing the same.
///
/// # Errors
/// When the path is taken by anything but a dead socket, or the system refuses.
pub fn bind(path: &Path, lock: &EndpointLock, options: &BindOptions) -> Result<BoundSocket, EndpointError> {
    check_socket_path(path)?;
    clear_stale(path)?;
    let listener = listen(path)?;
    let named = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let name = Name {
        path: path.to_owned(),
        identity: (named.dev(), named.ino()),
        lock: lock.clone(),
        options: options.clone(),
    };
    let bound = BoundSocket {
        listener,
        policy: options.policy.clone(),
        name: Some(name),
    };
    if let Some(group) = options.socket_group {
        // The directory, which only we can change, is closed to all but the group already.
        chown(path, None, Some(Gid::from_raw(group)))
            .map_err(|error| failed("give the socket group", path)(error.into()))?;
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed("open to the socket group", path))?;
    }
    Ok(bound)
}

/// Removes a socket on which nobody answers; leaves everything else alone and says what it is.
fn clear_stale(path: &Path) -> Result<(), EndpointError> {
    let found = match fs::symlink_metadata(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("look at", path))?,
    };
    if !found.file_type().is_socket() {
        return Err(EndpointError::NotASocket(path.to_owned()));
    }
    let name = path.to_fs_name::<GenericFilePath>().map_err(failed("use", path))?;
    // Without waiting: a daemon that hangs with a full queue is still a daemon.
    let probe = ConnectOptions::new().name(name).wait_mode(ConnectWaitMode::Deferred);
    match Stream::from_options(&probe) {
        Ok(_) => return Err(EndpointError::Occupied(path.to_owned())),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => {}
            io::ErrorKind::NotFound => return Ok(()),
            _ => return Err(EndpointError::Occupied(path.to_owned())),
        },
    }
    match fs::symlink_metadata(path) {
        Ok(again) if same_file(&again, &found) => fs::remove_file(path).map_err(failed("remove the dead socket", path)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(EndpointError::Occupied(path.to_owned())),
    }
}

fn listen(path: &Path) -> Result<Listener, EndpointError> {
    const MODE: u32 = 0o600;
    let options = |mode: Option<u32>| -> io::Result<Listener> {
        let name = path.to_fs_name::<GenericFilePath>()?;
        // Never reclaims the name on drop: it might be another's by then.
        let options = ListenerOptions::new()
            .name(name)
            .reclaim_name(false)
            .try_overwrite(false);
        let options = match mode {
            Some(mode) => options.mode(mode as _),
            None => options,
        };
        options.create_sync_as::<Listener>()
    };
    match options(Some(MODE)) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            // Systems that cannot give a socket its mode before its name. The directory is closed, so nobody can come
            // in between.
            let listener = options(None).map_err(failed("bind", path))?;
            fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed("close to others", path))?;
            Ok(listener)
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(EndpointError::Occupied(path.to_owned())),
        other => other.map_err(failed("bind", path)),
    }
}

impl BoundSocket {
    /// Adopts a socket on which another program listens already (systemd's `LISTEN_FDS`). Its name is that
    /// program's: it is neither watched nor removed. Serves the own user only, unless
    /// [`BoundSocket::with_policy`] says otherwise.
    ///
    /// # Errors
    /// When the descriptor is not a listening Unix stream socket.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self, EndpointError> {
        let listening = getsockopt(&descriptor, sockopt::AcceptConn).unwrap_or(false);
        let stream =
            getsockopt(&descriptor, sockopt::SockType).is_ok_and(|kind| kind == nix::sys::socket::SockType::Stream);
        let unix = getsockname::<UnixAddr>(descriptor.as_raw_fd())
            .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
        if !(listening && stream && unix) {
            return Err(EndpointError::NotListening);
        }
        Ok(Self {
            listener: Listener::from(descriptor),
            policy: PeerPolicy::default(),
            name: None,
        })
    }

    /// Serves other users.
    #[must_use]
    pub fn with_policy(mut self, policy: PeerPolicy) -> Self {
        if let Some(name) = &mut self.name {
            name.options.policy = policy.clone();
        }
        self.policy = policy;
        self
    }

    /// Which users are served.
    #[must_use]
    pub fn policy(&self) -> &PeerPolicy {
        &self.policy
    }

    /// Where it is; none for an adopted one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.name.as_ref().map(|name| name.path.as_path())
    }

    /// Whether clients still find this socket under its name. An adopted one counts as found.
    #[must_use]
    pub fn still_ours(&self) -> bool {
        self.name.as_ref().is_none_or(Name::is_ours)
    }

    /// Splits into what accepts and what removes the name when dropped.
    pub(crate) fn into_parts(self) -> (Listener, EndpointName) {
        let Self { listener, policy, name } = self;
        (listener, EndpointName { name, policy })
    }
}

/// The name of a socket apart from its listener. Removes it when dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct EndpointName {
    name: Option<Name>,
    pub(crate) policy: PeerPolicy,
}

impl EndpointName {
    pub(crate) fn path(&self) -> Option<&Path> {
        self.name.as_ref().map(|name| name.path.as_path())
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.name.as_ref().is_none_or(Name::is_ours)
    }

    pub(crate) fn rebind(&self) -> Result<BoundSocket, EndpointError> {
        let Some(name) = &self.name else {
            return Err(EndpointError::NotListening);
        };
        // Whatever took the socket's name may have taken the lock file as well.
        name.lock.renew(&name.options)?;
        if let Some(directory) = name.path.parent() {
            prepare_run_dir(directory, &name.options)?;
        }
        bind(&name.path, &name.lock, &name.options)
    }
}

impl Name {
    fn is_ours(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|named| named.file_type().is_socket() && (named.dev(), named.ino()) == self.identity)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // The lock in `self.lock` is still held here: nobody can have bound in between.
        if self.is_ours()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "the socket could not be removed");
        }
    }
}
