//! Commits that survive power loss.
//!
//! Lance writes data files, deletion files and index files, then publishes a manifest that names them, and
//! syncs none of it. [`DurableCommitHandler`] stands in front of every commit of a table (append, update,
//! delete, index, compaction, creation) and keeps one order:
//!
//! 1. every new file has the size that was written into it, or the commit is refused;
//! 2. every file that the new manifest names and that is not known to be on disk is synced, then the
//!    directories that hold them;
//! 3. the manifest is staged, synced, linked under its final name, and its directory synced.
//!
//! So a manifest that can be seen is never empty and never names data that a power cut could take away. With
//! `durability = "fast"` step 2 and the syncs of step 3 are left out. Each manifest says in the table's metadata how
//! it was made, so that recovery can tell a commit that a power cut may have torn from a file that was lost later.
//!
//! A file that the version before names too and that is not there any more is damage that is known or will be found;
//! it stands in nobody's way here, for what adds to a table needs nothing of what is damaged.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::num::NonZero;
use std::path::PathBuf;

use async_trait::async_trait;
use lance::Dataset;
use lance_io::local::to_local_path;
use lance_io::object_store::ObjectStore;
use lance_table::format::{IndexMetadata, Manifest, Transaction};
use lance_table::io::commit::{
    CommitError, CommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter, write_version_hint,
};
use lance_table::io::deletion::{deletion_file_path, read_deletion_file};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use object_store::path::Path;
use object_store::{Error as ObjectStoreError, ObjectStore as _, PutMode, PutOptions};
use parking_lot::{Mutex, MutexGuard};

use crate::error::KnowledgeResult;
use crate::store::disk::fsync_directory;
use crate::store::error::read_error;
use crate::store::lock::StoreLock;
use crate::store::table::known_durable::known_durable;

pub use ccod_words::Durability;

/// Key of how a version was made in the table's metadata. The value names the version: another writer carries the
/// entry on, which then says nothing of its own versions.
const MADE_KEY: &str = "ccod.made";

fn made(durability: Durability, version: u64) -> String {
    format!("{}@{version}", durability.as_str())
}

/// Whether everything that a version names was on disk before it could be seen, as its manifest tells.
pub(crate) fn made_durably(manifest: &Manifest) -> bool {
    manifest.table_metadata.get(MADE_KEY) == Some(&made(Durability::Full, manifest.version))
}

/// Commit handler of one table. See the module.
pub struct DurableCommitHandler {
    durability: Durability,
    /// Asked before a version is published: whoever has lost it must not.
    lock: StoreLock,
    known: Mutex<KnownFiles>,
}

/// Files of the table, as far as they matter to the next commit: never more than two versions name.
#[derive(Default)]
struct KnownFiles {
    /// Known to be synced.
    synced: HashSet<PathBuf>,
    /// Named by the version that the next commit builds upon.
    named: HashSet<PathBuf>,
}

impl fmt::Debug for DurableCommitHandler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DurableCommitHandler")
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

impl DurableCommitHandler {
    /// A handler for one table. Its first commit syncs every file of the table once, but for those that
    /// [`DurableCommitHandler::builds_upon`] finds to be on disk.
    pub fn new(durability: Durability, lock: StoreLock) -> Self {
        Self {
            durability,
            lock,
            known: Mutex::default(),
        }
    }

