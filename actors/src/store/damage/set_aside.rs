//! What was taken out of tables: kept in `<project>/set-aside/<time>/` with a report, until somebody removes it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::{ProjectName, format_time, now_ms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::disk::{self, sync_directory, write_durably};
use crate::store::error::file_error;
use crate::store::table::schema::TABLE_NAME;

/// Directory inside a project's directory for what was taken out of its table.
pub(crate) const SET_ASIDE: &str = "set-aside";
/// File inside each directory of [`SET_ASIDE`] that says what is there and why.
pub(super) const REPORT_FILE: &str = "report.json";

/// What to do about a file that is missing or damaged: it does not come back, so nothing is taken out of a table
/// before somebody has decided.
pub(crate) const PUT_BACK: &str = "To save them, stop the daemon, put the file back from a backup and start it; to \
                                   give them up, write to the project (any store, update or delete), which takes them \
                                   out of the table for good";

/// A new directory of [`SET_ASIDE`].
pub(crate) struct SetAside {
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// What [`REPORT_FILE`] holds.
#[derive(Serialize, Deserialize)]
struct Report {
    time: String,
    project: String,
    what: String,
    /// Whether rows were lost that readers had seen: reported until the directory is removed. Reports of older versions
    /// do not say it.
    #[serde(default)]
    lost: bool,
    details: serde_json::Value,
}

/// What was set aside, for its [`Report`].
pub(crate) struct Remains {
    /// What it is and why, in a sentence.
    pub(crate) what: String,
    /// Whether rows were lost that readers had seen.
    pub(crate) lost: bool,
    /// More about it.
    pub(crate) details: serde_json::Value,
}

impl SetAside {
    /// Makes the directory, named by the time.
    pub(crate) fn create(project_directory: &Path) -> KnowledgeResult<Self> {
        let parent = project_directory.join(SET_ASIDE);
        fs::create_dir_all(&parent).map_err(|error| file_error("created", &parent, error))?;
        let time = now_ms().format("%Y%m%dT%H%M%S%.3fZ").to_string();
        for attempt in 0.. {
            let name = if attempt == 0 {
                time.clone()
            } else {
                format!("{time}-{attempt}")
            };
            let path = parent.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(file_error("created", &path, error)),
            }
        }
        Err(KnowledgeError::internal("no name is left for a directory"))
    }

    /// Writes what is there and why.
    pub(crate) fn report(&self, project: &ProjectName, remains: Remains) -> KnowledgeResult<()> {
        let Remains { what, lost, details } = remains;
        let report = Report {
            time: format_time(now_ms()),
            project: project.to_string(),
            what,
            lost,
            details,
        };
        let text = serde_json::to_vec_pretty(&report).map_err(KnowledgeError::internal)?;
        write_durably(&self.path.join(REPORT_FILE), &text)
    }

    /// Moves a file or a directory here.
    pub(crate) fn take(&self, from: &Path, name: &Path) -> KnowledgeResult<()> {
        fs::rename(from, self.path.join(name)).map_err(|error| file_error("set aside", from, error))
    }

    /// Keeps a file here that stays where it is as well; one that is missing is left out.
    pub(crate) fn keep(&self, from: &Path) -> KnowledgeResult<()> {
        let Some(name) = from.file_name() else { return Ok(()) };
        let to = self.path.join(name);
        let kept = match fs::hard_link(from, &to) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // A file system without hard links.
            Err(_) => fs::copy(from, &to).map(drop),
            Ok(()) => Ok(()),
        };
        kept.map_err(|error| file_error("set aside", from, error))
    }

    /// Makes it durable.
    pub(crate) fn sync(&self) -> KnowledgeResult<()> {
        for path in self.path.ancestors().take(3) {
            sync_directory(path)?;
        }
        Ok(())
    }
}

/// What lies in a project's [`SET_ASIDE`], a sentence for each directory, oldest first. Blocks.
pub(crate) fn set_aside_so_far(project_directory: &Path) -> Vec<String> {
    let entries = match disk::entries(&project_directory.join(SET_ASIDE)) {
        Ok(entries) => entries,
        Err(error) => return vec![format!("what was set aside is not known: {error}")],
    };
    let mut found: Vec<(PathBuf, String)> = entries
        .into_iter()
        .filter(|path| path.is_dir())
        .map(|path| {
            let report: Option<Report> = fs::read(path.join(REPORT_FILE))
                .ok()
                .and_then(|text| serde_json::from_slice(&text).ok());
            let told = match report {
                Some(report) => format!("{}: {} (kept in {})", report.time, report.what, path.display()),
                None => format!(
                    "something was set aside, without a report that can be read (kept in {})",
                    path.display()
                ),
            };
            (path, told)
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, told)| told).collect()
}

