//! The one error type of this crate: all the ways in which a request can fail. Its texts are those of the wire, by
//! [`ccod_words::message`].
//!
//! Closed on purpose: `src/rpc/errors.rs` of the executable maps each variant to one code of the wire, and a
//! new variant fails to compile there.

use ccod_words::{Invalid, message};
use thiserror::Error;

use crate::{clock, descriptors, panics};

pub use ccod_words::Executed;

/// Why a request has no result.
#[derive(Clone, Debug, Error)]
pub enum KnowledgeError {
    /// A parameter has a value that cannot be accepted.
    #[error("{message}")]
    InvalidParameter {
        /// Name of the parameter on the wire.
        parameter: String,
        /// One sentence that says what is accepted.
        message: String,
    },
    /// The item does not exist or was deleted.
    #[error("{}", message::not_found_in_part(id, degraded.as_deref()))]
    NotFound {
        /// The id that was looked for.
        id: String,
        /// Why it may be there all the same, if so: what of the project cannot be read.
        degraded: Option<String>,
    },
    /// The id is taken by an item with other content.
    #[error("{}", message::already_exists(id))]
    AlreadyExists {
        /// The id that is taken.
        id: String,
    },
    /// A secret was found and the policy is to reject.
    #[error("{}", message::secret_rejected(detector, field))]
    SecretRejected {
        /// Name of the detector that fired.
        detector: String,
        /// Where, such as `text` or `metadata.token`. Never the secret itself.
        field: String,
    },
    /// The table's vectors come from another model.
    #[error("{}", message::model_mismatch(project, stored, running))]
    ModelMismatch {
        /// The project.
        project: String,
        /// Model identity stored with the table.
        stored: String,
        /// Model identity of the running engine.
        running: String,
    },
    /// Writes are not possible now; reads are.
    #[error("{}", message::read_only(reason))]
    ReadOnly {
        /// Why, and what to do.
        reason: String,
    },
    /// The caller cancelled.
    #[error("{}", message::CANCELLED)]
    Cancelled,
    /// A cursor or an undo token is too old.
    #[error("{}", message::expired(what))]
    Expired {
        /// What has expired.
        what: String,
    },
    /// The project's table has another schema (the old tool's).
    #[error("{}", message::needs_migration(project, detail))]
    NeedsMigration {
        /// The project.
        project: String,
        /// What was found.
        detail: String,
    },
    /// The deadline passed.
    #[error("{}", message::deadline_exceeded(*executed))]
    DeadlineExceeded {
        /// Whether it took effect all the same.
        executed: Executed,
    },
    /// A part of the daemon is restarting or degraded.
    #[error("{}", message::unavailable(part, reason))]
    Unavailable {
        /// `embedder`, `reader`, `writer`, `keyword index`.
        part: &'static str,
        /// Why.
        reason: String,
    },
    /// The writer was lost while it held the request.
    #[error("{}", message::OUTCOME_UNKNOWN)]
    OutcomeUnknown,
    /// The daemon is stopping.
    #[error("{}", message::SHUTTING_DOWN)]
    ShuttingDown,
    /// The change was made, and a later step that belongs to it has failed.
    #[error("{done}: {cause}")]
    Incomplete {
        /// What was done, and what becomes of the rest: a sentence without a full stop.
        done: &'static str,
        /// Why the rest was not.
        cause: Box<KnowledgeError>,
    },
    /// What was asked for is more than an answer may be.
    #[error("{}", message::response_too_large(*limit_bytes))]
    AnswerTooLarge {
        /// What it may be.
        limit_bytes: usize,
    },
    /// A write failed, or its caller could not wait for it: what is known of its effect.
    #[error("{cause}")]
    WriteFailed {
        /// Whether it took effect.
        executed: Executed,
        /// Undoes it, if it is a delete and took effect.
        undo_token: Option<String>,
        /// Why it failed.
        cause: Box<KnowledgeError>,
    },
    /// A queue is full.
    #[error("{}", message::busy(format_args!("{queue} is full"), *retry_after_ms))]
    Busy {
        /// Which queue.
        queue: &'static str,
        /// When a retry makes sense, in milliseconds.
        retry_after_ms: u64,
    },
    /// No file could be opened: the process, or the system, has no file descriptors left. Nothing was done.
    #[error("{}", message::busy(descriptors::lack_clause(), descriptors::RETRY_AFTER_MS))]
    NoDescriptors,
    /// A file of the store is missing or damaged, or cannot be read now. Made by [`KnowledgeError::unreadable`].
    #[error("{message}")]
    Unreadable {
        /// What happened.
        message: String,
    },
    /// What is asked for cannot be reached as it lies on disk. An operator of the machine can do something about it.
    #[error("{message}")]
    OutOfReach {
        /// What happened.
        message: String,
        /// What to do.
        fix: &'static str,
    },
    /// A defect or an error of the storage that has no better name. Made by [`KnowledgeError::internal`].
    #[error("{message}")]
    Internal {
        /// What happened.
        message: String,
    },
}

