//! The deep health check: a real write, search and delete, in a project of its own that no caller can name.

use std::time::Duration;

use super::ingest::prepare;
use super::{Asked, Knowledge};
use crate::deadline::Deadline;
use crate::domain::{
    Content, Filter, KnowledgeType, NewItem, OnDuplicate, ProjectName, SearchMode, now_ms, probe_project,
};
use crate::embedder::Lane;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::reader::Projects;
use crate::store::view::SearchRequest;

/// Time for one try to remove the project of a probe whose caller has left.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two such tries: the writer may be restarting.
const REMOVAL_PAUSE: Duration = Duration::from_millis(500);
/// Tries after which the project is left to the next start.
const REMOVAL_TRIES: usize = 20;

impl Knowledge {
    /// Stores an item through the whole daemon, finds it, and removes it.
    ///
    /// # Errors
    /// That of the first step that failed.
    pub async fn probe(&self, asked: &Asked) -> KnowledgeResult<()> {
        let project = ProbeProject::new(self);
        let tried = self.store_and_find(&project.name, asked).await;
        let removed = project.remove(asked.deadline).await;
        tried.and(removed)
    }

    async fn store_and_find(&self, project: &ProjectName, asked: &Asked) -> KnowledgeResult<()> {
        let routes = self.routes();
        let (writer, embedder) = (routes.writer()?, routes.embedder()?);
        let text = format!("health probe {project}: the quick brown fox jumps over the lazy dog");
        let item = NewItem {
            content: Content {
                text: text.clone(),
                knowledge_type: KnowledgeType::System,
                agent: Some("ccod".to_owned()),
                ..Content::default()
            },
            id: None,
            idempotency_key: None,
            on_duplicate: OnDuplicate::Store,
            timestamp: now_ms(),
            updated_at: None,
        };
        let prepared = prepare(embedder, item, Lane::Interactive, asked).await?;
        let reply = writer
            .store(project.clone(), vec![prepared], None, asked.deadline)
            .await?;
        let stored = match reply.items.into_iter().next() {
            Some(item) => item?,
            None => return Err(KnowledgeError::internal("the writer gave no answer")),
        };
        let request = SearchRequest {
            vector: Some(embedder.embed_query(&text, asked.deadline, asked.origin).await?),
            query: text,
            mode: SearchMode::Hybrid,
            filter: Filter::default(),
            limit: 1,
            offset: 0,
            threshold: None,
            min_similarity: 0.0,
            at: None,
            except: None,
            text_budget: None,
            max_answer_bytes: usize::MAX,
            keywords_ahead: None,
        };
        let projects = Projects::Named(vec![project.clone()]);
        let found = routes.readers.search(projects, request, asked.deadline).await?;
        if found.hits.first().is_some_and(|hit| hit.stored.item.id == stored.id) {
            Ok(())
        } else {
            Err(KnowledgeError::internal("what was stored was not found"))
        }
    }

    async fn remove_probe(&self, name: &ProjectName, deadline: Deadline) -> KnowledgeResult<()> {
        self.routes().writer()?.drop_own_project(name.clone(), deadline).await
    }
}

/// The project of one probe. Removed in any case: by [`ProbeProject::remove`], or behind the back of a caller who has
/// left before that.
struct ProbeProject {
    knowledge: Knowledge,
    name: ProjectName,
    removed: bool,
}

impl ProbeProject {
    fn new(knowledge: &Knowledge) -> Self {
        Self {
            knowledge: knowledge.clone(),
            name: probe_project(),
            removed: false,
        }
    }

    async fn remove(mut self, deadline: Deadline) -> KnowledgeResult<()> {
        self.knowledge.remove_probe(&self.name, deadline).await?;
        self.removed = true;
        Ok(())
    }
}

impl Drop for ProbeProject {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let (knowledge, name) = (self.knowledge.clone(), self.name.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            for _ in 0..REMOVAL_TRIES {
                let stopping = knowledge.routes().stopping;
                if stopping
                    || knowledge
                        .remove_probe(&name, Deadline::after(REMOVAL_TIMEOUT))
                        .await
                        .is_ok()
                {
                    return; // What a stopping daemon leaves goes at the next start.
                }
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
        });
    }
}
