//! What an engine is.

use std::fmt;

use crate::error::EngineError;
use crate::tokenize::TokenizedText;

/// How exactly an engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Products of 8-bit integers; vectors are within a cosine of 0.99 of the exact ones, and searches find the same.
    Int8,
    /// float32 throughout.
    Exact,
}

impl Precision {
    /// Its name in the configuration and in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Exact => "exact",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Turns texts into vectors. One engine serves one thread.
pub trait EmbedEngine: Send {
    /// One vector per text, in order, each of [`dimensions`](Self::dimensions) values and of unit length. An
    /// error is about the batch as a whole; the caller finds the culprit.
    fn embed(&mut self, batch: &[&TokenizedText]) -> Result<Vec<Vec<f32>>, EngineError>;
    /// Name and hash of the model; vectors of different identities are never compared.
    fn identity(&self) -> &str;
    /// Length of the vectors.
    fn dimensions(&self) -> usize;
    /// Tokens per text at most, special ones included.
    fn max_tokens(&self) -> usize;
}
