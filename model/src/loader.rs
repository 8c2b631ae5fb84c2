//! Which model the daemon runs, and where it is kept once loaded.
//!
//! The [`ModelCell`] outlives the embedder actor: the supervisor holds it and gives it to each new actor, so a
//! restart takes milliseconds and reads no weights. Nothing is loaded before the first request that needs it;
//! until then only the identity and the dimensions are known, and opening a table needs no more.

use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use nix::sys::mman::{MmapAdvise, madvise};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::bundled;
use crate::config::BertConfig;
use crate::engine::{EmbedEngine, Precision};
use crate::error::EngineError;
use crate::exact::{BertEngine, BertModel};
use crate::int8::{self, Int8Engine, Int8Model};
use crate::tokenize::TextTokenizer;
use crate::weights::Weights;

/// Hexadecimal digits of the weights' hash that are part of a model's identity. 48 bits: enough to tell models
/// apart, short enough to read.
const IDENTITY_DIGITS: usize = 12;

/// Token limit of a model directory that does not state one (`sentence_bert_config.json`).
const DEFAULT_MAX_TOKENS: usize = 512;

/// Makes an engine; for engines other than the built-in one, such as those of tests.
pub type EngineFactory = dyn Fn() -> Result<Box<dyn EmbedEngine>, EngineError> + Send + Sync;

enum Source {
    Bundled,
    Directory(PathBuf),
    Custom(Box<EngineFactory>),
}

/// A model: known by its identity at once, loaded on demand, shared by everything that runs it.
pub struct ModelCell {
    source: Source,
    identity: String,
    dimensions: usize,
    max_tokens: usize,
    device: Device,
    precision: Precision,
    loaded: Mutex<Option<Loaded>>,
    tokenizer: Mutex<Option<TextTokenizer>>,
}

struct Loaded {
    /// None for a custom source, which keeps its own weights.
    weights: Option<LoadedWeights>,
    took: Duration,
}

/// Weights as the engine of a precision wants them.
#[derive(Clone)]
enum LoadedWeights {
    Exact(Arc<BertModel>),
    Int8(Arc<Int8Model>),
}

/// Which precision is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// [`Precision::Int8`] where the processor has the instructions, else [`Precision::Exact`].
    #[default]
    Auto,
    /// [`Precision::Int8`], slow as it may be.
    Int8,
    /// [`Precision::Exact`].
    Exact,
}

impl PrecisionChoice {
    /// What it comes to on this processor.
    pub fn resolve(self) -> Precision {
        match self {
            Self::Int8 => Precision::Int8,
            Self::Exact => Precision::Exact,
            Self::Auto if int8::is_supported() => Precision::Int8,
            Self::Auto => Precision::Exact,
        }
    }
}

impl fmt::Debug for ModelCell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ModelCell")
            .field("identity", &self.identity)
            .field("dimensions", &self.dimensions)
            .field("max_tokens", &self.max_tokens)
            .field("precision", &self.precision)
            .finish_non_exhaustive()
    }
}

impl ModelCell {
    /// The model inside the executable, all-MiniLM-L6-v2: 384 dimensions, 256 tokens.
    pub fn bundled() -> Result<Self, EngineError> {
        let manifest = bundled::manifest()?;
        let config = BertConfig::parse(bundled::CONFIG)?;
        Ok(Self::new(
            Source::Bundled,
            identity_of(&manifest.name, &manifest.weights_sha256),
            config.hidden_size,
            manifest.max_tokens,
        ))
    }

    /// A BERT-family sentence model in a directory as Sentence Transformers writes it: `config.json`,
    /// `tokenizer.json`, `model.safetensors`, and, where they exist, `sentence_bert_config.json` (token limit)
    /// and `1_Pooling/config.json` (which must ask for the mean). Reads the weights once to hash them, so this
    /// blocks for some tens of milliseconds.
    pub fn from_directory(directory: &Path) -> Result<Self, EngineError> {
        let config = BertConfig::parse(&read_text(&directory.join("config.json"))?)?;
        let max_tokens = token_limit(directory)?.min(config.max_position_embeddings);
        check_pooling(directory)?;
        let weights = directory.join("model.safetensors");
        let mut hasher = Sha256::new();
        std::fs::File::open(&weights)
            .and_then(|mut file| std::io::copy(&mut file, &mut hasher))
            .map_err(|error| cannot_read(&weights, &error))?;
        let name = directory
            .file_name()
            .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        let hash = format!("{:x}", hasher.finalize());
        Ok(Self::new(
            Source::Directory(directory.to_owned()),
            identity_of(&name, &hash),
            config.hidden_size,
            max_tokens,
        ))
    }

