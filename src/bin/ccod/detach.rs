//! What a daemon in the background gives up of the process that started it.

use std::os::fd::RawFd;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::SigSet;

/// The first descriptor after standard input, output and error.
const FIRST: RawFd = 3;
/// Descriptors that are closed where the system does not list those that are open.
const MOST: RawFd = 65_536;

/// Leaves the parent's session, directory, signal mask and descriptors. Called first thing, while this is the only
/// thread and has opened nothing.
///
/// Whatever fails is left as it was: the daemon works without.
pub(crate) fn from_parent() {
    // Fails only for the leader of a process group, which a spawned process is not.
    nix::unistd::setsid().map(drop).unwrap_or_default();
    // A daemon must not keep a directory from being unmounted or removed.
    nix::unistd::chdir("/").unwrap_or_default();
    SigSet::empty().thread_set_mask().unwrap_or_default();
    // A lock that the parent holds through a descriptor would be held for as long as the daemon runs, and whoever
    // reads a pipe of the parent's would never see its end.
    for descriptor in open_descriptors() {
        nix::unistd::close(descriptor).unwrap_or_default();
    }
}

/// The descriptors beyond the standard ones. With the one that has read the list, which is closed by then.
fn open_descriptors() -> Vec<RawFd> {
    let listed = ["/proc/self/fd", "/dev/fd"].iter().find_map(|list| {
        let entries = std::fs::read_dir(list).ok()?;
        let numbers = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Some(numbers.filter(|number| *number >= FIRST).collect())
    });
    listed.unwrap_or_else(|| {
        let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(MOST, |(soft, _)| RawFd::try_from(soft).unwrap_or(MOST));
        (FIRST..most.min(MOST)).collect()
    })
}
