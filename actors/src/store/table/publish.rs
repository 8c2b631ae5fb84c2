//! Puts a version on disk: what it names, then its manifest, and only then the manifest's name. Blocks.
//!
//! A name in `_versions` must not be seen before everything that the version needs is on disk, and an answer must not go
//! out before that name is. So a durable version takes two rounds of syncs, however many files it has: in the first go
//! the files, the directories that hold them and the staged manifest, all at the same time, since none of them can be
//! found before the manifest can; in the second goes the directory of the manifest. What is asked for at the same time, a
//! file system writes in one go (one transaction of its journal, one flush of the disk), where it would wait for the
//! disk each time if they were asked for one after the other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use bytes::Bytes;
use lance_io::object_writer::get_etag;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use crate::store::disk::fsync_directory;

/// Syncs at the same time. A commit has a handful, the first one after a start as many as the table has files.
const AT_ONCE: usize = 8;

/// A file that a version names and that is not known to be on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LooseFile {
    pub(super) path: PathBuf,
    /// Bytes that were written into it, where the manifest says so.
    pub(super) bytes: Option<u64>,
    /// Whether the version before names it too: then it stands in nobody's way if it is gone.
    pub(super) may_be_missing: bool,
}

/// Which directory it is that has a name: whoever replaces it has replaced its name as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    /// Numbers of inodes are given again.
    created: Option<SystemTime>,
}

/// Directories in that of a table, whose own names are known to be on disk.
pub(super) type NamedDirectories = HashMap<PathBuf, Identity>;

/// A version that is to be published.
pub(super) struct NewVersion {
    /// The directory of the table.
    pub(super) table: PathBuf,
    /// The manifest's final name.
    pub(super) manifest: PathBuf,
    pub(super) bytes: Bytes,
    /// Files that are to be written: nobody has any of these names.
    pub(super) pending: BTreeMap<PathBuf, Bytes>,
    pub(super) files: Vec<LooseFile>,
    pub(super) named: NamedDirectories,
    /// Whether it is to survive a power cut.
    pub(super) durable: bool,
}

/// What became of a version that is published.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PublishedVersion {
    /// Of the version's files those that are missing, as they may be.
    pub(super) missing: HashSet<PathBuf>,
    /// Directories below the table's whose own names have come to be on disk.
    pub(super) named: NamedDirectories,
    /// Of the manifest, as Lance finds it by itself.
    pub(super) e_tag: String,
}

/// Why a version is not published, or not known to be.
#[derive(Debug)]
pub(super) enum NotPublished {
    /// Another version has the name.
    Taken,
    Failed(io::Error),
}

impl From<io::Error> for NotPublished {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl NewVersion {
    /// Publishes it. `may` is asked last before it can be seen. When this returns, it is on disk if it is to be durable.
    pub(super) fn publish(self, may: impl FnOnce() -> io::Result<()>) -> Result<PublishedVersion, NotPublished> {
        let written = self.pending.iter().map(|(path, bytes)| Unnamed::write(path, bytes));
        let mut written: Vec<Unnamed> = written.collect::<io::Result<_>>()?;
        let staged = Staged::write(&self.manifest, &self.bytes)?;
        let mut published = PublishedVersion {
            e_tag: get_etag(&staged.0.file.metadata()?),
            ..PublishedVersion::default()
        };
        match self.durable {
            true => self.sync_all(&written, &staged, &mut published)?,
            false => self.check_sizes()?,
        }
        may()?;
        // Opened before, as there may be no descriptor for it afterwards.
        let directory = match self.durable {
            true => Some(File::open(directory_of(&self.manifest))?),
            false => None,
        };
        // From here on the version may name them.
        written.drain(..).for_each(Unnamed::keep);
        match fs::hard_link(&staged.0.path, &self.manifest) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(NotPublished::Taken),
            Err(error) => {
                // It may have got its name all the same. Lance looks for it and then takes the commit for made, so the
                // name has to be on disk.
                sync_name(directory.as_ref()).ok();
                return Err(error.into());
            }
        }
        sync_name(directory.as_ref())?;
        Ok(published)
    }

