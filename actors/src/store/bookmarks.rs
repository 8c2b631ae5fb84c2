//! Where feeds stand in many projects, on disk, so that a cursor need not name them all.
//!
//! A bookmark is the place of a record in a file. The record holds how far a feed was in each project, or only in those
//! in which it differs from the record before. A record is never changed, and a file is only added to by the process
//! that made it: so a bookmark means the same for as long as its file is there, over restarts too. Files stay for as long
//! as history is kept, and as long as they are not too large together.
//!
//! Nothing is synced: a record that a power cut has taken is not found, and who comes with its bookmark has to read
//! everything again, as with one that is too old.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::domain::hex;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::disk::{create_directory, create_file};
use crate::store::error::{file_error, file_read_error};

/// Directory of the files in the data directory; names with a dot are the daemon's.
const DIRECTORY: &str = ".feed-positions";
/// Records that are read one behind the other at most, each only what differs from the next.
const LINKS: u32 = 256;
/// Size from which on another file is begun.
const FILE_BYTES: u64 = 8 << 20;
/// Bytes of all files from which on the oldest go.
const ALL_BYTES: u64 = 64 << 20;
/// Digits of a record's checksum.
const CHECK_DIGITS: usize = 16;
/// The longest record that is read: more than any home has.
const LONGEST_RECORD: usize = 64 << 20;

/// How far a feed is in each project: the commit, and the history that it is of.
pub type Positions = BTreeMap<String, (i64, i64)>;

/// Names the positions that were saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark {
    file: u64,
    offset: u64,
}

/// The bookmarks of all feeds.
#[derive(Debug)]
pub struct Bookmarks {
    directory: PathBuf,
    kept: Duration,
    current: Mutex<Option<Current>>,
}

/// The file that is added to.
#[derive(Debug)]
struct Current {
    name: u64,
    file: File,
    end: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The record in the same file that holds the positions that are not here; none where all are here.
    base: Option<u64>,
    /// Records behind this one.
    links: u32,
    at: Positions,
}

impl Bookmark {
    /// As text, which [`Bookmark::parse`] reads.
    pub fn text(&self) -> String {
        format!("{:x}/{:x}", self.file, self.offset)
    }

    /// Reads what [`Bookmark::text`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        let (file, offset) = text.split_once('/')?;
        Some(Self {
            file: u64::from_str_radix(file, 16).ok()?,
            offset: u64::from_str_radix(offset, 16).ok()?,
        })
    }
}

impl Bookmarks {
    /// Those in this data directory, which are kept for so long.
    pub(super) fn new(knowledge: &Path, kept: Duration) -> Self {
        Self {
            directory: knowledge.join(DIRECTORY),
            kept,
            current: Mutex::default(),
        }
    }

