//! `knowledge.store` and `knowledge.store_batch`: check, split into passages, embed, write.

use std::sync::Arc;

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::{NewItem, now_ms};
use ccod_actors::embedder::{EmbedderHandle, Lane};
use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::store::table::rows::EmbeddedPassage;
use ccod_actors::writer::{ItemOutcome, PreparedItem};
use ccod_protocol::api::{self, BatchItem, BatchItemError, StoreStatus};
use ccod_protocol::error::WireError;
use futures::future::join_all;
use serde_json::Value;

use super::{App, Call, Failure, convert, unwritten};
use crate::config::ItemsConfig;

/// Longest text whose store the writer may hold a group open for: some four passages.
const ANNOUNCED_BYTES: usize = 4 * 1024;

/// Stores one item.
pub(crate) async fn store(app: Arc<App>, call: Call<api::Store>) -> Result<api::StoreResult, Failure> {
    let (project, deadline, origin) = (call.project(), call.deadline(), call.origin());
    let item = new_item(call.params, &app.config.items)?;
    let routes = app.routes();
    let writer = routes.writer()?;
    let embedder = routes.embedder()?;
    // A single store rides the interactive lane: the writer's groups form of what is embedded together. A text
    // that takes long to embed is not waited for, and the embedder takes a large one as bulk work.
    let announced = (item.content.text.len() <= ANNOUNCED_BYTES).then(|| writer.announce(&project));
    let prepared = prepare(embedder, item, Lane::Interactive, deadline, origin)
        .await
        .map_err(unwritten)?;
    let reply = writer
        .store(project.clone(), vec![prepared], announced, deadline)
        .await?;
    let version = convert::version(reply.version);
    let outcome = reply
        .items
        .into_iter()
        .next()
        .ok_or_else(|| WireError::internal("the writer gave no answer for the item"))??;
    Ok(api::StoreResult {
        id: outcome.id,
        project_id: project.to_string(),
        status: if outcome.duplicate {
            StoreStatus::Duplicate
        } else {
            StoreStatus::Stored
        },
        timestamp: ccod_actors::domain::format_time(outcome.timestamp),
        passages: outcome.passages,
        redactions: Vec::new(),
        version,
        durability: app.store.config().durability,
    })
}

/// Stores many items; those that fail are told apart, the others are stored.
pub(crate) async fn store_batch(app: Arc<App>, call: Call<api::StoreBatch>) -> Result<api::StoreBatchResult, Failure> {
    let (project, deadline, origin) = (call.project(), call.deadline(), call.origin());
    let items = call.params.items;
    let most = app.config.items.store_batch_max as usize;
    if items.len() > most {
        return Err(WireError::invalid_params(
            "items",
            format!(
                "`items` must be at most {most} items, this list has {}; send it in parts",
                items.len()
            ),
        )
        .into());
    }
    let routes = app.routes();
    let writer = routes.writer()?;
    let embedder = routes.embedder()?;

    let count = items.len();
    let prepared = join_all(items.into_iter().map(|item| async {
        let params = match item {
            BatchItem::Valid(params) => *params,
            BatchItem::Invalid(error) => return Err(Failure::from(error)),
        };
        let item = new_item(params, &app.config.items)?;
        Ok(prepare(embedder, item, Lane::Bulk, deadline, origin).await?)
    }))
    .await;

    let mut outcomes: Vec<Result<ItemOutcome, Failure>> = Vec::with_capacity(count);
    let mut places = Vec::with_capacity(count);
    let mut writable = Vec::with_capacity(count);
    for (index, item) in prepared.into_iter().enumerate() {
        match item {
            Ok(item) => {
                places.push(index);
                writable.push(item);
                // Replaced below by what became of it.
                outcomes.push(Err(WireError::outcome_unknown().into()));
            }
            Err(error) => outcomes.push(Err(error)),
        }
    }
    let mut version = 0;
    if !writable.is_empty() {
        match writer.store(project.clone(), writable, None, deadline).await {
            Ok(reply) => {
                version = convert::version(reply.version);
                for (index, item) in places.into_iter().zip(reply.items) {
                    outcomes[index] = item.map_err(Failure::from);
                }
            }
            // Nothing is known of any of them: the whole request failed, and says so.
            Err(error) => return Err(error.into()),
        }
    }
    // The items have their outcomes by now: that the version cannot be told must not replace them.
    if version == 0
        && let Ok(Some(view)) = app.store.view(&project).await
    {
        version = convert::version(view.sequence());
    }

    let mut result = api::StoreBatchResult {
        ids: Vec::with_capacity(count),
        stored: 0,
        duplicates: 0,
        failed: 0,
        errors: Vec::new(),
        version,
        durability: app.store.config().durability,
    };
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(outcome) => {
                if outcome.duplicate {
                    result.duplicates += 1;
                } else {
                    result.stored += 1;
                }
                result.ids.push(Some(outcome.id));
            }
            Err(failure) => {
                let error = WireError::from(failure);
                result.failed += 1;
                result.ids.push(None);
                result.errors.push(BatchItemError {
                    index,
                    code: error.code,
                    message: error.message,
                });
            }
        }
    }
    Ok(result)
}

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
