//! A loaded encoder, and the engine that runs it.

use std::sync::Arc;

use super::matrix::{self, PackedMatrix};
use super::pass::Buffers;
use super::team::Team;
use crate::config::BertConfig;
use crate::embeddings::Embeddings;
use crate::engine::EmbedEngine;
use crate::error::EngineError;
use crate::kernels::NormWeights;
use crate::tokenize::TokenizedText;
use crate::weights::Weights;

/// The weights of one layer.
pub(super) struct Layer {
    pub(super) query_key_value: PackedMatrix,
    pub(super) attention_output: PackedMatrix,
    pub(super) attention_norm: NormWeights,
    pub(super) intermediate: PackedMatrix,
    pub(super) output: PackedMatrix,
    pub(super) output_norm: NormWeights,
}

/// A loaded encoder. Immutable, so one copy serves every engine, behind an `Arc`.
pub struct Int8Model {
    pub(super) config: BertConfig,
    pub(super) embeddings: Embeddings,
    pub(super) layers: Vec<Layer>,
    pub(super) team: Team,
}

impl Int8Model {
    /// Builds the encoder that `config` describes from `weights`, which stay on the CPU.
    pub fn load(config: BertConfig, weights: &Weights) -> Result<Self, EngineError> {
        Self::load_for(config, weights, matrix::largest_weight(), Team::new()?)
    }

    pub(super) fn load_for(
        config: BertConfig,
        weights: &Weights,
        largest_weight: f32,
        team: Team,
    ) -> Result<Self, EngineError> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            let matrix = |parts: &[&str], input, output| {
                let names: Vec<String> = parts.iter().map(|part| name(part)).collect();
                PackedMatrix::load(weights, &names, (input, output), largest_weight)
            };
            let query_key_value = ["attention.self.query", "attention.self.key", "attention.self.value"];
            layers.push(Layer {
                query_key_value: matrix(&query_key_value, hidden, hidden)?,
                attention_output: matrix(&["attention.output.dense"], hidden, hidden)?,
                attention_norm: weights.norm(&name("attention.output.LayerNorm"), &config)?,
                intermediate: matrix(&["intermediate.dense"], hidden, intermediate)?,
                output: matrix(&["output.dense"], intermediate, hidden)?,
                output_norm: weights.norm(&name("output.LayerNorm"), &config)?,
            });
        }
        Ok(Self {
            embeddings: Embeddings::load(weights, &config)?,
            config,
            layers,
            team,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }
}

/// The 8-bit engine: shared weights and buffers of its own.
pub struct Int8Engine {
    model: Arc<Int8Model>,
    buffers: Buffers,
    identity: String,
    max_tokens: usize,
}

impl Int8Engine {
    /// An engine on loaded weights.
    pub fn new(model: Arc<Int8Model>, identity: String, max_tokens: usize) -> Self {
        Self {
            model,
            buffers: Buffers::default(),
            identity,
            max_tokens,
        }
    }

    /// Unit vectors of `texts`, each given by its token ids (special tokens included), in their order.
    pub fn embed_ids<T: AsRef<[u32]>>(&mut self, texts: &[T]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.model.embed(texts, &mut self.buffers)
    }
}

impl EmbedEngine for Int8Engine {
    fn embed(&mut self, batch: &[&TokenizedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.embed_ids(batch)
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn dimensions(&self) -> usize {
        self.model.config.hidden_size
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::bundled;
    use crate::int8::matrix::LARGEST_WEIGHT_IN_PAIRS;
    use crate::loader::ModelCell;

    #[test]
    fn seven_bits_are_enough_where_products_are_summed_in_pairs() {
        let weights = Weights::from_gguf(bundled::WEIGHTS, &Device::Cpu).unwrap();
        let config = BertConfig::parse(bundled::CONFIG).unwrap();
        let model = Int8Model::load_for(config, &weights, LARGEST_WEIGHT_IN_PAIRS, Team::of(1).unwrap()).unwrap();
        let mut engine = Int8Engine::new(Arc::new(model), "seven bits".to_owned(), 256);
        let tokenizer = ModelCell::bundled().unwrap().tokenizer().unwrap();
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/golden_minilm.json")).unwrap();
        let items = golden["items"].as_array().unwrap();
        let mut sum = 0.0;
        for item in items {
            let expected: Vec<f32> = serde_json::from_value(item["embedding"].clone()).unwrap();
            let text = item["text"].as_str().unwrap();
            let tokens = tokenizer.encode_query(text);
            let vector = engine.embed(&[&tokens]).unwrap().remove(0);
            let similarity: f32 = vector.iter().zip(&expected).map(|(one, other)| one * other).sum();
            // A text of one token has nothing to even its errors out with.
            let least = if tokens.len() > 3 { 0.99 } else { 0.985 };
            assert!(similarity > least, "{similarity} for {text:?}");
            sum += similarity;
        }
        assert!(sum / items.len() as f32 > 0.995, "{}", sum / items.len() as f32);
    }
}
