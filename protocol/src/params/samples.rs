//! Calls with which tests try one parameter after the other, in all methods.

use super::decode_any;
use crate::api::MethodInfo;
use crate::error::WireError;

/// A value that passes for `name` in whatever method.
fn some(method: &MethodInfo, name: &str) -> &'static str {
    match name {
        "id" | "text" | "query" | "undo_token" | "agent" | "session_id" | "subscription" | "sql" => "\"x\"",
        "ids" | "texts" => "[\"x\"]",
        "items" => "[{\"text\":\"x\"}]",
        "path" => "\"/x\"",
        "confirm" => "true",
        "type" => "\"issue\"",
        "project_id" => "\"p\"",
        "projects" => "\"*\"",
        "since" | "until" => "\"2026-01-01\"",
        "metadata" => "{\"k\":1}",
        "older_than_days" => "5",
        "conversation" | "current_task" => "\"x\"",
        other => panic!("{}: what is a value of `{other}`?", method.name),
    }
}

/// The parameters without which a call is refused, in whatever method.
const NEEDED: &[&str] = &[
    "text",
    "query",
    "items",
    "texts",
    "path",
    "confirm",
    "subscription",
    "sql",
    "conversation",
    "current_task",
];

/// Decodes a call with what is `given`, and with what it needs besides.
pub(super) fn call(method: &MethodInfo, given: &[(&str, &str)]) -> Result<(), WireError> {
    let needed = method
        .positional
        .iter()
        .filter(|name| NEEDED.contains(name) && given.iter().all(|(other, _)| other != *name))
        .map(|name| (*name, some(method, name)));
    let members: Vec<String> = given
        .iter()
        .copied()
        .chain(needed)
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    decode_any(method, &format!("{{{}}}", members.join(",")))
}
