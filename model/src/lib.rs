//! From texts to vectors: sentence models of the BERT family, and one of them inside.
//!
//! Nothing here knows of stores, actors, queues or the wire. The parts, each of which may use those before it and none
//! of those after it:
//!
//! | part | what is in it |
//! |---|---|
//! | [`error`], `bundled` | what can go wrong; the files of the model inside the executable |
//! | [`config`], [`tokenize`], [`pooling`], `kernels` | what a checkpoint says; texts to tokens; tokens to one vector; fused operations for the CPU |
//! | [`weights`], `embeddings` | reading weights; the first step of an encoder |
//! | [`engine`] | what an engine is |
//! | [`exact`], [`int8`] | the engine on candle, in float32; the engine of 8-bit products, for CPUs |
//! | [`loader`] | which model is run, and keeping it once it is loaded |

mod bundled;
pub mod config;
mod embeddings;
pub mod engine;
pub mod error;
pub mod exact;
pub mod int8;
mod kernels;
pub mod loader;
pub mod pooling;
pub mod tokenize;
pub mod weights;

pub use engine::{EmbedEngine, Precision};
pub use error::EngineError;
pub use loader::{ModelCell, PrecisionChoice};

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    /// The parts in their order; those of one line don't use each other.
    const ORDER: [&[&str]; 7] = [
        &["error"],
        &["bundled"],
        &["config", "tokenize", "pooling", "kernels"],
        &["weights"],
        &["embeddings", "engine"],
        &["exact", "int8"],
        &["loader"],
    ];

    fn rank(part: &str) -> Option<usize> {
        ORDER.iter().position(|parts| parts.contains(&part))
    }

    fn files(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                files(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    #[test]
    fn no_part_uses_one_beside_or_after_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found = Vec::new();
        files(&root, &mut found);
        let mut uses = 0;
        let mut wrong = Vec::new();
        for path in found {
            let relative = path.strip_prefix(&root).unwrap().with_extension("");
            let own_part = relative.iter().next().unwrap().to_str().unwrap().to_owned();
            let Some(own) = rank(&own_part) else {
                assert_eq!(own_part, "lib", "{} is in no part", path.display());
                continue;
            };
            let text = std::fs::read_to_string(&path).unwrap();
            let production = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            for used in production.split("use crate::").skip(1) {
                let name = used.split([':', ';']).next().unwrap_or_default();
                uses += 1;
                if name != own_part && rank(name).is_none_or(|used| used >= own) {
                    wrong.push(format!("{} uses {name}", relative.display()));
                }
            }
        }
        assert!(uses > 25, "{uses}");
        assert_eq!(wrong, [""; 0]);
    }
}
