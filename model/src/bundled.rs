//! The model inside the executable, all-MiniLM-L6-v2; `model/bundled/README.md` says how its files are made.

use serde::Deserialize;

use crate::error::EngineError;

pub(crate) static WEIGHTS: &[u8] = include_bytes!("../bundled/weights.gguf");
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../bundled/tokenizer.json");
pub(crate) const CONFIG: &str = include_str!("../bundled/config.json");
const MANIFEST: &str = include_str!("../bundled/bundle.json");

/// `bundle.json`: what the bundling program recorded. The hash is not computed again at start; a test does that.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) max_tokens: usize,
    pub(crate) weights_sha256: String,
}

pub(crate) fn manifest() -> Result<Manifest, EngineError> {
    serde_json::from_str(MANIFEST).map_err(|error| EngineError::Load(format!("bundle.json: {error}")))
}
