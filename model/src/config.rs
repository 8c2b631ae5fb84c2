//! The configuration of a BERT-family checkpoint.

use serde::Deserialize;

use crate::error::EngineError;

/// What `config.json` of a BERT-family checkpoint says; fields that inference does not need are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct BertConfig {
    /// Architecture, `bert` for all that this module can run.
    pub model_type: String,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden state, and of the sentence vector.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads per layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Activation of the feed-forward layer; `gelu` (the exact one, with erf) is supported.
    pub hidden_act: String,
    /// Positions that have an embedding: the architecture's own token limit.
    pub max_position_embeddings: usize,
    /// Segment embeddings; the first one is used.
    pub type_vocab_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Kind of position embedding; `absolute` is supported.
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
}

fn absolute() -> String {
    "absolute".to_owned()
}

impl BertConfig {
    /// Parses `config.json` and refuses what this module can't run.
    pub fn parse(json: &str) -> Result<Self, EngineError> {
        let config: Self =
            serde_json::from_str(json).map_err(|error| EngineError::Load(format!("config.json: {error}")))?;
        let refusal = if config.model_type != "bert" {
            Some(format!("model_type is {}, not bert", config.model_type))
        } else if config.hidden_act != "gelu" {
            Some(format!("hidden_act is {}, not gelu", config.hidden_act))
        } else if config.position_embedding_type != "absolute" {
            Some(format!(
                "position_embedding_type is {}, not absolute",
                config.position_embedding_type
            ))
        } else if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            Some("hidden_size is not a multiple of num_attention_heads".to_owned())
        } else {
            None
        };
        match refusal {
            Some(reason) => Err(EngineError::Load(format!("config.json: {reason}"))),
            None => Ok(config),
        }
    }
}
