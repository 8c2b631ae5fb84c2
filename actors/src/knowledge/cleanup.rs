//! Deleting what is old, and freeing what can be freed.

use std::collections::BTreeMap;

use super::delete::Deleted;
use super::{Asked, Knowledge};
use crate::domain::{Filter, ProjectName};
use crate::error::KnowledgeResult;
use crate::writer::DeleteTarget;

/// What a cleanup has done.
#[derive(Debug)]
pub struct Cleaned {
    /// What it has deleted.
    pub deleted: Deleted,
    /// What is freed on disk, in bytes.
    pub freed_bytes: u64,
    /// Why nothing could be freed, and what to do, if so.
    pub warning: Option<String>,
}

/// What the upkeep of a project has done.
#[derive(Debug)]
pub struct Reclaimed {
    /// What it has freed on disk, in bytes.
    pub freed_bytes: u64,
    /// How often it has taken which step.
    pub steps: BTreeMap<String, u64>,
}

impl Knowledge {
    /// Deletes what matches, then frees what can be freed. Once something is deleted, the answer says so, whatever becomes
    /// of the rest.
    ///
    /// # Errors
    /// As [`Self::delete`].
    pub async fn clean_up(&self, project: &ProjectName, filter: Filter, asked: &Asked) -> KnowledgeResult<Cleaned> {
        let deleted = self.delete(project, DeleteTarget::Matching(filter), asked).await?;
        let reclaimed = tokio::select! {
            biased;
            reclaimed = self.reclaim(project, asked) => reclaimed.map_err(|error| error.to_string()),
            () = asked.cancelled.cancelled() => Err("the call was cancelled".to_owned()),
            () = tokio::time::sleep(asked.deadline.remaining()) => Err("the deadline passed".to_owned()),
        };
        let (freed_bytes, warning) = match reclaimed {
            Ok(reclaimed) => (reclaimed.freed_bytes, None),
            Err(reason) => {
                tracing::warn!(%project, %reason, "a cleanup has deleted and could not free the space");
                let what = if deleted.items.ids.is_empty() {
                    "there was nothing to delete, and space"
                } else {
                    "the items are deleted, but their space"
                };
                let warning = format!(
                    "{what} could not be freed now ({reason}); upkeep frees it in time, and admin.optimize at once"
                );
                (0, Some(warning))
            }
        };
        Ok(Cleaned {
            deleted,
            freed_bytes,
            warning,
        })
    }

    /// Runs all the upkeep of one project.
    ///
    /// # Errors
    /// Those of the writer and the store.
    pub async fn reclaim(&self, project: &ProjectName, asked: &Asked) -> KnowledgeResult<Reclaimed> {
        let before = self.bytes_on_disk(project).await?;
        let routes = self.routes();
        let steps = routes.writer()?.optimize(project.clone(), asked.deadline).await?;
        let after = self.bytes_on_disk(project).await?;
        Ok(Reclaimed {
            freed_bytes: before.saturating_sub(after),
            steps,
        })
    }

    async fn bytes_on_disk(&self, project: &ProjectName) -> KnowledgeResult<u64> {
        let projects = self.store.projects();
        match projects.iter().find(|known| known.name() == project) {
            Some(known) => known.bytes_on_disk().await,
            None => Ok(0),
        }
    }
}
