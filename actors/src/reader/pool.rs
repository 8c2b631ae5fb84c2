//! The pool: who waits for a reader, and how a query gets to one.

use std::sync::Arc;

use parking_lot::Mutex;
use ractor::ActorRef;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::answers::{ChangePage, FoundItems, MatchingItems, MatchingSize, Projects, Seen, StatsReport, Within};
use super::job::ReadJob;
use super::{feed_queries, queries};
use crate::admission::{Admission, Permit};
use crate::deadline::Deadline;
use crate::domain::{Filter, ProjectName, StoredItem};
use crate::error::{Executed, KnowledgeError, KnowledgeResult};
use crate::store::Store;
use crate::store::view::changes::Change;
use crate::store::view::replay::Replay;
use crate::store::view::search::SearchOutcome;
use crate::store::view::{KeywordsAhead, ListPage, ListRequest, SearchRequest};
use crate::writer::DeleteTarget;

/// Settings of the pool.
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// Readers.
    pub workers: usize,
    /// Requests that may wait or run.
    pub queue_requests: u32,
}

/// The pool. Cheap to clone; shared by the request handlers and the supervisor, which replaces readers.
#[derive(Clone)]
pub struct ReaderPool {
    idle: Arc<IdleReaders>,
    admission: Admission,
    /// Readers that the change feeds may take at once: they ask after every commit, even while others wait.
    for_feeds: Arc<Semaphore>,
}

struct IdleReaders {
    /// As many permits as `readers` has entries.
    available: Semaphore,
    /// Locked for a push or a pop only.
    readers: Mutex<Vec<ActorRef<ReadJob>>>,
}

impl std::fmt::Debug for ReaderPool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ReaderPool").finish_non_exhaustive()
    }
}

/// Numbers of the pool.
#[derive(Clone, Debug, Serialize)]
pub struct ReaderStats {
    /// Readers that wait for work.
    pub idle: usize,
    /// Requests that wait or run.
    pub waiting: u32,
    /// Requests that may.
    pub capacity: u32,
}

impl ReaderPool {
    /// An empty pool; the supervisor adds the readers.
    pub fn new(config: &ReaderConfig) -> Self {
        Self {
            idle: Arc::new(IdleReaders {
                available: Semaphore::new(0),
                readers: Mutex::new(Vec::new()),
            }),
            admission: Admission::new("the readers' queue", config.queue_requests, 50),
            for_feeds: Arc::new(Semaphore::new((config.workers / 2).max(1))),
        }
    }

    /// Adds a reader that waits for work.
    pub fn add(&self, reader: ActorRef<ReadJob>) {
        self.idle.readers.lock().push(reader);
        self.idle.available.add_permits(1);
    }

    /// The numbers.
    pub fn stats(&self) -> ReaderStats {
        ReaderStats {
            idle: self.idle.available.available_permits(),
            waiting: self.admission.in_use(),
            capacity: self.admission.capacity(),
        }
    }

    /// Waits until no request waits or runs.
    pub async fn drain(&self) {
        // Every request holds a permit until it is answered, so all of them together mean that none is left.
        self.admission.idle().await;
    }

    /// Searches.
    pub async fn search(
        &self,
        projects: Projects,
        request: SearchRequest,
        deadline: Deadline,
    ) -> KnowledgeResult<SearchOutcome> {
        self.ask("search", deadline, async move |store| {
            queries::search_projects(&store, &projects, &request).await
        })
        .await
    }

    /// Looks up the words of a search while its query is being embedded, if there is a reader that has nothing else to
    /// do.
    pub async fn keywords_ahead(
        &self,
        projects: Projects,
        request: SearchRequest,
        deadline: Deadline,
    ) -> Option<KeywordsAhead> {
        let permit = self.admission.try_acquire(1).ok()?;
        let lease = self.idle.take_now()?;
        let query = async move |store| queries::keywords_ahead(&store, &projects, &request).await;
        self.run("keywords_ahead", deadline, query, lease, permit).await.ok()
    }

    /// Lists.
    pub async fn list(
        &self,
        project: ProjectName,
        request: ListRequest,
        deadline: Deadline,
    ) -> KnowledgeResult<Seen<ListPage>> {
        self.ask("list", deadline, async move |store| {
            queries::list(&store, &project, &request).await
        })
        .await
    }

    /// Gets items by id.
    pub async fn get(
        &self,
        project: ProjectName,
        ids: Within<Vec<String>>,
        deadline: Deadline,
    ) -> KnowledgeResult<Seen<FoundItems>> {
        self.ask("get", deadline, async move |store| {
            queries::get(&store, &project, &ids).await
        })
        .await
    }

