//! Unpacks the engine that this executable carries (feature `bundle`) into `$CCO_HOME/engine/<hash>/ccod`.
//!
//! The order makes it safe: one process at a time, under the lock of `engine/`; into a temporary file, whose hash is
//! compared while it is written; synced; and only then given its name. So a file with that name is whole, and later
//! starts only check that it is there. Engines of other versions are then removed, unless a daemon runs them, which
//! holds a shared lock on its file.
//!
//! Where the home's file system runs no programs (`noexec`), the engine is unpacked into memory on Linux.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ccod::program::ENGINE_DIRECTORY;
use ccod::program::exit::{CliError, CliResult, Exit};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{AccessFlags, access, geteuid};
use sha2::{Digest as _, Sha256};

use super::engine::Engine;

/// Name of the engine's file in its directory.
const FILE: &str = "ccod";
/// Beginning of the name of a file that is being unpacked.
const PARTIAL: &str = ".unpacking-";
/// The lock under which a process unpacks.
const LOCK: &str = ".lock";
/// Bytes that are unpacked at a time.
const CHUNK: usize = 1 << 18;

/// An engine as an executable carries it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Archive<'a> {
    /// The program, compressed with zstd.
    pub(crate) compressed: &'a [u8],
    /// SHA-256 of the program, in hexadecimal digits.
    pub(crate) sha256: &'a str,
    /// Length of the program in bytes.
    pub(crate) bytes: u64,
}

/// What this executable carries. `scripts/bundle.sh` sets the variables when it is built.
#[cfg(feature = "bundle")]
pub(crate) const CARRIED: Archive<'static> = Archive {
    compressed: include_bytes!(env!("CCOD_ENGINE_ARCHIVE")),
    sha256: env!("CCOD_ENGINE_SHA256"),
    bytes: decimal(env!("CCOD_ENGINE_BYTES")),
};

/// The number that these digits are; a build with anything else fails.
#[cfg(feature = "bundle")]
const fn decimal(digits: &str) -> u64 {
    match u64::from_str_radix(digits, 10) {
        Ok(number) => number,
        Err(_) => panic!("CCOD_ENGINE_BYTES is not a number"),
    }
}

/// The engine of `archive`, unpacked below `home` unless it lies there already.
///
/// # Errors
/// When the home cannot hold it, or the archive is damaged.
#[cfg_attr(not(feature = "bundle"), allow(dead_code))]
pub(crate) fn unpack(archive: &Archive<'_>, home: &Path) -> CliResult<Engine> {
    let engines = home.join(ENGINE_DIRECTORY);
    // Half of the hash is more than enough to tell versions apart, and keeps the path short.
    let directory = engines.join(&archive.sha256[..16]);
    let path = directory.join(FILE);
    if !is_there(&path, archive) {
        ccod::home::prepare(home).map_err(|error| CliError::from(&error))?;
        unpack_to(archive, &engines, &directory).map_err(|error| not_unpacked(archive, &path, &error))?;
        remove_others(&engines, &directory);
    }
    match access(&path, AccessFlags::X_OK) {
        Ok(()) => Ok(Engine::file(path)),
        Err(_) => in_memory(archive, &path),
    }
}

/// Whether the engine at `path` is the one of `archive`. It got its name when it was whole.
fn is_there(path: &Path, archive: &Archive<'_>) -> bool {
    path.symlink_metadata().is_ok_and(|found| {
        found.is_file()
            && found.len() == archive.bytes
            && found.uid() == geteuid().as_raw()
            && found.mode() & 0o022 == 0
    })
}

fn not_unpacked(archive: &Archive<'_>, path: &Path, error: &io::Error) -> CliError {
    let mebibytes = archive.bytes.div_ceil(1 << 20);
    let failed = CliError::io(
        format_args!("unpack the daemon ({mebibytes} MiB) to {}", path.display()),
        error,
    );
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CliError {
            exit: Exit::Failed,
            ..failed
        }
        .fix("free that much space, choose another home with CCO_HOME, or install `ccoctl` and `ccod` as two programs"),
        io::ErrorKind::InvalidData => failed.fix("this executable is damaged: install it again"),
        _ => failed.fix("choose another home with CCO_HOME, or install `ccoctl` and `ccod` as two programs"),
    }
}

