//! The lock of the store: one process writes below `knowledge/`.
//!
//! It lies in the directory that it protects, so nothing that happens to sockets and run directories takes it
//! away. It is the kernel's and ends with its holder, however that ends. Should `knowledge/` itself be removed or
//! replaced, the lock file goes with it: [`StoreLock::is_held`] then says no, and whoever writes asks first.
//!
//! On a file system that is mounted read-only, the file is locked without being written. Where it does not exist,
//! nobody can write there either, so the store is read without a lock until somebody can.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{AccessFlags, access};

use crate::error::{KnowledgeError, KnowledgeResult};

/// Name of the lock file in the directory of the projects. No project is named so.
pub const LOCK_FILE: &str = ".lock";

/// Tries to get the lock: whoever only looks whether it is held takes it for a short time.
const TRIES: u32 = 10;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_millis(10);

/// Why the store cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum StoreLockError {
    /// Another process holds it.
    #[error("another daemon{} holds {path}; {}", holder.told(), holder.advice(path), path = path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it.
        holder: Holder,
    },
    /// Something else has the name.
    #[error("the lock file {} is not a regular file; move it away", .0.display())]
    NoFile(PathBuf),
    /// The system refused.
    #[error("{path} cannot be locked: {source}", path = path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Who holds the lock, as far as the lock file tells. For people: nothing is decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: Option<u32>,
    /// The directory of the projects, by the name that the holder has for it.
    pub knowledge_dir: Option<PathBuf>,
}

impl Holder {
    fn told(&self) -> String {
        self.pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    }

    /// What to do. By another name, the directory is that of another home, which has a daemon of its own.
    fn advice(&self, lock: &Path) -> String {
        let home = self.knowledge_dir.as_deref().and_then(Path::parent);
        let ours = lock.parent().and_then(Path::parent);
        let resolved = |path: Option<&Path>| path.and_then(|path| path.canonicalize().ok());
        match home {
            Some(home) if resolved(Some(home)) != resolved(ours) => format!(
                "it is the daemon of {home:?}, whose knowledge directory this is: use it with `ccoctl --home {home:?}`, \
                 or stop it with `ccoctl --home {home:?} daemon stop`"
            ),
            _ => "use it, or stop it with `ccoctl daemon stop`".to_owned(),
        }
    }

    fn read(file: &mut File) -> Self {
        const MOST: u64 = 8 << 10;
        let mut text = Vec::new();
        if Read::take(file, MOST).read_to_end(&mut text).is_err() {
            return Self::default();
        }
        let mut lines = text.split(|byte| *byte == b'\n');
        let pid = lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let knowledge_dir = lines.next().filter(|line| !line.is_empty());
        Self {
            pid: pid.and_then(|pid| pid.trim().parse().ok()),
            knowledge_dir: knowledge_dir.map(|line| PathBuf::from(OsStr::from_bytes(line))),
        }
    }

    fn write(file: &mut File, knowledge_dir: &Path) -> io::Result<()> {
        let mut text = format!("{}\n", std::process::id()).into_bytes();
        text.extend_from_slice(knowledge_dir.as_os_str().as_bytes());
        text.push(b'\n');
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&text)
    }
}

/// The right to change what lies below a directory of projects, for as long as a clone of it lives.
#[derive(Clone, Debug)]
pub struct StoreLock {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// None where there was no such file and none could be made because the file system is read-only.
    file: Option<Flock<File>>,
}

impl StoreLock {
    /// Takes the lock of the projects in `knowledge_dir`, which exists. Blocks for a tenth of a second at most.
    ///
    /// # Errors
    /// [`StoreLockError::Held`] if another process has it.
    pub fn acquire(knowledge_dir: &Path) -> Result<Self, StoreLockError> {
        Self::acquire_by(knowledge_dir, open)
    }

