//! Whole projects in and out: backup and restore.

mod archive;
mod backup;
mod check;
mod copy;
mod place;
mod records;
mod restore;

pub use archive::{BACKUP_FILE, Backup, BackupFile, BackupProject, KNOWLEDGE};
pub use backup::{BackupReport, BackupRequest};
pub use copy::{Watcher, open_regular};
pub use place::{NewPlace, new_place, partial_beside};
pub use records::known_backups;
pub use restore::{RestoreReport, Staged};

pub use super::swap::ASIDE;
