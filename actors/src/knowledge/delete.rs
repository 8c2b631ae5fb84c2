//! Deleting, bringing back, and removing for good.

use super::{Asked, Knowledge};
use crate::clock::believed_now;
use crate::domain::{Deletion, ProjectName};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::ProjectView;
use crate::writer::{self, DeleteTarget, UndeleteTarget};

/// What a delete has done.
#[derive(Debug, Default)]
pub struct Deleted {
    /// The items, and what brings them back.
    pub items: writer::Deleted,
    /// The commit; 0 where nothing was ever stored.
    pub version: i64,
    /// What of the project could not be read when it began, if something could not.
    pub degraded: Option<String>,
}

/// What is to be brought back.
#[derive(Debug)]
pub enum Undelete {
    /// All that a delete has deleted. The token names its project, so the caller need not.
    Token {
        /// The undo token.
        token: String,
        /// The project that the caller has named.
        project: Option<ProjectName>,
    },
    /// These items.
    Ids {
        /// Their ids.
        ids: Vec<String>,
        /// Their project.
        project: ProjectName,
    },
}

/// What was brought back.
#[derive(Debug, Default)]
pub struct Undeleted {
    /// The items.
    pub items: writer::Undeleted,
    /// The commit; 0 where nothing was ever stored.
    pub version: i64,
    /// What of the project could not be read when it began, if something could not.
    pub degraded: Option<String>,
}

/// What was removed for good.
#[derive(Debug, Default)]
pub struct Purged {
    /// The items.
    pub ids: Vec<String>,
    /// What of the project could not be read or was left as it is, if something was.
    pub degraded: Option<String>,
}

impl Knowledge {
    /// Deletes items. An error has the undo token where the delete may have happened.
    ///
    /// # Errors
    /// Those of the store, of which nothing was written; those of the writer.
    pub async fn delete(&self, project: &ProjectName, target: DeleteTarget, asked: &Asked) -> KnowledgeResult<Deleted> {
        // A project comes to be with its first store, not with a delete.
        let Some(view) = self.view(project).await? else {
            return Ok(Deleted::default());
        };
        let degraded = view.degraded();
        drop(view);
        let routes = self.routes();
        let writer = routes.writer()?;
        let (items, version) = writer
            .delete(project.clone(), target, asked.deadline, &asked.cancelled)
            .await?;
        Ok(Deleted {
            items,
            version,
            degraded,
        })
    }

    /// Brings deleted items back.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for a token that is none or of another project than the one named,
    /// [`KnowledgeError::Expired`] for one whose deletion is not kept; those of the store and the writer.
    pub async fn undelete(&self, undelete: Undelete, asked: &Asked) -> KnowledgeResult<Undeleted> {
        let (project, target) = match undelete {
            Undelete::Ids { ids, project } => (project, UndeleteTarget::Ids(ids)),
            Undelete::Token { token, project } => {
                let deletion = Deletion::parse(&token)?;
                if project.is_some_and(|named| named != deletion.project) {
                    return Err(KnowledgeError::invalid(
                        "undo_token",
                        format!(
                            "`undo_token` is of project {}; leave `project_id` out",
                            deletion.project
                        ),
                    ));
                }
                if believed_now() - deletion.at > self.store.config().retention {
                    return Err(expired());
                }
                (deletion.project.clone(), UndeleteTarget::Deletion(deletion))
            }
        };
        let Some(view) = self.view(&project).await? else {
            return Ok(Undeleted::default());
        };
        if let UndeleteTarget::Deletion(deletion) = &target {
            self.check_kept(deletion, &view)?;
        }
        let degraded = view.degraded();
        drop(view);
        let routes = self.routes();
        let writer = routes.writer()?;
        let (items, version) = writer.undelete(project, target, asked.deadline).await?;
        Ok(Undeleted {
            items,
            version,
            degraded,
        })
    }

    /// Refuses a deletion of which nothing is kept.
    fn check_kept(&self, deletion: &Deletion, view: &ProjectView) -> KnowledgeResult<()> {
        let horizon = view.horizon().map_err(KnowledgeError::unwritten)?;
        if horizon.is_some_and(|horizon| deletion.last <= horizon.sequence) {
            return Err(expired());
        }
        let lineage = self.store.lineage(&deletion.project)?;
        if lineage.epoch > 0 && deletion.sequence <= lineage.sequence {
            // What it deleted was in the project that a restore has moved aside.
            return Err(expired());
        }
        Ok(())
    }

    /// Removes every trace of items.
    ///
    /// # Errors
    /// Those of the store, of which nothing was written; those of the writer.
    pub async fn purge(&self, project: &ProjectName, ids: Vec<String>, asked: &Asked) -> KnowledgeResult<Purged> {
        let Some(view) = self.view(project).await? else {
            return Ok(Purged::default());
        };
        let mut degraded = view.degraded();
        drop(view);
        let routes = self.routes();
        let writer = routes.writer()?;
        let purged = writer.purge(project.clone(), ids, asked.deadline).await;
        // A query may have quoted what is gone now, and its vector shows much of it.
        if let Ok(embedder) = routes.embedder() {
            embedder.shared().cache().clear();
        }
        let purged = purged?;
        if purged.is_empty()
            && let Some(place) = self.store.set_aside(project).await?
        {
            let aside = format!(
                "{} is left as it is, for nothing was purged; it may hold what was taken out of the project before: \
                 remove it if it may hold what is to go",
                place.display()
            );
            degraded = Some(match degraded {
                Some(reason) => format!("{reason}; {aside}"),
                None => aside,
            });
        }
        Ok(Purged { ids: purged, degraded })
    }

    /// The view before a write; none where nothing was ever stored.
    async fn view(&self, project: &ProjectName) -> KnowledgeResult<Option<std::sync::Arc<ProjectView>>> {
        self.store.view(project).await.map_err(KnowledgeError::unwritten)
    }
}

fn expired() -> KnowledgeError {
    KnowledgeError::Expired {
        what: "the undo token".to_owned(),
    }
}
