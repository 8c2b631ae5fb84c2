//! What the directory of a project takes on disk, without walking through it each time.
//!
//! Files come into a directory and leave it, and that changes the time of the directory; files that are there do not
//! change, but for some small ones that are replaced, which changes it as well. So as long as no directory has another
//! time, the sum is as it was. A time is only good for that once it is over: what happens within one tick of the file
//! system's clock all has the same.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

/// More than a tick of a file system's clock.
const TICK: Duration = Duration::from_millis(100);

/// The size of one directory with all below it, as it was last measured.
#[derive(Debug, Default)]
pub(super) struct DiskSize(Mutex<Option<Measured>>);

#[derive(Clone, Debug)]
struct Measured {
    bytes: u64,
    /// Every directory, with its time.
    directories: Vec<(PathBuf, SystemTime)>,
}

impl DiskSize {
    /// Bytes of the files in `directory` and below it; 0 where there is none. Blocks.
    pub(super) fn of(&self, directory: &Path) -> u64 {
        let known = self.0.lock().clone();
        if let Some(known) = known.filter(Measured::is_current) {
            return known.bytes;
        }
        let begun = SystemTime::now();
        let measured = Measured::walk(directory);
        let bytes = measured.bytes;
        *self.0.lock() = measured.is_settled(begun).then_some(measured);
        bytes
    }
}

impl Measured {
    fn walk(directory: &Path) -> Self {
        let mut measured = Self {
            bytes: 0,
            directories: Vec::new(),
        };
        let mut left = vec![directory.to_path_buf()];
        while let Some(directory) = left.pop() {
            // Its time before what is in it: what comes meanwhile makes the time another one.
            let time = std::fs::metadata(&directory).and_then(|found| found.modified());
            let (Ok(time), Ok(entries)) = (time, std::fs::read_dir(&directory)) else {
                continue;
            };
            measured.directories.push((directory, time));
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => left.push(entry.path()),
                    Ok(_) => measured.bytes += entry.metadata().map_or(0, |metadata| metadata.len()),
                    Err(_) => {}
                }
            }
        }
        measured
    }

    /// Whether all that has changed in the directories since has changed their times.
    fn is_settled(&self, begun: SystemTime) -> bool {
        let is_over = |time: &SystemTime| time.checked_add(TICK).is_some_and(|over| over < begun);
        !self.directories.is_empty() && self.directories.iter().all(|(_, time)| is_over(time))
    }

    fn is_current(&self) -> bool {
        self.directories.iter().all(|(directory, time)| {
            let now = std::fs::metadata(directory).and_then(|found| found.modified());
            now.is_ok_and(|now| now == *time)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Puts the times of directories into the past, as if nothing had happened for a while.
    fn settle(directories: &[&Path]) {
        let past = SystemTime::now() - Duration::from_secs(60);
        for directory in directories {
            let opened = fs::File::open(directory).unwrap();
            opened.set_times(fs::FileTimes::new().set_modified(past)).unwrap();
        }
    }

    #[test]
    fn what_comes_and_goes_is_counted_at_once() {
        let home = tempfile::tempdir().unwrap();
        let (top, below) = (home.path(), home.path().join("below"));
        fs::create_dir(&below).unwrap();
        let size = DiskSize::default();
        assert_eq!(size.of(top), 0);
        fs::write(top.join("a"), [0; 7]).unwrap();
        assert_eq!(size.of(top), 7);
        for number in 0..50 {
            // Within a tick, or not.
            fs::write(below.join(number.to_string()), [0; 10]).unwrap();
            assert_eq!(size.of(top), 7 + 10 * (number + 1));
        }
        settle(&[top, &below]);
        assert_eq!(size.of(top), 507);
        assert!(size.0.lock().is_some());
        fs::remove_file(below.join("3")).unwrap();
        assert_eq!(size.of(top), 497);
        fs::create_dir(below.join("deep")).unwrap();
        fs::write(below.join("deep/b"), [0; 3]).unwrap();
        assert_eq!(size.of(top), 500);
        settle(&[top, &below, &below.join("deep")]);
        assert_eq!(size.of(top), 500);
        fs::write(below.join("deep/c"), [0; 5]).unwrap();
        assert_eq!(size.of(top), 505);
        fs::remove_dir_all(&below).unwrap();
        assert_eq!(size.of(top), 7);
        assert_eq!(size.of(&top.join("none")), 0);
    }

    #[test]
    fn what_has_not_changed_is_not_walked_through_again() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("a");
        fs::write(&file, [0; 7]).unwrap();
        let size = DiskSize::default();
        settle(&[home.path()]);
        assert_eq!(size.of(home.path()), 7);
        // Of a file that grows in its place nothing is seen: no file of a table does once it is complete.
        fs::write(&file, [0; 9]).unwrap();
        assert_eq!(size.of(home.path()), 7);
    }
}
