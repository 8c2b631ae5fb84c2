//! A small file of state that the command line keeps. It is replaced as a whole, is on disk when the call returns, and
//! has a copy beside it for the day on which the file cannot be read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest file that is read. A longer one is not ours.
const MAX_BYTES: u64 = 64 << 20;

/// A file of state at its place.
#[derive(Clone, Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
}

/// What is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// Neither the file nor its copy exists.
    Nothing,
    /// The file is sound.
    Sound(T),
    /// The copy, because the file is missing or cannot be understood, for this reason.
    Copy(T, String),
    /// Neither the file nor its copy can be understood, for this reason.
    Damaged(String),
}

impl StateFile {
    /// The file at `path`.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where its copy is.
    pub(crate) fn copy_path(&self) -> PathBuf {
        self.beside("bak")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".");
        name.push(suffix);
        self.path.with_file_name(name)
    }

    /// Reads it. Needs no lock: it is always whole.
    ///
    /// # Errors
    /// When the system refuses; damage is a result, not an error.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> io::Result<Found<T>> {
        let reason = match parse(&self.path)? {
            Parsed::Sound(value) => return Ok(Found::Sound(value)),
            Parsed::Missing => None,
            Parsed::Damaged(reason) => Some(reason),
        };
        Ok(match (parse(&self.copy_path())?, reason) {
            (Parsed::Sound(value), reason) => Found::Copy(value, reason.unwrap_or_else(|| "does not exist".to_owned())),
            (Parsed::Missing, None) => Found::Nothing,
            (_, Some(reason)) => Found::Damaged(reason),
            (Parsed::Damaged(reason), None) => Found::Damaged(format!("does not exist, and its copy {reason}")),
        })
    }

    /// Waits for the right to write it, which lasts as long as the result lives. Others may read meanwhile.
    ///
    /// # Errors
    /// When the lock file beside it cannot be made or locked.
    pub(crate) fn lock(&self) -> io::Result<Flock<File>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(self.beside("lock"))
            .map_err(|error| named(&self.beside("lock"), &error))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
    }

    /// Replaces it and its copy; both are on disk then. The caller holds the lock.
    ///
    /// # Errors
    /// When one of them cannot be written; each is then either the old or the new one.
    pub(crate) fn write(&self, value: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        for path in [self.copy_path(), self.path.clone()] {
            let draft = self.beside("tmp");
            // The rest that a crash left is overwritten.
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&draft)
                .map_err(|error| named(&draft, &error))?;
            let written = file
                .write_all(&bytes)
                .and_then(|()| file.sync_all())
                .and_then(|()| std::fs::rename(&draft, &path));
            if let Err(error) = written {
                // A part of the file is of no use. If it cannot be removed, the next write overwrites it.
                std::fs::remove_file(&draft).unwrap_or_default();
                return Err(named(&path, &error));
            }
        }
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// `error` with the file that it is about.
fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

enum Parsed<T> {
    Missing,
    Sound(T),
    Damaged(String),
}

fn parse<T: DeserializeOwned>(path: &Path) -> io::Result<Parsed<T>> {
    // A pipe in its place must not block.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(match path.symlink_metadata() {
                // Its target may be on a disk that comes back.
                Ok(_) => Parsed::Damaged("is a link to nothing".to_owned()),
                Err(_) => Parsed::Missing,
            });
        }
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(Parsed::Damaged("is not a file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Ok(Parsed::Damaged("is far too long".to_owned()));
    }
    // Some editors put a byte order mark in front.
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    if text.trim_ascii().is_empty() {
        return Ok(Parsed::Damaged("is empty".to_owned()));
    }
    Ok(match serde_json::from_slice(text) {
        Ok(value) => Parsed::Sound(value),
        Err(error) => Parsed::Damaged(format!("cannot be understood ({error})")),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type State = BTreeMap<String, u32>;

    fn state(number: u32) -> State {
        State::from([("n".to_owned(), number)])
    }

    #[test]
    fn what_was_written_is_read_and_the_copy_stands_in_for_any_damage() {
        let directory = tempfile::tempdir().expect("tempdir");
        let file = StateFile::at(directory.path().join("state.json"));
        assert_eq!(file.read::<State>().expect("read"), Found::Nothing);
        for number in 0..3 {
            let _lock = file.lock().expect("locked");
            file.write(&state(number)).expect("written");
            assert_eq!(file.read().expect("read"), Found::Sound(state(number)));
        }
        let whole = std::fs::read(file.path()).expect("read");
        let with_mark = [b"\xef\xbb\xbf".as_slice(), &whole].concat();
        std::fs::write(file.path(), with_mark).expect("written");
        assert_eq!(file.read().expect("read"), Found::Sound(state(2)));

        let damages: [&[u8]; 5] = [b"", b"\n", &[0; 40], &whole[..whole.len() / 2], b"[1,2]"];
        for damage in damages {
            std::fs::write(file.path(), damage).expect("written");
            assert!(matches!(file.read::<State>().expect("read"), Found::Copy(copy, _) if copy == state(2)));
        }
        std::fs::remove_file(file.path()).expect("removed");
        assert!(matches!(file.read::<State>().expect("read"), Found::Copy(copy, _) if copy == state(2)));
        std::fs::write(file.copy_path(), "").expect("written");
        assert!(matches!(file.read::<State>().expect("read"), Found::Damaged(_)));
        std::fs::remove_file(file.copy_path()).expect("removed");
        std::fs::write(file.path(), "{").expect("written");
        assert!(matches!(file.read::<State>().expect("read"), Found::Damaged(_)));
    }

    #[test]
    fn a_pipe_in_its_place_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("tempdir");
        let file = StateFile::at(directory.path().join("state.json"));
        nix::unistd::mkfifo(file.path(), nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert!(matches!(file.read::<State>().expect("read"), Found::Damaged(_)));
    }
}