    /// Notes which files the version that was opened names: one that is missing of these does not keep the next
    /// commit from being made, and one that an earlier process has synced and nobody has touched since is on disk.
    pub(crate) fn builds_upon(&self, dataset: &Dataset, indices: &[IndexMetadata]) -> KnowledgeResult<()> {
        let base = dataset.branch_location().path;
        let named = referenced_files(dataset.manifest(), indices, &base).map_err(read_error)?;
        let mut known = self.known();
        known.synced = known_durable(dataset.manifest(), &named);
        known.named = named;
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, KnownFiles> {
        self.known.lock()
    }

    /// Refuses a version of which a new file is shorter than what was written into it. Lance passes over an error of a
    /// file's last write: a full disk, or the limit of a file's size, would otherwise be found out by the next reader.
    async fn check_whole(
        &self,
        manifest: &Manifest,
        indices: &[IndexMetadata],
        base_path: &Path,
        object_store: &ObjectStore,
    ) -> std::io::Result<()> {
        let local = |path: Path| PathBuf::from(to_local_path(&path));
        let mut deletions = Vec::new();
        let mut sized: Vec<(PathBuf, Option<u64>)> = Vec::new();
        for fragment in manifest.fragments.iter() {
            if let Some(file) = &fragment.deletion_file {
                deletions.push((
                    local(deletion_file_path(base_path, fragment.id, file)),
                    fragment.id,
                    file,
                ));
            }
            for file in &fragment.files {
                let path = local(base_path.clone().join("data").join(file.path.as_str()));
                sized.push((path, file.file_size_bytes.get().map(NonZero::get)));
            }
        }
        for index in indices {
            let directory = PathBuf::from(to_local_path(base_path))
                .join("_indices")
                .join(index.uuid.to_string());
            for file in index.files.iter().flatten() {
                sized.push((directory.join(&file.path), Some(file.size_bytes)));
            }
        }
        {
            let known = self.known();
            let is_new = |path: &PathBuf| !known.named.contains(path) && !known.synced.contains(path);
            deletions.retain(|(path, ..)| is_new(path));
            sized.retain(|(path, _)| is_new(path));
        }
        for (path, fragment, file) in deletions {
            // Its size stands nowhere, the number of its rows does.
            let read = read_deletion_file(fragment, file, base_path, object_store).await;
            let rows = read.ok().map(|deleted| deleted.len());
            if rows.is_none() || file.num_deleted_rows.is_some_and(|wanted| rows != Some(wanted)) {
                return Err(cut_short(&path));
            }
        }
        tokio::task::spawn_blocking(move || {
            for (path, wanted) in sized {
                // One that is missing is for the sync to refuse, or to go past.
                let Ok(found) = std::fs::metadata(&path) else { continue };
                if wanted.is_some_and(|wanted| found.len() < wanted) {
                    return Err(cut_short(&path));
                }
            }
            Ok(())
        })
        .await
        .map_err(std::io::Error::other)?
    }

    /// Syncs those of the `referenced` files that are not known to be on disk, and the directories that hold them.
    async fn sync_references(&self, referenced: &HashSet<PathBuf>, base_path: &Path) -> std::io::Result<()> {
        let fresh: Vec<(PathBuf, bool)> = {
            let known = self.known();
            let fresh = referenced.iter().filter(|file| !known.synced.contains(*file));
            fresh.map(|file| (file.clone(), known.named.contains(file))).collect()
        };
        let table = PathBuf::from(to_local_path(base_path));
        let missing = tokio::task::spawn_blocking(move || sync_files(&fresh, &table))
            .await
            .map_err(std::io::Error::other)??;
        // What is put back is synced then.
        self.known().synced = referenced.difference(&missing).cloned().collect();
        Ok(())
    }
}

/// Why a file is shorter than what was written into it: the system's error of the write that was passed over, as far as
/// that can be told afterwards.
fn cut_short(path: &std::path::Path) -> std::io::Error {
    let length = std::fs::metadata(path).map_or(0, |found| found.len());
    let limit = getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
    let errno = if length >= limit { Errno::EFBIG } else { Errno::ENOSPC };
    tracing::error!(path = %path.display(), length, "a file is shorter than what was written into it; it is not committed");
    errno.into()
}

/// Every file that a version consists of, as paths of this machine. Of an index whose directory is missing it is the
/// directory.
pub(crate) fn referenced_files(
    manifest: &Manifest,
    indices: &[IndexMetadata],
    base_path: &Path,
) -> std::io::Result<HashSet<PathBuf>> {
    let local = |path: Path| PathBuf::from(to_local_path(&path));
    let mut files = HashSet::new();
    for fragment in manifest.fragments.iter() {
        for file in &fragment.files {
            files.insert(local(base_path.clone().join("data").join(file.path.as_str())));
        }
        if let Some(deletion_file) = &fragment.deletion_file {
            files.insert(local(deletion_file_path(base_path, fragment.id, deletion_file)));
        }
    }
    for index in indices {
        let directory = PathBuf::from(to_local_path(base_path))
            .join("_indices")
            .join(index.uuid.to_string());
        // The manifest may list an index's files or not; the directory holds them all either way.
        let read = || std::fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect();
        match read() {
            Ok::<Vec<PathBuf>, std::io::Error>(found) => files.extend(found),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                files.insert(directory);
            }
            Err(error) => {
                return Err(std::io::Error::new(
                    error.kind(),
                    format!("{} cannot be read: {error}", directory.display()),
                ));
            }
        }
    }
    Ok(files)
}

