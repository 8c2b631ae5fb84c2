//! Files of a commit that are not on disk yet.
//!
//! Lance writes each file of a commit by itself, in a dozen steps on other threads: a temporary name, the data, the
//! final name, a look at it. It also writes what the commit is to do into a file beside the manifest, which says the
//! same. For a small commit all this takes longer than the data needs to get to the disk. So such a commit is put
//! together here, in memory, and [`durable`](super::durable) writes its files in one go with the manifest: under their
//! final names at once, since nobody knows these before the manifest can be seen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, TryStreamExt};
use lance::Dataset;
use lance_io::local::to_local_path;
use lance_io::object_store::ObjectStore;
use lance_table::format::{IndexMetadata, Manifest, Transaction};
use lance_table::io::commit::{CommitError, CommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore as Objects,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use super::durable::DurableCommitHandler;

/// Directory of a table that holds what each commit was to do.
const TRANSACTIONS: &str = "_transactions";

/// What a commit has written so far, over what lies on disk. See the module.
#[derive(Debug)]
pub(crate) struct PendingFiles {
    written: InMemory,
    disk: Arc<dyn Objects>,
}

impl PendingFiles {
    /// `dataset` as it is, but what is written through it stays in memory; with it comes what does so.
    pub(crate) async fn over(dataset: &Dataset) -> lance::Result<(Arc<Dataset>, Arc<Self>)> {
        let disk = dataset.object_store(None).await?;
        let pending = Arc::new(Self {
            written: InMemory::new(),
            disk: Arc::clone(&disk.inner),
        });
        let mut store = ObjectStore::memory();
        store.inner = Arc::clone(&pending) as Arc<dyn Objects>;
        // By this name the caches know whose versions they hold.
        store.store_prefix.clone_from(&disk.store_prefix);
        store.list_is_lexically_ordered = disk.list_is_lexically_ordered;
        let writing = dataset.with_object_store(Arc::new(store), None);
        Ok((Arc::new(writing), pending))
    }

    /// Takes out what has been written: whoever has it writes it to disk. `whole`: whether the manifest says what the
    /// commit is to do; then no file needs to.
    pub(super) async fn take(&self, whole: bool) -> object_store::Result<BTreeMap<PathBuf, Bytes>> {
        let written: Vec<ObjectMeta> = self.written.list(None).try_collect().await?;
        let mut taken = BTreeMap::new();
        for object in written {
            let path = object.location;
            let bytes = self.written.get(&path).await?.bytes().await?;
            self.written.delete(&path).await?;
            let is_plan = path
                .parts()
                .rev()
                .nth(1)
                .is_some_and(|part| part.as_ref() == TRANSACTIONS);
            if !(whole && is_plan) {
                taken.insert(PathBuf::from(to_local_path(&path)), bytes);
            }
        }
        Ok(taken)
    }
}

impl fmt::Display for PendingFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "files to be written over {}", self.disk)
    }
}

#[async_trait]
impl Objects for PendingFiles {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.written.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.written.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        match self.written.get_opts(path, options.clone()).await {
            Err(object_store::Error::NotFound { .. }) => self.disk.get_opts(path, options).await,
            found => found,
        }
    }

    /// Of what was written here. What lies on disk, a commit removes nothing of.
    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.written.delete_stream(paths)
    }

    /// What lies on disk: versions, above all.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.disk.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.disk.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.written.copy_opts(from, to, options).await
    }
}

/// The table's commit handler for one commit whose files are pending.
#[derive(Debug)]
pub(crate) struct PendingCommit {
    pub(crate) handler: Arc<DurableCommitHandler>,
    pub(crate) files: Arc<PendingFiles>,
}

#[async_trait]
impl CommitHandler for PendingCommit {
    fn is_version_not_found_definitive(&self) -> bool {
        self.handler.is_version_not_found_definitive()
    }

    fn propagate_commit_error_after_success(&self) -> bool {
        self.handler.propagate_commit_error_after_success()
    }

