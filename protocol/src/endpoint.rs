//! The socket's place in the file system: its directory, its lock, its name.
//!
//! The order is what makes it safe. The directory is ours and closed to others, checked without following
//! links ([`prepare_run_dir`]). The lock is held ([`EndpointLock`]); it is a lock and not a file with a
//! process number, so it ends with its holder, however that ends. Only the holder looks at what is at the
//! socket's path, and removes it only if it is a socket on which nobody answers ([`bind`]). The new socket
//! has its mode before it has its name. On closing, the name is removed only if it is still ours.

use interprocess::ConnectWaitMode;
use interprocess::local_socket::traits::Stream as _;
use interprocess::local_socket::{ConnectOptions, GenericFilePath, ListenerOptions, ToFsName};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use interprocess::os::unix::uds_local_socket::{Listener, Stream};
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::socket::{AddressFamily, SockaddrLike, UnixAddr, getsockname, getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, chown, geteuid};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::peer::PeerPolicy;

/// The longest socket path in bytes: what `sun_path` holds, less the terminator.
pub const SOCKET_PATH_MAX: usize = if cfg!(any(target_os = "linux", target_os = "android")) {
    107
} else {
    103
};

/// Why there is no socket. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The path is longer than the system allows.
    #[error(
        "the socket path {path} is {length} bytes long, the system allows {SOCKET_PATH_MAX}; give a shorter one with --socket or CCO_SOCKET"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The path has no directory, or is not absolute.
    #[error("the socket path {0} must be absolute and name a file in a directory")]
    PathNotAbsolute(PathBuf),
    /// The run directory is a symbolic link.
    #[error(
        "{0} is a symbolic link; the run directory must be a real directory, remove the link or choose another path"
    )]
    RunDirIsLink(PathBuf),
    /// The run directory is something else.
    #[error("{0} is not a directory; move it away or choose another path")]
    RunDirIsNoDirectory(PathBuf),
    /// The run directory belongs to another user.
    #[error("{path} belongs to user id {uid}; the run directory must be your own, choose another path")]
    RunDirIsForeign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// The run directory is open to others.
    #[error("{path} has mode {mode:04o} and is open to others; run: chmod {expected:o} {path}")]
    RunDirIsOpen {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it must have.
        expected: u32,
    },
    /// The run directory of a shared daemon belongs to another group.
    #[error("{path} belongs to group id {gid}, not to the socket group {expected}; run: chgrp {expected} {path}")]
    RunDirOfOtherGroup {
        /// The directory.
        path: PathBuf,
        /// Its group.
        gid: u32,
        /// The group it must have.
        expected: u32,
    },
    /// A directory above the socket is closed to the socket group.
    #[error(
        "{path} (mode {mode:04o}, group id {gid}) keeps the socket group {group} from the socket; run: chgrp {group} {path} && chmod g+x {path}, or choose a path outside with --socket",
        path = path.display()
    )]
    GroupCannotReach {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its group.
        gid: u32,
        /// The socket group.
        group: u32,
    },
    /// Another daemon holds the lock.
    #[error("another daemon{} holds {path}; use it, or stop it with `ccoctl daemon stop`", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The holder's process, as it wrote it there.
        pid: Option<u32>,
    },
    /// The lock file is not what it should be.
    #[error("the lock file {0} is not a regular file of your own; move it away")]
    LockIsForeign(PathBuf),
    /// A daemon that does not hold our lock answers on the path.
    #[error("another daemon answers on {0}; stop it, or choose another path with --socket")]
    Occupied(PathBuf),
    /// Something that is not a socket is in the place.
    #[error("{0} exists and is not a socket; it is not removed, move it away or choose another path")]
    NotASocket(PathBuf),
    /// The descriptor that was passed on is not a listening Unix socket.
    #[error("the descriptor that was passed on is not a listening Unix stream socket; check the socket unit")]
    NotListening,
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> EndpointError + 'a {
    move |source| EndpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Closes everything the process creates from now on to others. Call it once, first thing in `main`.
