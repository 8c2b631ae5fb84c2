//! Which projects there are.

use super::Knowledge;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};

impl Knowledge {
    /// Whether there is a project of this name, be it that it cannot be read.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for a name that differs from that of an existing project in case only.
    pub async fn exists(&self, project: &ProjectName) -> KnowledgeResult<bool> {
        match self.store.view(project).await {
            // A directory is there: what is the matter with it is for its user to tell.
            Ok(None) => Ok(self.store.config().knowledge_dir.join(project.as_str()).exists()),
            Err(error @ KnowledgeError::InvalidParameter { .. }) => {
                // A project out of reach, on a disk that is not mounted, is there.
                let not_served = self.store.not_served().await;
                let is_left = not_served
                    .iter()
                    .any(|left| left.is_project && left.project == project.as_str());
                if is_left { Ok(true) } else { Err(error) }
            }
            // One that cannot be opened is there.
            Ok(Some(_)) | Err(_) => Ok(true),
        }
    }
}