fn private_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = path.symlink_metadata()?;
            if !found.is_dir() || found.uid() != geteuid().as_raw() {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("{} is not a directory of this user", path.display()),
                ));
            }
            std::fs::set_permissions(path, Permissions::from_mode(0o700))
        }
        other => other,
    }
}

fn unpack_to(archive: &Archive<'_>, engines: &Path, directory: &Path) -> io::Result<()> {
    private_directory(engines)?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(engines.join(LOCK))?;
    let _turn = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    let path = directory.join(FILE);
    if is_there(&path, archive) {
        return Ok(()); // Another process was quicker.
    }
    private_directory(directory)?;
    // Files that a crash left.
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            std::fs::remove_file(entry.path())?;
        }
    }
    let partial = Partial(directory.join(format!("{PARTIAL}{}", std::process::id())));
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o700)
        .open(&partial.0)?;
    write_checked(archive, &mut file)?;
    file.sync_all()?;
    // A file that is open for writing cannot be run.
    drop(file);
    std::fs::rename(&partial.0, &path)?;
    for directory in [directory, engines] {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// A file that is removed unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

/// Writes the program, and compares its hash.
fn write_checked(archive: &Archive<'_>, out: &mut impl Write) -> io::Result<()> {
    let damaged = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let mut decoder = zstd::Decoder::with_buffer(archive.compressed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        // Every error of the decoder is about the archive.
        let read = decoder.read(&mut buffer).map_err(|error| damaged(&error))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        out.write_all(&buffer[..read])?;
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == archive.sha256 {
        Ok(())
    } else {
        Err(damaged(&"its contents are not what they were when it was built"))
    }
}

/// Removes the engines of other versions that no daemon runs. One that cannot be removed only costs space.
fn remove_others(engines: &Path, keep: &Path) {
    for entry in std::fs::read_dir(engines).into_iter().flatten().flatten() {
        let directory = entry.path();
        if directory == keep || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let in_use = File::open(directory.join(FILE)).is_ok_and(|file| {
            matches!(
                Flock::lock(file, FlockArg::LockExclusiveNonblock),
                Err((_, Errno::EWOULDBLOCK))
            )
        });
        if !in_use {
            std::fs::remove_dir_all(&directory).unwrap_or_default();
        }
    }
}

/// The engine in memory that other processes cannot write to.
#[cfg(target_os = "linux")]
fn in_memory(archive: &Archive<'_>, path: &Path) -> CliResult<Engine> {
    use std::os::fd::{AsRawFd as _, OwnedFd};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    let made = || -> io::Result<OwnedFd> {
        // Not closed on exec: the path below names it in the process that becomes the daemon.
        let memory = memfd_create(c"ccod", MFdFlags::empty())?;
        let mut file = File::from(memory);
        write_checked(archive, &mut file)?;
        // Opened again for reading: a file that is open for writing cannot be run.
        let readable = OpenOptions::new()
            .read(true)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok(OwnedFd::from(readable))
    };
    let memory = made().map_err(|error| not_unpacked(archive, path, &error))?;
    nix::fcntl::fcntl(&memory, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
        .map_err(|errno| not_unpacked(archive, path, &errno.into()))?;
    let name = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    Ok(Engine::memory(name, memory))
}

/// Elsewhere a program has to be a file.
#[cfg(not(target_os = "linux"))]
fn in_memory(archive: &Archive<'_>, path: &Path) -> CliResult<Engine> {
    let forbidden = io::Error::from(io::ErrorKind::PermissionDenied);
    Err(not_unpacked(archive, path, &forbidden).fix("the home lies on a file system that runs no programs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &[u8] = b"#!/bin/sh\necho \"the engine: $1\"\n";

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn compressed(program: &[u8]) -> Vec<u8> {
        zstd::encode_all(program, 3).expect("compressed")
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("listed");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_engine_is_unpacked_once_and_runs() {
        let home = tempfile::tempdir().expect("a directory");
        let (bytes, hash) = (compressed(PROGRAM), sha256(PROGRAM));
        let archive = Archive {
            compressed: &bytes,
            sha256: &hash,
            bytes: PROGRAM.len() as u64,
        };
        let path = home.path().join("engine").join(&hash[..16]).join("ccod");
        let mut first = None;
        for _ in 0..2 {
            let engine = unpack(&archive, home.path()).expect("unpacked");
            let output = engine.command().output().expect("runs");
            let told = String::from_utf8(output.stdout).expect("UTF-8");
            assert!(told.starts_with("the engine: --expect="), "{told}");
            let found = path.metadata().expect("there");
            assert_eq!(found.mode() & 0o777, 0o700);
            assert_eq!(*first.get_or_insert(found.ino()), found.ino());
        }
        // One that was cut short, or that others can write to, is unpacked again.
        std::fs::write(&path, "#!/bin/sh\n").expect("written");
        unpack(&archive, home.path()).expect("unpacked");
        std::fs::set_permissions(&path, Permissions::from_mode(0o722)).expect("opened");
        unpack(&archive, home.path()).expect("unpacked");
        assert_eq!(std::fs::read(&path).expect("read"), PROGRAM);
        assert_eq!(path.metadata().expect("there").mode() & 0o777, 0o700);
        assert_eq!(names(path.parent().expect("a directory")), ["ccod"]);
    }

    #[test]
    fn many_at_once_unpack_one_engine() {
        let home = tempfile::tempdir().expect("a directory");
        let program: Vec<u8> = PROGRAM
            .iter()
            .copied()
            .chain((0..1 << 20).map(|byte| byte as u8))
            .collect();
        let (bytes, hash) = (compressed(&program), sha256(&program));
        let archive = Archive {
            compressed: &bytes,
            sha256: &hash,
            bytes: program.len() as u64,
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| unpack(&archive, home.path()).expect("unpacked"));
            }
        });
        let directory = home.path().join("engine").join(&hash[..16]);
        assert_eq!(names(&directory), ["ccod"]);
        assert_eq!(std::fs::read(directory.join("ccod")).expect("read"), program);
    }

    #[test]
    fn a_damaged_engine_is_not_run() {
        let home = tempfile::tempdir().expect("a directory");
        let (bytes, hash) = (compressed(PROGRAM), sha256(b"another"));
        let length = bytes.len();
        let cut = &bytes[..length - 3];
        for (compressed, what) in [
            (&bytes[..], "its contents are not what they were"),
            (cut, "cannot unpack"),
        ] {
            let archive = Archive {
                compressed,
                sha256: &hash,
                bytes: PROGRAM.len() as u64,
            };
            let error = unpack(&archive, home.path()).expect_err("refused");
            let told = error.to_string();
            assert!(told.contains(what) && told.contains("install it again"), "{told}");
            assert_eq!(
                names(&home.path().join("engine").join(&hash[..16])),
                Vec::<String>::new()
            );
        }
    }

    #[test]
    fn engines_that_nobody_runs_are_removed_with_the_next() {
        let home = tempfile::tempdir().expect("a directory");
        let engines = home.path().join("engine");
        for name in ["idle", "running"] {
            std::fs::create_dir_all(engines.join(name)).expect("made");
            std::fs::write(engines.join(name).join("ccod"), name).expect("written");
        }
        let running = File::open(engines.join("running/ccod")).expect("opened");
        let running = Flock::lock(running, FlockArg::LockShared).expect("locked");
        let (bytes, hash) = (compressed(PROGRAM), sha256(PROGRAM));
        let archive = Archive {
            compressed: &bytes,
            sha256: &hash,
            bytes: PROGRAM.len() as u64,
        };
        std::fs::set_permissions(home.path(), Permissions::from_mode(0o700)).expect("closed");
        unpack(&archive, home.path()).expect("unpacked");
        assert_eq!(names(&engines), [".lock", &hash[..16], "running"]);
        drop(running);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_engine_in_memory_runs() {
        // A real program: a script would be read through a path that is gone by then.
        let program = std::fs::read("/bin/true").expect("read");
        let (bytes, hash) = (compressed(&program), sha256(&program));
        let archive = Archive {
            compressed: &bytes,
            sha256: &hash,
            bytes: program.len() as u64,
        };
        let engine = in_memory(&archive, Path::new("/nowhere/ccod")).expect("unpacked");
        let status = engine.command().status().expect("runs");
        assert!(status.success(), "{status}");
    }
}