    /// Syncs everything that must be on disk before the version can be seen.
    fn sync_all(&self, written: &[Unnamed], staged: &Staged, published: &mut PublishedVersion) -> io::Result<()> {
        let (directories, named) = self.directories();
        published.named = named;
        let open = [&staged.0].into_iter().chain(written);
        let directories = directories.iter().map(|directory| ToSync::Directory(directory));
        let all: Vec<ToSync<'_>> = open
            .map(|file| ToSync::Open(&file.file))
            .chain(directories)
            .chain(self.files.iter().map(ToSync::File))
            .collect();
        let missing = at_once(&all, ToSync::run)?;
        published.missing = missing.into_iter().flatten().collect();
        Ok(())
    }

    /// What remains of that where nothing is synced.
    fn check_sizes(&self) -> io::Result<()> {
        for file in &self.files {
            match fs::metadata(&file.path) {
                Ok(found) => file.check_size(found.len())?,
                // It is found by the next reader, as anything that is lost without a sync.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The directories whose entries have to be on disk before the version can be seen, and those whose own names then
    /// are. The table's own name is of the first version, see `sync_ancestry`.
    fn directories(&self) -> (HashSet<PathBuf>, NamedDirectories) {
        let (mut synced, mut named) = (HashSet::new(), NamedDirectories::new());
        let files = self.files.iter().map(|file| file.path.as_path());
        let holding = files.chain(self.pending.keys().map(PathBuf::as_path)).map(directory_of);
        synced.extend(
            holding
                .filter(|directory| directory.starts_with(&self.table))
                .map(Path::to_path_buf),
        );
        let mut unnamed: Vec<PathBuf> = synced.iter().cloned().collect();
        // Its own entries are synced once the manifest has its name.
        unnamed.push(directory_of(&self.manifest).to_path_buf());
        while let Some(directory) = unnamed.pop() {
            if directory == self.table || named.contains_key(&directory) {
                continue;
            }
            // One that is missing is for its files to say.
            let Some(identity) = Identity::of(&directory) else {
                continue;
            };
            if self.named.get(&directory) == Some(&identity) {
                continue;
            }
            let above = directory_of(&directory).to_path_buf();
            synced.insert(above.clone());
            unnamed.push(above);
            named.insert(directory, identity);
        }
        (synced, named)
    }
}

impl Identity {
    fn of(directory: &Path) -> Option<Self> {
        let found = fs::metadata(directory).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            created: found.created().ok(),
        })
    }
}

/// Makes the manifest's name durable. It can be seen already, so this is tried twice.
fn sync_name(directory: Option<&File>) -> io::Result<()> {
    let Some(directory) = directory else { return Ok(()) };
    directory.sync_all().or_else(|_| {
        directory.sync_all().inspect_err(|error| {
            tracing::error!(%error, "a version that can be seen could not be made durable");
        })
    })
}

impl LooseFile {
    /// Refuses one that is shorter than what was written into it. Lance passes over an error of a file's last write: a
    /// full disk, or the limit of a file's size, would otherwise be found out by the next reader.
    fn check_size(&self, found: u64) -> io::Result<()> {
        match self.bytes.is_some_and(|written| found < written) {
            true => Err(cut_short(&self.path)),
            false => Ok(()),
        }
    }

    /// Syncs it. True if it is missing, as it may be.
    fn sync(&self) -> io::Result<bool> {
        match File::open(&self.path) {
            Ok(file) => {
                self.check_size(file.metadata()?.len())?;
                file.sync_all()?;
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::NotFound && self.may_be_missing => {
                tracing::warn!(path = %self.path.display(), "a file of the table is missing, which a commit goes past");
                Ok(true)
            }
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!("{} cannot be made durable: {error}", self.path.display()),
            )),
        }
    }
}

/// Why a file is shorter than what was written into it: the system's error of the write that was passed over, as far as
/// that can be told afterwards.
pub(super) fn cut_short(path: &Path) -> io::Error {
    let length = fs::metadata(path).map_or(0, |found| found.len());
    let limit = getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
    let errno = if length >= limit { Errno::EFBIG } else { Errno::ENOSPC };
    tracing::error!(path = %path.display(), length, "a file is shorter than what was written into it; it is not committed");
    errno.into()
}