/// Why a part of the daemon ends itself; shown by `admin.health`. The supervisor takes every other reason for a panic,
/// and must not repeat the text of a panic.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub(crate) struct PartFailure(String);

impl PartFailure {
    /// With this reason.
    pub(crate) fn new(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

impl From<Invalid> for KnowledgeError {
    fn from(Invalid { parameter, message }: Invalid) -> Self {
        Self::InvalidParameter { parameter, message }
    }
}

/// Result with [`KnowledgeError`].
pub type KnowledgeResult<T> = Result<T, KnowledgeError>;

impl KnowledgeError {
    /// An [`KnowledgeError::InvalidParameter`].
    pub fn invalid(parameter: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidParameter {
            parameter: parameter.into(),
            message: message.into(),
        }
    }

    /// An [`KnowledgeError::InvalidParameter`] for `path`, by the rules of [`KnowledgeError::internal`].
    pub fn of_path(message: impl std::fmt::Display) -> Self {
        Self::worded(&message, |message| Self::invalid("path", message))
    }

    /// This error, after a change that was made: `done` says what was.
    #[must_use]
    pub fn after(self, done: &'static str) -> Self {
        Self::Incomplete {
            done,
            cause: Box::new(self),
        }
    }

    /// The error itself, without what was done before it.
    pub fn root(&self) -> &Self {
        match self {
            Self::Incomplete { cause, .. } | Self::WriteFailed { cause, .. } => cause.root(),
            error => error,
        }
    }

    /// This error as that of a write, with what is known of its effect: whether it was `executed`, and what undoes it.
    #[must_use]
    pub fn of_write(self, executed: Executed, undo_token: Option<String>) -> Self {
        let cause = match self {
            Self::WriteFailed { cause, .. } => cause,
            error => Box::new(error),
        };
        Self::WriteFailed {
            executed,
            undo_token,
            cause,
        }
    }

    /// This error, of something that failed before a write was handed to the writer: a fault in the daemon says so as well.
    #[must_use]
    pub fn unwritten(self) -> Self {
        match self {
            Self::Internal { .. } | Self::Unreadable { .. } | Self::OutOfReach { .. } => {
                self.of_write(Executed::No, None)
            }
            error => error,
        }
    }

    /// Whether the call that failed took effect, as far as the error itself says.
    pub fn effect(&self) -> Option<Executed> {
        match self {
            Self::WriteFailed { executed, .. } | Self::DeadlineExceeded { executed } => Some(*executed),
            Self::OutcomeUnknown | Self::Incomplete { .. } => Some(Executed::Unknown),
            Self::Cancelled
            | Self::Busy { .. }
            | Self::NoDescriptors
            | Self::ReadOnly { .. }
            | Self::Unavailable { .. } => Some(Executed::No),
            _ => None,
        }
    }

    /// Whether it says only that the caller no longer waits, and nothing about the outcome of the work.
    pub(crate) fn is_of_the_caller(&self) -> bool {
        matches!(self, Self::Cancelled)
    }

    /// An [`KnowledgeError::Internal`], unless the message, or the clock, shows something that has a better name.
    /// The texts of panics are taken out of it, and so are the paths that the program was built in.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::worded(&message, |message| Self::Internal { message })
    }

    /// An [`KnowledgeError::Unreadable`], by the rules of [`KnowledgeError::internal`].
    pub fn unreadable(message: impl std::fmt::Display) -> Self {
        Self::worded(&message, |message| Self::Unreadable { message })
    }

    fn worded(message: &impl std::fmt::Display, otherwise: impl FnOnce(String) -> Self) -> Self {
        let message = message.to_string();
        if descriptors::reports_lack(&message) {
            return descriptors::lack();
        }
        // With such a clock LanceDB panics on every call.
        if let Err(error) = clock::check() {
            return error;
        }
        let message = panics::untold(&message);
        otherwise(panics::without_build_paths(&message).into_owned())
    }
}