    /// A model whose engines `factory` makes; texts are tokenised with the bundled tokenizer.
    pub fn custom(
        identity: impl Into<String>,
        dimensions: usize,
        max_tokens: usize,
        factory: Box<EngineFactory>,
    ) -> Self {
        Self::new(Source::Custom(factory), identity.into(), dimensions, max_tokens)
    }

    fn new(source: Source, identity: String, dimensions: usize, max_tokens: usize) -> Self {
        Self {
            source,
            identity,
            dimensions,
            max_tokens,
            device: Device::Cpu,
            precision: PrecisionChoice::Auto.resolve(),
            loaded: Mutex::new(None),
            tokenizer: Mutex::new(None),
        }
    }

    /// The same model with the engine of this precision; before it is loaded. Vectors of all precisions have one
    /// identity and may be compared.
    #[must_use]
    pub fn with_precision(mut self, choice: PrecisionChoice) -> Self {
        self.precision = choice.resolve();
        self
    }

    /// The precision of the engines that it builds. What a custom source makes is not known.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// What computes, for reports: `candle, cpu`, or `rten-gemm` and the instructions that it uses.
    pub fn engine_name(&self) -> String {
        match (&self.source, self.precision) {
            (Source::Custom(_), _) => "custom".to_owned(),
            (_, Precision::Exact) => "candle, cpu".to_owned(),
            (_, Precision::Int8) => format!("rten-gemm, {}", int8::instructions()),
        }
    }

    /// Name and hash, such as `all-MiniLM-L6-v2@0123456789ab`. Stored with every table.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Length of the vectors.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Tokens per text at most, special ones included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How long loading took; none while the model is not loaded.
    pub fn load_time(&self) -> Option<Duration> {
        self.loaded.lock().as_ref().map(|loaded| loaded.took)
    }

    /// The tokenizer, loaded at the first call, which blocks for some tens of milliseconds.
    pub fn tokenizer(&self) -> Result<TextTokenizer, EngineError> {
        let mut slot = self.tokenizer.lock();
        if let Some(tokenizer) = slot.as_ref() {
            return Ok(tokenizer.clone());
        }
        let tokenizer = match &self.source {
            Source::Bundled | Source::Custom(_) => TextTokenizer::from_json(bundled::TOKENIZER, self.max_tokens),
            Source::Directory(directory) => {
                let path = directory.join("tokenizer.json");
                let json = std::fs::read(&path).map_err(|error| cannot_read(&path, &error))?;
                TextTokenizer::from_json(&json, self.max_tokens)
            }
        }?;
        *slot = Some(tokenizer.clone());
        Ok(tokenizer)
    }

    /// Gives up the weights and the tokenizer until they are needed again. Who uses them at this moment keeps them until
    /// he is done.
    pub fn unload(&self) {
        let tokenizer = self.tokenizer.lock().take();
        let loaded = self.loaded.lock().take();
        if loaded.is_some() {
            tracing::info!(model = self.identity, "embedding model given up, nobody needs it");
        }
        drop((loaded, tokenizer));
        release_bundled();
    }

    /// The tokenizer if it is loaded; never blocks for long.
    pub fn loaded_tokenizer(&self) -> Option<TextTokenizer> {
        // While another thread loads it the lock is held; the caller then takes the slow way as well.
        self.tokenizer.try_lock().and_then(|slot| slot.clone())
    }

