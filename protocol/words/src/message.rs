//! What errors say. The errors of the wire and those of the daemon's parts take their texts from here, so that the
//! same error has the same words everywhere.
//!
//! Each is one sentence without a full stop: what happened, and what to do. None repeats an item's text or a secret;
//! names that callers made up are shortened, and their control characters are escaped.

use std::fmt::Display;

use crate::{Executed, shortened};

/// Characters of a caller's own name that a message shows.
const NAME_MAX: usize = 120;

/// The call was cancelled.
pub const CANCELLED: &str = "the call was cancelled; send it again if it is still wanted";
/// The write may or may not have happened.
pub const OUTCOME_UNKNOWN: &str =
    "it is unknown whether the write happened; repeat it with the same id or key, which stores once";
/// The daemon is stopping and takes no new requests.
pub const SHUTTING_DOWN: &str = "the daemon is stopping; connect again when it is back";

/// No item has this id.
#[must_use]
pub fn not_found(id: &str) -> String {
    let id = shortened(id, NAME_MAX);
    format!("no item has the id `{id}` in this project; check the id and `project_id`")
}

/// As [`not_found`]; `reason` says what of the project cannot be read, if something cannot.
#[must_use]
pub fn not_found_in_part(id: &str, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{} (it may be among what cannot be read: {reason})", not_found(id)),
        None => not_found(id),
    }
}

/// The id belongs to other content.
#[must_use]
pub fn already_exists(id: &str) -> String {
    let id = shortened(id, NAME_MAX);
    format!("the id `{id}` belongs to an item with other content; use another id, or `knowledge.update`")
}

/// `detector` found a secret at `place` (never the secret itself).
#[must_use]
pub fn secret_rejected(detector: &str, place: &str) -> String {
    format!("a secret was found in {place} ({detector}); remove it, or store where it is kept instead")
}

/// The vectors of a project come from another model than the daemon's.
#[must_use]
pub fn model_mismatch(project: &str, stored: &str, current: &str) -> String {
    format!(
        "the project `{project}` was embedded with {stored}, the daemon runs {current}; search it in `text` mode, or \
         export it and import it into a project of another name, which embeds it again"
    )
}

/// Nothing can be written at the moment; `reason` says why, and what to do.
#[must_use]
pub fn read_only(reason: impl Display) -> String {
    format!("nothing can be written now: {reason}")
}

/// `what` (the cursor, the undo token: with its article) is too old.
#[must_use]
pub fn expired(what: &str) -> String {
    format!("{what} has expired; start again without it")
}

/// A project's data has a shape that this version does not read: `detail`.
#[must_use]
pub fn needs_migration(project: &str, detail: &str) -> String {
    format!(
        "the project `{project}` holds data of a shape that this version does not read ({detail}), and leaves it \
         untouched; use the version that wrote it, or another project"
    )
}

/// The deadline passed.
#[must_use]
pub const fn deadline_exceeded(executed: Executed) -> &'static str {
    match executed {
        Executed::No => "the deadline passed before the call was carried out; try again, or with a longer `timeout_ms`",
        Executed::Yes => "the deadline passed, but the call was carried out; there is nothing to repeat",
        Executed::Unknown => {
            "the deadline passed and the call may have been carried out; repeat it with the same id or key"
        }
    }
}

/// A part of the daemon is restarting or degraded.
#[must_use]
pub fn unavailable(part: impl Display, reason: impl Display) -> String {
    format!("{part} is unavailable: {reason}; retry")
}

/// There is too much load: `what`, a clause such as "the queue is full".
#[must_use]
pub fn busy(what: impl Display, retry_after_ms: u64) -> String {
    format!("{what}; try again in {retry_after_ms} ms")
}

/// The answer would be larger than it may be.
#[must_use]
pub fn response_too_large(limit_bytes: usize) -> String {
    format!("the response would be larger than {limit_bytes} bytes; ask for less, for example a smaller `limit`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_callers_are_short_and_printable() {
        for message in [
            not_found(&"\u{1b}x".repeat(1_000)),
            already_exists(&"ä\n".repeat(1_000)),
        ] {
            assert!(
                message.len() < 1_500 && !message.contains(['\u{1b}', '\n']),
                "{message}"
            );
        }
    }
}
