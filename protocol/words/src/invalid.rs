//! Refusals of what a caller sent.

use thiserror::Error;

/// A parameter has a value that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Invalid {
    /// Name of the parameter on the wire.
    pub parameter: String,
    /// What is accepted. Never the value: it may be a secret, or a megabyte.
    pub message: String,
}

impl Invalid {
    /// A refusal of `parameter`.
    pub fn new(parameter: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            parameter: parameter.into(),
            message: message.into(),
        }
    }
}

/// A word that is not one of an enum's values. The word itself is left out: it may be long or secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown {what}; use one of: {}", valid.join(", "))]
pub struct UnknownWord {
    pub(crate) what: &'static str,
    pub(crate) valid: &'static [&'static str],
}

impl UnknownWord {
    /// The words that would have been accepted.
    #[must_use]
    pub fn valid(&self) -> &'static [&'static str] {
        self.valid
    }
}
