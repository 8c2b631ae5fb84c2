//! Commits that survive power loss.
//!
//! Lance writes data files, deletion files and index files, then publishes a manifest that names them, and
//! syncs none of it. [`DurableCommitHandler`] stands in front of every commit of a table (append, update,
//! delete, index, compaction, creation) and keeps one order:
//!
//! 1. every new file has the size that was written into it, or the commit is refused;
//! 2. the manifest is staged; it, every file that it names and that is not known to be on disk, and the directories that
//!    hold these are synced, all at the same time;
//! 3. the manifest is linked under its final name, and its directory synced.
//!
//! So a manifest that can be seen is never empty and never names data that a power cut could take away. With
//! `durability = "fast"` the syncs are left out. `publish.rs` does this. Each manifest says in the table's metadata how
//! it was made, so that recovery can tell a commit that a power cut may have torn from a file that was lost later.
//!
//! A file that the version before names too and that is not there any more is damage that is known or will be found;
//! it stands in nobody's way here, for what adds to a table needs nothing of what is damaged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::ErrorKind;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use lance::Dataset;
use lance_io::local::to_local_path;
use lance_io::object_store::ObjectStore;
use lance_table::format::{IndexMetadata, Manifest, Transaction};
use lance_table::io::commit::{CommitError, CommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter};
use lance_table::io::deletion::{deletion_file_path, read_deletion_file};
use object_store::path::Path;
use parking_lot::{Mutex, MutexGuard};

use crate::error::KnowledgeResult;
use crate::store::disk::fsync_directory;
use crate::store::error::read_error;
use crate::store::lock::StoreLock;
use crate::store::table::known_durable::known_durable;
use crate::store::table::publish::{LooseFile, NamedDirectories, NewVersion, NotPublished, cut_short};

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
    /// How often a version was about to be published, by this handler and those of the same table before it. Where it
    /// has not become more, a commit that has failed has changed nothing of the table.
    publications: Arc<AtomicU64>,
}

/// Files of the table, as far as they matter to the next commit: never more than two versions name.
#[derive(Default)]
struct KnownFiles {
    /// Known to be synced.
    synced: HashSet<PathBuf>,
    /// Named by the version that the next commit builds upon.
    named: HashSet<PathBuf>,
    /// Directories in the table's own whose names are known to be synced.
    directories: NamedDirectories,
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
            publications: Arc::default(),
        }
    }

    /// Counts in `publications` how often a version is about to be published.
    pub(crate) fn counting(mut self, publications: Arc<AtomicU64>) -> Self {
        self.publications = publications;
        self
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

    /// Refuses a version of which a new file of deleted rows is cut short: its size stands nowhere, the number of its
    /// rows does.
    async fn check_deletions(
        &self,
        manifest: &Manifest,
        pending: &BTreeMap<PathBuf, Bytes>,
        base_path: &Path,
        object_store: &ObjectStore,
    ) -> std::io::Result<()> {
        for fragment in manifest.fragments.iter() {
            let Some(file) = &fragment.deletion_file else { continue };
            let path = PathBuf::from(to_local_path(&deletion_file_path(base_path, fragment.id, file)));
            if pending.contains_key(&path) || self.known().knows(&path) {
                continue;
            }
            let read = read_deletion_file(fragment.id, file, base_path, object_store).await;
            let rows = read.ok().map(|deleted| deleted.len());
            if rows.is_none() || file.num_deleted_rows.is_some_and(|wanted| rows != Some(wanted)) {
                return Err(cut_short(&path));
            }
        }
        Ok(())
    }

    /// Those of the `referenced` files that lie there and are not known to be on disk, or that are new.
    fn loose(
        &self,
        referenced: &HashSet<PathBuf>,
        pending: &BTreeMap<PathBuf, Bytes>,
        manifest: &Manifest,
        indices: &[IndexMetadata],
        base_path: &Path,
    ) -> Vec<LooseFile> {
        let known = self.known();
        let durable = self.durability == Durability::Full;
        let loose: Vec<&PathBuf> = referenced
            .iter()
            .filter(|file| !known.synced.contains(*file) && (durable || !known.named.contains(*file)))
            .filter(|file| !pending.contains_key(*file))
            .collect();
        if loose.is_empty() {
            return Vec::new();
        }
        let sizes = written_sizes(manifest, indices, base_path);
        loose
            .into_iter()
            .map(|path| {
                let may_be_missing = known.named.contains(path);
                // One that was there before was checked then.
                let bytes = sizes.get(path).copied().filter(|_| !may_be_missing);
                LooseFile {
                    path: path.clone(),
                    bytes,
                    may_be_missing,
                }
            })
            .collect()
    }

    /// Commits, and writes the `pending` files before, which the version names.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn commit_with(
        &self,
        pending: BTreeMap<PathBuf, Bytes>,
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
        self.check_deletions(manifest, &pending, base_path, object_store)
            .await
            .map_err(other)?;
        let files = self.loose(&referenced, &pending, manifest, listed, base_path);
        let how = made(self.durability, manifest.version);
        manifest.table_metadata.insert(MADE_KEY.to_owned(), how);

        // The manifest is built in memory, so that it appears under its name whole or not at all.
        let memory = ObjectStore::memory();
        let staged = Path::from("manifest");
        manifest_writer(&memory, manifest, indices, &staged, transaction).await?;
        let bytes = memory.read_one_all(&staged).await?;
        let size = bytes.len() as u64;

        let path = naming_scheme.manifest_path(base_path, manifest.version);
        let table = PathBuf::from(to_local_path(base_path));
        let version = NewVersion {
            table: table.clone(),
            manifest: PathBuf::from(to_local_path(&path)),
            bytes,
            pending,
            files,
            named: self.known().directories.clone(),
            durable: self.durability == Durability::Full,
        };
        // The first version also creates the table's directory and `_versions` in it.
        let first = (version.durable && manifest.version == 1).then(|| table.clone());
        let (lock, publications) = (self.lock.clone(), Arc::clone(&self.publications));
        let published = tokio::task::spawn_blocking(move || {
            let may = || {
                lock.check().map_err(|error| std::io::Error::other(error.to_string()))?;
                publications.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            let published = version.publish(may)?;
            if let Some(table) = first {
                sync_ancestry(&table)?;
            }
            Ok::<_, NotPublished>(published)
        });
        let published = match published.await.map_err(|error| other(std::io::Error::other(error)))? {
            Ok(published) => published,
            Err(NotPublished::Taken) => return Err(CommitError::CommitConflict),
            Err(NotPublished::Failed(error)) => return Err(other(error)),
        };
        {
            let mut known = self.known();
            if self.durability == Durability::Full {
                // What is put back is synced then.
                known.synced = referenced.difference(&published.missing).cloned().collect();
                // Those below them get files once.
                let named = published.named.into_iter();
                let beside = named.filter(|(directory, _)| directory.parent() == Some(&table));
                known.directories.extend(beside);
            }
            known.named = referenced;
        }
        fail::fail_point!("commit::after", |_| Err(other(std::io::Error::other(
            "failpoint commit::after"
        ))));

        Ok(ManifestLocation {
            version: manifest.version,
            path,
            size: Some(size),
            naming_scheme,
            e_tag: Some(published.e_tag),
            identity: None,
        })
    }
}

