//! The directory of the projects, which the daemon alone touches.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::unistd::geteuid;

use super::{DIRECTORY_MODE, HomeError, check, failed, make};

/// Permission bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// As [`super::prepare`], for the directory of the projects in a prepared home. A real directory of ours may be open to
/// others, for it is closed next ([`close`]).
///
/// # Errors
/// As [`super::prepare`].
pub(crate) fn prepare(path: &Path) -> Result<(), HomeError> {
    let real = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
    if !real {
        check(path)?;
    }
    make(path)
}

/// Closes the directory of the projects to others, if it is a real one; what a link leads to is somebody's choice
/// and is left as it is, and so is what lies on a file system that is mounted read-only. The caller holds the lock of
/// the store.
///
/// # Errors
/// When it cannot be closed.
pub(crate) fn close(path: &Path) -> Result<(), HomeError> {
    let found = std::fs::symlink_metadata(path).map_err(failed("look at", path))?;
    if found.is_dir() && found.mode() & OTHERS != 0 {
        return keep_open(
            path,
            std::fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE)),
        );
    }
    Ok(())
}

/// Goes on where the directory could not be closed since its file system is read-only.
fn keep_open(path: &Path, closed: io::Result<()>) -> Result<(), HomeError> {
    match closed {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            tracing::warn!(directory = %path.display(), "others can look into it; its file system is mounted read-only");
            Ok(())
        }
        closed => closed.map_err(failed("close to others", path)),
    }
}

/// Writes into the log, once, that others can look into the home.
pub(crate) fn advise(path: &Path) {
    if let Ok(found) = std::fs::metadata(path)
        && found.mode() & 0o055 & !0o010 != 0
    {
        tracing::warn!(
            home = %path.display(),
            mode = format_args!("{:04o}", found.mode() & 0o7777),
            "others can look into the home; its directories are closed to them all the same. chmod 700 closes it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_directory_on_a_read_only_file_system_stays_open() {
        let failure = |errno: nix::errno::Errno| keep_open(Path::new("/x"), Err(errno.into()));
        failure(nix::errno::Errno::EROFS).unwrap();
        assert!(failure(nix::errno::Errno::EPERM).is_err());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_told_as_that() {
        let root = tempfile::tempdir().unwrap();
        let (target, link) = (root.path().join("disk"), root.path().join("knowledge"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let told = prepare(&link).unwrap_err().to_string();
        assert!(
            told.contains("leads nowhere") && told.contains(&target.display().to_string()),
            "{told}"
        );
        std::fs::create_dir(&target).unwrap();
        prepare(&link).unwrap();
    }

    #[test]
    fn only_a_real_directory_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let (real, link) = (root.path().join("real"), root.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::fs::set_permissions(&real, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        prepare(&link).unwrap();
        close(&link).unwrap();
        assert_eq!(mode(&real), 0o755);
        std::fs::set_permissions(&real, Permissions::from_mode(0o777)).unwrap();
        assert!(prepare(&link).is_err());
        prepare(&real).unwrap();
        close(&real).unwrap();
        assert_eq!(mode(&real), 0o700);
    }
}
