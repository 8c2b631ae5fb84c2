//! Measures how well vectors retrieve, as nDCG@10 of cosine similarity alone on the Cranfield collection
//! (`benches/data/cranfield`), how close they are to those of another model or precision, and whether the two mix.
//!
//! `cargo run --release -p ccod-model --example eval_retrieval -- COLLECTION_DIRECTORY MODEL_DIRECTORY[@int8]...`
//!
//! The first model is the reference of the comparison. A model directory holds either `weights.gguf` with
//! `config.json` and `tokenizer.json` (the output of `bundle_model`, `model/bundled`) or the original
//! `model.safetensors`. With `@int8` the 8-bit engine runs it, else the exact one.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use ccod_model::EmbedEngine;
use ccod_model::config::BertConfig;
use ccod_model::exact::{BertEngine, BertModel};
use ccod_model::int8::{Int8Engine, Int8Model};
use ccod_model::tokenize::{TextTokenizer, TokenizedText};
use ccod_model::weights::Weights;

const MAX_TOKENS: usize = 256;
const DEPTH: usize = 10;
/// Tokens per forward pass.
const BATCH_TOKENS: usize = 512;

struct Collection {
    documents: Vec<(String, String)>,
    queries: Vec<(String, String)>,
    /// Graded relevance by query, then document.
    judgements: HashMap<String, HashMap<String, f64>>,
}

/// What a model made of the collection.
struct Vectors {
    documents: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [collection, models @ ..] = arguments.as_slice() else {
        return Err("usage: eval_retrieval COLLECTION_DIRECTORY MODEL_DIRECTORY[@int8]...".into());
    };
    let collection = read_collection(Path::new(collection))?;
    let mut reference: Option<(f64, Vectors)> = None;
    for model in models {
        let start = Instant::now();
        let (tokenizer, mut engine) = load(model)?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        let documents = embed(&tokenizer, engine.as_mut(), &collection.documents)?;
        let documents_per_second = documents.len() as f64 / start.elapsed().as_secs_f64();
        let queries = embed(&tokenizer, engine.as_mut(), &collection.queries)?;
        let vectors = Vectors { documents, queries };
        let score = ndcg(&collection, &vectors.documents, &vectors.queries);
        println!("{model}: nDCG@{DEPTH} {score:.5}, load {load_ms:.0} ms, {documents_per_second:.1} documents/s");
        match &reference {
            None => reference = Some((score, vectors)),
            Some((reference_score, reference)) => {
                compare(&collection, (score, &vectors), (*reference_score, reference))
            }
        }
    }
    Ok(())
}

fn compare(collection: &Collection, (score, own): (f64, &Vectors), (reference_score, reference): (f64, &Vectors)) {
    let pairs = own.documents.iter().chain(&own.queries);
    let cosines: Vec<f64> = pairs
        .zip(reference.documents.iter().chain(&reference.queries))
        .map(|(left, right)| dot(left, right))
        .collect();
    println!(
        "    against the first: {:+.3} % nDCG, cosine at least {:.6}, in the mean {:.6}",
        (score / reference_score - 1.0) * 100.0,
        cosines.iter().copied().fold(f64::INFINITY, f64::min),
        cosines.iter().sum::<f64>() / cosines.len() as f64,
    );
    println!(
        "    mixed: its queries over the first's documents {:.5}, the first's queries over its documents {:.5}",
        ndcg(collection, &reference.documents, &own.queries),
        ndcg(collection, &own.documents, &reference.queries),
    );
}