    /// The revisions of an item, newest first.
    pub async fn history(
        &self,
        project: ProjectName,
        id: Within<String>,
        deadline: Deadline,
    ) -> KnowledgeResult<Seen<Vec<StoredItem>>> {
        self.ask("history", deadline, async move |store| {
            queries::history(&store, &project, &id).await
        })
        .await
    }

    /// Which items a delete would delete.
    pub async fn matching(
        &self,
        project: ProjectName,
        target: Within<DeleteTarget>,
        deadline: Deadline,
    ) -> KnowledgeResult<Seen<MatchingItems>> {
        self.ask("matching", deadline, async move |store| {
            queries::matching(&store, &project, &target).await
        })
        .await
    }

    /// How much matches a filter.
    pub async fn matching_size(
        &self,
        project: ProjectName,
        filter: Filter,
        deadline: Deadline,
    ) -> KnowledgeResult<Seen<MatchingSize>> {
        self.ask("matching_size", deadline, async move |store| {
            queries::matching_size(&store, &project, &filter).await
        })
        .await
    }

    /// What resembles an item, most alike first.
    pub async fn similar(
        &self,
        project: ProjectName,
        id: Within<String>,
        limit: usize,
        deadline: Deadline,
    ) -> KnowledgeResult<SearchOutcome> {
        self.ask("similar", deadline, async move |store| {
            queries::similar(&store, &project, &id, limit).await
        })
        .await
    }

    /// What changed in a project after a commit: the next part of it. `replay` is that of the part before, if there was
    /// one. For the change feeds, which together have half of the readers at most.
    pub async fn changes(
        &self,
        project: ProjectName,
        after: i64,
        replay: Option<Arc<Replay>>,
        deadline: Deadline,
    ) -> KnowledgeResult<ChangePage> {
        self.ask_for_a_feed("changes", deadline, async move |store| {
            feed_queries::change_page(&store, &project, after, replay).await
        })
        .await
    }

    /// The same changes with their texts. `read` is where they were read, with the places of their rows.
    pub async fn change_texts(
        &self,
        project: ProjectName,
        changes: Vec<Change>,
        read: Option<(Arc<Replay>, Vec<u64>)>,
        deadline: Deadline,
    ) -> KnowledgeResult<Vec<Change>> {
        self.ask_for_a_feed("change_texts", deadline, async move |store| {
            feed_queries::change_texts(&store, &project, changes, read).await
        })
        .await
    }

