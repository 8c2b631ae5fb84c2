//! LanceDB's errors in our words: what the caller can do about it decides the variant.

use std::error::Error as StdError;
use std::io;
use std::path::Path;

use nix::errno::Errno;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::panics::{untold, without_build_paths};
use crate::{clock, descriptors};

/// Causes that are followed at most: chains of errors are short, and a cycle must not hang a reply.
const MAX_CAUSES: usize = 64;

/// An error and everything that it says caused it.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    let mut found = vec![error];
    let mut next = 0;
    while next < found.len() && found.len() < MAX_CAUSES {
        let cause = found[next];
        next += 1;
        found.extend(cause.source());
        // These show the error that they wrap as themselves, so their `source` is already the one after it.
        if let Some(inner) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            found.push(inner);
        }
        match cause.downcast_ref::<lance::Error>() {
            Some(lance::Error::External { source }) => found.push(source.as_ref()),
            Some(lance::Error::Shared { source }) => found.push(source.as_ref()),
            _ => {}
        }
    }
    found
}

/// The system's error numbers in an error and its causes. Lance turns some I/O errors into text, so the numbers
/// that stand there ("(os error 28)") count as well.
fn system_errors(error: &(dyn StdError + 'static)) -> Vec<Errno> {
    const MARK: &str = "(os error ";
    let mut found = Vec::new();
    for cause in causes(error) {
        if let Some(code) = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            found.push(Errno::from_raw(code));
        }
    }
    let text = error.to_string();
    for part in text.split(MARK).skip(1) {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        if let Ok(code) = digits.parse() {
            found.push(Errno::from_raw(code));
        }
    }
    found
}

/// What stands in the way of writing. Each of them can be removed while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    DiskFull,
    Quota,
    FileTooLarge,
    ReadOnlyFileSystem,
    NotPermitted,
}

impl Obstacle {
    fn of(error: &(dyn StdError + 'static)) -> Option<Self> {
        let by_number = system_errors(error).into_iter().find_map(|errno| match errno {
            Errno::ENOSPC => Some(Self::DiskFull),
            Errno::EDQUOT => Some(Self::Quota),
            Errno::EFBIG => Some(Self::FileTooLarge),
            Errno::EROFS => Some(Self::ReadOnlyFileSystem),
            Errno::EACCES | Errno::EPERM => Some(Self::NotPermitted),
            _ => None,
        });
        // An error that was made by hand has a kind and no number.
        by_number.or_else(|| {
            causes(error)
                .into_iter()
                .find_map(|cause| match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
                    Some(io::ErrorKind::StorageFull) => Some(Self::DiskFull),
                    Some(io::ErrorKind::QuotaExceeded) => Some(Self::Quota),
                    Some(io::ErrorKind::FileTooLarge) => Some(Self::FileTooLarge),
                    Some(io::ErrorKind::ReadOnlyFilesystem) => Some(Self::ReadOnlyFileSystem),
                    Some(io::ErrorKind::PermissionDenied) => Some(Self::NotPermitted),
                    _ => None,
                })
        })
    }

    /// What it is and what to do, for [`KnowledgeError::ReadOnly`].
    fn advice(self) -> &'static str {
        match self {
            Self::DiskFull => "the disk is full; free some space, writes go on by themselves",
            Self::Quota => "the disk quota of this user is used up; free some space, writes go on by themselves",
            Self::FileTooLarge => {
                "a file would be larger than this process or file system allows; raise the limit (ulimit -f)"
            }
            Self::ReadOnlyFileSystem => {
                "the file system is mounted read-only; remount it for writing, writes go on by themselves"
            }
            Self::NotPermitted => {
                "the data directory may not be written; make it writable for this user, writes go on by themselves"
            }
        }
    }
}

