//! The files of a table: which are missing, cut off or damaged, and which fragments and indices that concerns.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_table::format::{Fragment, IndexMetadata, Manifest};
use lance_table::io::deletion::relative_deletion_file_path;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::damage::manifest::MAGIC;
use crate::store::error::read_error;
use crate::store::guarded::{finding, guarded};
use crate::store::table::table_damage::{DamagedFragment, TableDamage};
use crate::store::table::vector_index::VECTOR_INDEX;
use crate::store::write::configuration_damage;

/// Directory of the data files inside a table.
pub(super) const DATA: &str = "data";
/// Directory of the indices inside a table.
pub(super) const INDICES: &str = "_indices";
/// Damaged files that a message names; the rest is counted.
pub(super) const NAMED_FILES: usize = 3;

/// A file of a fragment.
pub(super) struct FragmentFile {
    /// Relative to the table.
    pub(super) path: String,
    /// Its length, where the manifest knows it.
    bytes: Option<u64>,
    /// Whether it is a data file, and so ends with [`MAGIC`].
    data: bool,
}

/// The files of a fragment that lie in its table.
pub(super) fn fragment_files(fragment: &Fragment) -> Vec<FragmentFile> {
    let data = fragment.files.iter().filter(|file| file.base_id.is_none());
    let mut files: Vec<FragmentFile> = data
        .map(|file| FragmentFile {
            path: format!("{DATA}/{}", file.path),
            bytes: file.file_size_bytes.get().map(std::num::NonZero::get),
            data: true,
        })
        .collect();
    let deletions = fragment.deletion_file.iter().filter(|file| file.base_id.is_none());
    files.extend(deletions.map(|file| FragmentFile {
        path: relative_deletion_file_path(fragment.id, file),
        bytes: None,
        data: false,
    }));
    files
}

/// What is plainly wrong with a file, as far as its length and its end tell. An error of the file system other than
/// that the file is not there is left to whoever reads it.
pub(super) fn file_damage(table: &Path, file: &FragmentFile) -> Option<String> {
    let path = table.join(&file.path);
    let missing = || Some(format!("{} is missing", path.display()));
    let length = match fs::metadata(&path) {
        Ok(metadata) => metadata.len(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return missing(),
        Err(_) => return None,
    };
    match file.bytes {
        Some(expected) if length < expected => {
            return Some(format!("{} has {length} of {expected} bytes", path.display()));
        }
        _ if length == 0 => return Some(format!("{} is empty", path.display())),
        _ => {}
    }
    if !file.data {
        return None;
    }
    // After a power cut a file may have its length and hold zeros.
    let end = || -> io::Result<[u8; 4]> {
        let mut opened = File::open(&path)?;
        let end = file.bytes.unwrap_or(length);
        opened.seek(SeekFrom::Start(end.saturating_sub(MAGIC.len() as u64)))?;
        let mut found = [0; 4];
        opened.read_exact(&mut found)?;
        Ok(found)
    };
    match end() {
        Ok(found) if found != MAGIC => Some(format!("{} does not end as a data file does", path.display())),
        _ => None,
    }
}

/// The data and deletion files of a version that are missing or cut off, with what is wrong with each. Damaged
/// indices do not count: they can be rebuilt.
pub(super) fn missing_files(manifest: &Manifest, table: &Path) -> BTreeMap<String, String> {
    manifest
        .fragments
        .iter()
        .flat_map(fragment_files)
        .filter_map(|file| {
            let damage = file_damage(table, &file)?;
            Some((file.path, damage))
        })
        .collect()
}

pub(super) fn name_some(missing: &BTreeMap<String, String>) -> String {
    let named: Vec<&str> = missing.values().take(NAMED_FILES).map(String::as_str).collect();
    match missing.len().checked_sub(NAMED_FILES) {
        None | Some(0) => named.join(", "),
        Some(more) => format!("{}, and {more} more", named.join(", ")),
    }
}

/// The fragments of a table whose files are missing or cut off. Looks at lengths and ends, reads no data.
pub(crate) fn damaged_fragments(fragments: &[Fragment], table: &Path) -> BTreeMap<u64, DamagedFragment> {
    fragments
        .iter()
        .filter_map(|fragment| {
            let files = fragment_files(fragment);
            let reason = files.iter().find_map(|file| file_damage(table, file))?;
            Some((fragment.id, damaged(fragment, reason, false)))
        })
        .collect()
}

/// Describes a fragment as damaged.
pub(super) fn damaged(fragment: &Fragment, reason: String, salvageable: bool) -> DamagedFragment {
    DamagedFragment {
        files: fragment_files(fragment).into_iter().map(|file| file.path).collect(),
        rows: fragment.num_rows().unwrap_or(0),
        salvageable,
        reason,
    }
}

/// What is plainly wrong with the files of an index, if something is.
pub(crate) fn index_damage(index: &IndexMetadata, table: &Path) -> Option<String> {
    if index.base_id.is_some() {
        return None;
    }
    let directory = table.join(INDICES).join(index.uuid.to_string());
    let Some(files) = &index.files else {
        // What cannot be looked at now is not missing.
        let missing = matches!(directory.try_exists(), Ok(false));
        return missing.then(|| format!("{} is missing", directory.display()));
    };
    files.iter().find_map(|file| {
        let path = directory.join(&file.path);
        match fs::metadata(&path) {
            Ok(found) if found.len() < file.size_bytes => Some(format!(
                "{} has {} of {} bytes",
                path.display(),
                found.len(),
                file.size_bytes
            )),
            Ok(_) => None,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Some(format!("{} is missing", path.display()))
            }
            Err(_) => None,
        }
    })
}

