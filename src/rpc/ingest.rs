//! What is done with an item on its way to the writer: it is checked, split and embedded.

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::{NewItem, now_ms};
use ccod_actors::embedder::{EmbedderHandle, Lane};
use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::store::table::rows::EmbeddedPassage;
use ccod_actors::writer::PreparedItem;
use ccod_protocol::api;
use serde_json::Value;

use crate::config::ItemsConfig;

/// Checks an item against the limits.
pub(crate) fn new_item(mut params: api::StoreParams, limits: &ItemsConfig) -> KnowledgeResult<NewItem> {
    check_text(&params.text, limits)?;
    check_metadata(&params.metadata, limits)?;
    Ok(NewItem {
        id: params.id.take(),
        idempotency_key: params.idempotency_key.take(),
        on_duplicate: params.on_duplicate,
        content: params.into_content(),
        timestamp: now_ms(),
        updated_at: None,
    })
}

/// Refuses a text over the limit.
pub(crate) fn check_text(text: &str, limits: &ItemsConfig) -> KnowledgeResult<()> {
    let bytes = text.len() as u64;
    if bytes > limits.max_text_bytes {
        return Err(KnowledgeError::invalid(
            "text",
            format!(
                "text must be at most {} bytes, this one has {bytes}; store it in parts",
                limits.max_text_bytes
            ),
        ));
    }
    Ok(())
}

/// Refuses metadata over the limit.
pub(crate) fn check_metadata(metadata: &serde_json::Map<String, Value>, limits: &ItemsConfig) -> KnowledgeResult<()> {
    let bytes = Value::Object(metadata.clone()).to_string().len() as u64;
    if bytes > limits.max_metadata_bytes {
        return Err(KnowledgeError::invalid(
            "metadata",
            format!(
                "metadata must be at most {} bytes as JSON, this one has {bytes}",
                limits.max_metadata_bytes
            ),
        ));
    }
    Ok(())
}

/// Splits an item into passages and embeds them.
pub(crate) async fn prepare(
    embedder: &EmbedderHandle,
    item: NewItem,
    lane: Lane,
    deadline: Deadline,
    origin: u64,
) -> KnowledgeResult<PreparedItem> {
    let passages = embed_text(embedder, &item.content.text, lane, deadline, origin).await?;
    Ok(PreparedItem {
        content_hash: item.content_hash(),
        item,
        passages,
    })
}

/// Splits a text into passages and embeds them.
pub(crate) async fn embed_text(
    embedder: &EmbedderHandle,
    text: &str,
    lane: Lane,
    deadline: Deadline,
    origin: u64,
) -> KnowledgeResult<Vec<EmbeddedPassage>> {
    let passages = embedder.passages(text, lane, origin).await?;
    let tokens = passages.iter().map(|passage| passage.tokens.clone()).collect();
    let vectors = embedder.embed_passages(tokens, lane, deadline, origin).await?;
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