    /// `open` opens the lock file, for writing if told so, and makes it then.
    fn acquire_by(
        knowledge_dir: &Path,
        open: impl Fn(&Path, bool) -> io::Result<File>,
    ) -> Result<Self, StoreLockError> {
        let path = knowledge_dir.join(LOCK_FILE);
        let failed = |source: io::Error| StoreLockError::Io {
            path: path.clone(),
            source,
        };
        let mut tries = 0;
        loop {
            let (mut opened, mut writable) = (open(&path, true), true);
            if opened.as_ref().is_err_and(|error| is(error, Errno::EROFS)) {
                (opened, writable) = (open(&path, false), false);
                if opened.as_ref().is_err_and(|error| is(error, Errno::ENOENT)) {
                    tracing::warn!(
                        directory = %knowledge_dir.display(),
                        "the file system is mounted read-only and there is no lock file; the store is read without a lock"
                    );
                    return Ok(Self {
                        held: Arc::new(Held { path, file: None }),
                    });
                }
            }
            let file = opened.map_err(|error| match is(&error, Errno::ELOOP) {
                true => StoreLockError::NoFile(path.clone()),
                false => failed(error),
            })?;
            if !file.metadata().map_err(failed)?.is_file() {
                return Err(StoreLockError::NoFile(path));
            }
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Between opening and locking, somebody may have removed the file; then two could hold "it".
                Ok(file) if is_named(&path, &file) => {
                    let mut file = file;
                    if !writable {
                        tracing::warn!(
                            directory = %knowledge_dir.display(),
                            "the file system is mounted read-only; the store is locked and read, and nothing is written"
                        );
                    } else if let Err(error) = Holder::write(&mut file, knowledge_dir) {
                        tracing::warn!(%error, path = %path.display(), "the lock file cannot be written; the lock holds all the same");
                    }
                    let file = Some(file);
                    return Ok(Self {
                        held: Arc::new(Held { path, file }),
                    });
                }
                Ok(_) => {}
                Err((_, Errno::EWOULDBLOCK)) if tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                Err((mut file, Errno::EWOULDBLOCK)) => {
                    let holder = Holder::read(&mut file);
                    return Err(StoreLockError::Held { path, holder });
                }
                Err((_, error)) => return Err(failed(error.into())),
            }
        }
    }

    /// Whether the lock file is still the one that is locked. If not, the directory or the file was removed or
    /// replaced, and another process may have locked the new one. Where there was none to lock, whether there still is
    /// none and nobody can make one.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let Held { path, file } = &*self.held;
        match file {
            Some(file) => is_named(path, file),
            None => {
                let missing = std::fs::symlink_metadata(path).is_err_and(|error| is(&error, Errno::ENOENT));
                missing && path.parent().is_some_and(is_read_only)
            }
        }
    }

    /// Refuses what would change the store once the lock is lost.
    ///
    /// # Errors
    /// [`KnowledgeError::Unavailable`].
    pub fn check(&self) -> KnowledgeResult<()> {
        if self.is_held() {
            return Ok(());
        }
        let path = self.held.path.display();
        let reason = match self.held.file {
            Some(_) => {
                format!("{path} was removed or replaced while the daemon ran, which writes nothing more and ends")
            }
            None => format!(
                "{path} could not be locked when the daemon started, because the file system was read-only, and could be \
                 now; the daemon writes nothing and ends, start it again"
            ),
        };
        Err(KnowledgeError::Unavailable {
            part: "the store",
            reason,
        })
    }

    /// The lock file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.held.path
    }
}

fn open(path: &Path, writable: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(writable)
        .create(writable)
        .truncate(false)
        .mode(0o600)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits())
        .open(path)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

/// Whether nobody can write into a directory because its file system is mounted read-only.
fn is_read_only(directory: &Path) -> bool {
    access(directory, AccessFlags::W_OK) == Err(Errno::EROFS)
}

