//! A record of the copies of projects, which a purge does not reach.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::KnowledgeResult;
use crate::store::disk::{self, fsync_directory};
use crate::store::swap::ASIDE;
use crate::store::transfer::archive::KNOWLEDGE;

/// File of a home that remembers where backups were written.
const RECORD_FILE: &str = "backups.jsonl";

/// A backup that was begun, as `backups.jsonl` remembers it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BackupRecord {
    pub(super) path: PathBuf,
    /// Where it stands until it is complete.
    pub(super) partial: PathBuf,
    pub(super) created: String,
    pub(super) projects: Vec<String>,
}

impl BackupRecord {
    pub(super) fn append(&self, home: &Path) -> KnowledgeResult<()> {
        let place = home.join(RECORD_FILE);
        let write = || {
            let mut line = serde_json::to_vec(self)?;
            line.push(b'\n');
            let mut file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&place)?;
            // A line that a power cut left unfinished must not swallow this one.
            let mut whole = Vec::new();
            file.read_to_end(&mut whole)?;
            if whole.last().is_some_and(|byte| *byte != b'\n') {
                line.insert(0, b'\n');
            }
            file.write_all(&line)?;
            file.sync_all()?;
            fsync_directory(home)
        };
        write().map_err(|error: io::Error| crate::store::error::write_error(error))
    }
}

/// Where copies of a project are that a purge does not reach: the backups that were made of it and are still in
/// their place, unfinished ones too, and what restores have kept aside.
pub fn known_backups(home: &Path, project: &str) -> Vec<String> {
    let mut places = BTreeSet::new();
    let mut unknown = Vec::new();
    let records_file = home.join(RECORD_FILE);
    let records = match std::fs::read(&records_file) {
        Ok(records) => records,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            unknown.push(format!(
                "those that {} names, which cannot be read ({error})",
                records_file.display()
            ));
            Vec::new()
        }
    };
    let lines = records.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let (records, damaged): (Vec<_>, Vec<_>) = lines
        .map(serde_json::from_slice::<BackupRecord>)
        .partition(Result::is_ok);
    if !damaged.is_empty() {
        unknown.push(format!(
            "those that {} damaged lines of {} named",
            damaged.len(),
            records_file.display()
        ));
    }
    let records = records.into_iter().flatten();
    for record in records.filter(|record| record.projects.iter().any(|name| name == project)) {
        for place in [record.path, record.partial] {
            // What cannot be looked at may be there.
            if place.join(KNOWLEDGE).join(project).try_exists().unwrap_or(true) {
                places.insert(place);
            }
        }
    }
    for root in [home.join(ASIDE), home.join("knowledge").join(format!(".{ASIDE}"))] {
        match disk::entries(&root) {
            Ok(restores) => places.extend(
                restores
                    .iter()
                    .map(|restore| restore.join(project))
                    .filter(|place| place.try_exists().unwrap_or(true)),
            ),
            Err(error) => unknown.push(format!("those that restores have kept aside: {error}")),
        }
    }
    let places = places.iter().map(|place| place.display().to_string());
    places.chain(unknown).collect()
}
