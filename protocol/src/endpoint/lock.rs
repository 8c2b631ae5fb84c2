//! The lock: the right to bind and to remove sockets.

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::failed;
use super::{BindOptions, EndpointError, prepare_run_dir};

/// The right to bind and to remove sockets: an exclusive lock on a file beside them, held until the last
/// clone is dropped.
#[derive(Clone, Debug)]
pub struct EndpointLock {
    held: Arc<HeldLock>,
}

#[derive(Debug)]
struct HeldLock {
    path: PathBuf,
    /// The locked file; another one once the lock was taken again.
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

    /// Takes the lock again if its file was removed or replaced, with the directory that holds it. True if it had to.
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
        // For people who want to know the holder. Nothing is decided by it.
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

pub(super) fn same_file(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