/// One of many.
enum ToSync<'v> {
    Open(&'v File),
    Directory(&'v Path),
    File(&'v LooseFile),
}

impl ToSync<'_> {
    /// Answers the file that is missing, as it may be.
    fn run(&self) -> io::Result<Option<PathBuf>> {
        match self {
            Self::Open(file) => file.sync_all().map(|()| None),
            Self::Directory(directory) => match fsync_directory(directory) {
                // Whether it may be missing is for its files to say.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                synced => synced.map(|()| None),
            },
            Self::File(file) => Ok(file.sync()?.then(|| file.path.clone())),
        }
    }
}

/// A file that no version names, which goes when this is dropped.
struct Unnamed {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Unnamed {
    fn write(path: &Path, bytes: &[u8]) -> io::Result<Self> {
        let create = || OpenOptions::new().write(true).create_new(true).open(path);
        let file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(directory_of(path))?;
                create()
            }
            created => created,
        };
        let mut written = Self {
            path: path.to_path_buf(),
            file: file?,
            kept: false,
        };
        written.file.write_all(bytes)?;
        Ok(written)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a file that no version names stays for now");
        }
    }
}

/// A manifest under a temporary name.
struct Staged(Unnamed);

impl Staged {
    /// Writes it beside its final name, as the object stores under Lance do, so that what a crash leaves of it is known
    /// for what it is.
    fn write(manifest: &Path, bytes: &[u8]) -> io::Result<Self> {
        let mut number = 1;
        loop {
            let mut path = manifest.as_os_str().to_owned();
            path.push(format!("#{number}"));
            match Unnamed::write(Path::new(&path), bytes) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                written => return written.map(Self),
            }
        }
    }
}

/// Does all of `work`, several at the same time. Where no thread can be had for that, one after the other.
///
/// # Errors
/// One of those that occur; the others are done all the same, or not begun.
fn at_once<W, D>(work: &[W], run: impl Fn(&W) -> io::Result<D> + Sync) -> io::Result<Vec<D>>
where
    W: Sync,
    D: Send,
{
    let next = AtomicUsize::new(0);
    let some = || -> io::Result<Vec<D>> {
        let mut done = Vec::new();
        while let Some(one) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(run(one)?);
        }
        Ok(done)
    };
    thread::scope(|scope| {
        let helpers: Vec<_> = (1..work.len().min(AT_ONCE))
            .map_while(|_| {
                let thread = thread::Builder::new().name("ccod-sync".to_owned());
                thread.spawn_scoped(scope, some).ok()
            })
            .collect();
        let mut outcome = some();
        for helper in helpers {
            let helped = helper
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread that syncs files has panicked")));
            outcome = outcome.and_then(|mut done| {
                done.extend(helped?);
                Ok(done)
            });
        }
        outcome
    })
}

