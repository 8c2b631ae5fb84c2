//! `admin.export`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::store::transfer::{NewPlace, Watcher, new_place, partial_beside};
use ccod_protocol::api;
use ccod_protocol::error::WireError;

use super::long::{CallWatcher, blocking, check_owner};
use super::places::{check_outside_home, unwritable};
use crate::rpc::{App, Call, Failure, must_exist};
use crate::transfer::Format;

/// A file that is being written, beside its final place. It is removed in any case: once published, the file has its
/// other name.
struct PartialFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl PartialFile {
    fn beside(place: &Path) -> KnowledgeResult<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = partial_beside(place);
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| unwritable(&path, &error))?;
        Ok(Self { path, file, bytes: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> KnowledgeResult<()> {
        self.bytes += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|error| unwritable(&self.path, &error))
    }

    /// Syncs the file and gives it its name, unless something else has got that name meanwhile.
    fn publish(self, place: &Path) -> KnowledgeResult<u64> {
        let publish = || {
            self.file.sync_all()?;
            match std::fs::hard_link(&self.path, place) {
                Ok(()) => {}
                // A file system without hard links.
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    if std::fs::symlink_metadata(place).is_ok() {
                        return Err(error);
                    }
                    std::fs::rename(&self.path, place)?;
                }
                Err(error) => return Err(error),
            }
            match place.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        publish().map_err(|error| unwritable(place, &error))?;
        Ok(self.bytes)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "an unfinished export could not be removed");
            }
            _ => {}
        }
    }
}

/// Writes the live items of a project to a file.
pub(crate) async fn export(app: Arc<App>, call: Call<api::Export>) -> Result<api::ExportResult, Failure> {
    check_owner(&call.context)?;
    let watcher = CallWatcher::new(&call.context);
    if call.params.path.ends_with('/') {
        return Err(WireError::invalid_params("path", "`path` must name a file, not a directory").into());
    }
    let path = PathBuf::from(&call.params.path);
    let format = match &call.params.format {
        Some(name) => Format::named(name)
            .ok_or_else(|| WireError::invalid_params("format", "`format` must be `jsonl` or `markdown`"))?,
        None => Format::of_path(&path).unwrap_or(Format::Jsonl),
    };
    let knowledge_dir = app.store().config().knowledge_dir.clone();
    let (place, mut file) = blocking(move || {
        let place = new_place(&path, &knowledge_dir, NewPlace::File)?;
        check_outside_home(&place, &knowledge_dir)?;
        let file = PartialFile::beside(&place)?;
        Ok((place, file))
    })
    .await?;

    if let Some(project) = &call.project {
        must_exist(&app, project).await?;
    }
    let mut items = app.knowledge.export(&call.project()).await?;
    let (degraded, total, mut written) = (items.degraded(), items.total(), 0);
    while written < total {
        watcher.check()?;
        let mut bytes = Vec::new();
        for stored in items.next().await? {
            format
                .write(&stored.item, written == 0, &mut bytes)
                .map_err(KnowledgeError::internal)?;
            written += 1;
        }
        file = blocking(move || {
            file.append(&bytes)?;
            Ok(file)
        })
        .await?;
        watcher.progress(written, total, "exporting");
    }
    watcher.check()?;
    let target = place.clone();
    let bytes = blocking(move || file.publish(&target)).await?;
    Ok(api::ExportResult {
        path: place.display().to_string(),
        format: format.as_str().to_owned(),
        items: written,
        bytes,
        degraded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_replaces_nothing_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("out.jsonl");
        let entries = || std::fs::read_dir(directory.path()).unwrap().count();

        let mut file = PartialFile::beside(&place).unwrap();
        file.append(b"first").unwrap();
        assert_eq!((file.publish(&place).unwrap(), entries()), (5, 1));

        let mut file = PartialFile::beside(&place).unwrap();
        file.append(b"second").unwrap();
        assert!(file.publish(&place).is_err());
        assert_eq!(
            (std::fs::read(&place).unwrap().as_slice(), entries()),
            (b"first".as_slice(), 1)
        );

        drop(PartialFile::beside(&place).unwrap());
        assert_eq!(entries(), 1);
    }
}
