//! What the tests of the process have in common.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Output};
use std::time::Instant;

use crate::support::PATIENCE;

/// Looks at the run directory often, so that the tests need not wait.
pub(crate) const LOOK_OFTEN: (&str, &str) = ("CCO_LIMITS__SOCKET_CHECK_MS", "20");

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Waits for a process, but not for ever.
pub(crate) fn ended(child: &mut Child) -> Option<i32> {
    let mut status = None;
    until("the process ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code()
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Removes a directory into which the daemon may be writing.
pub(crate) fn remove(directory: &Path) {
    until("the directory is removed", || {
        match std::fs::remove_dir_all(directory) {
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            Ok(()) => true,
        }
    });
}
