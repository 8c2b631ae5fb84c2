//! What an engine is.

use thiserror::Error;

use super::tokenize::TokenizedText;

/// What an engine can fail with.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EngineError {
    /// The model could not be loaded.
    #[error("the model could not be loaded: {0}")]
    Load(String),
    /// A text is not what the model takes.
    #[error("the model does not take this text: {0}")]
    Input(String),
    /// The computation failed.
    #[error("the computation failed: {0}")]
    Compute(String),
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        match error {
            // With RUST_BACKTRACE set; callers do not get the backtrace.
            candle_core::Error::WithBacktrace { inner, .. } => (*inner).into(),
            error => Self::Compute(error.to_string()),
        }
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
