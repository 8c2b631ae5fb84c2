//! Reading the weights of a model: the bundled GGUF file from memory, or `model.safetensors` from a directory.
//!
//! Both end as float32 tensors. The bundled file keeps its matrices in Q8_0 (blocks of 32 values that share
//! one f16 scale), which costs a quarter of the space; they are expanded once, at load. The word embeddings,
//! half of the model, are only ever looked up by row, so they stay in their stored form and the rows that a
//! text needs are expanded as it is embedded ([`EmbeddingTable`]).

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;

use candle_core::quantized::{GgmlDType, gguf_file};
use candle_core::{Device, Tensor};
use half::f16;

use crate::config::BertConfig;
use crate::error::EngineError;
use crate::kernels::NormWeights;

/// Values per Q8_0 block; fixed by the format.
const Q8_0_BLOCK_VALUES: usize = 32;
/// Bytes per Q8_0 block: one little-endian f16 scale, then 32 signed bytes.
const Q8_0_BLOCK_BYTES: usize = 34;

/// A matrix that is read by row.
#[derive(Debug)]
pub struct EmbeddingTable {
    rows: usize,
    width: usize,
    storage: RowStorage,
}

#[derive(Debug)]
enum RowStorage {
    /// Little-endian float32, row after row.
    Full(Vec<f32>),
    /// Q8_0 blocks, row after row.
    Blocks(Cow<'static, [u8]>),
}

impl EmbeddingTable {
    fn from_tensor(tensor: &Tensor) -> Result<Self, EngineError> {
        let (rows, width) = tensor.dims2()?;
        Ok(Self {
            rows,
            width,
            storage: RowStorage::Full(tensor.flatten_all()?.to_vec1::<f32>()?),
        })
    }

    /// Number of rows (the vocabulary's size).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Appends row `row` to `out`. Errors when there is no such row.
    pub fn append_row(&self, row: usize, out: &mut Vec<f32>) -> Result<(), EngineError> {
        if row >= self.rows {
            return Err(EngineError::Input(format!(
                "token {row} is outside the vocabulary of {} tokens",
                self.rows
            )));
        }
        match &self.storage {
            RowStorage::Full(values) => {
                out.extend_from_slice(&values[row * self.width..(row + 1) * self.width]);
            }
            RowStorage::Blocks(bytes) => {
                let row_bytes = self.width / Q8_0_BLOCK_VALUES * Q8_0_BLOCK_BYTES;
                let blocks = &bytes[row * row_bytes..(row + 1) * row_bytes];
                for block in blocks.chunks_exact(Q8_0_BLOCK_BYTES) {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    out.extend(block[2..].iter().map(|byte| f32::from(*byte as i8) * scale));
                }
            }
        }
        Ok(())
    }
}

/// Named tensors of one model, by the names that BERT checkpoints use (`encoder.layer.0...`).
pub struct Weights {
    source: Source,
    device: Device,
}

enum Source {
    Gguf {
        content: gguf_file::Content,
        bytes: &'static [u8],
    },
    Tensors(HashMap<String, Tensor>),
}

impl Weights {
    /// Reads a GGUF file that is part of the executable. Only the header is parsed here.
    pub fn from_gguf(bytes: &'static [u8], device: &Device) -> Result<Self, EngineError> {
        let content = gguf_file::Content::read(&mut Cursor::new(bytes))?;
        Ok(Self {
            source: Source::Gguf { content, bytes },
            device: device.clone(),
        })
    }

    /// Reads a `model.safetensors` file. Tensors of other float types are widened to float32.
    pub fn from_safetensors(path: &Path, device: &Device) -> Result<Self, EngineError> {
        Ok(Self {
            source: Source::Tensors(candle_core::safetensors::load(path, device)?),
            device: device.clone(),
        })
    }

    /// The tensor `name` as float32, checked to have `shape`. A leading `bert.`, which some checkpoints have,
    /// is tolerated.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let tensor = match &self.source {
            Source::Gguf { content, bytes } => content
                .tensor(&mut Cursor::new(*bytes), name, &self.device)?
                .dequantize(&self.device)?,
            Source::Tensors(tensors) => tensors
                .get(name)
                .or_else(|| tensors.get(&format!("bert.{name}")))
                .ok_or_else(|| EngineError::Load(format!("the weights have no tensor {name}")))?
                .to_dtype(candle_core::DType::F32)?,
        };
        if tensor.dims() != shape {
            return Err(EngineError::Load(format!(
                "tensor {name} has shape {:?}, the configuration asks for {shape:?}",
                tensor.dims()
            )));
        }
        Ok(tensor.contiguous()?)
    }

    /// The layer norm `name`, over the hidden state.
    pub(crate) fn norm(&self, name: &str, config: &BertConfig) -> Result<NormWeights, EngineError> {
        let shape = [config.hidden_size];
        Ok(NormWeights {
            gamma: self.tensor(&format!("{name}.weight"), &shape)?.to_vec1()?,
            beta: self.tensor(&format!("{name}.bias"), &shape)?.to_vec1()?,
            epsilon: config.layer_norm_eps as f32,
        })
    }

    /// The matrix `name` of `rows` x `width`, for reading by row.
    pub fn table(&self, name: &str, rows: usize, width: usize) -> Result<EmbeddingTable, EngineError> {
        if let Source::Gguf { content, bytes } = &self.source
            && let Some(info) = content.tensor_infos.get(name)
            && info.ggml_dtype == GgmlDType::Q8_0
            && info.shape.dims() == [rows, width]
            && width.is_multiple_of(Q8_0_BLOCK_VALUES)
        {
            let start = content.tensor_data_offset as usize + info.offset as usize;
            let length = rows * width / Q8_0_BLOCK_VALUES * Q8_0_BLOCK_BYTES;
            let blocks = bytes
                .get(start..start + length)
                .ok_or_else(|| EngineError::Load(format!("the weights end inside tensor {name}")))?;
            return Ok(EmbeddingTable {
                rows,
                width,
                storage: RowStorage::Blocks(Cow::Borrowed(blocks)),
            });
        }
        EmbeddingTable::from_tensor(&self.tensor(name, &[rows, width])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_scales_expand_exactly() {
        let expanded = |bits: u16| {
            let mut block = vec![1; Q8_0_BLOCK_BYTES];
            block[..2].copy_from_slice(&bits.to_le_bytes());
            let table = EmbeddingTable {
                rows: 1,
                width: Q8_0_BLOCK_VALUES,
                storage: RowStorage::Blocks(block.into()),
            };
            let mut out = Vec::new();
            table.append_row(0, &mut out).unwrap();
            assert_eq!(out.len(), Q8_0_BLOCK_VALUES);
            out[0]
        };
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 2f32.powi(-14)),
            (0x0001, 2f32.powi(-24)),
            (0x8001, -(2f32.powi(-24))),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(expanded(bits), value, "{bits:#06x}");
        }
        assert!(expanded(0x7c00).is_infinite());
        assert!(expanded(0x7e00).is_nan());
    }

    #[test]
    fn a_row_outside_the_table_is_an_error_of_the_input() {
        let table = EmbeddingTable {
            rows: 1,
            width: 2,
            storage: RowStorage::Full(vec![1.0, 2.0]),
        };
        let mut out = Vec::new();
        table.append_row(0, &mut out).unwrap();
        assert_eq!(out, [1.0, 2.0]);
        assert!(matches!(table.append_row(1, &mut out), Err(EngineError::Input(_))));
    }
}