impl KnownFiles {
    fn knows(&self, path: &PathBuf) -> bool {
        self.named.contains(path) || self.synced.contains(path)
    }
}

/// The bytes that were written into the files of a version, as far as its manifest says so.
fn written_sizes(manifest: &Manifest, indices: &[IndexMetadata], base_path: &Path) -> HashMap<PathBuf, u64> {
    let mut sizes = HashMap::new();
    for file in manifest.fragments.iter().flat_map(|fragment| &fragment.files) {
        let path = base_path.clone().join("data").join(file.path.as_str());
        if let Some(bytes) = file.file_size_bytes.get().map(NonZero::get) {
            sizes.insert(PathBuf::from(to_local_path(&path)), bytes);
        }
    }
    for index in indices {
        let directory = index_directory(index, base_path);
        let files = index.files.iter().flatten();
        sizes.extend(files.map(|file| (directory.join(&file.path), file.size_bytes)));
    }
    sizes
}

fn index_directory(index: &IndexMetadata, base_path: &Path) -> PathBuf {
    PathBuf::from(to_local_path(base_path))
        .join("_indices")
        .join(index.uuid.to_string())
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
        let directory = index_directory(index, base_path);
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

#[async_trait]
impl CommitHandler for DurableCommitHandler {
    // As the local handler that this one stands in for: the file system answers at once and for good.
    fn is_version_not_found_definitive(&self) -> bool {
        true
    }

    fn propagate_commit_error_after_success(&self) -> bool {
        false
    }

    /// Lance looks for versions above the one that a commit builds upon, in case somebody else has made any. Only the
    /// holder of the store's lock makes versions, each numbered one above the last, and only the oldest ones are ever
    /// removed: if that one is there and the one above it is not, there are none. To ask for these two names takes
    /// microseconds; Lance would list the directory, or read a file that says where to begin, which each commit would
    /// have to write.
    fn list_manifest_locations_since<'a>(
        &self,
        base_path: &Path,
        object_store: &'a ObjectStore,
        since_version: u64,
    ) -> BoxStream<'a, lance::Result<ManifestLocation>> {
        let is_there = |version: u64| {
            [ManifestNamingScheme::V2, ManifestNamingScheme::V1]
                .into_iter()
                .map(|scheme| to_local_path(&scheme.manifest_path(base_path, version)))
                .any(|path| !matches!(std::fs::symlink_metadata(path), Err(error) if error.kind() == ErrorKind::NotFound))
        };
        if is_there(since_version) && !is_there(since_version + 1) {
            return stream::empty().boxed();
        }
        self.list_manifest_locations(base_path, object_store, true)
            .try_take_while(move |location| std::future::ready(Ok(location.version > since_version)))
            .boxed()
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
        let none = BTreeMap::new();
        self.commit_with(
            none,
            manifest,
            indices,
            base_path,
            object_store,
            manifest_writer,
            naming_scheme,
            transaction,
        )
        .await
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
        std::fs::File::options()
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

    #[tokio::test]
    async fn versions_above_one_are_found_by_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let (dataset, _) = table(&directory).await;
        let elsewhere = tempfile::tempdir().unwrap();
        let lock = StoreLock::acquire(elsewhere.path()).unwrap();
        let handler = DurableCommitHandler::new(Durability::Full, lock);
        let base = dataset.branch_location().path;
        let store = dataset.object_store(None).await.unwrap();
        let above = async |version: u64| -> Vec<u64> {
            let found = handler.list_manifest_locations_since(&base, &store, version);
            found.map_ok(|location| location.version).try_collect().await.unwrap()
        };
        assert_eq!(above(2).await, [0; 0]);
        assert_eq!(above(1).await, [2]);
        // Where the version itself is gone, others may be gone as well, and all are looked at.
        let first = ManifestNamingScheme::V2.manifest_path(&base, 1);
        std::fs::remove_file(to_local_path(&first)).unwrap();
        assert_eq!(above(1).await, [2]);
        assert_eq!(above(0).await, [2]);
        assert_eq!(above(3).await, [0; 0]);
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