    /// An engine on the shared weights, which the first call loads (some hundred milliseconds at most).
    pub fn build_engine(&self) -> Result<Box<dyn EmbedEngine>, EngineError> {
        let start = Instant::now();
        if let Source::Custom(factory) = &self.source {
            let engine = factory()?;
            self.loaded.lock().get_or_insert(Loaded {
                weights: None,
                took: start.elapsed(),
            });
            return Ok(engine);
        }
        let mut slot = self.loaded.lock();
        let known = slot.as_ref().and_then(|loaded| loaded.weights.clone());
        let weights = match known {
            Some(weights) => weights,
            None => {
                let weights = self.load_weights()?;
                let took = start.elapsed();
                tracing::info!(
                    model = self.identity,
                    precision = %self.precision,
                    load_ms = took.as_millis(),
                    "embedding model loaded"
                );
                *slot = Some(Loaded {
                    weights: Some(weights.clone()),
                    took,
                });
                weights
            }
        };
        let identity = self.identity.clone();
        Ok(match weights {
            LoadedWeights::Exact(model) => Box::new(BertEngine::new(model, identity, self.max_tokens)),
            LoadedWeights::Int8(model) => Box::new(Int8Engine::new(model, identity, self.max_tokens)),
        })
    }

    fn load_weights(&self) -> Result<LoadedWeights, EngineError> {
        let (config, weights) = match &self.source {
            Source::Directory(directory) => (
                BertConfig::parse(&read_text(&directory.join("config.json"))?)?,
                Weights::from_safetensors(&directory.join("model.safetensors"), &self.device)?,
            ),
            Source::Bundled | Source::Custom(_) => (
                BertConfig::parse(bundled::CONFIG)?,
                Weights::from_gguf(bundled::WEIGHTS, &self.device)?,
            ),
        };
        let loaded = match self.precision {
            Precision::Exact => LoadedWeights::Exact(Arc::new(BertModel::load(config, &weights, &self.device)?)),
            Precision::Int8 => LoadedWeights::Int8(Arc::new(Int8Model::load(config, &weights)?)),
        };
        if !matches!(self.source, Source::Directory(_)) {
            release_bundled();
        }
        Ok(loaded)
    }
}

/// Lets go of the pages of the executable that hold the weights: once they are expanded nobody reads most of them, and
/// what is read again comes from the system's cache of the file.
fn release_bundled() {
    const PAGE: usize = 64 * 1024; // Of all systems the largest.
    let start = bundled::WEIGHTS.as_ptr().align_offset(PAGE);
    let bytes = bundled::WEIGHTS.len().saturating_sub(start) / PAGE * PAGE;
    let Some(inner) = bundled::WEIGHTS
        .get(start..start + bytes)
        .filter(|inner| !inner.is_empty())
    else {
        return;
    };
    #[allow(unsafe_code)]
    // SAFETY: the pages belong to the executable's file and are never written to, so what is read from them afterwards is
    // what was there before.
    let released = unsafe { madvise(NonNull::from(inner).cast(), inner.len(), MmapAdvise::MADV_DONTNEED) };
    if let Err(error) = released {
        tracing::debug!(%error, "the pages of the weights stay");
    }
}

fn identity_of(name: &str, sha256: &str) -> String {
    let digits: String = sha256.chars().take(IDENTITY_DIGITS).collect();
    format!("{name}@{digits}")
}

fn cannot_read(path: &Path, error: &dyn fmt::Display) -> EngineError {
    EngineError::Load(format!("{}: {error}", path.display()))
}

fn read_text(path: &Path) -> Result<String, EngineError> {
    std::fs::read_to_string(path).map_err(|error| cannot_read(path, &error))
}

/// Reads an optional JSON file; none when it does not exist.
fn read_optional_json(path: &Path) -> Result<Option<serde_json::Value>, EngineError> {
    match std::fs::read(path) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| cannot_read(path, &error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot_read(path, &error)),
    }
}

fn token_limit(directory: &Path) -> Result<usize, EngineError> {
    let path = directory.join("sentence_bert_config.json");
    let Some(json) = read_optional_json(&path)? else {
        return Ok(DEFAULT_MAX_TOKENS);
    };
    json.get("max_seq_length")
        .and_then(serde_json::Value::as_u64)
        .and_then(|limit| usize::try_from(limit).ok())
        .ok_or_else(|| cannot_read(&path, &"it states no max_seq_length"))
}

fn check_pooling(directory: &Path) -> Result<(), EngineError> {
    let path = directory.join("1_Pooling").join("config.json");
    let Some(json) = read_optional_json(&path)? else {
        return Ok(());
    };
    match json.get("pooling_mode_mean_tokens") {
        Some(serde_json::Value::Bool(true)) => Ok(()),
        _ => Err(cannot_read(&path, &"only mean pooling is supported")),
    }
}
