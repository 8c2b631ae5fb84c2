//! Storing: one item, or many at once.

use ccod_words::StoreParams;
use futures::future::join_all;

use super::ingest::prepare;
use super::{Asked, Knowledge};
use crate::domain::ProjectName;
use crate::embedder::Lane;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::writer::ItemOutcome;

/// Longest text whose store the writer may hold a group open for: some four passages.
const EXPECTED_BYTES: usize = 4 * 1024;

/// What became of the items of a batch.
#[derive(Debug)]
pub struct StoredBatch<E> {
    /// One for each item, in their order.
    pub items: Vec<Result<ItemOutcome, E>>,
    /// The commit with which what succeeded can be read; 0 where nothing was ever stored.
    pub version: i64,
}

impl Knowledge {
    /// Stores one item. Gives what became of it and the commit.
    ///
    /// # Errors
    /// As [`Self::new_item`]; those of the embedder, of which nothing was written; those of the writer.
    pub async fn store(
        &self,
        project: &ProjectName,
        item: StoreParams,
        asked: &Asked,
    ) -> KnowledgeResult<(ItemOutcome, i64)> {
        let item = self.new_item(item)?;
        let routes = self.routes();
        let writer = routes.writer()?;
        let embedder = routes.embedder()?;
        // A single store rides the interactive lane: the writer's groups form of what is embedded together. A text
        // that takes long to embed is not waited for, and the embedder takes a large one as bulk work.
        let incoming = (item.content.text.len() <= EXPECTED_BYTES).then(|| writer.expect_store(project));
        let prepared = prepare(embedder, item, Lane::Interactive, asked)
            .await
            .map_err(KnowledgeError::unwritten)?;
        let reply = writer
            .store(project.clone(), vec![prepared], incoming, asked.deadline)
            .await?;
        match reply.items.into_iter().next() {
            Some(outcome) => Ok((outcome?, reply.version)),
            None => Err(KnowledgeError::internal("the writer gave no answer for the item")),
        }
    }

    /// Stores many items in one commit; each that fails has an error of its own, the others are stored. An item that was
    /// refused before may stand among them, as its error.
    ///
    /// # Errors
    /// Those that concern all of them: nothing is known of any then, beyond what the error says.
    pub async fn store_batch<E: From<KnowledgeError>>(
        &self,
        project: &ProjectName,
        items: Vec<Result<StoreParams, E>>,
        asked: &Asked,
    ) -> KnowledgeResult<StoredBatch<E>> {
        let most = self.limits.max_batch;
        if items.len() > most {
            return Err(KnowledgeError::invalid(
                "items",
                format!(
                    "`items` must be at most {most} items, this list has {}; send it in parts",
                    items.len()
                ),
            ));
        }
        let routes = self.routes();
        let writer = routes.writer()?;
        let embedder = routes.embedder()?;
        let prepared = join_all(items.into_iter().map(|item| async {
            let item = self.new_item(item?)?;
            Ok(prepare(embedder, item, Lane::Bulk, asked).await?)
        }))
        .await;

        let mut outcomes: Vec<Result<ItemOutcome, E>> = Vec::with_capacity(prepared.len());
        let (mut places, mut writable) = (Vec::new(), Vec::new());
        for (index, item) in prepared.into_iter().enumerate() {
            outcomes.push(match item {
                Ok(item) => {
                    places.push(index);
                    writable.push(item);
                    // Replaced below by what became of it.
                    Err(KnowledgeError::OutcomeUnknown.into())
                }
                Err(error) => Err(error),
            });
        }
        let mut version = 0;
        if !writable.is_empty() {
            let reply = writer.store(project.clone(), writable, None, asked.deadline).await?;
            version = reply.version;
            for (index, item) in places.into_iter().zip(reply.items) {
                outcomes[index] = item.map_err(E::from);
            }
        }
        // The items have their outcomes by now: that the version cannot be told must not replace them.
        if version == 0
            && let Ok(Some(view)) = self.store.view(project).await
        {
            version = view.sequence();
        }
        Ok(StoredBatch {
            items: outcomes,
            version,
        })
    }
}
