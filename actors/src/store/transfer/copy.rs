//! Copying files while somebody waits for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};

use crate::domain::hex;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::disk::{create_directory, create_file};
use crate::store::transfer::archive::BackupFile;

/// Bytes copied between two looks at whether the work is still wanted.
const CHUNK_BYTES: usize = 1 << 20;

/// Whoever waits for a long operation: is told how far it is, and asked whether it is still wanted.
pub trait Watcher: Send + Sync + 'static {
    /// Tells how far the work is: `done` of `total`, in a unit that fits it.
    fn progress(&self, done: u64, total: u64, message: &str);

    /// Fails, with the reason, once the work is not wanted any more.
    fn check(&self) -> KnowledgeResult<()>;
}

/// Why a file was not copied.
pub(crate) enum CopyError {
    /// It cannot be read.
    Source(io::Error),
    /// Its copy cannot be written.
    Target(io::Error),
    /// Nobody wants it any more.
    Over(KnowledgeError),
}

/// Copies one file, with the directories that lead to it, and syncs it. The path in the result is left empty.
pub(crate) fn copy_file(
    from: &Path,
    to: &Path,
    watcher: &dyn Watcher,
    mut advanced: impl FnMut(u64),
) -> Result<BackupFile, CopyError> {
    let mut source = open_regular(from).map_err(CopyError::Source)?;
    if let Some(parent) = to.parent() {
        create_directory(parent).map_err(CopyError::Target)?;
    }
    let mut target = create_file(to).map_err(CopyError::Target)?;
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        watcher.check().map_err(CopyError::Over)?;
        let length = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Source(error)),
        };
        hasher.update(&chunk[..length]);
        target.write_all(&chunk[..length]).map_err(CopyError::Target)?;
        bytes += length as u64;
        advanced(length as u64);
    }
    target.sync_all().map_err(CopyError::Target)?;
    Ok(BackupFile {
        path: String::new(),
        bytes,
        sha256: hex(&hasher.finalize()),
    })
}

/// Opens a file that somebody has named to be read. What is looked at is what was opened, and nothing is waited for:
/// a pipe would be, and a device has no end.
///
/// # Errors
/// When it is not a file, or the system refuses.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it must be a file"))
    }
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> KnowledgeResult<T> + Send + 'static,
) -> KnowledgeResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(KnowledgeError::internal)?
}
