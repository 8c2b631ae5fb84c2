//! The paths that a caller has named for a new file or directory.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::KnowledgeError;
use crate::error::KnowledgeResult;

/// A name beside `target` that nothing has.
pub fn partial_beside(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{:08x}", rand::random::<u32>()));
    target.with_file_name(name)
}

/// What is to be made at a new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewPlace {
    /// A directory; an empty one may be there.
    Directory,
    /// A file.
    File,
}

/// Checks a path that something new is to be written to, and resolves the directory that will hold it.
///
/// # Errors
/// [`KnowledgeError::InvalidParameter`] for `path`: something is there, the directory that should hold it is
/// not, or it lies among the projects.
pub fn new_place(path: &Path, knowledge_dir: &Path, what: NewPlace) -> KnowledgeResult<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(bad_path(format!("{} cannot be written to", path.display())));
    };
    let parent = parent
        .canonicalize()
        .map_err(|error| bad_path(format!("{} must be an existing directory: {error}", parent.display())))?;
    let place = parent.join(name);
    let knowledge = knowledge_dir.canonicalize();
    if knowledge.is_ok_and(|knowledge| place.starts_with(knowledge)) {
        return Err(bad_path(format!(
            "{} lies in the directory of the projects; choose a place outside",
            place.display()
        )));
    }
    match std::fs::symlink_metadata(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(place),
        Err(error) => Err(bad_path(format!("{} cannot be looked at: {error}", place.display()))),
        Ok(found) => {
            let empty = what == NewPlace::Directory
                && found.is_dir()
                && std::fs::read_dir(&place).is_ok_and(|mut entries| entries.next().is_none());
            if empty {
                Ok(place)
            } else {
                Err(bad_path(format!(
                    "{} exists already and is not overwritten; choose another path or remove it",
                    place.display()
                )))
            }
        }
    }
}

/// A path that the caller has to change.
pub(crate) fn bad_path(message: impl std::fmt::Display) -> KnowledgeError {
    KnowledgeError::of_path(message)
}

pub(super) fn unwritable(path: &Path, error: &io::Error) -> KnowledgeError {
    bad_path(format!("{} cannot be written: {error}", path.display()))
}
