//! Errors of the actors as errors of the wire: the only mapping in the program.

use ccod_actors::error::{Executed, KnowledgeError};
use ccod_protocol::error::{ErrorKind, Executed as WireExecuted, WireError};

/// The wire's words for what became of a request.
pub fn wire_error(error: KnowledgeError) -> WireError {
    let message = error.to_string();
    match error {
        KnowledgeError::InvalidParameter { parameter, message } => WireError::invalid_params(parameter, message),
        KnowledgeError::NotFound { .. } => WireError::new(ErrorKind::NotFound, message),
        KnowledgeError::AlreadyExists { id } => WireError::already_exists(&id),
        KnowledgeError::SecretRejected { detector, field } => WireError::secret_rejected(&detector, &field),
        KnowledgeError::ModelMismatch { .. } => WireError::new(ErrorKind::ModelMismatch, message),
        KnowledgeError::ReadOnly { reason } => WireError::read_only(reason),
        KnowledgeError::Cancelled => WireError::cancelled(WireExecuted::No),
        KnowledgeError::Expired { what } => WireError::expired(&what),
        KnowledgeError::NeedsMigration { project, .. } => {
            WireError::needs_migration(&project).with_extra("detail", message)
        }
        KnowledgeError::DeadlineExceeded { executed } => WireError::deadline_exceeded(wire_executed(executed)),
        // Of a part that was to be asked and was not.
        KnowledgeError::Unavailable { .. } => {
            WireError::new(ErrorKind::Unavailable, message).with_executed(WireExecuted::No)
        }
        KnowledgeError::OutcomeUnknown => WireError::outcome_unknown(),
        KnowledgeError::ShuttingDown => WireError::shutting_down(),
        KnowledgeError::Incomplete { done, cause } => {
            let mut error = wire_error(*cause);
            error.message = format!("{done}: {}", error.message);
            // Neither as if nothing had happened, nor as if all of it had.
            error.with_executed(WireExecuted::Unknown)
        }
        KnowledgeError::WriteFailed {
            executed,
            undo_token,
            cause,
        } => {
            let error = wire_error(*cause).with_executed(wire_executed(executed));
            match undo_token {
                Some(token) => error
                    .with_fix(format!(
                        "if it was carried out, `ccoctl undelete --undo {token}` undoes it"
                    ))
                    .with_extra("undo_token", token),
                None => error,
            }
        }
        KnowledgeError::AnswerTooLarge { limit_bytes } => WireError::response_too_large(limit_bytes),
        KnowledgeError::Busy { queue, retry_after_ms } => WireError::busy(format!("{queue} is full"), retry_after_ms),
        KnowledgeError::Unreadable { message } => {
            tracing::error!(%message, "the store could not be read");
            WireError::internal(message)
                .with_fix("`recovery` in admin.status names what is damaged, admin.verify reads everything")
        }
        KnowledgeError::Internal { message } => {
            // Logged here, where it leaves the daemon; the text of an item is never part of such a message.
            tracing::error!(%message, "internal error");
            WireError::internal(message)
        }
    }
}

fn wire_executed(executed: Executed) -> WireExecuted {
    match executed {
        Executed::No => WireExecuted::No,
        Executed::Yes => WireExecuted::Yes,
        Executed::Unknown => WireExecuted::Unknown,
    }
}

/// [`wire_error`] of what failed before a write was handed to the writer: a fault in the daemon says so as well.
pub(crate) fn unwritten(error: KnowledgeError) -> WireError {
    let error = wire_error(error);
    if error.kind() == ErrorKind::InternalError && error.data.executed.is_none() {
        error.with_executed(WireExecuted::No)
    } else {
        error
    }
}
