//! The directories of the daemon. They are made closed to others, and used only if nobody else can change the files in
//! them. A directory that exists keeps its mode, with one exception: `knowledge/` is closed to others once the store is
//! locked, if it is a real directory of ours.

use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

#[cfg(feature = "engine")]
pub(crate) mod projects;

/// Mode of every directory under `$CCO_HOME`.
const DIRECTORY_MODE: u32 = 0o700;
/// Bits that let others write into a directory.
const WRITABLE: u32 = 0o022;

/// Why a directory is not used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// It belongs to somebody else.
    #[error(
        "{path} belongs to user id {uid}; choose a directory of your own with --home or CCO_HOME, or run as that user",
        path = path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Others can create and rename files in it.
    #[error(
        "others can write into {path} (mode {mode:04o}); choose a directory of your own with --home or CCO_HOME, or, \
         if it is one, run: chmod 700 {path}",
        path = path.display()
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is something else.
    #[error("{} is not a directory; move it away, or choose another place with --home or CCO_HOME", .0.display())]
    NoDirectory(PathBuf),
    /// It is a link to something that does not exist.
    #[error(
        "{path} is a link that leads nowhere: {target} does not exist; mount the disk that it lies on, create that \
         directory, or remove the link",
        path = path.display(),
        target = target.display()
    )]
    Dangling {
        /// The link.
        path: PathBuf,
        /// What it names.
        target: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> HomeError + 'a {
    move |source| HomeError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Whether a directory can be used: it does not exist yet, or is ours and only we can write into it. A link is
/// followed. Changes nothing.
///
/// # Errors
/// Says what is wrong and what to do.
pub fn check(path: &Path) -> Result<(), HomeError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match std::fs::read_link(path) {
            Ok(target) => Err(HomeError::Dangling {
                path: path.to_owned(),
                target,
            }),
            // Nothing has the name.
            Err(_) => Ok(()),
        },
        Err(error) => Err(failed("look at", path)(error)),
        Ok(found) => check_found(path, &found),
    }
}

fn check_found(path: &Path, found: &Metadata) -> Result<(), HomeError> {
    if !found.is_dir() {
        return Err(HomeError::NoDirectory(path.to_owned()));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(HomeError::Foreign {
            path: path.to_owned(),
            uid: found.uid(),
        });
    }
    let mode = found.mode() & 0o7777;
    if mode & WRITABLE != 0 {
        return Err(HomeError::Writable {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Makes a directory for its owner alone, with its parents, or checks the one that exists. Afterwards its name is on
/// disk: an acknowledged write must not vanish with its directory. The name is synced even if the directory existed, for
/// the process that made it may not have synced it.
///
/// # Errors
/// As [`check`], and when it cannot be made.
pub fn prepare(path: &Path) -> Result<(), HomeError> {
    check(path)?;
    make(path)
}

fn make(path: &Path) -> Result<(), HomeError> {
    let missing = path
        .ancestors()
        .skip(1)
        .take_while(|ancestor| !ancestor.exists())
        .count();
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(failed("create", path))?;
    for parent in path.ancestors().skip(1).take(missing + 1) {
        // A parent of another user may not be readable; the directory can be used all the same.
        if let Err(error) = File::open(parent).and_then(|directory| directory.sync_all()) {
            tracing::warn!(directory = %parent.display(), %error, "cannot be synced, a power cut could take what is in it");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_new_home_is_closed_and_a_found_one_keeps_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("a/home");
        prepare(&home).unwrap();
        assert_eq!((mode(&home), mode(&root.path().join("a"))), (0o700, 0o700));
        for kept in [0o755, 0o750, 0o710, 0o500] {
            std::fs::set_permissions(&home, Permissions::from_mode(kept)).unwrap();
            prepare(&home).unwrap();
            assert_eq!(mode(&home), kept);
        }
    }

    #[test]
    fn a_directory_that_others_can_write_into_is_refused_and_left_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&home, &link).unwrap();
        for open in [0o777, 0o1777, 0o775, 0o722, 0o702] {
            std::fs::set_permissions(&home, Permissions::from_mode(open)).unwrap();
            for path in [&home, &link] {
                let error = prepare(path).unwrap_err();
                assert!(matches!(error, HomeError::Writable { .. }), "{error}");
                assert!(error.to_string().contains("chmod 700"), "{error}");
            }
            assert_eq!(mode(&home), open);
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(prepare(&file), Err(HomeError::NoDirectory(_))));
        // `/` is root's; a test that runs as root has to give a directory away.
        let foreign = if geteuid().is_root() {
            let given = root.path().join("given");
            std::fs::create_dir(&given).unwrap();
            nix::unistd::chown(&given, Some(nix::unistd::Uid::from_raw(12_345)), None).unwrap();
            given
        } else {
            PathBuf::from("/")
        };
        assert!(matches!(prepare(&foreign), Err(HomeError::Foreign { .. })));
    }
}