/// What of an open table is plainly damaged. `remembered` are fragments that failed to be read earlier.
pub(crate) async fn inspect(
    dataset: &Dataset,
    table: &Path,
    remembered: &BTreeMap<u64, DamagedFragment>,
) -> KnowledgeResult<TableDamage> {
    let indices = dataset.load_indices().await.map_err(read_error)?;
    let fragments = Arc::clone(dataset.fragments());
    let configuration = configuration_damage(dataset.config());
    let table = table.to_path_buf();
    let remembered = remembered.clone();
    tokio::task::spawn_blocking(move || {
        let mut found = damaged_fragments(&fragments, &table);
        for fragment in fragments.iter() {
            if let Some(known) = remembered.get(&fragment.id)
                && known.files == damaged(fragment, String::new(), false).files
            {
                found.entry(fragment.id).or_insert_with(|| known.clone());
            }
        }
        TableDamage {
            fragments: found,
            keyword_index: indices
                .iter()
                .filter(|index| index.name != VECTOR_INDEX)
                .find_map(|index| index_damage(index, &table)),
            vector_index: indices
                .iter()
                .filter(|index| index.name == VECTOR_INDEX)
                .find_map(|index| index_damage(index, &table)),
            configuration,
            gaps: Vec::new(),
        }
    })
    .await
    .map_err(KnowledgeError::internal)
}

/// Reads every fragment of a table that is not in `known`, whole, and tells which cannot be read. An error that says
/// nothing about the data (no descriptor left, no memory) ends it.
pub(crate) async fn unreadable_fragments(
    dataset: &Arc<Dataset>,
    known: &BTreeMap<u64, DamagedFragment>,
) -> KnowledgeResult<BTreeMap<u64, DamagedFragment>> {
    let mut found = BTreeMap::new();
    for fragment in dataset.fragments().iter() {
        if known.contains_key(&fragment.id) {
            continue;
        }
        if let Err(reason) = read_fragment(dataset, fragment, |_| {}).await? {
            let files: Vec<String> = fragment_files(fragment).into_iter().map(|file| file.path).collect();
            let reason = format!("{} cannot be read: {reason}", files.join(", "));
            found.insert(fragment.id, damaged(fragment, reason, true));
        }
    }
    Ok(found)
}

/// Reads a fragment whole. The inner error says why it cannot be read.
pub(crate) async fn read_fragment(
    dataset: &Arc<Dataset>,
    fragment: &Fragment,
    mut visit: impl FnMut(usize) + Send + 'static,
) -> KnowledgeResult<Result<(), String>> {
    let mut scanner = dataset.scan();
    scanner.with_fragments(vec![fragment.clone()]);
    let read = guarded(async move {
        let mut stream = scanner.try_into_stream().await?;
        while let Some(batch) = stream.try_next().await? {
            visit(batch.num_rows());
        }
        Ok::<(), lance::Error>(())
    });
    finding(read.await)
}