fn is_named(path: &Path, file: &File) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!(
        (std::fs::symlink_metadata(path).map(identity), file.metadata().map(identity)),
        (Ok(named), Ok(held)) if named == held
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_until_the_last_clone_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let lock = StoreLock::acquire(directory.path()).unwrap();
        let clone = lock.clone();
        drop(lock);
        let refused = StoreLock::acquire(directory.path()).unwrap_err();
        assert!(
            matches!(&refused, StoreLockError::Held { holder: Holder { pid: Some(pid), .. }, .. } if *pid == std::process::id()),
            "{refused}"
        );
        assert!(
            refused.to_string().ends_with("stop it with `ccoctl daemon stop`"),
            "{refused}"
        );
        drop(clone);
        StoreLock::acquire(directory.path()).unwrap();
    }

    #[test]
    fn who_holds_it_by_another_name_is_told_as_the_daemon_of_another_home() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        std::fs::create_dir_all(first.join("knowledge")).unwrap();
        std::fs::create_dir(&second).unwrap();
        std::os::unix::fs::symlink(first.join("knowledge"), second.join("knowledge")).unwrap();
        let _lock = StoreLock::acquire(&first.join("knowledge")).unwrap();
        let refused = StoreLock::acquire(&second.join("knowledge")).unwrap_err().to_string();
        let advice = format!("stop it with `ccoctl --home {first:?} daemon stop`");
        assert!(refused.contains(&advice), "{refused}");
        assert!(
            refused.contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        // By another name for the same home, it is the daemon of this one.
        let third = directory.path().join("third");
        std::os::unix::fs::symlink(&first, &third).unwrap();
        let refused = StoreLock::acquire(&third.join("knowledge")).unwrap_err().to_string();
        assert!(refused.ends_with("stop it with `ccoctl daemon stop`"), "{refused}");
    }

    #[test]
    fn a_lock_whose_file_was_removed_or_replaced_is_not_held() {
        let home = tempfile::tempdir().unwrap();
        let (directory, aside) = (home.path().join("knowledge"), home.path().join("aside"));
        std::fs::create_dir(&directory).unwrap();
        let lock = StoreLock::acquire(&directory).unwrap();
        lock.check().unwrap();
        std::fs::rename(&directory, &aside).unwrap();
        assert!(lock.check().is_err());
        std::fs::create_dir(&directory).unwrap();
        let other = StoreLock::acquire(&directory).unwrap();
        assert!(!lock.is_held() && other.is_held());
        // Put back, it is the same as before.
        std::fs::remove_dir_all(&directory).unwrap();
        std::fs::rename(&aside, &directory).unwrap();
        assert!(lock.is_held() && !other.is_held());
        std::fs::remove_file(directory.join(LOCK_FILE)).unwrap();
        assert!(!lock.is_held());
    }

    /// As the system answers on a file system that is mounted read-only.
    fn open_read_only(path: &Path, writable: bool) -> io::Result<File> {
        match writable {
            true => Err(Errno::EROFS.into()),
            false => open(path, false),
        }
    }

    #[test]
    fn a_lock_file_that_cannot_be_written_is_locked_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(LOCK_FILE), "1\n").unwrap();
        let lock = StoreLock::acquire_by(directory.path(), open_read_only).unwrap();
        assert!(lock.is_held());
        assert_eq!(std::fs::read(lock.path()).unwrap(), b"1\n", "it was not written");
        for refused in [
            StoreLock::acquire(directory.path()),
            StoreLock::acquire_by(directory.path(), open_read_only),
        ] {
            assert!(matches!(refused, Err(StoreLockError::Held { .. })), "{refused:?}");
        }
        drop(lock);
        StoreLock::acquire(directory.path()).unwrap();
    }

    #[test]
    fn without_a_lock_file_a_read_only_store_is_read_until_it_can_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let lock = StoreLock::acquire_by(directory.path(), open_read_only).unwrap();
        assert!(!lock.path().exists());
        // This directory can be written, so another daemon may have locked it by now.
        assert!(!lock.is_held());
        let refused = lock.check().unwrap_err().to_string();
        assert!(
            refused.contains("read-only") && refused.contains("start it again"),
            "{refused}"
        );
    }

    #[test]
    fn a_lock_that_is_not_permitted_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let refused = StoreLock::acquire_by(directory.path(), |_, _| Err(Errno::EACCES.into()));
        assert!(matches!(refused, Err(StoreLockError::Io { .. })), "{refused:?}");
    }

    #[test]
    fn what_is_no_file_is_not_locked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOCK_FILE);
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(matches!(
            StoreLock::acquire(directory.path()),
            Err(StoreLockError::NoFile(_))
        ));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(StoreLock::acquire(directory.path()).is_err());
    }
}
