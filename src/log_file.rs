//! The log of a daemon in the background: standard error, which is a file.
//!
//! The command that starts the daemon opens `run/ccod.log` and hands it over as standard error, so that messages from
//! before the first log line, and the place of a panic, are there too. From then on the file is the daemon's: it sets
//! the file aside when it has grown too large, opens it again when somebody has moved it, and standard output and
//! standard error follow. The same holds for the file that the configuration names. A standard error that is anything
//! else (a terminal, a pipe, another file) is left alone.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::{dup2_stderr, dup2_stdout};
use parking_lot::Mutex;

/// The log is set aside beyond this size in bytes. It replaces the one that was set aside before, so both take twice as
/// much at most.
pub const MAX_LOG_BYTES: u64 = 8 * 1024 * 1024;

/// A log file behind standard error. See the module.
#[derive(Clone, Debug)]
pub struct LogFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    max_bytes: u64,
    /// Whether the process may rename the file. Not before it is known to be the only daemon: another one may be
    /// writing to it.
    owned: AtomicBool,
    /// Held while a line is written, so that none gets lost between two files.
    turn: Mutex<()>,
}

impl LogFile {
    /// The log at `path`, if standard error writes to it.
    #[must_use]
    pub fn behind_stderr(path: &Path) -> Option<Self> {
        let named = std::fs::symlink_metadata(path).ok()?;
        (named.is_file() && same_file(&named, &behind_stderr().ok()?)).then(|| Self::new(path, MAX_LOG_BYTES))
    }

    /// Lets standard output and standard error write to the log at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn redirect(path: &Path) -> io::Result<Self> {
        let log = Self::new(path, MAX_LOG_BYTES);
        log.shared.open()?;
        Ok(log)
    }

    fn new(path: &Path, max_bytes: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                max_bytes,
                owned: AtomicBool::new(false),
                turn: Mutex::new(()),
            }),
        }
    }

    /// From now on this process may rename the file.
    #[cfg(feature = "engine")]
    pub(crate) fn take(&self) {
        self.shared.owned.store(true, Ordering::Release);
    }

    /// Reopens the log if its name leads elsewhere: `logrotate` has moved it, or it was removed.
    ///
    /// # Errors
    /// When it cannot be opened; the lines then go to the old file.
    #[cfg(feature = "engine")]
    pub(crate) fn follow(&self) -> io::Result<()> {
        let _turn = self.shared.turn.lock();
        let present = behind_stderr()?;
        match std::fs::symlink_metadata(&self.shared.path) {
            Ok(named) if same_file(&named, &present) => Ok(()),
            _ => self.shared.open(),
        }
    }
}

impl Shared {
    /// Lets standard output and standard error write to the file at the path.
    fn open(&self) -> io::Result<()> {
        let file = open(&self.path)?;
        dup2_stderr(&file)?;
        dup2_stdout(&file)?;
        Ok(())
    }

    /// Sets the log aside if it is too large.
    fn rotate(&self) -> io::Result<()> {
        let present = behind_stderr()?;
        if present.len() < self.max_bytes {
            return Ok(());
        }
        if std::fs::symlink_metadata(&self.path).is_ok_and(|named| same_file(&named, &present)) {
            std::fs::rename(&self.path, set_aside(&self.path))?;
        }
        self.open()
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _turn = self.shared.turn.lock();
        if self.shared.owned.load(Ordering::Acquire) {
            // A log that cannot be set aside grows; that is better than none.
            self.shared.rotate().unwrap_or_default();
        }
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens the log at `path` for writing, and makes it if it does not exist.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Sets the log at `path` aside if it is too large. For a command that is about to start a daemon while none runs.
///
/// # Errors
/// When it cannot be renamed.
pub fn set_aside_if_large(path: &Path) -> io::Result<()> {
    let large = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() >= MAX_LOG_BYTES);
    if large {
        std::fs::rename(path, set_aside(path))?;
    }
    Ok(())
}

/// Where the log at `path` is set aside.
fn set_aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn behind_stderr() -> io::Result<Metadata> {
    use std::os::fd::AsFd;
    File::from(io::stderr().as_fd().try_clone_to_owned()?).metadata()
}

fn same_file(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_log_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ccod.log");
        set_aside_if_large(&path).unwrap();
        open(&path).unwrap().set_len(MAX_LOG_BYTES - 1).unwrap();
        set_aside_if_large(&path).unwrap();
        assert!(path.exists());
        open(&path).unwrap().set_len(MAX_LOG_BYTES + 1).unwrap();
        set_aside_if_large(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(open(&path).unwrap().metadata().unwrap().len(), 0);
        assert!(directory.path().join("ccod.log.1").exists());
    }

    #[test]
    fn a_standard_error_that_is_something_else_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ccod.log");
        assert!(LogFile::behind_stderr(&path).is_none());
        open(&path).unwrap();
        assert!(LogFile::behind_stderr(&path).is_none());
    }
}