    /// Saves positions. `base` is a bookmark that they differ from in the `changed` projects alone. Blocks.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn save(
        &self,
        positions: &Positions,
        base: Option<&Bookmark>,
        changed: &[String],
    ) -> KnowledgeResult<Bookmark> {
        let mut current = self.current.lock();
        // Somebody may have removed it meanwhile.
        let is_over = |current: &Current| current.end >= FILE_BYTES || !self.path(current.name).exists();
        if current.as_ref().is_some_and(is_over) {
            *current = None;
        }
        let current = match &mut *current {
            Some(current) => current,
            none => none.insert(self.begin()?),
        };
        let base = base.filter(|base| base.file == current.name);
        let before = base.and_then(|base| Some((base.offset, current.read(base.offset).ok()??.links)));
        let record = match before.filter(|(_, links)| *links < LINKS) {
            Some((base, links)) => Record {
                base: Some(base),
                links: links + 1,
                at: changed
                    .iter()
                    .filter_map(|project| Some((project.clone(), *positions.get(project)?)))
                    .collect(),
            },
            None => Record {
                base: None,
                links: 0,
                at: positions.clone(),
            },
        };
        let offset = current
            .add(&record)
            .map_err(|error| file_error("written", &self.path(current.name), error))?;
        Ok(Bookmark {
            file: current.name,
            offset,
        })
    }

    /// The positions that were saved under this name; none where they are not there any more. Blocks.
    ///
    /// # Errors
    /// Where they cannot be read now.
    pub fn find(&self, bookmark: &Bookmark) -> KnowledgeResult<Option<Positions>> {
        let path = self.path(bookmark.file);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_read_error(&path, error)),
        };
        let mut positions = Positions::new();
        let mut next = Some(bookmark.offset);
        for _ in 0..=LINKS {
            let Some(offset) = next else { break };
            let Some(record) = read(&file, bookmark.file, offset).map_err(|error| file_read_error(&path, error))?
            else {
                return Ok(None);
            };
            for (project, position) in record.at {
                positions.entry(project).or_insert(position); // The later record knows better.
            }
            next = record.base;
        }
        Ok(next.is_none().then_some(positions))
    }

    fn path(&self, name: u64) -> PathBuf {
        self.directory.join(format!("{name:016x}"))
    }

    /// Begins a file, and removes those that are too old or too many.
    fn begin(&self) -> KnowledgeResult<Current> {
        let failed = |error| file_error("written", &self.directory, error);
        create_directory(&self.directory).map_err(failed)?;
        // What cannot be removed stays until the next time.
        self.remove_old().ok();
        let name = rand::random();
        create_file(&self.path(name)).map_err(failed)?;
        let mut options = File::options();
        let file = options.read(true).append(true).open(self.path(name)).map_err(failed)?;
        Ok(Current { name, file, end: 0 })
    }

    fn remove_old(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let found = entry.metadata()?;
            files.push((found.modified()?, found.len(), entry.path()));
        }
        files.sort_unstable_by(|a, b| b.cmp(a)); // The newest first.
        let now = SystemTime::now();
        let mut bytes = 0;
        for (time, length, path) in files {
            bytes += length;
            let age = now.duration_since(time).unwrap_or_default();
            if age > self.kept || bytes > ALL_BYTES {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Current {
    fn read(&self, offset: u64) -> io::Result<Option<Record>> {
        read(&self.file, self.name, offset)
    }

    fn add(&mut self, record: &Record) -> io::Result<u64> {
        let json = serde_json::to_string(record)?;
        let offset = self.end;
        let line = format!("{} {:08x} {json}\n", check(self.name, offset, &json), json.len());
        match self.file.write_all(line.as_bytes()) {
            Ok(()) => {
                self.end += line.len() as u64;
                Ok(offset)
            }
            Err(error) => {
                // A part of it may be there.
                self.end = self.file.metadata()?.len();
                Err(error)
            }
        }
    }
}

/// The record at a place of a file; none where there is none that is whole.
fn read(file: &File, name: u64, offset: u64) -> io::Result<Option<Record>> {
    let mut head = [0; CHECK_DIGITS + " 00000000 ".len()];
    let whole = |read: io::Result<()>| match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    };
    if offset >= file.metadata()?.len() || !whole(file.read_exact_at(&mut head, offset))? {
        return Ok(None);
    }
    let parts = std::str::from_utf8(&head)
        .ok()
        .and_then(|head| head.trim_end().split_once(' '));
    let Some((expected, length)) = parts else {
        return Ok(None);
    };
    let Some(length) = usize::from_str_radix(length, 16)
        .ok()
        .filter(|length| *length <= LONGEST_RECORD)
    else {
        return Ok(None);
    };
    let mut json = vec![0; length];
    if !whole(file.read_exact_at(&mut json, offset.saturating_add(head.len() as u64)))? {
        return Ok(None);
    }
    let json = String::from_utf8(json)
        .ok()
        .filter(|json| check(name, offset, json) == expected);
    Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
}

fn check(name: u64, offset: u64, json: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(name.to_le_bytes());
    hasher.update(offset.to_le_bytes());
    hasher.update(json.as_bytes());
    let mut digits = hex(&hasher.finalize());
    digits.truncate(CHECK_DIGITS);
    digits
}

impl super::Store {
    /// Where feeds stand.
    ///
    /// # Errors
    /// Those of `work`, which may block.
    pub async fn with_bookmarks<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Bookmarks) -> KnowledgeResult<R> + Send + 'static,
    ) -> KnowledgeResult<R> {
        let bookmarks = std::sync::Arc::clone(&self.bookmarks);
        tokio::task::spawn_blocking(move || work(&bookmarks))
            .await
            .map_err(KnowledgeError::internal)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn positions(projects: usize) -> Positions {
        (0..projects)
            .map(|number| (format!("project-{number:04}"), (number as i64, 0)))
            .collect()
    }

    #[test]
    fn what_was_saved_is_found_by_its_bookmark_also_by_another_process() {
        let home = tempfile::tempdir().unwrap();
        let bookmarks = Bookmarks::new(home.path(), DAY);
        let mut at = positions(1_000);
        let mut bookmark = bookmarks.save(&at, None, &[]).unwrap();
        let mut saved = vec![(bookmark.clone(), at.clone())];
        for round in 0..600 {
            let changed = format!("project-{:04}", round % 7);
            at.insert(changed.clone(), (1_000 + round, 5));
            bookmark = bookmarks.save(&at, Some(&bookmark), &[changed]).unwrap();
            saved.push((bookmark.clone(), at.clone()));
        }
        let found = |bookmarks: &Bookmarks| {
            for (bookmark, at) in &saved {
                let parsed = Bookmark::parse(&bookmark.text()).unwrap();
                assert_eq!(bookmarks.find(&parsed).unwrap().as_ref(), Some(at));
            }
        };
        found(&bookmarks);
        let length = |home: &Path| {
            fs::read_dir(home.join(DIRECTORY))
                .unwrap()
                .map(|file| file.unwrap().metadata().unwrap().len())
                .sum::<u64>()
        };
        assert!(length(home.path()) < 300_000, "{}", length(home.path()));
        let next = Bookmarks::new(home.path(), DAY);
        found(&next);
        // It goes on in a file of its own.
        let more = next.save(&at, Some(&bookmark), &[]).unwrap();
        assert_ne!(more.file, bookmark.file);
        assert_eq!(next.find(&more).unwrap(), Some(at));
        found(&next);
    }

    #[test]
    fn what_is_not_there_whole_is_not_found() {
        let home = tempfile::tempdir().unwrap();
        let bookmarks = Bookmarks::new(home.path(), DAY);
        let first = bookmarks.save(&positions(3), None, &[]).unwrap();
        let second = bookmarks
            .save(&positions(3), Some(&first), &["project-0001".to_owned()])
            .unwrap();
        let path = bookmarks.path(first.file);
        let whole = fs::read(&path).unwrap();
        let at = |offset: u64| Bookmark {
            offset,
            ..first.clone()
        };
        for offset in [1, second.offset - 1, second.offset + 1, whole.len() as u64, u64::MAX] {
            assert_eq!(bookmarks.find(&at(offset)).unwrap(), None, "{offset}");
        }
        assert_eq!(bookmarks.find(&Bookmark { file: 7, offset: 0 }).unwrap(), None);
        // The end of it, as a power cut leaves it.
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(bookmarks.find(&first).unwrap().is_some());
        assert!(
            bookmarks.find(&second).unwrap().is_some(),
            "the line's end says nothing"
        );
        fs::write(&path, &whole[..whole.len() - 2]).unwrap();
        assert_eq!(bookmarks.find(&second).unwrap(), None);
        // Or zeros in its beginning: what it builds upon is gone.
        let mut zeroed = whole.clone();
        zeroed[..40].fill(0);
        fs::write(&path, zeroed).unwrap();
        assert_eq!(
            (bookmarks.find(&first).unwrap(), bookmarks.find(&second).unwrap()),
            (None, None)
        );
        for bad in ["", "/", "1", "x/1", "1/x", "1/2/3", "11111111111111111/1"] {
            assert_eq!(Bookmark::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn files_go_when_they_are_older_than_history() {
        let home = tempfile::tempdir().unwrap();
        let bookmark = Bookmarks::new(home.path(), DAY).save(&positions(3), None, &[]).unwrap();
        let path = Bookmarks::new(home.path(), DAY).path(bookmark.file);
        let age = |age: Duration| {
            let times = fs::FileTimes::new().set_modified(SystemTime::now() - age);
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_times(times)
                .unwrap();
        };
        age(DAY / 2);
        let next = Bookmarks::new(home.path(), DAY);
        next.save(&positions(3), None, &[]).unwrap();
        assert!(next.find(&bookmark).unwrap().is_some());
        age(DAY * 2);
        let next = Bookmarks::new(home.path(), DAY);
        next.save(&positions(3), None, &[]).unwrap();
        assert_eq!(next.find(&bookmark).unwrap(), None);
    }
}
