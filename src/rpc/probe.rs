//! The deep health check: a real write, search and delete, in a project of its own that no caller can name.

use std::sync::Arc;
use std::time::Duration;

use ccod_actors::deadline::Deadline;
use ccod_actors::domain::{
    Content, Filter, KnowledgeType, NewItem, OnDuplicate, ProjectName, SearchMode, now_ms, probe_project,
};
use ccod_actors::embedder::Lane;
use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::reader::Projects;
use ccod_actors::store::view::SearchRequest;

use super::{App, ingest};

/// Time for one try to remove the project of a probe whose caller has left.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two such tries: the writer may be restarting.
const REMOVAL_PAUSE: Duration = Duration::from_millis(500);
/// Tries after which the project is left to the next start.
const REMOVAL_TRIES: usize = 20;

/// Stores an item through the whole daemon, finds it, and removes it.
pub(super) async fn probe(app: &Arc<App>, deadline: Deadline, origin: u64) -> KnowledgeResult<()> {
    let project = ProbeProject::new(app);
    let tried = store_and_find(app, &project.name, deadline, origin).await;
    let removed = project.remove(deadline).await;
    tried.and(removed)
}

async fn store_and_find(app: &App, project: &ProjectName, deadline: Deadline, origin: u64) -> KnowledgeResult<()> {
    let routes = app.routes();
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
    let prepared = ingest::prepare(embedder, item, Lane::Interactive, deadline, origin).await?;
    let reply = writer.store(project.clone(), vec![prepared], None, deadline).await?;
    let stored = match reply.items.into_iter().next() {
        Some(item) => item?,
        None => return Err(KnowledgeError::internal("the writer gave no answer")),
    };
    let request = SearchRequest {
        vector: Some(embedder.embed_query(&text, deadline, origin).await?),
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
    };
    let projects = Projects::Named(vec![project.clone()]);
    let found = routes.readers.search(projects, request, deadline).await?;
    if found.hits.first().is_some_and(|hit| hit.stored.item.id == stored.id) {
        Ok(())
    } else {
        Err(KnowledgeError::internal("what was stored was not found"))
    }
}

/// The project of one probe. Removed in any case: by [`ProbeProject::remove`], or behind the back of a caller who has
/// left before that.
struct ProbeProject {
    app: Arc<App>,
    name: ProjectName,
    removed: bool,
}

impl ProbeProject {
    fn new(app: &Arc<App>) -> Self {
        Self {
            app: Arc::clone(app),
            name: probe_project(),
            removed: false,
        }
    }

    async fn remove(mut self, deadline: Deadline) -> KnowledgeResult<()> {
        remove(&self.app, &self.name, deadline).await?;
        self.removed = true;
        Ok(())
    }
}

impl Drop for ProbeProject {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let (app, name) = (Arc::clone(&self.app), self.name.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            for _ in 0..REMOVAL_TRIES {
                if app.shutdown.is_cancelled() || remove(&app, &name, Deadline::after(REMOVAL_TIMEOUT)).await.is_ok() {
                    return; // What a stopping daemon leaves goes at the next start.
                }
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
        });
    }
}

async fn remove(app: &App, name: &ProjectName, deadline: Deadline) -> KnowledgeResult<()> {
    app.routes().writer()?.drop_own_project(name.clone(), deadline).await
}
