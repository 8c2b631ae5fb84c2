//! The directory of the socket and the way to it.

use nix::unistd::{Gid, chown, geteuid};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::error::failed;
use super::{BindOptions, EndpointError, SOCKET_PATH_MAX};

/// Refuses a path that a socket cannot have.
///
/// # Errors
/// When it is not absolute or too long.
pub fn check_socket_path(path: &Path) -> Result<(), EndpointError> {
    let length = path.as_os_str().as_bytes().len();
    if length > SOCKET_PATH_MAX {
        return Err(EndpointError::PathTooLong {
            path: path.to_owned(),
            length,
        });
    }
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(EndpointError::PathNotAbsolute(path.to_owned()));
    }
    Ok(())
}

/// Makes the directory of the socket, or checks the one that is there: a real directory, ours, closed to
/// others. Missing parents are made as closed.
///
/// # Errors
/// Says what is wrong with the directory and what to do. Nothing is changed about one that exists.
pub fn prepare_run_dir(directory: &Path, options: &BindOptions) -> Result<(), EndpointError> {
    match DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory.parent().unwrap_or(directory))
    {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("create", directory)(source));
        }
        _ => {}
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {
            if let Some(group) = options.socket_group {
                // From closed to less closed: at no time is it open to more than the group.
                chown(directory, None, Some(Gid::from_raw(group)))
                    .map_err(|error| failed("give the socket group", directory)(error.into()))?;
                fs::set_permissions(directory, Permissions::from_mode(options.directory_mode()))
                    .map_err(failed("open to the socket group", directory))?;
            }
        }
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(failed("create", directory)(source)),
    }
    let found = fs::symlink_metadata(directory).map_err(failed("look at", directory))?;
    if found.is_symlink() {
        return Err(EndpointError::RunDirIsLink(directory.to_owned()));
    }
    if !found.is_dir() {
        return Err(EndpointError::RunDirIsNoDirectory(directory.to_owned()));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(EndpointError::RunDirIsForeign {
            path: directory.to_owned(),
            uid: found.uid(),
        });
    }
    let mode = found.mode() & 0o7777;
    let expected = options.directory_mode();
    if mode & 0o077 & !expected != 0 {
        return Err(EndpointError::RunDirIsOpen {
            path: directory.to_owned(),
            mode,
            expected,
        });
    }
    match options.socket_group {
        Some(group) if found.gid() != group => Err(EndpointError::RunDirOfOtherGroup {
            path: directory.to_owned(),
            gid: found.gid(),
            expected: group,
        }),
        _ => Ok(()),
    }
}

/// Whether the socket group can come to a socket in `directory`, which [`prepare_run_dir`] has accepted: it may pass
/// through a directory that is open to all, or to it.
///
/// # Errors
/// [`EndpointError::GroupCannotReach`] names the first directory, from the root, that is closed to it.
pub fn check_reachable(directory: &Path, options: &BindOptions) -> Result<(), EndpointError> {
    let Some(group) = options.socket_group else {
        return Ok(());
    };
    let directory = fs::canonicalize(directory).map_err(failed("look at", directory))?;
    let mut ancestors: Vec<&Path> = directory.ancestors().collect();
    ancestors.reverse();
    for path in ancestors {
        let found = fs::metadata(path).map_err(failed("look at", path))?;
        let mode = found.mode() & 0o7777;
        // The kernel looks at the rights of the group alone where the group is the directory's.
        let passable = if found.gid() == group {
            mode & 0o010 != 0
        } else {
            mode & 0o001 != 0
        };
        if !passable {
            return Err(EndpointError::GroupCannotReach {
                path: path.to_owned(),
                mode,
                gid: found.gid(),
                group,
            });
        }
    }
    Ok(())
}
