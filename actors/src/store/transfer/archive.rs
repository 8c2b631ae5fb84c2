//! `backup.json`: what a backup holds, and the sums that prove it.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::domain::{ProjectName, hex};
use crate::error::KnowledgeResult;
use crate::store::disk::create_file;
use crate::store::transfer::copy::open_regular;
use crate::store::transfer::place::bad_path;

/// Name of the file that says what a backup holds.
pub const BACKUP_FILE: &str = "backup.json";
/// Directory of the projects inside a backup; named as in a home, so that a backup can be read as one.
pub const KNOWLEDGE: &str = "knowledge";
/// Version of the layout and of `backup.json`.
pub(super) const FORMAT: u32 = 1;

/// What a backup holds: the content of `backup.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Version of the layout.
    pub format: u32,
    /// When it was made (RFC 3339).
    pub created: String,
    /// By which version of the daemon.
    pub daemon_version: String,
    /// The model that the daemon ran, `name@hash`.
    pub model: String,
    /// The projects, by name.
    pub projects: Vec<BackupProject>,
}

/// One project of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupProject {
    /// Its name.
    pub project_id: String,
    /// The model of its vectors, `name@hash`; none where the table has another schema.
    pub model: Option<String>,
    /// Why it has to be migrated before it can be used, if it has.
    pub needs_migration: Option<String>,
    /// Its newest commit.
    pub sequence: i64,
    /// Live items.
    pub items: u64,
    /// Rows, closed ones and further passages included.
    pub rows: u64,
    /// Its files.
    pub files: Vec<BackupFile>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFile {
    /// Below the project's directory.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, as hexadecimal.
    pub sha256: String,
}

/// `backup.json` as written: what it holds, with a sum over exactly those bytes.
#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    sha256: String,
    #[serde(borrow)]
    backup: &'a RawValue,
}

impl Backup {
    /// Reads and checks `backup.json`; the files that it names are not looked at.
    ///
    /// # Errors
    /// [`crate::error::KnowledgeError::InvalidParameter`] for `path` where this is not a backup, a damaged one, or one of a
    /// layout that this version does not know.
    pub fn read(directory: &Path) -> KnowledgeResult<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let place = directory.join(BACKUP_FILE);
        let mut text = String::new();
        let read = open_regular(&place).and_then(|mut file| file.read_to_string(&mut text));
        read.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => bad_path(format!(
                "{} is not a backup: it has no {BACKUP_FILE}",
                directory.display()
            )),
            _ => bad_path(format!("{} cannot be read: {error}", place.display())),
        })?;
        let damaged = |what: &str| {
            bad_path(format!(
                "the backup is damaged, {} {what}; use another backup",
                place.display()
            ))
        };
        let sealed: Sealed<'_> = serde_json::from_str(&text).map_err(|_| damaged("cannot be understood"))?;
        if let Ok(Format { format }) = serde_json::from_str(sealed.backup.get())
            && format != FORMAT
        {
            return Err(bad_path(format!(
                "the backup has format {format}, this daemon knows {FORMAT}; restore it with a newer ccod"
            )));
        }
        if sha256(sealed.backup.get().as_bytes()) != sealed.sha256 {
            return Err(damaged("is not as it was written"));
        }
        let backup: Self = serde_json::from_str(sealed.backup.get()).map_err(|_| damaged("cannot be understood"))?;
        // The sum guards against damage, not against malice: no name may lead out of its place.
        let mut seen = BTreeSet::new();
        for project in &backup.projects {
            let name = ProjectName::parse(&project.project_id, "path").map_err(|_| damaged("names no project"))?;
            let contained = project.files.iter().all(|file| is_inside(Path::new(&file.path)));
            if !contained || !seen.insert(name.folded()) {
                return Err(damaged("names what a backup cannot hold"));
            }
        }
        Ok(backup)
    }

    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        // Laid out for people; the sum is over these very bytes.
        let backup = RawValue::from_string(serde_json::to_string_pretty(self)?)?;
        let sealed = Sealed {
            sha256: sha256(backup.get().as_bytes()),
            backup: &backup,
        };
        let mut text = serde_json::to_vec(&sealed)?;
        text.push(b'\n');
        let mut file = create_file(&directory.join(BACKUP_FILE))?;
        file.write_all(&text)?;
        file.sync_all()
    }
}

impl BackupProject {
    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Whether a path goes down only.
fn is_inside(path: &Path) -> bool {
    let mut components = path.components().peekable();
    components.peek().is_some() && components.all(|component| matches!(component, Component::Normal(_)))
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
