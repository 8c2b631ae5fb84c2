//! The parameters that every method takes.

use serde_json::value::RawValue;
use std::time::Duration;

use super::entries::{named, take};
use super::refusal::wrong;
use crate::api::ProjectName;
use crate::error::WireError;

/// The parameters that every method takes.
pub const COMMON: &[&str] = &["project_id", "timeout_ms", "trace_id"];
/// The longest deadline that a caller may ask for, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 600_000;
/// The longest `trace_id`, in bytes.
pub const TRACE_ID_MAX: usize = 256;

/// The deadline that the parameters ask for, found without decoding them. Anything that is not a valid
/// `timeout_ms` counts as absent here: decoding refuses it later, with a message.
#[must_use]
pub fn peek_timeout(json: Option<&str>) -> Option<Duration> {
    peek(json, "timeout_ms", timeout).map(Duration::from_millis)
}

/// The `trace_id` of the parameters, found without decoding them, as [`peek_timeout`] finds the deadline.
#[must_use]
pub fn peek_trace_id(json: Option<&str>) -> Option<String> {
    peek(json, "trace_id", trace)
}

fn peek<'a, T>(
    json: Option<&'a str>,
    name: &str,
    read: impl FnOnce(&'a RawValue) -> Result<T, WireError>,
) -> Option<T> {
    let json = json?;
    // Most calls name neither, and a substring search is far cheaper than a parse of a large text.
    if !json.contains(name) || !json.trim_start().starts_with('{') {
        return None;
    }
    take(&mut named(json).ok()?, name, read).ok()?
}

pub(super) fn project(raw: &RawValue, any: bool) -> Result<String, WireError> {
    let name: String = serde_json::from_str(raw.get()).map_err(|error| wrong("project_id", &error))?;
    if !(any && name == "*") {
        ProjectName::parse(&name, "project_id")?;
    }
    Ok(name)
}

pub(super) fn timeout(raw: &RawValue) -> Result<u64, WireError> {
    match serde_json::from_str::<u64>(raw.get()) {
        Ok(timeout_ms) if (1..=TIMEOUT_MS_MAX).contains(&timeout_ms) => Ok(timeout_ms),
        _ => Err(WireError::invalid_params(
            "timeout_ms",
            format!("`timeout_ms` must be an integer from 1 to {TIMEOUT_MS_MAX}"),
        )),
    }
}

pub(super) fn trace(raw: &RawValue) -> Result<String, WireError> {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(trace_id) if trace_id.len() <= TRACE_ID_MAX => Ok(trace_id),
        _ => Err(WireError::invalid_params(
            "trace_id",
            format!("`trace_id` must be a text of at most {TRACE_ID_MAX} bytes"),
        )),
    }
}
