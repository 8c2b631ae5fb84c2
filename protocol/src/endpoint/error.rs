//! Why there is no socket.

use std::io;
use std::path::{Path, PathBuf};

use super::SOCKET_PATH_MAX;

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

pub(super) fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> EndpointError + 'a {
    move |source| EndpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
