//! Types that several methods share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

use crate::error::WireError;
use ccod_words::check_key;

/// A project that a call over several projects could not read or change. The call succeeded for the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectError {
    /// The name of the project.
    pub project_id: String,
    /// The code of the error that a call for this project alone would have got.
    pub code: i32,
    /// The message of that error.
    pub message: String,
}

/// -32602 for a number out of its range.
pub(crate) fn out_of_range(parameter: &str, range: impl fmt::Display) -> WireError {
    WireError::invalid_params(parameter, format!("`{parameter}` must be {range}"))
}

pub(crate) fn is_false(flag: &bool) -> bool {
    !*flag
}

pub(crate) fn yes() -> bool {
    true
}

pub(super) fn check_keys<const N: usize>(keys: [(&str, &Option<String>); N]) -> Result<(), WireError> {
    for (parameter, key) in keys {
        if let Some(key) = key {
            check_key(key, parameter)?;
        }
    }
    Ok(())
}

pub(super) fn check_text(parameter: &str, text: &str) -> Result<(), WireError> {
    if text.trim().is_empty() {
        Err(out_of_range(parameter, "a text that is not blank"))
    } else {
        Ok(())
    }
}

pub(super) fn one_of_id_or_ids(id: Option<&String>, ids: Option<&Vec<String>>) -> Result<(), WireError> {
    match (id, ids) {
        (None, None) => Err(WireError::invalid_params("id", "give `id` or `ids`")),
        (Some(_), Some(_)) => Err(WireError::invalid_params("ids", "give `id` or `ids`, not both")),
        _ => Ok(()),
    }
}
