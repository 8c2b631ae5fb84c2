//! What can go wrong.

use thiserror::Error;

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