pub fn restrict_umask() {
    umask(Mode::from_bits_truncate(0o077));
}

/// How a socket is bound and who may use it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// A group that may open the socket: it gets mode 0660, its directory 0750. Without it, 0600 and 0700.
    /// The group opens the door to the file only; whose calls are served, `policy` says.
    pub socket_group: Option<u32>,
    /// Which users are served.
    pub policy: PeerPolicy,
}

impl BindOptions {
    fn directory_mode(&self) -> u32 {
        if self.socket_group.is_some() { 0o750 } else { 0o700 }
    }
}

/// The group of this name.
///
/// # Errors
/// When there is none, or the system cannot tell.
pub fn group_id(name: &str) -> Result<u32, EndpointError> {
    let path = Path::new("/etc/group");
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(failed("find the socket group in", path)(io::ErrorKind::NotFound.into())),
        Err(error) => Err(failed("find the socket group in", path)(error.into())),
    }
}

/// Refuses a path that a socket cannot have.
///
/// # Errors
/// When it is not absolute or too long.
pub fn check_socket_path(path: &Path) -> Result<(), EndpointError> {
    let length = path.as_os_str().as_bytes().len();
    if length > SOCKET_PATH_MAX {
        return Err(EndpointError::PathTooLong {
            path: path.to_owned(),
            length,
        });
    }
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(EndpointError::PathNotAbsolute(path.to_owned()));
    }
    Ok(())
}

/// Makes the directory of the socket, or checks the one that is there: a real directory, ours, closed to
/// others. Missing parents are made as closed.
///
/// # Errors
/// Says what is wrong with the directory and what to do. Nothing is changed about one that exists.
pub fn prepare_run_dir(directory: &Path, options: &BindOptions) -> Result<(), EndpointError> {
    match DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory.parent().unwrap_or(directory))
    {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("create", directory)(source));
        }
        _ => {}
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {
            if let Some(group) = options.socket_group {
                // From closed to less closed: at no time is it open to more than the group.
                chown(directory, None, Some(Gid::from_raw(group)))
                    .map_err(|error| failed("give the socket group", directory)(error.into()))?;
                fs::set_permissions(directory, Permissions::from_mode(options.directory_mode()))
                    .map_err(failed("open to the socket group", directory))?;
            }
        }
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(failed("create", directory)(source)),
    }
    let found = fs::symlink_metadata(directory).map_err(failed("look at", directory))?;
    if found.is_symlink() {
        return Err(EndpointError::RunDirIsLink(directory.to_owned()));
    }
    if !found.is_dir() {
        return Err(EndpointError::RunDirIsNoDirectory(directory.to_owned()));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(EndpointError::RunDirIsForeign {
            path: directory.to_owned(),
            uid: found.uid(),
        });
    }
    let mode = found.mode() & 0o7777;
    let expected = options.directory_mode();
    if mode & 0o077 & !expected != 0 {
        return Err(EndpointError::RunDirIsOpen {
            path: directory.to_owned(),
            mode,
            expected,
        });
    }
    match options.socket_group {
        Some(group) if found.gid() != group => Err(EndpointError::RunDirOfOtherGroup {
            path: directory.to_owned(),
            gid: found.gid(),
            expected: group,
        }),
        _ => Ok(()),
    }
}

/// Whether the socket group can come to a socket in `directory`, which [`prepare_run_dir`] has accepted: it may pass
/// through a directory that is open to all, or to it.
///
/// # Errors
/// [`EndpointError::GroupCannotReach`] names the first directory, from the root, that is closed to it.
pub fn check_reachable(directory: &Path, options: &BindOptions) -> Result<(), EndpointError> {
    let Some(group) = options.socket_group else {
        return Ok(());
    };
    let directory = fs::canonicalize(directory).map_err(failed("look at", directory))?;
    let mut ancestors: Vec<&Path> = directory.ancestors().collect();
    ancestors.reverse();
    for path in ancestors {
        let found = fs::metadata(path).map_err(failed("look at", path))?;
        let mode = found.mode() & 0o7777;
        // The kernel looks at the rights of the group alone where the group is the directory's.
        let passable = if found.gid() == group {
            mode & 0o010 != 0
        } else {
            mode & 0o001 != 0
        };
        if !passable {
            return Err(EndpointError::GroupCannotReach {
                path: path.to_owned(),
                mode,
                gid: found.gid(),
                group,
            });
        }
    }
    Ok(())
}

