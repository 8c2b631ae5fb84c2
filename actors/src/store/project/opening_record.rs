//! What is known of how a project was opened in this process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::domain::ProjectName;
use crate::error::KnowledgeError;

/// What opening a project has done and found, for whoever opens it next and for `admin.status` and `admin.health`.
#[derive(Debug, Default)]
pub(in crate::store) struct OpeningRecord {
    /// Whether a table of it was open in this process.
    had_table: AtomicBool,
    /// Whether it was looked at without being opened, and nothing was wrong with it.
    looked_sound: AtomicBool,
    /// Whether recovery has run: once in a process, when nothing can be in flight.
    recovered: AtomicBool,
    /// What recovery did in this process.
    notes: Mutex<Vec<String>>,
    /// Why the project is empty though there is something on disk, if so.
    lost: Mutex<Option<String>>,
    /// Why it could not be opened when that was last tried, and when.
    unopened: Mutex<Option<(Instant, String)>>,
}

impl OpeningRecord {
    pub(super) fn had_table(&self) -> bool {
        self.had_table.load(Ordering::Acquire)
    }

    pub(super) fn note_table(&self) {
        self.had_table.store(true, Ordering::Release);
    }

    pub(in crate::store) fn looked_sound(&self) -> bool {
        self.looked_sound.load(Ordering::Acquire)
    }

    pub(in crate::store) fn note_sound_look(&self) {
        self.looked_sound.store(true, Ordering::Release);
    }

    pub(in crate::store) fn is_recovered(&self) -> bool {
        self.recovered.load(Ordering::Acquire)
    }

    pub(super) fn note_recovered(&self) {
        self.recovered.store(true, Ordering::Release);
    }

    pub(in crate::store) fn notes(&self) -> Vec<String> {
        self.notes.lock().clone()
    }

    pub(super) fn add_notes(&self, notes: Vec<String>) {
        self.notes.lock().extend(notes);
    }

    /// Why the project has no version that can be read, as far as that is known.
    pub(in crate::store) fn lost(&self) -> Option<String> {
        self.lost.lock().clone()
    }

    pub(super) fn set_lost(&self, project: &ProjectName, reason: Option<String>) {
        let mut lost = self.lost.lock();
        if let Some(reason) = &reason
            && lost.is_none()
        {
            tracing::error!(%project, "{reason}");
        }
        *lost = reason;
    }

    /// Why the project could not be opened when that was last tried, and when.
    pub(in crate::store) fn unopened(&self) -> Option<(Instant, String)> {
        self.unopened.lock().clone()
    }

    /// Keeps how the last try to open the project ended.
    pub(super) fn note_try(&self, failure: Option<&KnowledgeError>) {
        let told = failure.map(|error| match error {
            KnowledgeError::OutOfReach { message, fix } => format!("{message}; {fix}"),
            error => error.to_string(),
        });
        *self.unopened.lock() = told.map(|told| (Instant::now(), told));
    }

    /// Forgets everything: another table has taken the place of the one that this is about.
    pub(super) fn clear(&self, project: &ProjectName) {
        self.recovered.store(false, Ordering::Release);
        self.looked_sound.store(false, Ordering::Release);
        self.had_table.store(false, Ordering::Release);
        self.notes.lock().clear();
        self.set_lost(project, None);
        *self.unopened.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_kept_until_it_is_cleared() {
        let project = ProjectName::parse("numbers", "project_id").unwrap();
        let record = OpeningRecord::default();
        record.note_table();
        record.note_recovered();
        record.note_sound_look();
        record.add_notes(vec!["mended".to_owned()]);
        record.set_lost(&project, Some("no version".to_owned()));
        record.note_try(Some(&KnowledgeError::OutOfReach {
            message: "gone".to_owned(),
            fix: "put it back",
        }));
        assert!(record.had_table() && record.is_recovered() && record.looked_sound());
        assert_eq!(record.notes(), ["mended"]);
        assert_eq!(record.lost().as_deref(), Some("no version"));
        assert_eq!(record.unopened().unwrap().1, "gone; put it back");
        record.note_try(None);
        assert!(record.unopened().is_none());
        record.clear(&project);
        assert!(!record.had_table() && !record.is_recovered() && !record.looked_sound());
        assert!(record.notes().is_empty() && record.lost().is_none());
    }
}
