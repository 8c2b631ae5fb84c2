//! The socket's place in the file system: its directory, its lock, its name.
//!
//! The order is what makes it safe. The directory is ours and closed to others, checked without following
//! links ([`prepare_run_dir`]). The lock is held ([`EndpointLock`]); it is a lock and not a file with a
//! process number, so it ends with its holder, however that ends. Only the holder looks at what is at the
//! socket's path, and removes it only if it is a socket on which nobody answers ([`bind`]). The new socket
//! has its mode before it has its name. On closing, the name is removed only if it is still ours.

mod error;
mod lock;
mod run_dir;
mod socket;

use nix::sys::stat::{Mode, umask};
use std::io;
use std::path::Path;

use crate::peer::PeerPolicy;

use error::failed;

pub use error::EndpointError;
pub use lock::EndpointLock;
pub use run_dir::{check_reachable, check_socket_path, prepare_run_dir};
pub(crate) use socket::EndpointName;
pub use socket::{BoundSocket, bind};

/// The longest socket path in bytes: what `sun_path` holds, less the terminator.
pub const SOCKET_PATH_MAX: usize = if cfg!(any(target_os = "linux", target_os = "android")) {
    107
} else {
    103
};

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
/// If there is no such group, or the system cannot look it up.
pub fn group_id(name: &str) -> Result<u32, EndpointError> {
    let path = Path::new("/etc/group");
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(failed("find the socket group in", path)(io::ErrorKind::NotFound.into())),
        Err(error) => Err(failed("find the socket group in", path)(error.into())),
    }
}
