//! Types that several methods share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

use crate::error::WireError;

/// A project that a call over several projects could not read or work on; the others were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectError {
    /// The project.
    pub project_id: String,
    /// The code of the error that a call for this project alone would have got.
    pub code: i32,
    /// Its message.
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
