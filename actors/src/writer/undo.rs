//! The undo token of a delete, which reaches its caller whichever way the delete ends.
//!
//! The token is known once a commit is planned, before it is made. The writer notes it here then. A caller whose time
//! is up, or whose writer fails, takes it from here. Where nothing is noted by the time that the caller leaves, the
//! writer no longer carries the delete out: so every delete can be undone.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::domain::Deletion;
use crate::error::{Executed, KnowledgeError};

/// What the caller and the writer share of one delete. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct UndoNote(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    deletion: Option<Deletion>,
    /// Whether the caller no longer waits.
    left: bool,
}

impl UndoNote {
    /// Notes what will undo the delete that is about to be committed. False where the caller has left without it: then
    /// it must not be.
    pub(crate) fn note(&self, deletion: &Deletion) -> bool {
        let mut noted = self.0.lock();
        if !noted.left {
            noted.deletion = Some(deletion.clone());
        }
        !noted.left
    }

    fn leave(&self) -> Option<Deletion> {
        let mut noted = self.0.lock();
        noted.left = true;
        noted.deletion.clone()
    }
}

/// The caller's half: it leaves when this is dropped.
pub(crate) struct Undoing(pub(crate) UndoNote);

impl Undoing {
    /// The error with what is known of the delete's effect, and with its token where it may have one.
    pub(crate) fn ended_with(self, error: KnowledgeError) -> KnowledgeError {
        let deletion = self.0.leave();
        match (error, deletion) {
            // Nothing was committed, and nothing will be.
            (KnowledgeError::DeadlineExceeded { .. }, None) => {
                KnowledgeError::DeadlineExceeded { executed: Executed::No }
            }
            (error, None) => error,
            (error, Some(_)) if error.effect() == Some(Executed::No) && !error.is_of_the_caller() => error,
            (error, Some(deletion)) => error.of_write(Executed::Unknown, Some(deletion.token())),
        }
    }
}

impl Drop for Undoing {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ProjectName, now_ms};

    fn deletion() -> Deletion {
        Deletion {
            project: ProjectName::default(),
            sequence: 7,
            last: 7,
            at: now_ms(),
        }
    }

    fn told(error: &KnowledgeError) -> (Option<Executed>, Option<&str>) {
        match error {
            KnowledgeError::WriteFailed { undo_token, .. } => (error.effect(), undo_token.as_deref()),
            error => (error.effect(), None),
        }
    }

    #[test]
    fn a_caller_that_has_left_without_the_token_prevents_the_delete() {
        let late = KnowledgeError::DeadlineExceeded {
            executed: Executed::Unknown,
        };
        for error in [late, KnowledgeError::Cancelled] {
            let note = UndoNote::default();
            let error = Undoing(note.clone()).ended_with(error);
            assert_eq!(told(&error), (Some(Executed::No), None), "{error:?}");
            assert!(!note.note(&deletion()));
        }
        // Also one whose call was dropped on the way.
        let note = UndoNote::default();
        drop(Undoing(note.clone()));
        assert!(!note.note(&deletion()));
    }

    #[test]
    fn whatever_ends_a_delete_that_may_have_happened_has_its_token() {
        let deletion = deletion();
        let token = deletion.token();
        let ends = [
            KnowledgeError::DeadlineExceeded {
                executed: Executed::Unknown,
            },
            KnowledgeError::Cancelled,
            KnowledgeError::OutcomeUnknown,
            KnowledgeError::internal("x").of_write(Executed::Unknown, None),
        ];
        for end in ends {
            let note = UndoNote::default();
            assert!(note.note(&deletion));
            let error = Undoing(note.clone()).ended_with(end);
            assert_eq!(
                told(&error),
                (Some(Executed::Unknown), Some(token.as_str())),
                "{error:?}"
            );
            // A second attempt would have another token.
            assert!(!note.note(&deletion));
        }
        let note = UndoNote::default();
        assert!(note.note(&deletion));
        let failed = KnowledgeError::internal("x").of_write(Executed::No, None);
        assert_eq!(told(&Undoing(note).ended_with(failed)), (Some(Executed::No), None));
    }
}
