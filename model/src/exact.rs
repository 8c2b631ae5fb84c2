//! The forward pass of a BERT-family encoder, up to the unit sentence vector.
//!
//! There are two ways through the same layers, and tests hold them to each other:
//!
//! * **Packed** (the CPU's): the tokens of all texts lie one after another in a matrix of
//!   `[tokens, hidden]`. Everything but attention works on single tokens, so nothing is padded, and attention
//!   runs text by text, so no mask exists and no text can see another.
//! * **Padded** (for devices that want large uniform tensors): `[texts, longest, hidden]` with an additive mask
//!   of `[texts, 1, 1, longest]` that attention broadcasts; a batch of one has no mask.
//!
//! All arithmetic is float32. Inference needs none of dropout, pooler or gradients, so none is here.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use candle_nn::{LayerNorm, Module};

use crate::config::BertConfig;
use crate::embeddings::Embeddings;
use crate::engine::EmbedEngine;
use crate::error::EngineError;
use crate::kernels::{self, AddNormOp, BiasGeluOp, NormWeights, PackedAttention};
use crate::pooling;
use crate::tokenize::TokenizedText;
use crate::weights::Weights;

/// `x W^T + b`; the weight lies as `[out, in]`, as checkpoints have it.
struct Linear {
    weight: Tensor,
    bias: Tensor,
    /// The bias again, for the fused kernels.
    bias_values: Vec<f32>,
}

impl Linear {
    fn load(weights: &Weights, name: &str, input: usize, output: usize) -> Result<Self, EngineError> {
        Self::new(
            weights.tensor(&format!("{name}.weight"), &[output, input])?,
            weights.tensor(&format!("{name}.bias"), &[output])?,
        )
    }

    fn new(weight: Tensor, bias: Tensor) -> Result<Self, EngineError> {
        Ok(Self {
            bias_values: bias.to_vec1()?,
            weight,
            bias,
        })
    }

    /// One matrix for several that read the same input: one large product is faster than three small ones.
    fn fuse(parts: &[Self]) -> Result<Self, EngineError> {
        let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<&Tensor> = parts.iter().map(|part| &part.bias).collect();
        Self::new(Tensor::cat(&weights, 0)?, Tensor::cat(&biases, 0)?)
    }

    /// `input` is `[rows, in]`, the result `[rows, out]`.
    fn forward(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        self.product(input)?.broadcast_add(&self.bias)
    }

    /// The same without the bias, which the fused kernels add as they go.
    fn product(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        input.matmul(&self.weight.t()?)
    }
}

/// A layer norm, once as candle has it and once for the fused kernels.
struct Norm {
    layer: LayerNorm,
    weights: NormWeights,
}

impl Norm {
    fn new(weights: NormWeights, device: &Device) -> Result<Self, EngineError> {
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
        Ok(Self {
            layer: LayerNorm::new(
                tensor(&weights.gamma)?,
                tensor(&weights.beta)?,
                f64::from(weights.epsilon),
            ),
            weights,
        })
    }
}

struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

/// A loaded encoder. Immutable, so one copy serves every engine, behind an `Arc`.
pub struct BertModel {
    config: BertConfig,
    device: Device,
    embeddings: Embeddings,
    /// The embeddings' norm as candle has it.
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
}

