//! Answers that are larger than a response may be.
//!
//! The call has been carried out by then. Where it changed something, an error that only asked for a smaller request
//! would hide the change and lose the token that undoes it. So the error says that the call was carried out, and keeps
//! the small parts of the answer.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{ErrorKind, Executed, WireError};

/// A member of an answer up to this size is kept: counts, versions, an undo token, but no long list.
const SMALL_BYTES: usize = 1024;
/// An error up to this size is sent even where the line is over the limit: the one in its place would hardly be
/// smaller, and would say less.
pub(crate) const SMALL_ERROR_BYTES: usize = 4096;

/// The error in place of an answer whose result is `json`; `writes` says whether the call may have changed something.
pub(crate) fn too_large(json: &[u8], writes: bool, limit_bytes: usize) -> WireError {
    if !writes {
        return WireError::response_too_large(limit_bytes);
    }
    let error = WireError::new(
        ErrorKind::ResponseTooLarge,
        format!(
            "the call was carried out, but its answer is larger than {limit_bytes} bytes; `data` has the small parts \
             of it"
        ),
    )
    .with_executed(Executed::Yes)
    .with_extra("limit_bytes", limit_bytes);
    let members = small_members(json);
    let token = members.iter().find(|(name, _)| name == "undo_token");
    let error = match token.and_then(|(_, token)| token.as_str()) {
        Some(token) => error.with_fix(format!(
            "`ccoctl undelete --undo {token}` undoes it, if it is not what was wanted"
        )),
        None => error,
    };
    members
        .into_iter()
        .fold(error, |error, (name, value)| error.with_extra(name, value))
}

fn small_members(json: &[u8]) -> Vec<(String, Value)> {
    let Ok(members) = serde_json::from_slice::<BTreeMap<Cow<'_, str>, &RawValue>>(json) else {
        return Vec::new();
    };
    // What every error has keeps its meaning.
    let own = [
        "kind",
        "retryable",
        "fix",
        "parameter",
        "retry_after_ms",
        "executed",
        "limit_bytes",
    ];
    members
        .into_iter()
        .filter(|(name, value)| !own.contains(&name.as_ref()) && value.get().len() <= SMALL_BYTES)
        .filter_map(|(name, value)| Some((name.into_owned(), serde_json::from_str(value.get()).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_to_a_change_keeps_its_undo_token() {
        let ids: Vec<String> = (0..1_000).map(|number| format!("general-{number}")).collect();
        let answer = json!({"deleted": 1000, "ids": ids, "undo_token": "abc", "version": 7, "kind": "x"});
        let json = answer.to_string();
        let error = serde_json::to_value(too_large(json.as_bytes(), true, 99)).unwrap();
        assert_eq!(error["code"], -32008);
        assert_eq!(
            error["data"],
            json!({"kind": "response_too_large", "retryable": false, "executed": true, "limit_bytes": 99,
                   "deleted": 1000, "undo_token": "abc", "version": 7,
                   "fix": "`ccoctl undelete --undo abc` undoes it, if it is not what was wanted"})
        );
        let read = serde_json::to_value(too_large(json.as_bytes(), false, 99)).unwrap();
        assert_eq!(
            read["data"],
            json!({"kind": "response_too_large", "retryable": false, "limit_bytes": 99})
        );
        // Whatever the answer is, there is an error.
        let other = serde_json::to_value(too_large(b"[1]", true, 99)).unwrap();
        assert_eq!(other["data"]["executed"], true);
    }
}
