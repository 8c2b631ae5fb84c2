//! Reading a project from its first item to its last.

use std::sync::Arc;

use tokio::sync::OwnedRwLockReadGuard;

use super::Knowledge;
use crate::domain::{ProjectName, StoredItem};
use crate::error::KnowledgeResult;
use crate::store::ProjectView;

/// Items that are read at once: at the largest size of a text, some tens of megabytes.
const ITEMS: usize = 32;

/// The live items of one version of a project, whatever is stored while they are read. In the order of their creation,
/// then of their ids.
pub struct Export {
    /// None for a project in which nothing was ever stored.
    view: Option<Arc<ProjectView>>,
    rows: Vec<u64>,
    read: usize,
    /// Keeps the files where they are.
    _turn: OwnedRwLockReadGuard<()>,
}

impl Knowledge {
    /// Begins to read a project.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn export(&self, project: &ProjectName) -> KnowledgeResult<Export> {
        let turn = self.store.reading_for_long().await;
        let view = self.store.view(project).await?;
        let rows = match &view {
            Some(view) => view.item_rows().await?,
            None => Vec::new(),
        };
        Ok(Export {
            view,
            rows,
            read: 0,
            _turn: turn,
        })
    }
}

impl Export {
    /// How many items there are.
    pub fn total(&self) -> u64 {
        self.rows.len() as u64
    }

    /// What of the project cannot be read, if something cannot.
    pub fn degraded(&self) -> Option<String> {
        self.view.as_ref().and_then(|view| view.degraded())
    }

    /// Some more items; none at the end.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn next(&mut self) -> KnowledgeResult<Vec<StoredItem>> {
        let Some(view) = &self.view else {
            return Ok(Vec::new());
        };
        let end = self.rows.len().min(self.read + ITEMS);
        let items = view.items_at(&self.rows[self.read..end]).await?;
        self.read = end;
        Ok(items)
    }
}
