//! What is done with an item on its way to the writer: it is checked, split and embedded. One stage, which everything
//! that stores a text goes through.

use ccod_words::StoreParams;
use serde_json::{Map, Value};

use super::{Asked, Knowledge};
use crate::domain::{NewItem, now_ms};
use crate::embedder::{EmbedderHandle, Lane};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::table::rows::EmbeddedPassage;
use crate::writer::PreparedItem;

/// What an item may be, and an answer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a text.
    pub max_text_bytes: u64,
    /// Bytes of the metadata as JSON.
    pub max_metadata_bytes: u64,
    /// Items that are stored, or texts that are embedded, in one call.
    pub max_batch: usize,
    /// Bytes of an answer as JSON: what is read for one stops where it would be more.
    pub max_answer_bytes: usize,
    /// Cosine below which a result of a search by meaning alone is none.
    pub min_similarity: f32,
}

impl Limits {
    /// Refuses a text over the limit.
    pub(super) fn check_text(&self, text: &str) -> KnowledgeResult<()> {
        let bytes = text.len() as u64;
        if bytes > self.max_text_bytes {
            return Err(KnowledgeError::invalid(
                "text",
                format!(
                    "text must be at most {} bytes, this one has {bytes}; store it in parts",
                    self.max_text_bytes
                ),
            ));
        }
        Ok(())
    }

    /// Refuses metadata over the limit.
    pub(super) fn check_metadata(&self, metadata: &Map<String, Value>) -> KnowledgeResult<()> {
        let bytes = serde_json::to_string(metadata).map_or(u64::MAX, |json| json.len() as u64);
        if bytes > self.max_metadata_bytes {
            return Err(KnowledgeError::invalid(
                "metadata",
                format!(
                    "metadata must be at most {} bytes as JSON, this one has {bytes}",
                    self.max_metadata_bytes
                ),
            ));
        }
        Ok(())
    }
}

impl Knowledge {
    /// Checks an item against the limits. It is of now.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`].
    pub fn new_item(&self, mut params: StoreParams) -> KnowledgeResult<NewItem> {
        self.limits.check_text(&params.text)?;
        self.limits.check_metadata(&params.metadata)?;
        Ok(NewItem {
            id: params.id.take(),
            idempotency_key: params.idempotency_key.take(),
            on_duplicate: params.on_duplicate,
            content: params.into_content(),
            timestamp: now_ms(),
            updated_at: None,
        })
    }
}

/// Splits an item into passages and embeds them.
pub(super) async fn prepare(
    embedder: &EmbedderHandle,
    item: NewItem,
    lane: Lane,
    asked: &Asked,
) -> KnowledgeResult<PreparedItem> {
    let passages = embed_text(embedder, &item.content.text, lane, asked).await?;
    Ok(PreparedItem {
        content_hash: item.content_hash(),
        item,
        passages,
    })
}

/// Splits a text into passages and embeds them.
pub(super) async fn embed_text(
    embedder: &EmbedderHandle,
    text: &str,
    lane: Lane,
    asked: &Asked,
) -> KnowledgeResult<Vec<EmbeddedPassage>> {
    let passages = embedder.passages(text, lane, asked.origin).await?;
    let tokens = passages.iter().map(|passage| passage.tokens.clone()).collect();
    let vectors = embedder
        .embed_passages(tokens, lane, asked.deadline, asked.origin)
        .await?;
    Ok(passages
        .into_iter()
        .zip(vectors)
        .map(|(passage, vector)| EmbeddedPassage {
            start: passage.start,
            end: passage.end,
            text: text[passage.bytes.clone()].to_owned(),
            vector,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_limit_is_the_last_that_passes() {
        let limits = Limits {
            max_text_bytes: 4,
            max_metadata_bytes: 9,
            max_batch: 1,
            max_answer_bytes: 1,
            min_similarity: 0.0,
        };
        assert!(limits.check_text("four").is_ok());
        // Bytes, not characters.
        assert!(limits.check_text("drei\u{e4}").is_err() && limits.check_text("dr\u{e4}i").is_err());
        let metadata = |value: Value| value.as_object().cloned().unwrap();
        assert!(limits.check_metadata(&metadata(json!({"a": "b"}))).is_ok());
        assert!(limits.check_metadata(&metadata(json!({"a": "bc"}))).is_err());
    }
}
