//! What interrupted writes leave in a table.

use std::fs;
use std::path::{Path, PathBuf};

use crate::store::damage::files::{DATA, INDICES};
use crate::store::damage::manifest::VERSIONS;
use crate::store::damage::set_aside::entries_of;

/// Directory of a table that holds what each commit was to do.
pub(super) const TRANSACTIONS: &str = "_transactions";
/// Directories of a table that files are written into.
const WRITTEN_DIRECTORIES: [&str; 4] = [DATA, VERSIONS, TRANSACTIONS, "_deletions"];

/// Removes what interrupted writes have left: nobody names these files and nothing is in flight. Answers how many
/// there were, and their bytes.
pub(super) fn remove_staging_files(table: &Path) -> (usize, u64) {
    let mut directories: Vec<PathBuf> = WRITTEN_DIRECTORIES.iter().map(|name| table.join(name)).collect();
    directories.extend(
        entries_of(&table.join(INDICES))
            .into_iter()
            .filter(|path| path.is_dir()),
    );
    let (mut files, mut bytes) = (0, 0);
    for path in directories.iter().flat_map(|directory| entries_of(directory)) {
        let staged = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_staging_name);
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if staged && metadata.is_file() {
            match fs::remove_file(&path) {
                Ok(()) => {
                    files += 1;
                    bytes += metadata.len();
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "a leftover cannot be removed"),
            }
        }
    }
    (files, bytes)
}

/// Whether a file of this name was being written: `.tmp…` (Lance's writer), `….tmp.…` (its copies) or `…#N` (the
/// object store's staging of `…`).
pub(super) fn is_staging_name(name: &str) -> bool {
    let staged = name
        .rsplit_once('#')
        .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    staged || name.starts_with(".tmp") || name.contains(".tmp.")
}