impl BertModel {
    /// Builds the encoder that `config` describes from `weights`, on `device`.
    pub fn load(config: BertConfig, weights: &Weights, device: &Device) -> Result<Self, EngineError> {
        let hidden = config.hidden_size;
        let norm = |name: &str| Norm::new(weights.norm(name, &config)?, device);
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            let project = |part: &str| Linear::load(weights, &name(part), hidden, hidden);
            layers.push(Layer {
                query_key_value: Linear::fuse(&[
                    project("attention.self.query")?,
                    project("attention.self.key")?,
                    project("attention.self.value")?,
                ])?,
                attention_output: project("attention.output.dense")?,
                attention_norm: norm(&name("attention.output.LayerNorm"))?,
                intermediate: Linear::load(weights, &name("intermediate.dense"), hidden, config.intermediate_size)?,
                output: Linear::load(weights, &name("output.dense"), config.intermediate_size, hidden)?,
                output_norm: norm(&name("output.LayerNorm"))?,
            });
        }
        Ok(Self {
            embeddings: Embeddings::load(weights, &config)?,
            embedding_norm: norm("embeddings.LayerNorm")?.layer,
            config,
            device: device.clone(),
            layers,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Unit vectors of `texts`, each given by its token ids (special tokens included), in their order. Picks the
    /// way that suits the device.
    pub fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        if self.device.is_cpu() {
            self.embed_packed(texts)
        } else {
            self.embed_padded(texts)
        }
    }

    /// The packed way: no padding, no masks, fused kernels. For the CPU.
    pub fn embed_packed(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let hidden = self.config.hidden_size;
        let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
        let tokens: usize = lengths.iter().sum();
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let mut embedded = Vec::with_capacity(tokens * hidden);
        for ids in texts {
            self.embeddings.append(ids, &mut embedded)?;
        }
        kernels::normalize_rows(&mut embedded, &self.embeddings.norm);
        let mut state = Tensor::from_vec(embedded, (tokens, hidden), &self.device)?;
        for layer in &self.layers {
            let projected = layer.query_key_value.product(&state)?;
            let context = projected.apply_op1_no_bwd(&PackedAttention {
                lengths: &lengths,
                heads: self.config.num_attention_heads,
                bias: &layer.query_key_value.bias_values,
            })?;
            let attended = layer.attention_output.product(&context)?;
            attended.inplace_op2(
                &state,
                &AddNormOp {
                    bias: &layer.attention_output.bias_values,
                    norm: &layer.attention_norm.weights,
                },
            )?;
            let widened = layer.intermediate.product(&attended)?;
            widened.inplace_op1(&BiasGeluOp {
                bias: &layer.intermediate.bias_values,
            })?;
            state = layer.output.product(&widened)?;
            state.inplace_op2(
                &attended,
                &AddNormOp {
                    bias: &layer.output.bias_values,
                    norm: &layer.output_norm.weights,
                },
            )?;
        }
        Ok(pooling::mean_of_packed(
            &state.flatten_all()?.to_vec1()?,
            &lengths,
            hidden,
        ))
    }

    /// The padded way: one uniform tensor, with a mask unless the batch is of one.
    pub fn embed_padded(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        let hidden = self.config.hidden_size;
        let Some(longest) = texts.iter().map(|ids| ids.len()).max() else {
            return Ok(Vec::new());
        };
        let rows = texts.len() * longest;
        let mut embedded = Vec::with_capacity(rows * hidden);
        let mut present = Vec::with_capacity(rows);
        for ids in texts {
            self.embeddings.append(ids, &mut embedded)?;
            // The values of padding do not matter (the mask hides them) as long as they are finite.
            embedded.resize(embedded.len() + (longest - ids.len()) * hidden, 0.0);
            present.extend((0..longest).map(|position| if position < ids.len() { 1f32 } else { 0.0 }));
        }
        let embedded = Tensor::from_vec(embedded, (rows, hidden), &self.device)?;
        let present = Tensor::from_vec(present, (texts.len(), longest), &self.device)?;
        let mask = if texts.len() == 1 {
            None
        } else {
            // 0 where a token is, a number that no score outweighs where there is none.
            let hidden_score = f64::from(f32::MIN) / 2.0;
            let additive = present.affine(-hidden_score, hidden_score)?;
            Some(additive.reshape((texts.len(), 1, 1, longest))?)
        };
        let mut state = self.embedding_norm.forward(&embedded)?;
        for layer in &self.layers {
            let projected = layer
                .query_key_value
                .forward(&state)?
                .reshape((texts.len(), longest, 3 * hidden))?;
            let context = self.attend(&projected, mask.as_ref())?.reshape((rows, hidden))?;
            state = self.finish_layer(layer, &state, &context)?;
        }
        let state = state.reshape((texts.len(), longest, hidden))?;
        Ok(pooling::masked_mean(&state, &present)?.to_vec2()?)
    }

    /// Attention over `[texts, longest, 3 * hidden]` (queries, keys, values side by side) to
    /// `[texts, longest, hidden]`.
    fn attend(&self, projected: &Tensor, mask: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let heads = self.config.num_attention_heads;
        let hidden = self.config.hidden_size;
        let width = hidden / heads;
        let (texts, longest, _) = projected.dims3()?;
        // [texts, longest, 3, heads, width] -> [3, texts, heads, longest, width]
        let parts = projected
            .reshape((texts, longest, 3, heads, width))?
            .permute((2, 0, 3, 1, 4))?;
        let query = (parts.get(0)?.contiguous()? * (1.0 / (width as f64).sqrt()))?;
        let key = parts.get(1)?.contiguous()?;
        let value = parts.get(2)?.contiguous()?;
        let scores = query.matmul(&key.transpose(D::Minus1, D::Minus2)?)?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let shares = candle_nn::ops::softmax_last_dim(&scores)?;
        shares
            .matmul(&value)?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((texts, longest, hidden))
    }

    /// Everything of a layer that follows attention; all of `[rows, hidden]`.
    fn finish_layer(&self, layer: &Layer, state: &Tensor, context: &Tensor) -> candle_core::Result<Tensor> {
        let attended = layer.attention_output.forward(context)?;
        let state = layer.attention_norm.layer.forward(&(attended + state)?)?;
        let widened = layer.intermediate.forward(&state)?.gelu_erf()?;
        let narrowed = layer.output.forward(&widened)?;
        layer.output_norm.layer.forward(&(narrowed + state)?)
    }
}

/// The engine of this daemon: a BERT-family encoder on candle. Building one is free: the weights are shared.
pub struct BertEngine {
    model: Arc<BertModel>,
    identity: String,
    max_tokens: usize,
}

impl BertEngine {
    /// An engine on loaded weights.
    pub fn new(model: Arc<BertModel>, identity: String, max_tokens: usize) -> Self {
        Self {
            model,
            identity,
            max_tokens,
        }
    }
}

impl EmbedEngine for BertEngine {
    fn embed(&mut self, batch: &[&TokenizedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        let ids: Vec<&[u32]> = batch.iter().map(|text| text.ids()).collect();
        self.model.embed(&ids)
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn dimensions(&self) -> usize {
        self.model.config().hidden_size
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}
