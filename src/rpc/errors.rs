//! Errors of the actors as errors of the wire: the only mapping in the program.

use ccod_actors::descriptors;
use ccod_actors::error::KnowledgeError;
use ccod_protocol::error::{Executed, Invalid, WireError};

/// The wire's code for what became of a request, and the data for programs beside it. The text is the error's own.
pub(crate) fn wire_error(error: KnowledgeError) -> WireError {
    match error {
        KnowledgeError::InvalidParameter { parameter, message } => WireError::invalid_params(parameter, message),
        KnowledgeError::NotFound { id, degraded } => WireError::not_found_in_part(&id, degraded),
        KnowledgeError::AlreadyExists { id } => WireError::already_exists(&id),
        KnowledgeError::SecretRejected { detector, field } => WireError::secret_rejected(&detector, &field),
        KnowledgeError::ModelMismatch {
            project,
            stored,
            running,
        } => WireError::model_mismatch(&project, &stored, &running),
        KnowledgeError::ReadOnly { reason } => WireError::read_only(reason),
        KnowledgeError::Cancelled => WireError::cancelled(Executed::No),
        KnowledgeError::Expired { what } => WireError::expired(&what),
        KnowledgeError::NeedsMigration { project, detail } => WireError::needs_migration(&project, &detail),
        KnowledgeError::DeadlineExceeded { executed } => WireError::deadline_exceeded(executed),
        // The part was not asked, so nothing was carried out.
        KnowledgeError::Unavailable { part, reason } => WireError::unavailable(part, reason),
        KnowledgeError::OutcomeUnknown => WireError::outcome_unknown(),
        KnowledgeError::ShuttingDown => WireError::shutting_down(),
        KnowledgeError::Incomplete { done, cause } => {
            let mut error = wire_error(*cause);
            error.message = format!("{done}: {}", error.message);
            // Neither as if nothing had happened, nor as if all of it had.
            error.with_executed(Executed::Unknown)
        }
        KnowledgeError::WriteFailed {
            executed,
            undo_token,
            cause,
        } => {
            let error = wire_error(*cause).with_executed(executed);
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
        KnowledgeError::NoDescriptors => {
            let clause = descriptors::lack_clause();
            tracing::warn!("a request failed: {clause}");
            WireError::busy(clause, descriptors::RETRY_AFTER_MS)
        }
        KnowledgeError::Busy { queue, retry_after_ms } => WireError::busy(format!("{queue} is full"), retry_after_ms),
        KnowledgeError::OutOfReach { message, fix } => WireError::internal(message).with_fix(fix),
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

/// Why a handler has no result: an error of the wire, or one of the actors, which becomes one of the wire by `?`.
#[derive(Debug)]
pub(crate) struct Failure(WireError);

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self(error)
    }
}

impl From<KnowledgeError> for Failure {
    fn from(error: KnowledgeError) -> Self {
        Self(wire_error(error))
    }
}

impl From<Invalid> for Failure {
    fn from(refusal: Invalid) -> Self {
        Self(refusal.into())
    }
}

impl From<Failure> for WireError {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use ccod_protocol::error::ErrorKind;

    use super::*;

    /// Each kind of error, as it really occurs.
    fn every_error() -> Vec<KnowledgeError> {
        let text = |text: &str| text.to_owned();
        let mut errors = vec![
            KnowledgeError::invalid("limit", "`limit` must be from 1 to 100"),
            KnowledgeError::NotFound {
                id: text("issue-1-ab"),
                degraded: None,
            },
            KnowledgeError::NotFound {
                id: text("issue-1-ab"),
                degraded: Some(text("a data file is missing")),
            },
            KnowledgeError::AlreadyExists { id: text("issue-1-ab") },
            KnowledgeError::SecretRejected {
                detector: text("aws"),
                field: text("metadata.token"),
            },
            KnowledgeError::ModelMismatch {
                project: text("web"),
                stored: text("a@1"),
                running: text("b@1"),
            },
            KnowledgeError::ReadOnly {
                reason: text("the disk is full; free some space, writes go on by themselves"),
            },
            KnowledgeError::Cancelled,
            KnowledgeError::Expired {
                what: text("the cursor"),
            },
            KnowledgeError::Expired {
                what: text("the undo token"),
            },
            KnowledgeError::NeedsMigration {
                project: text("web"),
                detail: text("column id is missing"),
            },
            KnowledgeError::Unavailable {
                part: "writer",
                reason: text("it is restarting, nothing was changed"),
            },
            KnowledgeError::OutcomeUnknown,
            KnowledgeError::ShuttingDown,
            KnowledgeError::NoDescriptors,
            KnowledgeError::OutOfReach {
                message: text("not in the backup: x is a link to nothing; mend the link"),
                fix: "mend the link",
            },
            KnowledgeError::unreadable("the store could not be read: x"),
            KnowledgeError::internal("x"),
        ];
        let queues = [
            "the readers' queue",
            "the writer's queue",
            "the writer's buffer",
            "the embedder's queue",
        ];
        errors.extend(queues.map(|queue| KnowledgeError::Busy {
            queue,
            retry_after_ms: 50,
        }));
        errors.extend(
            [Executed::No, Executed::Yes, Executed::Unknown]
                .map(|executed| KnowledgeError::DeadlineExceeded { executed }),
        );
        errors.push(KnowledgeError::NoDescriptors.after("the items are deleted, and their bytes are not erased yet"));
        errors
    }

    /// A word that follows itself.
    fn doubled(text: &str) -> Option<&str> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let of_letters = |word: &str| word.len() > 1 && word.chars().all(char::is_alphabetic);
        let pair = words
            .windows(2)
            .find(|pair| of_letters(pair[0]) && pair[0].to_lowercase() == pair[1]);
        pair.map(|pair| pair[0])
    }

    #[test]
    fn every_error_says_what_to_do_and_no_word_twice() {
        for error in every_error() {
            let own = error.to_string();
            assert_eq!(doubled(&own), None, "{own}");
            let wire = wire_error(error);
            let message = &wire.message;
            assert_eq!(*message, own, "said in the same words, whoever says it");
            assert!(!message.ends_with('.'), "{message}");
            let says_what_to_do = message.contains(';') || message.contains("must") || wire.data.fix.is_some();
            assert!(says_what_to_do, "{message}");
            // One clause each: none is said twice by two who did not know of each other.
            let mut clauses: Vec<&str> = message.split(';').map(str::trim).collect();
            clauses.sort_unstable();
            clauses.dedup();
            assert_eq!(clauses.len(), message.split(';').count(), "{message}");
        }
    }

    #[test]
    fn no_descriptors_are_busy_and_say_how_to_get_more() {
        let wire = wire_error(KnowledgeError::NoDescriptors);
        assert_eq!((wire.kind(), wire.data.executed), (ErrorKind::Busy, Some(Executed::No)));
        assert!(wire.data.retryable && wire.data.retry_after_ms.is_some());
        assert!(wire.message.contains("LimitNOFILE"), "{}", wire.message);
        // However a part of the program came by it.
        let system = std::io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32);
        for error in [
            KnowledgeError::internal(&system),
            KnowledgeError::unreadable(format_args!("/x cannot be read: {system}")),
            KnowledgeError::of_path(format_args!("/x cannot be written: {system}")),
        ] {
            assert_eq!(wire_error(error).kind(), ErrorKind::Busy);
        }
    }

    #[test]
    fn no_text_of_the_program_says_a_word_twice() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut places: Vec<PathBuf> = [
            "src",
            "actors/src",
            "protocol/src",
            "protocol/words/src",
            "docs",
            "README.md",
        ]
        .into_iter()
        .map(|place| root.join(place))
        .collect();
        let mut read = 0;
        while let Some(place) = places.pop() {
            if place.is_dir() {
                places.extend(std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let kind = place.extension().and_then(|extension| extension.to_str());
            if !matches!(kind, Some("rs" | "md")) {
                continue;
            }
            let text = std::fs::read_to_string(&place).unwrap();
            // A sentence goes on over the end of its line.
            let lines = text.lines().map(|line| {
                let line = line.trim().trim_start_matches(['/', '!']).trim_end_matches('\\');
                line.trim()
            });
            let text = lines.collect::<Vec<_>>().join(" ");
            assert_eq!(doubled(&text), None, "{}", place.display());
            read += 1;
        }
        assert!(read > 50, "{read}");
    }
}