/// Syncs files, then each directory from theirs up to `table`, then `table`'s own parent: a new table must not vanish
/// with the entry that names it. With each file goes whether it may be missing; answers those that are.
fn sync_files(files: &[(PathBuf, bool)], table: &std::path::Path) -> std::io::Result<HashSet<PathBuf>> {
    let mut directories = HashSet::new();
    let mut missing = HashSet::new();
    for (file, may_be_missing) in files {
        match File::open(file) {
            Ok(opened) => opened.sync_all()?,
            Err(error) if error.kind() == ErrorKind::NotFound && *may_be_missing => {
                tracing::warn!(path = %file.display(), "a file of the table is missing, which a commit goes past");
                missing.insert(file.clone());
                continue;
            }
            Err(error) => {
                return Err(std::io::Error::new(
                    error.kind(),
                    format!("{} cannot be made durable: {error}", file.display()),
                ));
            }
        }
        let mut parent = file.parent();
        while let Some(directory) = parent {
            if !directory.starts_with(table) || !directories.insert(directory.to_path_buf()) {
                break;
            }
            parent = directory.parent();
        }
    }
    directories.insert(table.to_path_buf());
    let mut directories: Vec<PathBuf> = directories.into_iter().collect();
    // Deepest first: an entry is durable before the directory that holds its directory is.
    directories.sort_by_key(|directory| std::cmp::Reverse(directory.components().count()));
    for directory in directories {
        fsync_directory(&directory)?;
    }
    Ok(missing)
}

#[async_trait]
impl CommitHandler for DurableCommitHandler {
    // As the local handler that this one stands in for: the file system answers at once and for good.
    fn is_version_not_found_definitive(&self) -> bool {
        true
    }

    fn propagate_commit_error_after_success(&self) -> bool {
        false
    }

    async fn commit(
        &self,
        manifest: &mut Manifest,
        indices: Option<Vec<IndexMetadata>>,
        base_path: &Path,
        object_store: &ObjectStore,
        manifest_writer: ManifestWriter,
        naming_scheme: ManifestNamingScheme,
        transaction: Option<Transaction>,
    ) -> Result<ManifestLocation, CommitError> {
        let other = |error: std::io::Error| CommitError::OtherError(error.into());
        // With a number, the error is the system's of that number: 28 is a full disk.
        fail::fail_point!("commit::before", |number: Option<String>| {
            let number = number.and_then(|number| number.parse().ok());
            Err(other(number.map_or_else(
                || std::io::Error::other("failpoint commit::before"),
                std::io::Error::from_raw_os_error,
            )))
        });
        let listed = indices.as_deref().unwrap_or_default();
        let referenced = referenced_files(manifest, listed, base_path).map_err(other)?;
        self.check_whole(manifest, listed, base_path, object_store)
            .await
            .map_err(other)?;
        if self.durability == Durability::Full {
            self.sync_references(&referenced, base_path).await.map_err(other)?;
        }
        let how = made(self.durability, manifest.version);
        manifest.table_metadata.insert(MADE_KEY.to_owned(), how);

        // The manifest is built in memory, so that it appears under its name whole or not at all.
        let memory = ObjectStore::memory();
        let staged = Path::from("manifest");
        manifest_writer(&memory, manifest, indices, &staged, transaction).await?;
        let bytes = memory.read_one_all(&staged).await?;
        let size = bytes.len() as u64;

        self.lock
            .check()
            .map_err(|error| other(std::io::Error::other(error.to_string())))?;
        let path = naming_scheme.manifest_path(base_path, manifest.version);
        let publisher = object_store::local::LocalFileSystem::new().with_fsync(self.durability == Durability::Full);
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        // Opened before, as there may be no descriptor for it afterwards. The first version makes the directory.
        let versions = match PathBuf::from(to_local_path(&path)).parent().map(File::open) {
            Some(Ok(directory)) => Some(directory),
            Some(Err(error)) if error.kind() != ErrorKind::NotFound => return Err(other(error)),
            _ => None,
        };
        let put = match publisher.put_opts(&path, bytes.into(), options).await {
            Ok(put) => put,
            Err(ObjectStoreError::AlreadyExists { .. } | ObjectStoreError::Precondition { .. }) => {
                return Err(CommitError::CommitConflict);
            }
            Err(error) => {
                // The manifest may have got its name all the same. Lance looks for it and then takes the commit for
                // made, so the name has to be on disk.
                if self.durability == Durability::Full
                    && let Some(versions) = versions
                    && let Err(error) = versions.sync_all()
                {
                    tracing::error!(%error, "a failed commit could not be made durable");
                }
                return Err(CommitError::OtherError(error.into()));
            }
        };
        self.known().named = referenced;
        if self.durability == Durability::Full && manifest.version == 1 {
            // The first version also creates the table's directory and `_versions` in it.
            let table = PathBuf::from(to_local_path(base_path));
            tokio::task::spawn_blocking(move || sync_ancestry(&table))
                .await
                .map_err(|error| other(std::io::Error::other(error)))?
                .map_err(other)?;
        }
        write_version_hint(object_store, base_path, manifest.version).await;
        fail::fail_point!("commit::after", |_| Err(other(std::io::Error::other(
            "failpoint commit::after"
        ))));

        Ok(ManifestLocation {
            version: manifest.version,
            path,
            size: Some(size),
            naming_scheme,
            e_tag: put.e_tag,
            identity: None,
        })
    }
}

