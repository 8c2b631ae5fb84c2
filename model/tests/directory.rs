//! Models in a directory.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use ccod_model::ModelCell;

#[test]
fn a_model_in_a_directory_can_be_run() {
    let directory = tempfile::tempdir().unwrap();
    write_tiny_model(directory.path());
    let cell = ModelCell::from_directory(directory.path()).unwrap();
    assert_eq!(cell.dimensions(), 32);
    assert_eq!(cell.max_tokens(), 128);
    let (name, hash) = cell.identity().rsplit_once('@').unwrap();
    assert_eq!(name, directory.path().file_name().unwrap().to_string_lossy());
    assert_eq!(hash.len(), 12);
    let tokenizer = cell.tokenizer().unwrap();
    let text = tokenizer.encode_query(&"word ".repeat(500));
    assert_eq!(text.len(), 128);
    let mut engine = cell.build_engine().unwrap();
    let vectors = engine.embed(&[&text]).unwrap();
    assert_eq!(vectors[0].len(), 32);
    assert!(cell.load_time().is_some());

    std::fs::write(directory.path().join("config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
    assert!(ModelCell::from_directory(directory.path()).is_err());
}

/// One layer of small, regular weights.
fn write_tiny_model(directory: &std::path::Path) {
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu",
        "max_position_embeddings": 128, "type_vocab_size": 2, "layer_norm_eps": 1e-12
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    std::fs::write(
        directory.join("tokenizer.json"),
        include_bytes!("../bundled/tokenizer.json"),
    )
    .unwrap();
    let mut tensors = HashMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|index| ((index * 37 % 101) as f32 - 50.0) / 100.0)
            .collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        // Some checkpoints have this prefix.
        tensors.insert(format!("bert.{name}"), tensor);
    };
    add("embeddings.word_embeddings.weight", &[30522, 32]);
    add("embeddings.position_embeddings.weight", &[128, 32]);
    add("embeddings.token_type_embeddings.weight", &[2, 32]);
    let layer = "encoder.layer.0";
    for (name, output, input) in [
        ("attention.self.query", 32, 32),
        ("attention.self.key", 32, 32),
        ("attention.self.value", 32, 32),
        ("attention.output.dense", 32, 32),
        ("intermediate.dense", 64, 32),
        ("output.dense", 32, 64),
    ] {
        add(&format!("{layer}.{name}.weight"), &[output, input]);
        add(&format!("{layer}.{name}.bias"), &[output]);
    }
    for name in [
        "embeddings.LayerNorm".to_owned(),
        format!("{layer}.attention.output.LayerNorm"),
        format!("{layer}.output.LayerNorm"),
    ] {
        add(&format!("{name}.weight"), &[32]);
        add(&format!("{name}.bias"), &[32]);
    }
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
}
