//! The use cases with the real model, store and actors, and no socket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ccod_words::StoreParams;
use parking_lot::Mutex;
use ractor::ActorRef;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::delete::Undelete;
use super::feed::{Event, NotTaken, Scope, Subscriber};
use super::import::Imported;
use super::search::Search;
use super::*;
use crate::domain::{Filter, NewItem, ProjectName, SearchMode, UpdateParams};
use crate::embedder::{EmbedderConfig, EmbedderShared, ModelCell};
use crate::error::KnowledgeError;
use crate::reader::{Projects, ReaderConfig};
use crate::restart::RestartPolicy;
use crate::store::view::changes::ChangeKind;
use crate::store::{Durability, ModelIdentity, StoreConfig, StoreLock};
use crate::supervisor::{self, SupervisorArguments, SupervisorMessage};
use crate::writer::{DeleteTarget, WriterConfig};

const LIMITS: Limits = Limits {
    max_text_bytes: 1_000,
    max_metadata_bytes: 1_000,
    max_batch: 10,
    max_answer_bytes: 1 << 20,
    min_similarity: 0.2,
};

/// All parts of a daemon but the wire.
struct Running {
    knowledge: Knowledge,
    project: ProjectName,
    supervisor: ActorRef<SupervisorMessage>,
    task: JoinHandle<()>,
    _home: TempDir,
}

impl Running {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let model = Arc::new(ModelCell::bundled().unwrap());
        let config = StoreConfig {
            knowledge_dir: home.path().to_owned(),
            durability: Durability::Fast,
            index_cache_bytes: 1 << 20,
            metadata_cache_bytes: 1 << 20,
            resident_bytes: 1 << 30,
            text_cache_bytes: 1 << 20,
            min_free_bytes: 0,
            model: ModelIdentity {
                name: model.identity().to_owned(),
                dimensions: model.dimensions(),
            },
            retention: chrono::TimeDelta::days(7),
        };
        let lock = StoreLock::acquire(home.path()).unwrap();
        let (store, access) = Store::open(config, lock).unwrap();
        let (supervisor, task, mut routes) = supervisor::start(SupervisorArguments {
            store: Arc::clone(&store),
            access,
            writer: WriterConfig {
                max_group_rows: 1_000,
                max_group_bytes: 1 << 24,
                queue_requests: 100,
                queue_bytes: 1 << 24,
                setbacks: RestartPolicy::default(),
            },
            readers: ReaderConfig {
                workers: 2,
                queue_requests: 100,
            },
            embedder: EmbedderShared::new(EmbedderConfig::default(), model),
            restarts: RestartPolicy::default(),
        })
        .await
        .unwrap();
        routes
            .wait_for(|routes| routes.writer.is_some() && routes.embedder.is_some())
            .await
            .unwrap();
        Self {
            knowledge: Knowledge::new(store, routes, LIMITS),
            project: ProjectName::default(),
            supervisor,
            task,
            _home: home,
        }
    }

    async fn store(&self, text: &str) -> String {
        let (stored, _) = self
            .knowledge
            .store(&self.project, params(json!({"text": text})), &asked())
            .await
            .unwrap();
        stored.id
    }

    /// The ids that a search finds, how it was searched, and why less was done than was asked for.
    async fn search(&self, query: &str, mode: SearchMode) -> (Vec<String>, SearchMode, Option<String>) {
        let search = Search {
            query: query.to_owned(),
            mode,
            filter: Filter::default(),
            limit: 3,
            offset: 0,
            threshold: None,
            at: None,
            text_budget: None,
        };
        let projects = Projects::Named(vec![self.project.clone()]);
        let found = self.knowledge.search(projects, search, &asked()).await.unwrap();
        let hits = found.outcome.hits.into_iter();
        (
            hits.map(|hit| hit.stored.item.id).collect(),
            found.mode,
            found.outcome.degraded,
        )
    }

    async fn stop(self) {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.supervisor
            .cast(SupervisorMessage::Shutdown(Duration::from_secs(10), tell))
            .unwrap();
        assert!(told.await.unwrap(), "drained");
        self.task.await.unwrap();
    }
}

fn asked() -> Asked {
    Asked {
        deadline: Deadline::after(Duration::from_secs(60)),
        origin: 1,
        cancelled: CancellationToken::new(),
    }
}

fn params(value: serde_json::Value) -> StoreParams {
    serde_json::from_value(value).unwrap()
}

