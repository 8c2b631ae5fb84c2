//! Makes the model file that is part of the executable from the original weights, always the same bytes.
//!
//! `cargo run --example bundle_model -- MODEL_DIRECTORY OUTPUT_DIRECTORY [--format q8_0|f16|f32]`
//!
//! MODEL_DIRECTORY holds `model.safetensors`, `config.json` and `tokenizer.json` as published
//! (`packaging/model/bundle.sh` fetches them). The hash of the original weights is checked. Written are
//! `weights.gguf`, `config.json`, `tokenizer.json` and `bundle.json`, which records the hashes.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

/// Name of the model, the first half of its identity.
const NAME: &str = "all-MiniLM-L6-v2";
/// SHA-256 of `model.safetensors` as sentence-transformers published it.
const ORIGINAL_SHA256: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";
/// Token limit that the model was trained for (its `sentence_bert_config.json`).
const MAX_TOKENS: usize = 256;
/// Parts of the checkpoint that a sentence vector does not need.
const UNUSED: [&str; 3] = ["embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"];
/// Values per block of the quantised format; a matrix whose rows are no multiple of it stays float32.
const BLOCK_VALUES: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (input, output, format) = match arguments.as_slice() {
        [input, output] => (input, output, "q8_0"),
        [input, output, flag, format] if flag == "--format" => (input, output, format.as_str()),
        _ => return Err("usage: bundle_model MODEL_DIRECTORY OUTPUT_DIRECTORY [--format q8_0|f16|f32]".into()),
    };
    let matrix_type = match format {
        "q8_0" => GgmlDType::Q8_0,
        "f16" => GgmlDType::F16,
        "f32" => GgmlDType::F32,
        other => return Err(format!("unknown format {other}; q8_0, f16 and f32 exist").into()),
    };
    bundle(Path::new(input), &PathBuf::from(output), matrix_type)
}

fn bundle(input: &Path, output: &Path, matrix_type: GgmlDType) -> Result<(), Box<dyn Error>> {
    let original = fs::read(input.join("model.safetensors"))?;
    let hash = hex_sha256(&original);
    if hash != ORIGINAL_SHA256 {
        return Err(format!("model.safetensors has SHA-256 {hash}, not {ORIGINAL_SHA256}").into());
    }
    // Sorted by name, so that the file does not depend on a hash map's order.
    let tensors: BTreeMap<String, Tensor> = candle_core::safetensors::load_buffer(&original, &Device::Cpu)?
        .into_iter()
        .filter(|(name, _)| !UNUSED.contains(&name.as_str()))
        .collect();
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in &tensors {
        let is_matrix = tensor.rank() == 2 && tensor.dim(1)?.is_multiple_of(BLOCK_VALUES);
        let dtype = if is_matrix { matrix_type } else { GgmlDType::F32 };
        stored.push((name.as_str(), QTensor::quantize(tensor, dtype)?));
    }
    let text = |value: &str| gguf_file::Value::String(value.to_owned());
    let metadata = [
        ("general.architecture", text("bert")),
        ("general.name", text(NAME)),
        ("general.license", text("apache-2.0")),
        (
            "general.source.url",
            text("https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2"),
        ),
        ("general.source.sha256", text(ORIGINAL_SHA256)),
    ];
    let metadata: Vec<(&str, &gguf_file::Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = stored.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut file = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut file, &metadata, &tensors)?;
    let weights = file.into_inner();

    fs::create_dir_all(output)?;
    fs::write(output.join("weights.gguf"), &weights)?;
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(input.join(name), output.join(name))?;
    }
    let manifest = serde_json::json!({
        "name": NAME,
        "max_tokens": MAX_TOKENS,
        "format": format!("{matrix_type:?}").to_lowercase(),
        "original_sha256": ORIGINAL_SHA256,
        "weights_sha256": hex_sha256(&weights),
    });
    let manifest = serde_json::to_string_pretty(&manifest)? + "\n";
    fs::write(output.join("bundle.json"), &manifest)?;
    println!("{} bytes\n{manifest}", weights.len());
    Ok(())
}

fn hex_sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
