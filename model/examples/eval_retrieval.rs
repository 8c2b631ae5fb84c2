//! Measures how well a model's vectors retrieve, as nDCG@10 of cosine similarity alone on the Cranfield
//! collection (`benches/data/cranfield`), and how close they are to another model's.
//!
//! `cargo run --release --example eval_retrieval -- COLLECTION_DIRECTORY bundled|MODEL_DIRECTORY...`
//!
//! The first model is the reference of the comparison. A model directory holds either `weights.gguf` with
//! `config.json` and `tokenizer.json` (the output of `bundle_model`) or the original `model.safetensors`.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use ccod_model::config::BertConfig;
use ccod_model::exact::BertModel;
use ccod_model::tokenize::TextTokenizer;
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

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [collection, models @ ..] = arguments.as_slice() else {
        return Err("usage: eval_retrieval COLLECTION_DIRECTORY MODEL_DIRECTORY...".into());
    };
    let collection = read_collection(Path::new(collection))?;
    let mut reference: Option<(f64, Vec<Vec<f32>>)> = None;
    for model in models {
        let start = Instant::now();
        let embed = load(Path::new(model))?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        let mut vectors = embed(&collection.documents)?;
        let documents_per_second = vectors.len() as f64 / start.elapsed().as_secs_f64();
        let queries = embed(&collection.queries)?;
        let score = ndcg(&collection, &vectors, &queries);
        vectors.extend(queries);
        println!("{model}: nDCG@{DEPTH} {score:.5}, load {load_ms:.0} ms, {documents_per_second:.1} documents/s");
        match &reference {
            None => reference = Some((score, vectors)),
            Some((reference_score, reference_vectors)) => {
                let smallest_cosine = vectors
                    .iter()
                    .zip(reference_vectors)
                    .map(|(left, right)| dot(left, right))
                    .fold(f64::INFINITY, f64::min);
                println!(
                    "    against the first: {:+.3} % nDCG, smallest cosine {smallest_cosine:.6}",
                    (score / reference_score - 1.0) * 100.0
                );
            }
        }
    }
    Ok(())
}

type Embed = Box<dyn Fn(&[(String, String)]) -> Result<Vec<Vec<f32>>, Box<dyn Error>>>;

fn load(directory: &Path) -> Result<Embed, Box<dyn Error>> {
    let config = BertConfig::parse(&fs::read_to_string(directory.join("config.json"))?)?;
    let tokenizer = TextTokenizer::from_json(&fs::read(directory.join("tokenizer.json"))?, MAX_TOKENS)?;
    let gguf = directory.join("weights.gguf");
    let weights = if gguf.exists() {
        // Lives as long as the program, as the bundled file does.
        Weights::from_gguf(fs::read(gguf)?.leak(), &Device::Cpu)?
    } else {
        Weights::from_safetensors(&directory.join("model.safetensors"), &Device::Cpu)?
    };
    let model = BertModel::load(config, &weights, &Device::Cpu)?;
    Ok(Box::new(move |texts| {
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
            let ids: Vec<&[u32]> = rest[..fitting].iter().map(|text| text.ids()).collect();
            vectors.extend(model.embed(&ids)?);
            rest = &rest[fitting..];
        }
        Ok(vectors)
    }))
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
