//! Changing an item.

use super::ingest::embed_text;
use super::{Asked, Knowledge};
use crate::domain::{ProjectName, UpdateParams};
use crate::embedder::Lane;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::reader::Within;
use crate::writer::{PreparedUpdate, Updated};

impl Knowledge {
    /// Changes an item; a new text is embedded. Gives what was changed and the commit.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] over a limit, [`KnowledgeError::NotFound`]; those of the readers and the
    /// embedder, of which nothing was written; those of the writer.
    pub async fn update(
        &self,
        project: &ProjectName,
        change: UpdateParams,
        asked: &Asked,
    ) -> KnowledgeResult<(Updated, i64)> {
        if let Some(text) = &change.text {
            self.limits.check_text(text)?;
        }
        if let Some(metadata) = &change.metadata {
            self.limits.check_metadata(metadata)?;
        }
        let routes = self.routes();
        let writer = routes.writer()?;
        // Before the embedding, which is the expensive part. The writer looks again when it is its turn, and says so if
        // somebody has changed the text.
        let item = Within {
            wanted: vec![change.id.clone()],
            max_answer_bytes: usize::MAX, // It is not sent.
        };
        let found = routes.readers.get(project.clone(), item, asked.deadline).await;
        let found = found.map_err(KnowledgeError::unwritten)?;
        let Some(current) = found.found.items.first() else {
            return Err(KnowledgeError::NotFound {
                id: change.id,
                degraded: found.degraded,
            });
        };
        let embed = async |text: &str| {
            let embedded = embed_text(routes.embedder()?, text, Lane::Interactive, asked).await;
            embedded.map_err(KnowledgeError::unwritten)
        };
        let passages = match &change.text {
            Some(text) if *text != current.item.text => Some(embed(text).await?),
            _ => None,
        };
        let mut update = PreparedUpdate { change, passages };
        let (mut updated, mut version) = writer.update(project.clone(), update.clone(), asked.deadline).await?;
        if let (None, Some(text)) = (&updated, &update.change.text) {
            // Somebody has changed the text. With its own passages the update fits any.
            update.passages = Some(embed(text).await?);
            (updated, version) = writer.update(project.clone(), update, asked.deadline).await?;
        }
        match updated {
            Some(updated) => Ok((updated, version)),
            None => Err(KnowledgeError::internal("an update with its passages was not made")),
        }
    }
}