    async fn ask_for_a_feed<R, Q, F>(&self, name: &'static str, deadline: Deadline, query: Q) -> KnowledgeResult<R>
    where
        R: Send + 'static,
        Q: FnOnce(Arc<Store>) -> F + Send + 'static,
        F: Future<Output = KnowledgeResult<R>> + Send + 'static,
    {
        let turn = tokio::time::timeout(deadline.remaining(), self.for_feeds.acquire());
        let Ok(_turn) = turn.await else {
            return Err(KnowledgeError::DeadlineExceeded { executed: Executed::No });
        };
        self.ask(name, deadline, query).await
    }

    /// Counts the items of one project, or of each; measures what upkeep is to be done only `with_debt`.
    pub async fn project_stats(
        &self,
        project: Option<ProjectName>,
        with_debt: bool,
        deadline: Deadline,
    ) -> KnowledgeResult<StatsReport> {
        self.ask("project_stats", deadline, async move |store| {
            queries::project_stats(&store, project, with_debt).await
        })
        .await
    }

    /// Has a reader run `query` (its name in the log is `name`), and gives back its result.
    async fn ask<R, Q, F>(&self, name: &'static str, deadline: Deadline, query: Q) -> KnowledgeResult<R>
    where
        R: Send + 'static,
        Q: FnOnce(Arc<Store>) -> F + Send + 'static,
        F: Future<Output = KnowledgeResult<R>> + Send + 'static,
    {
        let permit = self.admission.try_acquire(1)?;
        let late = KnowledgeError::DeadlineExceeded { executed: Executed::No };
        let Ok(lease) = tokio::time::timeout(deadline.remaining(), self.idle.take()).await else {
            return Err(late);
        };
        self.run(name, deadline, query, lease, permit).await
    }

    async fn run<R, Q, F>(
        &self,
        name: &'static str,
        deadline: Deadline,
        query: Q,
        lease: Lease,
        permit: Permit,
    ) -> KnowledgeResult<R>
    where
        R: Send + 'static,
        Q: FnOnce(Arc<Store>) -> F + Send + 'static,
        F: Future<Output = KnowledgeResult<R>> + Send + 'static,
    {
        let reader = lease.reader.clone();
        let (job, answer) = ReadJob::new(name, query, deadline, lease, permit);
        let unavailable = |reason: &str| KnowledgeError::Unavailable {
            part: "reader",
            reason: reason.to_owned(),
        };
        if reader.cast(job).is_err() {
            return Err(unavailable("it is restarting"));
        }
        match answer.await {
            Ok(result) => result,
            Err(_) => Err(unavailable("it failed on this request")),
        }
    }
}

impl IdleReaders {
    /// A reader, if one has nothing to do and nobody waits for it.
    fn take_now(self: &Arc<Self>) -> Option<Lease> {
        self.available.try_acquire().ok()?.forget();
        let reader = self.readers.lock().pop()?;
        // A dead one is not put back: the supervisor adds its successor.
        is_alive(&reader).then(|| Lease {
            pool: Arc::clone(self),
            reader,
        })
    }

    async fn take(self: &Arc<Self>) -> Lease {
        loop {
            // The semaphore is never closed; if it were, waiting for the deadline is the right thing.
            match self.available.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => std::future::pending().await,
            }
            let reader = self.readers.lock().pop();
            if let Some(reader) = reader
                && is_alive(&reader)
            {
                return Lease {
                    pool: Arc::clone(self),
                    reader,
                };
            }
            // A dead reader is not put back: the supervisor adds its successor.
        }
    }
}

fn is_alive(actor: &ActorRef<ReadJob>) -> bool {
    matches!(
        actor.get_status(),
        ractor::ActorStatus::Running | ractor::ActorStatus::Starting | ractor::ActorStatus::Upgrading
    )
}

/// A reader that is at work for one request. It travels with the request and is finished by the reader itself: a
/// caller that leaves early, or whose time is up, does not give back a reader that is still at it. A reader that
/// dies lets it fall unfinished, and is never idle again: the supervisor adds its successor.
pub(super) struct Lease {
    pool: Arc<IdleReaders>,
    reader: ActorRef<ReadJob>,
}

impl Lease {
    pub(super) fn finish(self) {
        let Self { pool, reader } = self;
        pool.readers.lock().push(reader);
        pool.available.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use ractor::Actor;

    use super::*;
    use crate::reader::Reader;
    use crate::store::{Durability, ModelIdentity, StoreConfig, StoreLock};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn store(home: &std::path::Path) -> Arc<Store> {
        let config = StoreConfig {
            knowledge_dir: home.to_owned(),
            durability: Durability::Fast,
            index_cache_bytes: 1 << 20,
            metadata_cache_bytes: 1 << 20,
            resident_bytes: 1 << 30,
            text_cache_bytes: 1 << 20,
            min_free_bytes: 0,
            model: ModelIdentity {
                name: "none@0".to_owned(),
                dimensions: 384,
            },
            retention: chrono::TimeDelta::days(7),
        };
        let lock = StoreLock::acquire(home).unwrap();
        Store::open(config, lock).unwrap().0
    }

    async fn ask(pool: &ReaderPool, script: impl FnOnce() + Send + 'static) -> KnowledgeResult<()> {
        let deadline = Deadline::after(PATIENCE);
        pool.ask("scripted", deadline, async move |_store| {
            script();
            Ok(())
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_reader_that_is_stuck_or_dead_gets_no_further_work() {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path());
        let pool = ReaderPool::new(&ReaderConfig {
            workers: 3,
            queue_requests: 16,
        });
        for _ in 0..3 {
            let (reader, _) = Actor::spawn(None, Reader, Arc::clone(&store)).await.unwrap();
            pool.add(reader);
        }
        // Its caller gives up, it does not: it blocks, so that nothing can cancel it.
        let (go_on, stuck) = mpsc::channel::<()>();
        let sits = ask(&pool, move || stuck.recv().unwrap_or_default());
        assert!(tokio::time::timeout(Duration::from_millis(20), sits).await.is_err());
        assert_eq!(pool.stats().idle, 2);
        let died = ask(&pool, || panic!("the script asks for a panic")).await;
        assert!(matches!(died, Err(KnowledgeError::Unavailable { part: "reader", .. })));
        assert_eq!(pool.stats().idle, 1);
        for _ in 0..10 {
            ask(&pool, || ()).await.unwrap();
            assert_eq!(pool.stats().idle, 1, "it is back before its answer is out");
        }
        // Once it is done it is one of them again.
        go_on.send(()).unwrap();
        while pool.stats().idle < 2 {
            tokio::task::yield_now().await;
        }
        ask(&pool, || ()).await.unwrap();
        pool.drain().await;
        assert_eq!((pool.stats().idle, pool.stats().waiting), (2, 0));
    }
}