/// A file of the table always has one.
fn directory_of(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table's directory with a data file, and a version that names it.
    fn version(table: &Path, durable: bool) -> NewVersion {
        fs::create_dir_all(table.join("data")).unwrap();
        let path = table.join("data/a.lance");
        fs::write(&path, "rows").unwrap();
        NewVersion {
            table: table.to_path_buf(),
            manifest: table.join("_versions/1.manifest"),
            bytes: Bytes::from_static(b"manifest"),
            pending: BTreeMap::new(),
            files: vec![LooseFile {
                path,
                bytes: Some(4),
                may_be_missing: false,
            }],
            named: NamedDirectories::new(),
            durable,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn directories(version: &NewVersion) -> Vec<String> {
        let mut found: Vec<String> = version
            .directories()
            .0
            .iter()
            .map(|path| path.strip_prefix(&version.table).unwrap().display().to_string())
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_version_gets_its_name_once_and_whole() {
        for durable in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let table = directory.path();
            // What a crash has left under the first temporary name is in nobody's way.
            fs::create_dir(table.join("_versions")).unwrap();
            fs::write(table.join("_versions/1.manifest#1"), "mani").unwrap();
            let deleted = table.join("_deletions/1.arrow");
            let mut first = version(table, durable);
            first.pending.insert(deleted.clone(), Bytes::from_static(b"deleted"));
            let published = first.publish(|| Ok(())).unwrap();
            assert_eq!(published.missing, HashSet::new());
            assert_eq!(fs::read(deleted).unwrap(), b"deleted");
            assert_eq!(fs::read(table.join("_versions/1.manifest")).unwrap(), b"manifest");
            let left = ["1.manifest", "1.manifest#1"];
            assert_eq!(names(&table.join("_versions")), left);
            let found = fs::metadata(table.join("_versions/1.manifest")).unwrap();
            assert_eq!(published.e_tag, get_etag(&found));
            let again = NewVersion {
                bytes: Bytes::from_static(b"another"),
                ..version(table, durable)
            };
            assert!(matches!(again.publish(|| Ok(())), Err(NotPublished::Taken)));
            assert_eq!(fs::read(table.join("_versions/1.manifest")).unwrap(), b"manifest");
            assert_eq!(names(&table.join("_versions")), left);
        }
    }

    #[test]
    fn nothing_is_seen_of_a_version_that_is_refused() {
        for durable in [true, false] {
            let refuse = |change: fn(&mut NewVersion), may: fn() -> io::Result<()>| {
                let directory = tempfile::tempdir().unwrap();
                let table = directory.path();
                let mut version = version(table, durable);
                let deleted = table.join("_deletions/1.arrow");
                version.pending.insert(deleted, Bytes::from_static(b"deleted"));
                change(&mut version);
                let refused = version.publish(may);
                for left in ["_versions", "_deletions"] {
                    assert_eq!(names(&table.join(left)), [""; 0]);
                }
                assert_eq!(names(&table.join("data")), ["a.lance"]);
                match refused {
                    Err(NotPublished::Failed(error)) => error,
                    other => panic!("{other:?}"),
                }
            };
            let lost = refuse(|_| {}, || Err(io::Error::other("the lock is lost")));
            assert_eq!(lost.to_string(), "the lock is lost");
            let short = refuse(|version| version.files[0].bytes = Some(5), || Ok(()));
            assert_eq!(short.raw_os_error(), Some(Errno::ENOSPC as i32));
        }
    }

    #[test]
    fn a_file_that_is_missing_is_in_the_way_only_where_it_is_new() {
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path();
        let gone = LooseFile {
            path: table.join("data/gone"),
            bytes: None,
            may_be_missing: true,
        };
        let mut passed = version(table, true);
        passed.files.push(gone.clone());
        let published = passed.publish(|| Ok(())).unwrap();
        assert_eq!(published.missing, HashSet::from([gone.path.clone()]));
        fs::remove_file(table.join("_versions/1.manifest")).unwrap();
        let mut ended = version(table, true);
        ended.files.push(LooseFile {
            may_be_missing: false,
            ..gone
        });
        let Err(NotPublished::Failed(error)) = ended.publish(|| Ok(())) else {
            panic!("a version names a file that is not there");
        };
        assert!(error.to_string().contains("gone cannot be made durable"), "{error}");
        assert_eq!(names(&table.join("_versions")), [""; 0]);
    }

    #[test]
    fn a_directory_is_named_once_unless_another_takes_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let table = directory.path();
        let published = version(table, true).publish(|| Ok(())).unwrap();
        let mut beside: Vec<String> = published
            .named
            .keys()
            .map(|path| path.strip_prefix(table).unwrap().display().to_string())
            .collect();
        beside.sort();
        assert_eq!(beside, ["_versions", "data"]);
        let next = || NewVersion {
            named: published.named.clone(),
            ..version(table, true)
        };
        // The first of all names them in the table's own directory.
        assert_eq!(directories(&version(table, true)), ["", "data"]);
        assert_eq!(directories(&next()), ["data"]);
        // An index brings a directory, in one that is new as well at first.
        let mut indexed = next();
        let index = table.join("_indices/1");
        fs::create_dir_all(&index).unwrap();
        indexed.files[0].path = index.join("words");
        assert_eq!(directories(&indexed), ["", "_indices", "_indices/1"]);
        indexed.named.extend(indexed.directories().1);
        assert_eq!(directories(&indexed), ["_indices/1"]);
        // Another directory of the same name is not known by it.
        fs::rename(table.join("data"), table.join("aside")).unwrap();
        assert_eq!(directories(&next()), ["", "data"]);
        // Of one that is gone there is nothing to sync but its entries, which its files ask for.
        let mut gone = next();
        gone.files[0].path = table.join("gone/a");
        assert_eq!(directories(&gone), ["gone"]);
    }

    #[test]
    fn what_is_done_at_once_is_all_done_and_fails_with_any_of_it() {
        let work: Vec<usize> = (0..100).collect();
        let mut done = at_once(&work, |number| Ok(number * 2)).unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..100).map(|number| number * 2).collect::<Vec<_>>());
        for failing in [0, 57, 99] {
            let failed = at_once(&work, |number| match *number == failing {
                true => Err(io::Error::other("no")),
                false => Ok(()),
            });
            assert!(failed.is_err());
        }
        assert_eq!(at_once(&[0; 0], |_| Ok(())).unwrap(), []);
    }
}