/// Whether an error passes or is of this process (no descriptor left, no memory, no permission) and so
/// says nothing about the data.
pub(crate) fn is_passing(error: &(dyn StdError + 'static)) -> bool {
    system_errors(error).into_iter().any(|errno| {
        matches!(
            errno,
            Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOMEM
                | Errno::EACCES
                | Errno::EPERM
                | Errno::EINTR
                | Errno::EAGAIN
                | Errno::ESTALE
                | Errno::ETIMEDOUT
        )
    })
}

/// Whether an error says that this user may not do something.
pub(crate) fn is_denied(error: &(dyn StdError + 'static)) -> bool {
    let denied = |errno| matches!(errno, Errno::EACCES | Errno::EPERM);
    system_errors(error).into_iter().any(denied)
}

/// An error of a read. What is read was checked before, so the error is of what is stored (Lance calls damaged bytes
/// invalid input, among other things).
pub fn read_error(error: impl StdError + 'static) -> KnowledgeError {
    if lacks_descriptors(&error) {
        return descriptors::lack();
    }
    KnowledgeError::unreadable(format_args!("the store could not be read: {error}"))
}

/// What an error for which [`is_passing`] is false, or a panic over damaged bytes, says of the data.
///
/// # Errors
/// That of the clock, where LanceDB panics over that.
pub(crate) fn damage(error: &dyn StdError) -> KnowledgeResult<String> {
    clock::check()?;
    Ok(told(error))
}

/// What an error says, without what a panic has said, and without where the program was built.
pub(crate) fn told(error: &dyn StdError) -> String {
    without_build_paths(&untold(&error.to_string())).into_owned()
}

/// Whether an error comes of there being no file descriptors left.
pub(crate) fn lacks_descriptors(error: &(dyn StdError + 'static)) -> bool {
    system_errors(error).into_iter().any(descriptors::is_lack)
}

/// An error of a write: no space, no permission and no descriptors are states that heal, everything else is reported as
/// it is.
pub fn write_error(error: impl StdError + 'static) -> KnowledgeError {
    let unknown = causes(&error).into_iter().any(|cause| {
        cause
            .downcast_ref::<lance::Error>()
            .is_some_and(lance::Error::is_commit_status_unknown)
    });
    if unknown {
        return KnowledgeError::OutcomeUnknown;
    }
    if lacks_descriptors(&error) {
        return descriptors::lack();
    }
    match Obstacle::of(&error) {
        Some(obstacle) => KnowledgeError::ReadOnly {
            reason: obstacle.advice().to_owned(),
        },
        None => KnowledgeError::internal(format!("the store could not be written: {error}")),
    }
}

/// An error of the file system while reading `path`.
pub(crate) fn file_read_error(path: &Path, error: io::Error) -> KnowledgeError {
    KnowledgeError::unreadable(format_args!("{} cannot be read: {error}", path.display()))
}

/// An error of the file system while changing `path`: it cannot be `doing` (created, written, ...).
pub(crate) fn file_error(doing: &str, path: &Path, error: io::Error) -> KnowledgeError {
    match Obstacle::of(&error) {
        Some(obstacle) => KnowledgeError::ReadOnly {
            reason: format!("{} cannot be {doing}: {}", path.display(), obstacle.advice()),
        },
        None => KnowledgeError::internal(format!("{} cannot be {doing}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno as i32)
    }

    fn reason(error: impl StdError + 'static) -> Option<String> {
        match write_error(error) {
            KnowledgeError::ReadOnly { reason } => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn obstacles_are_found_however_deep_they_are_wrapped() {
        let words = [
            (Errno::ENOSPC, "full"),
            (Errno::EDQUOT, "quota"),
            (Errno::EROFS, "read-only"),
            (Errno::EACCES, "writable"),
            (Errno::EPERM, "writable"),
        ];
        for (errno, word) in words {
            let holds =
                |found: Option<String>| assert!(found.as_ref().is_some_and(|it| it.contains(word)), "{found:?}");
            holds(reason(io(errno)));
            // An io::Error inside an io::Error, whose `source` leaves the inner one out.
            holds(reason(io::Error::other(io(errno))));
            holds(reason(lance::Error::io_source(Box::new(io(errno)))));
            holds(reason(lance::Error::external(Box::new(io(errno)))));
            holds(reason(lance::Error::from(object_store::Error::Generic {
                store: "local",
                source: Box::new(io(errno)),
            })));
            holds(reason(lancedb::Error::Lance {
                source: lance::Error::io_source(Box::new(io::Error::other(lance::Error::external(Box::new(io(
                    errno,
                )))))),
            }));
            // Only text is left of it.
            holds(reason(lance::Error::internal(format!("LocalWriter: {}", io(errno)))));
        }
        // Made by hand, without a number.
        assert!(reason(io::Error::from(io::ErrorKind::StorageFull)).is_some_and(|it| it.contains("full")));
    }

    #[test]
    fn what_does_not_heal_is_not_read_only() {
        assert_eq!(reason(io(Errno::EIO)), None);
        assert_eq!(reason(lance::Error::internal("28 is not 30")), None);
        assert!(matches!(
            write_error(lance::Error::internal("x")),
            KnowledgeError::Internal { .. }
        ));
    }

    #[test]
    fn no_descriptors_are_told_as_that_however_deep_they_are_wrapped() {
        for errno in [Errno::EMFILE, Errno::ENFILE] {
            let wrapped: [fn(Errno) -> lance::Error; 4] = [
                |errno| lance::Error::io_source(Box::new(io(errno))),
                |errno| lance::Error::external(Box::new(io::Error::other(io(errno)))),
                |errno| lance::Error::internal(format!("LocalWriter: {}", io(errno))),
                |errno| {
                    lance::Error::from(object_store::Error::Generic {
                        store: "local",
                        source: Box::new(io(errno)),
                    })
                },
            ];
            for wrap in wrapped {
                assert!(matches!(read_error(wrap(errno)), KnowledgeError::NoDescriptors));
                assert!(matches!(write_error(wrap(errno)), KnowledgeError::NoDescriptors));
            }
            let (place, doing) = (Path::new("/x"), "written");
            assert!(matches!(
                file_read_error(place, io(errno)),
                KnowledgeError::NoDescriptors
            ));
            assert!(matches!(
                file_error(doing, place, io(errno)),
                KnowledgeError::NoDescriptors
            ));
        }
        assert!(descriptors::lacked_at().is_some());
    }

    #[test]
    fn errors_of_the_moment_say_nothing_about_the_data() {
        assert!(is_passing(&lance::Error::io_source(Box::new(io(Errno::EMFILE)))));
        assert!(!is_passing(&lance::Error::io_source(Box::new(io(Errno::ENOENT)))));
        assert!(!is_passing(&lance::Error::internal("corrupt")));
    }
}