fn load(model: &str) -> Result<(TextTokenizer, Box<dyn EmbedEngine>), Box<dyn Error>> {
    let (directory, is_int8) = match model.strip_suffix("@int8") {
        Some(directory) => (Path::new(directory), true),
        None => (Path::new(model), false),
    };
    let config = BertConfig::parse(&fs::read_to_string(directory.join("config.json"))?)?;
    let tokenizer = TextTokenizer::from_json(&fs::read(directory.join("tokenizer.json"))?, MAX_TOKENS)?;
    let gguf = directory.join("weights.gguf");
    let weights = if gguf.exists() {
        // Lives as long as the program, as the bundled file does.
        Weights::from_gguf(fs::read(gguf)?.leak(), &Device::Cpu)?
    } else {
        Weights::from_safetensors(&directory.join("model.safetensors"), &Device::Cpu)?
    };
    let name = model.to_owned();
    let engine: Box<dyn EmbedEngine> = if is_int8 {
        Box::new(Int8Engine::new(
            Arc::new(Int8Model::load(config, &weights)?),
            name,
            MAX_TOKENS,
        ))
    } else {
        let model = BertModel::load(config, &weights, &Device::Cpu)?;
        Box::new(BertEngine::new(Arc::new(model), name, MAX_TOKENS))
    };
    Ok((tokenizer, engine))
}

fn embed(
    tokenizer: &TextTokenizer,
    engine: &mut dyn EmbedEngine,
    texts: &[(String, String)],
) -> Result<Vec<Vec<f32>>, Box<dyn Error>> {
    let tokens: Vec<_> = texts.iter().map(|(_, text)| tokenizer.encode_query(text)).collect();
    let mut vectors = Vec::with_capacity(tokens.len());
    let mut rest = tokens.as_slice();
    while !rest.is_empty() {
        let mut sum = 0;
        let fitting = rest
            .iter()
            .take_while(|text| {
                sum += text.len();
                sum <= BATCH_TOKENS
            })
            .count()
            .max(1);
        let batch: Vec<&TokenizedText> = rest[..fitting].iter().collect();
        vectors.extend(engine.embed(&batch)?);
        rest = &rest[fitting..];
    }
    Ok(vectors)
}

fn read_collection(directory: &Path) -> Result<Collection, Box<dyn Error>> {
    let lines = |name: &str| -> Result<Vec<(String, String)>, Box<dyn Error>> {
        let mut texts = Vec::new();
        for line in fs::read_to_string(directory.join(name))?.lines() {
            let json: serde_json::Value = serde_json::from_str(line)?;
            let field = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
            texts.push((field("id"), field("text")));
        }
        Ok(texts)
    };
    let mut judgements: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for line in fs::read_to_string(directory.join("qrels.tsv"))?.lines().skip(1) {
        let [query, document, relevance] = *line.split('\t').collect::<Vec<_>>() else {
            return Err(format!("qrels.tsv: {line}").into());
        };
        judgements
            .entry(query.to_owned())
            .or_default()
            .insert(document.to_owned(), relevance.parse()?);
    }
    Ok(Collection {
        documents: lines("corpus.jsonl")?,
        queries: lines("queries.jsonl")?,
        judgements,
    })
}

fn dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Mean nDCG over the queries with a relevant document; the vectors are of unit length.
fn ndcg(collection: &Collection, documents: &[Vec<f32>], queries: &[Vec<f32>]) -> f64 {
    let gain = |relevances: &[f64]| -> f64 {
        relevances
            .iter()
            .take(DEPTH)
            .enumerate()
            .map(|(rank, relevance)| relevance / (rank as f64 + 2.0).log2())
            .sum()
    };
    let mut scores = Vec::new();
    for ((id, _), query) in collection.queries.iter().zip(queries) {
        let Some(judged) = collection.judgements.get(id) else {
            continue;
        };
        let mut ideal: Vec<f64> = judged.values().copied().collect();
        ideal.sort_by(|left, right| right.total_cmp(left));
        let best = gain(&ideal);
        if best == 0.0 {
            continue;
        }
        let mut ranked: Vec<(f64, &str)> = documents
            .iter()
            .zip(&collection.documents)
            .map(|(vector, (document, _))| (dot(query, vector), document.as_str()))
            .collect();
        ranked.sort_by(|left, right| right.0.total_cmp(&left.0));
        let found: Vec<f64> = ranked
            .iter()
            .take(DEPTH)
            .map(|(_, document)| judged.get(*document).copied().unwrap_or(0.0))
            .collect();
        scores.push(gain(&found) / best);
    }
    scores.iter().sum::<f64>() / scores.len() as f64
}
