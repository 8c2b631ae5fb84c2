//! The daemon as a process: one for each home, which starts, serves, ends and is found, whatever surrounds it.

// The test replaces the C library's clock, which the daemon is linked to here.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod clock;
mod descriptors;
mod directories;
mod locks;
mod log;
// Memory of a process is read where Linux shows it.
#[cfg(target_os = "linux")]
mod memory;
mod presence;
pub(crate) mod process;
mod signals;
mod start_and_stop;
