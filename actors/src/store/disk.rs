//! The small files of state beside a table: where commit numbers go on, which of them were lost.
//!
//! Such a file is written whole or not at all, and durably. A file that is not there says that there is nothing to
//! know. One that cannot be read now, or that is damaged, says nothing: whoever asks gets an error that tells what to
//! do, and no value is assumed in its place.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::domain::now_ms;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::{file_error, file_read_error};

/// Reads a file of state; none where there is no such file.
///
/// # Errors
/// [`KnowledgeError::Unreadable`] where it cannot be read or is damaged; `remedy` says what to do about damage.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, remedy: &str) -> KnowledgeResult<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_read_error(path, error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| KnowledgeError::Unreadable {
            message: format!("{} is damaged ({error}); {remedy}", path.display()),
        })
}

/// Puts a file of state in place of the one before, if there is one. It is on disk when this returns.
pub(crate) fn write<T: Serialize>(path: &Path, state: &T) -> KnowledgeResult<()> {
    let text = serde_json::to_vec_pretty(state).map_err(KnowledgeError::internal)?;
    let staged = staged(path);
    write_durably(&staged, &text)?;
    fs::rename(&staged, path).map_err(|error| file_error("written", path, error))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Where a file is written before it gets its name.
fn staged(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("#0");
    path.with_file_name(name)
}

/// Writes a file for its owner alone and syncs it; its name is durable once its directory is synced.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> KnowledgeResult<()> {
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| file_error("written", path, error))
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> KnowledgeResult<()> {
    fsync_directory(path).map_err(|error| file_error("made durable", path, error))
}

/// A directory for its owner alone, with its parents.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A new file for its owner alone.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes the entries of a directory durable. The error is the system's own.
pub(crate) fn fsync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the entries of a directory durable, and of all below it, the lowest first.
pub(crate) fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    fsync_directory(path)
}

/// What is in a directory; nothing where there is no such directory.
pub(crate) fn entries(directory: &Path) -> KnowledgeResult<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file_read_error(directory, error)),
    };
    entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(|error| file_read_error(directory, error))
}

/// Whether there is something at `path`. What cannot be looked at is not taken for missing.
pub(crate) fn exists(path: &Path) -> KnowledgeResult<bool> {
    path.try_exists().map_err(|error| file_read_error(path, error))
}

/// What to do about a damaged file that says where commit numbers go on: `lineage` is the file that begins a history.
pub(crate) fn begin_another_history(lineage: &Path) -> String {
    format!(
        "put it back from a copy of the home. Without one, {{\"epoch\":{},\"sequence\":0}} in {} begins another \
         history: feeds are then told to read everything again",
        now_ms().timestamp_millis(),
        lineage.display()
    )
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct State {
        number: i64,
    }

    #[test]
    fn state_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(read::<State>(&path, "").unwrap(), None);
        for number in [1, -70_000_000_000, 3] {
            write(&path, &State { number }).unwrap();
            assert_eq!(read(&path, "").unwrap(), Some(State { number }));
        }
        // What a crash has left of a write changes nothing, and the next one goes over it.
        fs::write(staged(&path), "{\"num").unwrap();
        assert_eq!(read(&path, "").unwrap(), Some(State { number: 3 }));
        write(&path, &State { number: 4 }).unwrap();
        assert_eq!(read(&path, "").unwrap(), Some(State { number: 4 }));
        assert_eq!(entries(directory.path()).unwrap(), [path]);
    }

    #[test]
    fn damage_is_an_error_that_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for damaged in [
            "",
            "\0\0\0\0",
            "{\"number\":",
            "{}",
            "[]",
            "{\"number\":1}{",
            "\u{feff}",
        ] {
            fs::write(&path, damaged).unwrap();
            let error = read::<State>(&path, "put it back").unwrap_err().to_string();
            assert!(
                error.contains("state.json is damaged") && error.contains("put it back"),
                "{damaged:?}: {error}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_missing() {
        let directory = tempfile::tempdir().unwrap();
        // Reading a directory as a file fails for everybody.
        let path = directory.path().join("state.json");
        fs::create_dir(&path).unwrap();
        assert!(read::<State>(&path, "").is_err());
        // So does looking for something in a file.
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(read::<State>(&file.join("state.json"), "").is_err());
        assert!(entries(&file).is_err() && exists(&file.join("mark")).is_err());
        assert!(!exists(&directory.path().join("mark")).unwrap());
        assert_eq!(entries(&directory.path().join("none")).unwrap(), Vec::<PathBuf>::new());
    }
}