fn change(value: serde_json::Value) -> UpdateParams {
    serde_json::from_value(value).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_is_found_changed_deleted_and_brought_back() {
    let running = Running::start().await;
    let (knowledge, project) = (&running.knowledge, &running.project);
    assert!(!knowledge.exists(project).await.unwrap());
    let pool = running
        .store("the database pool is limited to twenty connections")
        .await;
    running.store("sourdough needs a warm kitchen").await;
    assert!(knowledge.exists(project).await.unwrap());
    let (found, mode, degraded) = running
        .search("how many database connections", SearchMode::Hybrid)
        .await;
    assert_eq!((found.first(), mode, degraded), (Some(&pool), SearchMode::Hybrid, None));

    let patch = change(json!({"id": pool, "text": "the queue holds at most forty messages"}));
    knowledge.update(project, patch, &asked()).await.unwrap();
    let (found, _, _) = running.search("messages in the queue", SearchMode::Vector).await;
    assert_eq!(found.first(), Some(&pool));
    let unknown = change(json!({"id": "no-such", "agent": "a"}));
    let error = knowledge.update(project, unknown, &asked()).await.unwrap_err();
    assert!(matches!(error, KnowledgeError::NotFound { .. }), "{error:?}");

    let target = DeleteTarget::Ids(vec![pool.clone()]);
    let deleted = knowledge.delete(project, target, &asked()).await.unwrap();
    assert_eq!(deleted.items.ids, std::slice::from_ref(&pool));
    let (found, _, _) = running.search("messages in the queue", SearchMode::Text).await;
    assert_eq!(found, Vec::<String>::new());
    let token = deleted.items.deletion.unwrap().token();
    let of_another = Undelete::Token {
        token: token.clone(),
        project: Some(ProjectName::parse("another", "project_id").unwrap()),
    };
    let error = knowledge.undelete(of_another, &asked()).await.unwrap_err();
    assert!(matches!(error, KnowledgeError::InvalidParameter { .. }), "{error:?}");
    let undo = Undelete::Token { token, project: None };
    let undone = knowledge.undelete(undo, &asked()).await.unwrap();
    assert_eq!(undone.items.restored, std::slice::from_ref(&pool));

    let purged = knowledge.purge(project, vec![pool.clone()], &asked()).await.unwrap();
    assert_eq!(purged.ids, [pool]);
    let cleaned = knowledge.clean_up(project, Filter::default(), &asked()).await.unwrap();
    assert_eq!((cleaned.deleted.items.ids.len(), cleaned.warning), (1, None));
    knowledge.probe(&asked()).await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hybrid_search_goes_on_by_words_without_the_embedder() {
    let mut running = Running::start().await;
    let id = running.store("the payment provider is Adyen").await;
    let mut routes = running.knowledge.routes();
    routes.embedder = None;
    let (_publisher, lacking) = watch::channel(routes);
    running.knowledge.routes = lacking;
    let (found, mode, degraded) = running.search("payment provider", SearchMode::Hybrid).await;
    assert_eq!((found, mode), (vec![id], SearchMode::Text));
    assert!(degraded.unwrap().contains("embedder"));
    // Where nothing but meaning was asked for, there is nothing to go on with; nor is anything stored.
    let search = Search {
        query: "payment".to_owned(),
        mode: SearchMode::Vector,
        filter: Filter::default(),
        limit: 1,
        offset: 0,
        threshold: None,
        at: None,
        text_budget: None,
    };
    let projects = Projects::Named(vec![running.project.clone()]);
    let error = running.knowledge.search(projects, search, &asked()).await.unwrap_err();
    assert!(matches!(error, KnowledgeError::Unavailable { part: "embedder", .. }));
    let item = params(json!({"text": "another"}));
    let error = running.knowledge.store(&running.project, item, &asked()).await;
    assert!(matches!(
        error,
        Err(KnowledgeError::Unavailable { part: "embedder", .. })
    ));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_tells_its_items_apart() {
    let running = Running::start().await;
    let long = "x".repeat(1_001);
    let items = vec![
        Ok(params(json!({"text": "first"}))),
        Err(KnowledgeError::invalid("text", "refused before")),
        Ok(params(json!({"text": long}))),
        Ok(params(json!({"text": "first"}))),
        Ok(params(json!({"text": "last", "id": "own"}))),
    ];
    let stored = running
        .knowledge
        .store_batch(&running.project, items, &asked())
        .await
        .unwrap();
    let told: Vec<_> = stored
        .items
        .iter()
        .map(|item| item.as_ref().map(|outcome| outcome.duplicate).ok())
        .collect();
    assert_eq!(told, [Some(false), None, None, Some(true), Some(false)]);
    assert!(stored.version > 0);
    // One that writes nothing still says what can be read.
    let nothing = vec![Err(KnowledgeError::invalid("text", "refused before"))];
    let again = running
        .knowledge
        .store_batch(&running.project, nothing, &asked())
        .await
        .unwrap();
    assert_eq!(again.version, stored.version);
    let many = (0..11).map(|number| Ok::<_, KnowledgeError>(params(json!({"text": number.to_string()}))));
    let refused = running
        .knowledge
        .store_batch(&running.project, many.collect(), &asked())
        .await;
    assert!(matches!(refused, Err(KnowledgeError::InvalidParameter { parameter, .. }) if parameter == "items"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_is_known_to_an_import() {
    let running = Running::start().await;
    let knowledge = &running.knowledge;
    for number in 0..40 {
        running.store(&format!("item number {number}")).await;
    }
    let mut export = knowledge.export(&running.project).await.unwrap();
    assert_eq!((export.total(), export.degraded()), (40, None));
    let mut items: Vec<NewItem> = Vec::new();
    loop {
        let some = export.next().await.unwrap();
        if some.is_empty() {
            break;
        }
        items.extend(some.into_iter().map(|stored| NewItem {
            content: stored.item.content(),
            id: Some(stored.item.id),
            idempotency_key: None,
            on_duplicate: ccod_words::OnDuplicate::default(),
            timestamp: stored.item.timestamp,
            updated_at: None,
        }));
    }
    drop(export);
    assert_eq!(items.len(), 40);
    // One with other content under its id, one that is new, and that one again.
    items[1].content.text = "something else".to_owned();
    let mut new = items[2].clone();
    (new.id, new.content.text) = (None, "a new one".to_owned());
    items.extend([new.clone(), new]);
    for dry_run in [true, false] {
        let mut import = knowledge.import(&running.project, dry_run).await.unwrap();
        let done = import.group(items.clone(), &asked()).await;
        assert!(done.ended.is_none() && !import.is_handed_over());
        let count = |wanted: fn(&Imported) -> bool| done.items.iter().flatten().filter(|one| wanted(one)).count();
        assert_eq!(count(|one| matches!(one, Imported::Duplicate)), 40);
        assert_eq!(count(|one| matches!(one, Imported::New)), 1);
        assert!(matches!(
            &done.items[1],
            Some(Imported::Refused(KnowledgeError::AlreadyExists { .. }))
        ));
    }
    let into_new = ProjectName::parse("copy", "project_id").unwrap();
    let mut import = knowledge.import(&into_new, false).await.unwrap();
    let done = import.group(items[..1].to_vec(), &asked()).await;
    assert!(matches!(done.items.as_slice(), [Some(Imported::New)]));
    running.stop().await;
}

/// Keeps what it is told of; full while it is told to be.
#[derive(Default)]
struct Listener {
    told: Mutex<Vec<(Option<ChangeKind>, String)>>,
    full: AtomicBool,
}

impl Subscriber for Listener {
    fn take(&self, event: &Event<'_>) -> Result<(), NotTaken> {
        if self.full.load(Ordering::Relaxed) {
            return Err(NotTaken::Full);
        }
        self.told.lock().push(match event {
            Event::Changed { change, cursor, .. } => (Some(change.kind), cursor.clone()),
            Event::Lagged { cursor, .. } => (None, cursor.clone()),
        });
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_goes_on_behind_its_cursor() {
    let running = Running::start().await;
    let knowledge = running.knowledge.clone();
    running.store("before").await;
    let feed = knowledge.feed(Scope::Every, None, true).await.unwrap();
    let begun = feed.cursor();
    let (listener, ended) = (Arc::new(Listener::default()), CancellationToken::new());
    let task = tokio::spawn({
        let (listener, ended) = (Arc::clone(&listener), ended.clone());
        async move { feed.run(&*listener, &ended).await }
    });
    // It waits for a queue that is full for a while.
    listener.full.store(true, Ordering::Relaxed);
    let id = running.store("during").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    listener.full.store(false, Ordering::Relaxed);
    let target = DeleteTarget::Ids(vec![id]);
    knowledge.delete(&running.project, target, &asked()).await.unwrap();
    let kinds = |listener: &Listener| -> Vec<_> { listener.told.lock().iter().map(|(kind, _)| *kind).collect() };
    let wanted = [Some(ChangeKind::Store), Some(ChangeKind::Delete)];
    tokio::time::timeout(Duration::from_secs(60), async {
        while kinds(&listener).len() < wanted.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(kinds(&listener), wanted);
    ended.cancel();
    task.await.unwrap();
    // From the beginning again, and from the first change on.
    let first = listener.told.lock()[0].1.clone();
    for (cursor, wanted) in [(begun, &wanted[..]), (first, &wanted[1..])] {
        let feed = knowledge.feed(Scope::Every, Some(&cursor), true).await.unwrap();
        let (listener, ended) = (Listener::default(), CancellationToken::new());
        tokio::select! {
            () = feed.run(&listener, &ended) => panic!("it has ended"),
            () = async {
                while kinds(&listener).len() < wanted.len() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            } => {}
        }
        assert_eq!(kinds(&listener), wanted);
    }
    let refused = knowledge.feed(Scope::Every, Some("zz"), true).await;
    assert!(matches!(refused, Err(KnowledgeError::InvalidParameter { .. })));
    running.stop().await;
}
