//! Finds the engine, `ccod`, and makes commands that run it.
//!
//! An executable that carries an engine unpacks and runs that one ([`super::unpack`]). Any other runs the `ccod`
//! beside itself, or in `../libexec/ccod`. It is never looked up in `PATH`: which engine writes to the store must not
//! depend on the shell that a command happens to run in. The engine refuses to work for a `ccoctl` of another version.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ccod::program::VERSION;
use ccod::program::exit::{CliError, CliResult, Exit};

#[cfg(feature = "bundle")]
use super::unpack;

/// Name of the program.
const NAME: &str = "ccod";
/// Where it may lie, seen from the directory of this program.
const PLACES: [&str; 2] = [".", "../libexec/ccod"];

/// An engine that can be run.
#[derive(Debug)]
pub(crate) struct Engine {
    path: PathBuf,
    /// The memory that `path` leads to, for an engine that is not in a file.
    memory: Option<OwnedFd>,
}

impl Engine {
    /// The engine of this program; unpacked below `home` if this program carries it.
    ///
    /// # Errors
    /// When there is none, or it cannot be unpacked.
    pub(crate) fn find(home: &Path) -> CliResult<Self> {
        #[cfg(feature = "bundle")]
        {
            unpack::unpack(&unpack::CARRIED, home)
        }
        #[cfg(not(feature = "bundle"))]
        {
            let _ = home;
            Self::installed(&own_executable()?)
        }
    }

    /// The engine that was installed with the program at `executable`.
    #[cfg_attr(feature = "bundle", allow(dead_code))]
    fn installed(executable: &Path) -> CliResult<Self> {
        let directory = executable.parent().unwrap_or(Path::new("/"));
        let found = PLACES
            .iter()
            .map(|place| directory.join(place).join(NAME))
            .find(|path| {
                // A link of this name to `ccoctl` is a way to call `ccoctl`, not an engine.
                path.is_file() && !same_file(path, executable)
            });
        match found {
            Some(path) => Ok(Self::file(path)),
            None => Err(CliError::new(
                Exit::Unavailable,
                format!("the daemon's program `{NAME}` is not in {}", directory.display()),
            )
            .fix(format!("install `{NAME}` {VERSION} beside `ccoctl`"))),
        }
    }

    /// An engine in a file.
    pub(super) fn file(path: PathBuf) -> Self {
        Self { path, memory: None }
    }

    /// An engine in memory.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(super) fn memory(path: PathBuf, memory: OwnedFd) -> Self {
        Self {
            path,
            memory: Some(memory),
        }
    }

    /// A command that runs it. It lives no longer than the engine, which may lie in the memory of this process.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.arg0(NAME).arg(format!("--expect={VERSION}"));
        command
    }

    /// The error for an engine that does not run.
    pub(crate) fn cannot_run(&self, error: &io::Error) -> CliError {
        let path = self.path.display();
        let failed = CliError::io(format_args!("run {path}"), error);
        match error.kind() {
            io::ErrorKind::PermissionDenied if self.memory.is_some() => {
                failed.fix("the system runs no program from memory, and the home none from files; choose another home")
            }
            io::ErrorKind::PermissionDenied => {
                failed.fix("check that the file is executable and its file system not mounted `noexec`")
            }
            _ => failed,
        }
    }
}

/// Whether two paths lead to one file.
fn same_file(one: &Path, other: &Path) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

/// This executable, or the one that replaced it in an upgrade.
#[cfg_attr(feature = "bundle", allow(dead_code))]
fn own_executable() -> CliResult<PathBuf> {
    let path = std::env::current_exe().map_err(|error| CliError::io("find this executable", &error))?;
    // Linux marks a replaced file like this.
    let replaced = path
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"))
        .map(PathBuf::from);
    let path = replaced.filter(|replaced| replaced.exists()).unwrap_or(path);
    // On other systems it may be the link by which this program was called.
    Ok(path.canonicalize().unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_engine_lies_beside_the_command_line_or_in_libexec() {
        let root = tempfile::tempdir().expect("a directory");
        let bin = root.path().join("bin");
        let libexec = root.path().join("libexec/ccod");
        for directory in [&bin, &libexec] {
            fs::create_dir_all(directory).expect("made");
        }
        let ccoctl = bin.join("ccoctl");
        fs::write(&ccoctl, "").expect("written");

        let missing = Engine::installed(&ccoctl).expect_err("there is none");
        assert_eq!(missing.exit, Exit::Unavailable);
        assert!(missing.to_string().contains("install `ccod`"), "{missing}");

        fs::write(libexec.join("ccod"), "").expect("written");
        // Not the link that an older installation has made.
        std::os::unix::fs::symlink("ccoctl", bin.join("ccod")).expect("linked");
        let found = Engine::installed(&ccoctl).expect("found");
        assert!(same_file(&found.path, &libexec.join("ccod")), "{found:?}");

        fs::remove_file(bin.join("ccod")).expect("removed");
        fs::write(bin.join("ccod"), "").expect("written");
        let found = Engine::installed(&ccoctl).expect("found");
        assert!(same_file(&found.path, &bin.join("ccod")), "{found:?}");
    }
}
