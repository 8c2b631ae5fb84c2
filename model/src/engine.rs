//! What an engine is.

use crate::error::EngineError;
use crate::tokenize::TokenizedText;

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