/// The right to bind and to remove sockets: an exclusive lock on a file beside them, held until the last
/// clone is dropped.
#[derive(Clone, Debug)]
pub struct EndpointLock {
    held: Arc<HeldLock>,
}

#[derive(Debug)]
struct HeldLock {
    path: PathBuf,
    /// The locked file; another one once the lock was taken anew.
    file: Mutex<Flock<File>>,
}

impl EndpointLock {
    /// Takes the lock at `path`, in a directory that [`prepare_run_dir`] has accepted.
    ///
    /// # Errors
    /// [`EndpointError::Locked`] if another process holds it.
    pub fn acquire(path: &Path) -> Result<Self, EndpointError> {
        let file = lock_file(path)?;
        Ok(Self {
            held: Arc::new(HeldLock {
                path: path.to_owned(),
                file: Mutex::new(file),
            }),
        })
    }

    /// Where the lock is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.held.path
    }

    /// Whether the lock file is still the one that is locked. If not, another daemon could lock a new one.
    #[must_use]
    pub fn still_ours(&self) -> bool {
        let file = self.held.file.lock();
        names(&self.held.path, &file)
    }

    /// Takes the lock anew if its file was removed or replaced, with the directory that holds it. True if it had to.
    ///
    /// # Errors
    /// [`EndpointError::Locked`] if another process has taken it since: that one is the daemon now. Otherwise what
    /// is wrong with the directory; the next try may succeed.
    pub fn renew(&self, options: &BindOptions) -> Result<bool, EndpointError> {
        let mut file = self.held.file.lock();
        if names(&self.held.path, &file) {
            return Ok(false);
        }
        if let Some(directory) = self.held.path.parent() {
            prepare_run_dir(directory, options)?;
        }
        *file = lock_file(&self.held.path)?;
        Ok(true)
    }
}

/// Opens and locks the file at `path`.
fn lock_file(path: &Path) -> Result<Flock<File>, EndpointError> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits())
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(code) if code == nix::errno::Errno::ELOOP as i32 => EndpointError::LockIsForeign(path.to_owned()),
                _ => failed("open the lock file", path)(source),
            })?;
        let opened = file.metadata().map_err(failed("look at", path))?;
        if !opened.is_file() || opened.uid() != geteuid().as_raw() {
            return Err(EndpointError::LockIsForeign(path.to_owned()));
        }
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                return Err(EndpointError::Locked {
                    path: path.to_owned(),
                    pid: written_pid(&mut file),
                });
            }
            Err((_, error)) => return Err(failed("lock", path)(error.into())),
        };
        // Between opening and locking, somebody may have removed the file; then two could hold "it".
        if !names(path, &file) {
            continue;
        }
        // For people who wonder who holds it. Nothing is decided by it.
        let noted = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| {
                let line = format!("{}\n", std::process::id());
                file.write_all(line.as_bytes())
            });
        if let Err(error) = noted {
            tracing::warn!(%error, path = %path.display(), "the lock file cannot be written; the lock holds all the same");
        }
        return Ok(file);
    }
}

/// Whether `path` is the name of the open `file`.
fn names(path: &Path, file: &File) -> bool {
    matches!((fs::symlink_metadata(path), file.metadata()), (Ok(named), Ok(held)) if same_file(&named, &held))
}

fn written_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    Read::take(file, 32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn same_file(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

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
    /// Device and inode, by which it is known again.
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
    // Without waiting: a daemon that hangs with a full queue is still one.
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
            // Systems that cannot give a socket its mode before its name. The directory is closed, so the
            // moment in between is nobody's.
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