/// Where what was set aside of a project lies, if something does. Blocks.
pub(crate) fn set_aside_in(project_directory: &Path) -> Option<PathBuf> {
    let place = project_directory.join(SET_ASIDE);
    let holds_more_than_reports = entries_of(&place).iter().any(|entry| {
        let files = entries_of(entry);
        files.is_empty()
            || files
                .iter()
                .any(|file| file.file_name().is_none_or(|name| name != REPORT_FILE))
    });
    holds_more_than_reports.then_some(place)
}

/// What has been lost of a project, a sentence each, for as long as its remains are there: tables that were set aside
/// as a whole because no version of them could be read, and rows that were taken out of the table. Blocks.
pub(crate) fn losses(project_directory: &Path) -> Vec<String> {
    let mut directories = entries_of(&project_directory.join(SET_ASIDE));
    directories.sort();
    directories.iter().filter_map(|directory| loss(directory)).collect()
}

/// What has been lost by the report in one directory of [`SET_ASIDE`], if something has.
fn loss(directory: &Path) -> Option<String> {
    let table = directory.join(format!("{TABLE_NAME}.lance"));
    let what = if fs::symlink_metadata(&table).is_ok() {
        format!(
            "it began empty, and what was stored before could not be read and lies in {}",
            table.display()
        )
    } else {
        let report: Report = serde_json::from_slice(&fs::read(directory.join(REPORT_FILE)).ok()?).ok()?;
        report.lost.then_some(())?;
        format!("at {}, {}", report.time, report.what)
    };
    Some(format!(
        "{what}; restore a backup to get it back. Once it is of no use to you, remove the directory {}, and this is \
         told no longer",
        directory.display()
    ))
}

/// Removes the files in a project's [`SET_ASIDE`], for a purge: nobody knows what they still hold, whoever has put them
/// there. The reports stay, and what links lead to. What cannot be removed is in the way of nothing else; the first
/// such error is told. Blocks.
pub(crate) fn discard_set_aside(project_directory: &Path) -> KnowledgeResult<()> {
    let is_directory = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let root = project_directory.join(SET_ASIDE);
    let mut outcome = Ok(());
    if fs::metadata(&root).is_ok_and(|found| !found.is_dir()) {
        return remove(&root);
    }
    for path in disk::entries(&root)? {
        let discarded = if is_directory(&path) {
            discard_directory(&path)
        } else {
            remove(&path)
        };
        outcome = outcome.and(discarded);
    }
    outcome
}

/// Removes what is in one directory of [`SET_ASIDE`], the report aside.
fn discard_directory(directory: &Path) -> KnowledgeResult<()> {
    let mut outcome = Ok(());
    let mut removed = false;
    for path in disk::entries(directory)? {
        if path.file_name().is_some_and(|name| name == REPORT_FILE) {
            continue;
        }
        let gone = remove(&path);
        removed |= gone.is_ok();
        outcome = outcome.and(gone);
    }
    let path = directory.join(REPORT_FILE);
    let report = fs::read(&path)
        .ok()
        .and_then(|text| serde_json::from_slice::<Report>(&text).ok());
    if let (true, Some(mut report)) = (removed, report) {
        report.what.push_str("; a purge has removed the files");
        let text = serde_json::to_vec_pretty(&report).map_err(KnowledgeError::internal)?;
        write_durably(&path, &text)?;
        sync_directory(directory)?;
    }
    outcome
}

/// Removes whatever is at `path`, for good; of a link the link.
fn remove(path: &Path) -> KnowledgeResult<()> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let gone = match is_directory {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match gone {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file_error("removed", path, error)),
        _ => path.parent().map_or(Ok(()), sync_directory),
    }
}

pub(super) fn entries_of(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).map_or_else(
        |_| Vec::new(),
        |entries| entries.flatten().map(|entry| entry.path()).collect(),
    )
}
