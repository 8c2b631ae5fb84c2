//! The bundled model against vectors of its reference implementation.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use candle_core::Device;
use ccod_model::config::BertConfig;
use ccod_model::exact::BertModel;
use ccod_model::int8::{Int8Engine, Int8Model};
use ccod_model::tokenize::TokenizedText;
use ccod_model::weights::Weights;
use ccod_model::{EngineError, ModelCell};
use sha2::Digest;

fn bundled() -> &'static ModelCell {
    static CELL: OnceLock<ModelCell> = OnceLock::new();
    CELL.get_or_init(|| ModelCell::bundled().expect("the bundled model is readable"))
}

fn bundled_files() -> (BertConfig, Weights) {
    let config = BertConfig::parse(include_str!("../bundled/config.json")).expect("the bundled configuration is valid");
    let weights = Weights::from_gguf(include_bytes!("../bundled/weights.gguf"), &Device::Cpu)
        .expect("the bundled weights are readable");
    (config, weights)
}

fn bundled_bert() -> &'static BertModel {
    static MODEL: OnceLock<BertModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        let (config, weights) = bundled_files();
        BertModel::load(config, &weights, &Device::Cpu).expect("the bundled weights are complete")
    })
}

fn int8_engine() -> Int8Engine {
    static MODEL: OnceLock<Arc<Int8Model>> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let (config, weights) = bundled_files();
        Arc::new(Int8Model::load(config, &weights).expect("the bundled weights are complete"))
    });
    Int8Engine::new(Arc::clone(model), "bundled".to_owned(), 256)
}

struct Golden {
    text: String,
    expected: Vec<f32>,
    tokens: TokenizedText,
}

/// Reference vectors by sentence-transformers on PyTorch, float32, one text at a time.
fn golden() -> Vec<Golden> {
    let json: serde_json::Value =
        serde_json::from_str(include_str!("data/golden_minilm.json")).expect("the reference vectors are valid JSON");
    let tokenizer = bundled().tokenizer().expect("the tokenizer loads");
    let items = json["items"].as_array().expect("a list of items");
    items
        .iter()
        .map(|item| {
            let text = item["text"].as_str().expect("a text").to_owned();
            Golden {
                tokens: tokenizer.encode_query(&text),
                expected: serde_json::from_value(item["embedding"].clone()).expect("a vector"),
                text,
            }
        })
        .collect()
}

fn cosine(left: &[f32], right: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(left, right) / (dot(left, left) * dot(right, right)).sqrt()
}

fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn embed_alone(tokens: &TokenizedText) -> Vec<f32> {
    let mut vectors = bundled_bert().embed(&[tokens.ids()]).expect("it embeds");
    vectors.remove(0)
}

#[test]
fn the_bundled_files_belong_together() {
    let manifest: serde_json::Value = serde_json::from_str(include_str!("../bundled/bundle.json")).unwrap();
    let weights = include_bytes!("../bundled/weights.gguf");
    let hash = format!("{:x}", sha2::Sha256::digest(weights));
    assert_eq!(manifest["weights_sha256"], hash.as_str());
    assert_eq!(bundled().identity(), format!("all-MiniLM-L6-v2@{}", &hash[..12]));
    assert_eq!(bundled().dimensions(), 384);
    assert_eq!(bundled().max_tokens(), 256);
}

#[test]
fn every_reference_vector_is_met_alone() {
    for item in golden() {
        let vector = embed_alone(&item.tokens);
        let similarity = cosine(&vector, &item.expected);
        assert!(similarity > 0.999, "{similarity} for {:?}", item.text);
        let norm = cosine(&vector, &vector) * vector.iter().map(|x| x * x).sum::<f32>();
        assert!((norm - 1.0).abs() < 1e-5, "length {norm} for {:?}", item.text);
    }
}