/// Syncs a new table's directory and the two above it: `<project>` and `knowledge`.
fn sync_ancestry(table: &std::path::Path) -> std::io::Result<()> {
    for directory in table.ancestors().take(3) {
        fsync_directory(directory)?;
    }
    Ok(())
}

/// Syncs every directory of a table: names that were removed do not come back after a power cut.
pub(crate) fn sync_directories(table: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(table)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    fsync_directory(table)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
    use arrow_schema::{DataType, Field, Schema};
    use lance::dataset::builder::DatasetBuilder;
    use lance::dataset::{ReadParams, WriteMode, WriteParams};
    use lance::index::DatasetIndexExt;
    use tempfile::TempDir;

    use super::*;

    fn one(number: i64) -> RecordBatchIterator<[Result<RecordBatch, arrow_schema::ArrowError>; 1]> {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![number]))]);
        RecordBatchIterator::new([batch], schema)
    }

    /// A table of two commits, opened as at a start, with the data file of the first.
    async fn table(directory: &TempDir) -> (Dataset, PathBuf) {
        let uri = directory.path().join("numbers.lance");
        let lock = StoreLock::acquire(directory.path()).unwrap();
        let params = |mode| WriteParams {
            mode,
            commit_handler: Some(Arc::new(DurableCommitHandler::new(Durability::Full, lock.clone()))),
            ..WriteParams::default()
        };
        let place = uri.to_str().unwrap();
        Dataset::write(one(1), place, Some(params(WriteMode::Create)))
            .await
            .unwrap();
        Dataset::write(one(2), place, Some(params(WriteMode::Append)))
            .await
            .unwrap();
        let handler = Arc::new(DurableCommitHandler::new(Durability::Full, lock.clone()));
        let read = ReadParams {
            commit_handler: Some(Arc::clone(&handler) as _),
            ..ReadParams::default()
        };
        let dataset = DatasetBuilder::from_uri(place)
            .with_read_params(read)
            .load()
            .await
            .unwrap();
        let indices = dataset.load_indices().await.unwrap();
        handler.builds_upon(&dataset, &indices).unwrap();
        let first = uri.join("data").join(&dataset.fragments()[0].files[0].path);
        (dataset, first)
    }

    #[tokio::test]
    async fn a_manifest_says_how_it_was_made() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dataset, _) = table(&directory).await;
        assert!(made_durably(dataset.manifest()));
        dataset.append(one(3), None).await.unwrap();
        assert!(made_durably(dataset.manifest()));
        // Another writer carries the entry on, and its versions are not taken for ours.
        let mut foreign = Dataset::open(dataset.uri()).await.unwrap();
        assert!(made_durably(foreign.manifest()));
        foreign.append(one(4), None).await.unwrap();
        assert!(foreign.manifest().table_metadata.contains_key(MADE_KEY));
        assert!(!made_durably(foreign.manifest()));
    }

    #[tokio::test]
    async fn an_old_file_that_is_missing_is_in_the_way_of_no_commit() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dataset, first) = table(&directory).await;
        let kept = std::fs::read(&first).unwrap();
        std::fs::remove_file(&first).unwrap();
        for number in 3..5 {
            dataset.append(one(number), None).await.unwrap();
        }
        assert_eq!(dataset.count_rows(None).await.unwrap(), 4);
        // Put back, it is there again.
        std::fs::write(&first, kept).unwrap();
        dataset.append(one(5), None).await.unwrap();
        let rows = dataset.scan().try_into_batch().await.unwrap().num_rows();
        assert_eq!(rows, 5);
    }

    #[tokio::test]
    async fn what_was_on_disk_and_is_untouched_is_not_synced_again() {
        let directory = tempfile::tempdir().unwrap();
        let (dataset, first) = table(&directory).await;
        let opened = || async {
            let lock = StoreLock::acquire(&directory.path().join("other")).unwrap();
            let handler = DurableCommitHandler::new(Durability::Full, lock);
            let indices = dataset.load_indices().await.unwrap();
            handler.builds_upon(&dataset, &indices).unwrap();
            let known = handler.known();
            assert_eq!(known.named.len(), 2);
            known.synced.clone()
        };
        std::fs::create_dir(directory.path().join("other")).unwrap();
        let synced = opened().await;
        assert!(synced.len() == 2 && synced.contains(&first), "{synced:?}");
        // More than a tick of the file system's clock, and a copy in its place, which nobody has synced.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let kept = std::fs::read(&first).unwrap();
        let written = std::fs::metadata(&first).unwrap().modified().unwrap();
        std::fs::remove_file(&first).unwrap();
        std::fs::write(&first, kept).unwrap();
        let times = std::fs::FileTimes::new().set_modified(written);
        File::options()
            .write(true)
            .open(&first)
            .unwrap()
            .set_times(times)
            .unwrap();
        let synced = opened().await;
        assert!(synced.len() == 1 && !synced.contains(&first), "{synced:?}");
        // Of a version that does not say that it was made durably, nothing is taken on trust.
        let mut foreign = Dataset::open(dataset.uri()).await.unwrap();
        foreign.append(one(3), None).await.unwrap();
        let named = HashSet::from([first]);
        assert!(known_durable(foreign.manifest(), &named).is_empty());
    }

    #[test]
    fn a_new_file_that_is_missing_ends_the_commit() {
        let directory = tempfile::tempdir().unwrap();
        let (there, gone) = (directory.path().join("there"), directory.path().join("gone"));
        std::fs::write(&there, "x").unwrap();
        let error = sync_files(&[(there.clone(), false), (gone.clone(), false)], directory.path()).unwrap_err();
        assert!(error.to_string().contains("gone cannot be made durable"), "{error}");
        let missing = sync_files(&[(there, false), (gone.clone(), true)], directory.path()).unwrap();
        assert_eq!(missing, HashSet::from([gone]));
    }

    #[tokio::test]
    async fn an_index_whose_files_cannot_be_listed_ends_the_commit() {
        use lance_index::IndexType;
        use lance_index::scalar::ScalarIndexParams;
        let directory = tempfile::tempdir().unwrap();
        let (mut dataset, _) = table(&directory).await;
        dataset
            .create_index(&["n"], IndexType::BTree, None, &ScalarIndexParams::default(), false)
            .await
            .unwrap();
        let indices = dataset.load_indices().await.unwrap();
        let base = dataset.branch_location().path;
        let listed = referenced_files(dataset.manifest(), &indices, &base).unwrap();
        let index = directory
            .path()
            .join("numbers.lance/_indices")
            .join(indices[0].uuid.to_string());
        assert!(listed.iter().any(|file| file.starts_with(&index) && *file != index));
        std::fs::remove_dir_all(&index).unwrap();
        let listed = referenced_files(dataset.manifest(), &indices, &base).unwrap();
        assert!(listed.contains(&index));
        // A file in its place cannot be listed, whoever asks.
        std::fs::write(&index, "").unwrap();
        let error = referenced_files(dataset.manifest(), &indices, &base).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }
}
