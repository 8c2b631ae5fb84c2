//! Commits that survive power loss.
//!
//! Lance writes data files, deletion files and index files, then publishes a manifest that names them, and
//! syncs none of it. [`DurableCommitHandler`] stands in front of every commit of a table (add, merge, delete,
//! index, compaction, creation) and keeps one order:
//!
//! 1. every file that the new manifest names and that is not known to be on disk is synced, then the
//!    directories that hold them;
//! 2. the manifest is staged, synced, linked under its final name, and its directory synced.
//!
//! So a manifest that can be seen is never empty and never names data that a power cut could take away. With
//! `durability = "fast"` step 1 and the syncs of step 2 are left out.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::store::lock::StoreLock;
use async_trait::async_trait;
use lance_io::local::to_local_path;
use lance_io::object_store::ObjectStore;
use lance_table::format::{IndexMetadata, Manifest, Transaction};
use lance_table::io::commit::{
    CommitError, CommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter, write_version_hint,
};
use lance_table::io::deletion::deletion_file_path;
use object_store::path::Path;
use object_store::{Error as ObjectStoreError, ObjectStore as _, PutMode, PutOptions};

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// It survives power loss.
    #[default]
    Full,
    /// It survives the end of the process (kill -9), not power loss.
    Fast,
}

impl Durability {
    /// The name on the wire and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Fast => "fast",
        }
    }
}

/// Commit handler of one table. See the module.
pub struct DurableCommitHandler {
    durability: Durability,
    /// Asked before a version is published: whoever has lost it must not.
    lock: StoreLock,
    /// Files that are known to be synced: those of the last manifest, so that it stays as small as the table.
    synced: Mutex<HashSet<PathBuf>>,
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
    /// A handler for one table. The first commit syncs every file of the table once: what an earlier process
    /// wrote is not taken on trust.
    pub fn new(durability: Durability, lock: StoreLock) -> Self {
        Self {
            durability,
            lock,
            synced: Mutex::new(HashSet::new()),
        }
    }

    /// Syncs what `manifest` names and is not yet known to be on disk, and the directories that hold it.
    async fn sync_references(
        &self,
        manifest: &Manifest,
        indices: &[IndexMetadata],
        base_path: &Path,
    ) -> std::io::Result<()> {
        let referenced = referenced_files(manifest, indices, base_path);
        let fresh: Vec<PathBuf> = {
            let synced = self.synced.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            referenced
                .iter()
                .filter(|file| !synced.contains(*file))
                .cloned()
                .collect()
        };
        let table = PathBuf::from(to_local_path(base_path));
        tokio::task::spawn_blocking(move || sync_files(&fresh, &table))
            .await
            .map_err(std::io::Error::other)??;
        *self.synced.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = referenced;
        Ok(())
    }
}

/// Every file that a version consists of, as paths of this machine.
pub(crate) fn referenced_files(manifest: &Manifest, indices: &[IndexMetadata], base_path: &Path) -> HashSet<PathBuf> {
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
        if let Ok(entries) = std::fs::read_dir(&directory) {
            files.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    files
}

/// Syncs `files`, then each directory from theirs up to `table`, then `table`'s own parent: a new table must
/// not vanish with the entry that names it.
fn sync_files(files: &[PathBuf], table: &std::path::Path) -> std::io::Result<()> {
    let mut directories = HashSet::new();
    for file in files {
        match File::open(file) {
            Ok(opened) => opened.sync_all()?,
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
        File::open(&directory)?.sync_all()?;
    }
    Ok(())
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
        if self.durability == Durability::Full {
            self.sync_references(manifest, indices.as_deref().unwrap_or_default(), base_path)
                .await
                .map_err(other)?;
        }

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
        let put = publisher
            .put_opts(&path, bytes.into(), options)
            .await
            .map_err(|error| match error {
                ObjectStoreError::AlreadyExists { .. } | ObjectStoreError::Precondition { .. } => {
                    CommitError::CommitConflict
                }
                error => CommitError::OtherError(error.into()),
            })?;
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
        File::open(directory)?.sync_all()?;
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
    File::open(table)?.sync_all()
}
