//! LanceDB's errors in our words: what the caller can do about it decides the variant.

use std::error::Error as StdError;
use std::io;

use crate::error::KnowledgeError;

/// Finds the first error of type `T` in the chain of causes.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut current = Some(error);
    while let Some(cause) = current {
        if let Some(found) = cause.downcast_ref::<T>() {
            return Some(found);
        }
        current = cause.source();
    }
    None
}

/// An error of a read.
pub fn read_error(error: impl StdError + 'static) -> KnowledgeError {
    KnowledgeError::internal(format!("the store could not be read: {error}"))
}

/// An error of a write: no room and no permission are states that heal, everything else is reported as it is.
pub fn write_error(error: impl StdError + 'static) -> KnowledgeError {
    if find::<lance::Error>(&error).is_some_and(lance::Error::is_commit_status_unknown) {
        return KnowledgeError::OutcomeUnknown;
    }
    let text = error.to_string();
    let kind = find::<io::Error>(&error).map(io::Error::kind);
    // Lance wraps some I/O errors into text, so the words of the system are looked for as well.
    let says = |words: &str| text.contains(words);
    if kind == Some(io::ErrorKind::StorageFull) || says("No space left on device") || says("StorageFull") {
        KnowledgeError::ReadOnly {
            reason: "the disk is full; make room, writes go on by themselves".to_owned(),
        }
    } else if kind == Some(io::ErrorKind::ReadOnlyFilesystem) || says("Read-only file system") {
        KnowledgeError::ReadOnly {
            reason: "the file system is mounted read-only; remount it for writing".to_owned(),
        }
    } else if kind == Some(io::ErrorKind::PermissionDenied) || says("Permission denied") {
        KnowledgeError::ReadOnly {
            reason: "the data directory may not be written; check its owner and mode".to_owned(),
        }
    } else {
        KnowledgeError::internal(format!("the store could not be written: {text}"))
    }
}