#[test]
fn every_reference_vector_is_met_inside_any_batch() {
    let items = golden();
    let alone: Vec<Vec<f32>> = items.iter().map(|item| embed_alone(&item.tokens)).collect();
    // Strides put neighbours of every length side by side: one token and two hundred in one batch.
    for (batch_size, stride) in [(2, 1), (7, 5), (32, 9)] {
        let order: Vec<usize> = (0..items.len())
            .map(|position| position * stride % items.len())
            .collect();
        assert_eq!(order.iter().collect::<HashSet<_>>().len(), items.len());
        for batch in order.chunks(batch_size) {
            let ids: Vec<&[u32]> = batch.iter().map(|item| items[*item].tokens.ids()).collect();
            let packed = bundled_bert().embed_packed(&ids).unwrap();
            for (item, vector) in batch.iter().zip(&packed) {
                assert!(cosine(vector, &items[*item].expected) > 0.999);
                assert!(largest_difference(vector, &alone[*item]) < 1e-4);
            }
        }
    }
}

#[test]
fn the_padded_way_agrees_with_the_packed_way() {
    let items = golden();
    // Short and long ones together, so that most of the batch is padding.
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|item| items[*item].tokens.len());
    let batch: Vec<usize> = order
        .iter()
        .take(4)
        .chain(order.iter().rev().take(4))
        .copied()
        .collect();
    let ids: Vec<&[u32]> = batch.iter().map(|item| items[*item].tokens.ids()).collect();
    let padded = bundled_bert().embed_padded(&ids).unwrap();
    for (item, vector) in batch.iter().zip(&padded) {
        assert!(cosine(vector, &items[*item].expected) > 0.999);
        let alone = embed_alone(&items[*item].tokens);
        assert!(largest_difference(vector, &alone) < 1e-4);
        // A batch of one takes the way without a mask.
        let single = bundled_bert().embed_padded(&[items[*item].tokens.ids()]).unwrap();
        assert!(largest_difference(&single[0], &alone) < 1e-4);
    }
}

#[test]
fn ids_outside_the_vocabulary_and_too_many_tokens_are_errors() {
    for ids in [&[101u32, 40_000, 102] as &[u32], &[101u32; 600], &[]] {
        assert!(matches!(bundled_bert().embed(&[ids]), Err(EngineError::Input(_))));
    }
    assert!(bundled_bert().embed(&[]).unwrap().is_empty());
}

#[test]
fn eight_bits_meet_every_reference_vector_alone() {
    let mut engine = int8_engine();
    let mut sum = 0.0;
    let items = golden();
    for item in &items {
        let vector = engine.embed_ids(&[&item.tokens]).unwrap().remove(0);
        let similarity = cosine(&vector, &item.expected);
        assert!(similarity > 0.99, "{similarity} for {:?}", item.text);
        sum += similarity;
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    let mean = sum / items.len() as f32;
    assert!(mean > 0.995, "{mean}");
}

#[test]
fn eight_bits_give_the_same_vector_in_any_batch() {
    let items = golden();
    let mut engine = int8_engine();
    let alone: Vec<Vec<f32>> = items
        .iter()
        .map(|item| engine.embed_ids(&[&item.tokens]).unwrap().remove(0))
        .collect();
    for (batch_size, stride) in [(2, 1), (7, 5), (32, 9)] {
        let order: Vec<usize> = (0..items.len())
            .map(|position| position * stride % items.len())
            .collect();
        for batch in order.chunks(batch_size) {
            let texts: Vec<&TokenizedText> = batch.iter().map(|item| &items[*item].tokens).collect();
            for (item, vector) in batch.iter().zip(engine.embed_ids(&texts).unwrap()) {
                assert!(largest_difference(&vector, &alone[*item]) < 1e-6);
            }
        }
    }
}

#[test]
fn eight_bits_refuse_what_the_exact_engine_refuses() {
    let mut engine = int8_engine();
    for ids in [&[101u32, 40_000, 102] as &[u32], &[101u32; 600], &[]] {
        assert!(matches!(engine.embed_ids(&[ids]), Err(EngineError::Input(_))));
    }
    assert!(engine.embed_ids::<&[u32]>(&[]).unwrap().is_empty());
    // And go on after it.
    assert_eq!(engine.embed_ids(&[[101u32, 102]]).unwrap().len(), 1);
}
