//! The first step of an encoder: what a token is, and where it stands.

use crate::config::BertConfig;
use crate::error::EngineError;
use crate::kernels::NormWeights;
use crate::weights::{EmbeddingTable, Weights};

/// The embeddings of a checkpoint.
pub(crate) struct Embeddings {
    words: EmbeddingTable,
    /// Position plus segment-zero embeddings, `[positions, hidden]`, row-major: what each position adds.
    positions: Vec<f32>,
    max_positions: usize,
    /// The norm that follows their sum.
    pub(crate) norm: NormWeights,
}

impl Embeddings {
    pub(crate) fn load(weights: &Weights, config: &BertConfig) -> Result<Self, EngineError> {
        let hidden = config.hidden_size;
        let segments = weights.tensor(
            "embeddings.token_type_embeddings.weight",
            &[config.type_vocab_size, hidden],
        )?;
        let positions = weights.tensor(
            "embeddings.position_embeddings.weight",
            &[config.max_position_embeddings, hidden],
        )?;
        Ok(Self {
            words: weights.table("embeddings.word_embeddings.weight", config.vocab_size, hidden)?,
            positions: positions
                .broadcast_add(&segments.narrow(0, 0, 1)?)?
                .flatten_all()?
                .to_vec1()?,
            max_positions: config.max_position_embeddings,
            norm: weights.norm("embeddings.LayerNorm", config)?,
        })
    }

    /// Appends the sums of the embeddings of `ids` to `out`, `[ids.len(), hidden]`. Errors when there are none, too
    /// many, or one outside the vocabulary.
    pub(crate) fn append(&self, ids: &[u32], out: &mut Vec<f32>) -> Result<(), EngineError> {
        if ids.is_empty() || ids.len() > self.max_positions {
            return Err(EngineError::Input(format!(
                "a text has {} tokens, this model takes 1 to {}",
                ids.len(),
                self.max_positions
            )));
        }
        for (id, added) in ids.iter().zip(self.positions.chunks_exact(self.words.width())) {
            let start = out.len();
            self.words.append_row(*id as usize, out)?;
            for (value, position_value) in out[start..].iter_mut().zip(added) {
                *value += position_value;
            }
        }
        Ok(())
    }
}