    fn list_manifest_locations_since<'a>(
        &self,
        base_path: &Path,
        object_store: &'a ObjectStore,
        since_version: u64,
    ) -> BoxStream<'a, lance::Result<ManifestLocation>> {
        let handler = &self.handler;
        handler.list_manifest_locations_since(base_path, object_store, since_version)
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
        let pending = self.files.take(transaction.is_some()).await;
        let pending = pending.map_err(|error| CommitError::OtherError(error.into()))?;
        if transaction.is_some() {
            manifest.transaction_file = None;
        }
        self.handler
            .commit_with(
                pending,
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

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, RecordBatch, RecordBatchIterator};
    use arrow_schema::{DataType, Field, Schema};
    use lance::dataset::builder::DatasetBuilder;
    use lance::dataset::transaction::{Operation, Transaction as Planned};
    use lance::dataset::{CommitBuilder, InsertBuilder, ReadParams, WriteDestination, WriteMode, WriteParams};
    use lance::index::DatasetIndexExt;
    use lance::session::Session;
    use lance_index::IndexType;
    use lance_index::scalar::ScalarIndexParams;
    use tempfile::TempDir;

    use super::*;
    use crate::store::lock::StoreLock;
    use crate::store::table::durable::Durability;

    struct Bench {
        directory: TempDir,
        handler: Arc<DurableCommitHandler>,
    }

    fn numbers(numbers: std::ops::Range<i64>) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(numbers))]).unwrap()
    }

    impl Bench {
        /// A table of ten rows with an index.
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let lock = StoreLock::acquire(directory.path()).unwrap();
            let handler = Arc::new(DurableCommitHandler::new(Durability::Full, lock));
            let params = WriteParams {
                commit_handler: Some(Arc::clone(&handler) as _),
                ..WriteParams::default()
            };
            let batch = numbers(0..10);
            let rows = RecordBatchIterator::new([Ok(batch.clone())], batch.schema());
            let place = directory.path().join("numbers.lance");
            let mut dataset = Dataset::write(rows, place.to_str().unwrap(), Some(params))
                .await
                .unwrap();
            let params = ScalarIndexParams::default();
            dataset
                .create_index(&["n"], IndexType::BTree, None, &params, false)
                .await
                .unwrap();
            Self { directory, handler }
        }

        /// The table with caches that keep nothing: all that a commit needs is read.
        async fn open(&self) -> Dataset {
            let mut params = ReadParams {
                commit_handler: Some(Arc::clone(&self.handler) as _),
                ..ReadParams::default()
            };
            params.session(Arc::new(Session::new(0, 0, Arc::default())));
            let place = self.directory.path().join("numbers.lance");
            let builder = DatasetBuilder::from_uri(place.to_str().unwrap());
            builder.with_read_params(params).load().await.unwrap()
        }

        fn names(&self, directory: &str) -> Vec<String> {
            let path = self.directory.path().join("numbers.lance").join(directory);
            let Ok(entries) = std::fs::read_dir(path) else {
                return Vec::new();
            };
            let mut names: Vec<String> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }

        fn all_names(&self) -> Vec<Vec<String>> {
            ["data", "_deletions", "_transactions", "_versions", "_indices"]
                .map(|directory| self.names(directory))
                .to_vec()
        }

        /// Takes the first row out of the table and adds some, as one commit in memory.
        async fn change(&self, dataset: &Dataset, rows: RecordBatch) -> lance::Result<Dataset> {
            let (writing, files) = PendingFiles::over(dataset).await?;
            let before = self.all_names();
            let first = writing.get_fragment(0).unwrap();
            let deleted = u32::try_from(first.count_deletions().await?).unwrap();
            let smaller = first.extend_deletions([deleted]).await?.unwrap();
            let params = WriteParams {
                mode: WriteMode::Append,
                ..WriteParams::default()
            };
            let planned = InsertBuilder::new(WriteDestination::Dataset(Arc::clone(&writing)))
                .with_params(&params)
                .execute_uncommitted(vec![rows])
                .await?;
            let Operation::Append { fragments } = planned.operation else {
                panic!("{:?}", planned.operation);
            };
            let operation = Operation::Update {
                removed_fragment_ids: Vec::new(),
                updated_fragments: vec![smaller.metadata().clone()],
                new_fragments: fragments,
                fields_modified: Vec::new(),
                compacted_sstables: Vec::new(),
                fields_for_preserving_frag_bitmap: vec![0],
                update_mode: None,
                inserted_rows_filter: None,
                updated_fragment_offsets: None,
            };
            // Nothing of it is to be seen before it is committed.
            assert_eq!(self.all_names(), before);
            let handler = Arc::clone(&self.handler);
            let committed = CommitBuilder::new(writing)
                .with_commit_handler(Arc::new(PendingCommit { handler, files }))
                .execute(Planned::new(dataset.manifest().version, operation, None))
                .await?;
            Ok(committed.with_object_store(dataset.object_store(None).await?, None))
        }
    }

    #[tokio::test]
    async fn a_commit_in_memory_is_on_disk_when_it_is_done() {
        let bench = Bench::new().await;
        let mut dataset = bench.open().await;
        let before = bench.all_names();
        // The second also needs what the first has written.
        for round in 1..=2 {
            dataset = bench.change(&dataset, numbers(100..103)).await.unwrap();
            let now = bench.all_names();
            let more: Vec<usize> = now
                .iter()
                .zip(&before)
                .map(|(now, before)| now.len() - before.len())
                .collect();
            // A data file, a file of deleted rows, no plan, a version and nothing beside it.
            assert_eq!(more, [round, round, 0, round, 0]);
            assert!(bench.names("_versions").iter().all(|name| name.ends_with(".manifest")));
            for dataset in [&dataset, &bench.open().await] {
                assert_eq!(dataset.count_rows(None).await.unwrap(), 10 + 2 * round);
                let rows = dataset.scan().try_into_batch().await.unwrap();
                assert_eq!(rows.num_rows(), 10 + 2 * round);
                assert_eq!(dataset.load_indices().await.unwrap().len(), 1);
                // What it was to do is known from the manifest.
                assert_eq!(dataset.manifest().transaction_file, None);
                let planned = dataset.read_transaction().await.unwrap().unwrap();
                assert!(matches!(planned.operation, Operation::Update { .. }));
            }
        }
        // Others go on from there.
        let batch = numbers(200..201);
        let rows = RecordBatchIterator::new([Ok(batch.clone())], batch.schema());
        dataset.append(rows, None).await.unwrap();
        assert_eq!(bench.open().await.count_rows(None).await.unwrap(), 15);
    }

    #[tokio::test]
    async fn a_commit_that_is_refused_leaves_nothing() {
        let bench = Bench::new().await;
        let dataset = bench.open().await;
        let before = bench.all_names();
        let lock = bench.directory.path().join(crate::store::lock::LOCK_FILE);
        std::fs::remove_file(&lock).unwrap();
        let refused = bench.change(&dataset, numbers(100..103)).await.unwrap_err();
        assert!(refused.to_string().contains("was removed or replaced"), "{refused}");
        assert_eq!(bench.all_names(), before);
        assert_eq!(bench.open().await.count_rows(None).await.unwrap(), 10);
    }

    #[tokio::test]
    async fn a_version_that_somebody_else_has_made_is_not_written_over() {
        let bench = Bench::new().await;
        let (ours, theirs) = (bench.open().await, bench.open().await);
        let theirs = bench.change(&theirs, numbers(100..103)).await.unwrap();
        // It takes a row out of the same fragment, so it cannot simply be made one version later.
        let refused = bench.change(&ours, numbers(200..203)).await;
        assert!(
            refused.is_err(),
            "{:?}",
            refused.map(|dataset| dataset.manifest().version)
        );
        let newest = bench.open().await;
        assert_eq!(newest.manifest().version, theirs.manifest().version);
        assert_eq!(newest.count_rows(None).await.unwrap(), 12);
    }
}
