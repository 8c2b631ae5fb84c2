//! Where the daemon writes files for callers, and where it does not.

use std::path::{Path, PathBuf};

use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::store::transfer::{ASIDE, KNOWLEDGE};

use super::long::bad_path;

/// Directories of the home in which the daemon and the command line keep files, besides that of the projects.
const OWN_DIRECTORIES: [&str; 3] = ["run", crate::program::ENGINE_DIRECTORY, ASIDE];

fn home_of(knowledge_dir: &Path) -> Option<PathBuf> {
    knowledge_dir.parent().and_then(|home| home.canonicalize().ok())
}

/// Refuses a place among the files that are the daemon's or the command line's own. Other directories of the home
/// belong to those who made them.
pub(super) fn check_outside_own(place: &Path, knowledge_dir: &Path) -> KnowledgeResult<()> {
    let Some(home) = home_of(knowledge_dir) else {
        return Ok(());
    };
    let own = OWN_DIRECTORIES.map(|directory| home.join(directory));
    let is_in = |directory: &Path| {
        place.starts_with(directory)
            || directory
                .canonicalize()
                .is_ok_and(|directory| place.starts_with(directory))
    };
    if place == home.join(KNOWLEDGE) || own.iter().any(|directory| is_in(directory)) {
        return Err(among_own(place));
    }
    Ok(())
}

/// As [`check_outside_own`] for a single file: directly in the home it would be taken for one of the daemon's own, now
/// or later.
pub(super) fn check_outside_home(place: &Path, knowledge_dir: &Path) -> KnowledgeResult<()> {
    check_outside_own(place, knowledge_dir)?;
    match home_of(knowledge_dir) {
        Some(home) if place.parent() == Some(home.as_path()) => Err(among_own(place)),
        _ => Ok(()),
    }
}

fn among_own(place: &Path) -> KnowledgeError {
    bad_path(format!(
        "{} lies among the files of the daemon's home; choose a place outside",
        place.display()
    ))
}

pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> KnowledgeError {
    bad_path(format!("{} cannot be written: {error}", path.display()))
}
