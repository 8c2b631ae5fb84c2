//! Which files of a table need not be synced again after a start.
//!
//! A version that was made durably says so in its manifest, and says when it was made. All that it names was synced
//! before it could be seen. So a file that has not been touched since is on disk: the time of the last change of its
//! inode, which nobody sets by hand, lies before the version. A file that was copied or restored has a later one, as has
//! one whose owner or name was changed; it is synced again with the next commit, though its content is the same.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use lance_table::format::Manifest;

use crate::store::table::durable::made_durably;

/// Those of the files that a version names which were on disk when it was made and are as they were. Looks at each of
/// them, and reads none.
pub(crate) fn known_durable(manifest: &Manifest, named: &HashSet<PathBuf>) -> HashSet<PathBuf> {
    if !made_durably(manifest) {
        return HashSet::new();
    }
    let made = i128::try_from(manifest.timestamp_nanos).unwrap_or(0);
    // By a clock that was ahead then, what was copied since would be older than the version.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_nanos());
    if made > i128::try_from(now).unwrap_or(0) {
        return HashSet::new();
    }
    let is_untouched = |path: &&PathBuf| {
        let found = std::fs::metadata(path);
        found.is_ok_and(|found| i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec()) < made)
    };
    named.iter().filter(is_untouched).cloned().collect()
}
