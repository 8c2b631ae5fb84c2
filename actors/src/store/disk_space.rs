//! Whether a project can be written: space on its file system, and permission.
//!
//! A write that fails because one of them is missing is answered `read_only`. Reads go on, and `admin.health` says so
//! until a write succeeds, or a cheap probe shows that one would.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::file_error;
use crate::store::table::table_directory;

/// Bytes of the probe: more than a small store writes.
const PROBE_BYTES: usize = 64 * 1024;
/// Name of the probe. What a crash leaves of it is cleaned up like any staging file.
const PROBE_NAME: &str = ".tmp-probe";

/// Whether the last write of a project failed because there was no space or no permission.
#[derive(Debug)]
pub(crate) struct WriteState {
    min_free_bytes: u64,
    /// Why, as the caller was told.
    failure: Mutex<Option<String>>,
}

impl WriteState {
    pub(crate) fn new(min_free_bytes: u64) -> Self {
        Self {
            min_free_bytes,
            failure: Mutex::default(),
        }
    }

    /// Why nothing may be added now: the file system of `directory` has less space than is kept free.
    pub(crate) async fn shortage(&self, directory: &Path) -> Option<KnowledgeError> {
        let wanted = self.min_free_bytes;
        if wanted == 0 {
            return None;
        }
        let directory = existing(directory);
        let looked = tokio::task::spawn_blocking(move || {
            let free = free_bytes(&directory)?;
            (free < wanted).then(|| KnowledgeError::ReadOnly {
                reason: format!(
                    "{} has {} free and {} are kept free for upkeep (store.min_free_bytes); free at least {}, writes go \
                     on by themselves",
                    directory.display(),
                    size(free),
                    size(wanted),
                    size(wanted - free)
                ),
            })
        });
        looked.await.ok().flatten()
    }

    /// Takes note of a write that failed; answers its error, with the place and what is free there.
    pub(crate) fn failed(&self, directory: &Path, error: KnowledgeError) -> KnowledgeError {
        let KnowledgeError::ReadOnly { reason } = error else {
            return error;
        };
        let directory = existing(directory);
        let place = directory.display().to_string();
        let reason = if reason.contains(&place) {
            reason
        } else {
            match free_bytes(&directory) {
                Some(free) => format!("{reason} ({place}, {} free)", size(free)),
                None => format!("{reason} ({place})"),
            }
        };
        *self.failure.lock() = Some(reason.clone());
        KnowledgeError::ReadOnly { reason }
    }

    /// Takes note of a write that succeeded.
    pub(crate) fn succeeded(&self) {
        *self.failure.lock() = None;
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Why nothing can be written, if the last write failed and a probe fails too; when it does not, all is well.
    pub(crate) async fn trouble(&self, directory: &Path) -> Option<String> {
        let Some(told) = self.failure() else {
            // Nobody has tried to write yet, and whoever does is refused.
            let shortage = self.shortage(directory).await?;
            return Some(format!("nothing can be stored: {shortage}"));
        };
        let still = match self.shortage(directory).await {
            Some(shortage) => Some(shortage),
            None => {
                let directory = directory.to_path_buf();
                match tokio::task::spawn_blocking(move || probe(&directory)).await {
                    Ok(probed) => probed.err(),
                    Err(error) => Some(KnowledgeError::internal(error)),
                }
            }
        };
        if still.is_none() {
            tracing::info!(directory = %directory.display(), "the project can be written again");
            self.succeeded();
            return None;
        }
        Some(format!("nothing can be written: {told}"))
    }
}

/// The directory, or the nearest above it that exists: a project that could not even be created has none.
fn existing(directory: &Path) -> PathBuf {
    let found = directory.ancestors().find(|path| path.is_dir());
    found.unwrap_or(directory).to_path_buf()
}

/// Bytes that this user may still write to a file system; none where it does not tell.
fn free_bytes(directory: &Path) -> Option<u64> {
    let found = statvfs(directory).ok()?;
    // The fields' types differ between systems.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    let (blocks, block_size) = (found.blocks_available() as u64, found.fragment_size() as u64);
    Some(blocks.saturating_mul(block_size))
}

/// Writes a file of [`PROBE_BYTES`] where a commit would write, and removes it.
fn probe(directory: &Path) -> KnowledgeResult<()> {
    let table = table_directory(directory);
    let mut places: Vec<PathBuf> = ["data", "_versions", "_transactions"]
        .into_iter()
        .map(|name| table.join(name))
        .filter(|path| path.is_dir())
        .collect();
    if places.is_empty() {
        places.push(existing(directory));
    }
    for place in places {
        let path = place.join(PROBE_NAME);
        let written = fs::File::create(&path).and_then(|mut file| {
            file.write_all(&[0; PROBE_BYTES])?;
            // Where blocks are given out late, only this shows that there are any.
            file.sync_all()
        });
        let removed = fs::remove_file(&path);
        written.map_err(|error| file_error("written", &path, error))?;
        removed.map_err(|error| file_error("removed", &path, error))?;
    }
    Ok(())
}

/// A number of bytes, for people.
fn size(bytes: u64) -> String {
    const MIB: u64 = 1024 * 1024;
    if bytes >= 10 * MIB {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{bytes} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> KnowledgeError {
        KnowledgeError::ReadOnly {
            reason: "the disk is full".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_with_its_place_until_a_write_would_succeed() {
        let home = tempfile::tempdir().unwrap();
        let project = home.path().join("project");
        fs::create_dir_all(table_directory(&project).join("_versions")).unwrap();
        let state = WriteState::new(0);
        assert_eq!(state.trouble(&project).await, None);
        // A directory in the place of the probe is in its way, for every user.
        let obstacle = table_directory(&project).join("_versions").join(PROBE_NAME);
        fs::create_dir(&obstacle).unwrap();
        let error = state.failed(&project, full());
        let place = project.display().to_string();
        assert!(
            error.to_string().contains(&place) && error.to_string().contains("free"),
            "{error}"
        );
        let told = state.trouble(&project).await.unwrap();
        assert!(told.contains("the disk is full") && told.contains(&place), "{told}");
        fs::remove_dir(&obstacle).unwrap();
        assert_eq!(state.trouble(&project).await, None);
        assert_eq!(
            fs::read_dir(table_directory(&project).join("_versions"))
                .unwrap()
                .count(),
            0
        );

        state.failed(&project, full());
        state.succeeded();
        assert_eq!(state.failure(), None);
    }

    #[test]
    fn other_errors_do_not_say_that_space_is_short() {
        let state = WriteState::new(0);
        let error = state.failed(Path::new("/"), KnowledgeError::internal("x"));
        assert!(matches!(error, KnowledgeError::Internal { .. }));
        assert_eq!(state.failure(), None);
    }

    #[tokio::test]
    async fn space_is_kept_free() {
        let home = tempfile::tempdir().unwrap();
        let free = free_bytes(home.path()).unwrap();
        assert!(WriteState::new(0).shortage(home.path()).await.is_none());
        assert!(WriteState::new(1).shortage(home.path()).await.is_none());
        // More than any disk has; the project's own directory is not there yet.
        let shortage = WriteState::new(u64::MAX)
            .shortage(&home.path().join("new/project"))
            .await;
        let reason = shortage.unwrap().to_string();
        assert!(
            reason.contains("min_free_bytes") && reason.contains(&home.path().display().to_string()),
            "{reason}"
        );
        assert!(free > 0);
    }
}
