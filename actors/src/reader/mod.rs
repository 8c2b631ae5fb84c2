//! The readers: a pool of actors that query views.
//!
//! A request takes an idle reader, or waits for one within its deadline, so a slow query holds up one reader
//! and nobody's queue. A reader runs one query at a time, under the request's deadline, and drops it when the
//! caller leaves. It counts as idle again when it is done with the query, not when the caller is: one that is
//! stuck gets no further work. A query that panics ends its reader alone: the caller is told to retry, the
//! supervisor puts a new reader in its place.

use std::sync::{Arc, Mutex, PoisonError};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};

use crate::admission::{Admission, Permit};
use crate::deadline::Deadline;
use crate::domain::{ItemFilter, ItemStats, ProjectName, SearchMode, StoredItem};
use crate::error::{Executed, KnowledgeError, KnowledgeResult, PartFailure};
use crate::panics;
use crate::store::changes::Change;
use crate::store::maintenance::Debt;
use crate::store::search::{PageVersion, SearchOutcome, search, search_in};
use crate::store::view::{ListPage, ListRequest, ProjectView, SearchRequest};
use crate::store::{Lineage, Store};
use crate::writer::DeleteTarget;

/// Settings of the pool.
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// Readers.
    pub workers: usize,
    /// Requests that may wait or run.
    pub queue_requests: u32,
}

/// A request and where its answer goes.
pub struct ReadJob<Q, R> {
    request: Q,
    deadline: Deadline,
    reply: oneshot::Sender<KnowledgeResult<R>>,
    lease: Lease,
    _permit: Permit,
}

/// Which projects a search concerns.
#[derive(Clone, Debug)]
pub enum Projects {
    /// These.
    Named(Vec<ProjectName>),
    /// All that can be searched.
    All,
    /// These, as they were when the search that is paged began.
    At(Vec<PageVersion>),
}

/// Counts of one project.
#[derive(Clone, Debug)]
pub struct ProjectStats {
    /// Its name.
    pub project: String,
    /// Its items.
    pub items: Arc<ItemStats>,
    /// Its rows, closed ones and further passages included.
    pub rows: u64,
    /// Bytes on disk.
    pub bytes_on_disk: u64,
    /// Upkeep that it is behind with, as far as its files tell.
    pub debt: Debt,
    /// Its newest commit.
    pub version: i64,
    /// Model of its vectors; none where the table has another shape.
    pub model: Option<String>,
    /// What is in the way of searching and writing it, if something is.
    pub needs_migration: Option<String>,
    /// What of it cannot be read and so is not counted, if something is.
    pub degraded: Option<String>,
}

/// Counts of several projects: one that cannot be read does not hide the others.
#[derive(Clone, Debug, Default)]
pub struct StatsReport {
    /// Those that could be counted, by name.
    pub projects: Vec<ProjectStats>,
    /// Those that could not be.
    pub failed: Vec<FailedProject>,
}

/// A project that could not be read.
#[derive(Clone, Debug)]
pub struct FailedProject {
    /// Its name.
    pub project: String,
    /// Whether it is a project, and not something that lies beside one.
    pub is_project: bool,
    /// Bytes on disk, as far as they can be counted.
    pub bytes_on_disk: u64,
    /// Why.
    pub error: KnowledgeError,
}

/// Items by id.
#[derive(Clone, Debug, Default)]
pub struct FoundItems {
    /// Those that were found, in no particular order.
    pub items: Vec<StoredItem>,
    /// The project's newest commit.
    pub version: i64,
    /// Why items may be missing that were stored, if so: a part of the project cannot be read.
    pub degraded: Option<String>,
}

/// Items that a delete would delete.
#[derive(Clone, Debug, Default)]
pub struct MatchingItems {
    /// Their ids, sorted.
    pub ids: Vec<String>,
    /// The project's newest commit.
    pub version: i64,
}

/// How much matches a filter.
#[derive(Clone, Copy, Debug, Default)]
pub struct MatchingSize {
    /// Items.
    pub items: u64,
    /// Bytes of their texts and vectors.
    pub bytes: u64,
}

/// What is read for an answer, and how many bytes that may take: reading stops where it would be more.
#[derive(Clone, Debug)]
pub struct Within<T> {
    /// What is read.
    pub wanted: T,
    /// What the answer may take.
    pub max_answer_bytes: usize,
}

/// A part of a project's changes.
#[derive(Clone, Debug, Default)]
pub struct ChangePage {
    /// In the order of the commits.
    pub changes: Vec<Change>,
    /// The commit up to which this is all.
    pub until: i64,
    /// The project's newest commit.
    pub newest: i64,
    /// The last commit of which something is no longer kept: changes before it may be missing.
    pub forgotten: Option<i64>,
    /// The history that these numbers are of.
    pub lineage: Lineage,
    /// Whether the commits up to the one that was asked for may hold some that are lost: what was made of them must
    /// be made anew.
    pub lost: bool,
}

/// What a reader is asked.
pub enum ReaderMessage {
    /// Search.
    Search(ReadJob<(Projects, SearchRequest), SearchOutcome>),
    /// List the items of a project.
    List(ReadJob<(ProjectName, ListRequest), ListPage>),
    /// Get items by id.
    Get(ReadJob<(ProjectName, Within<Vec<String>>), FoundItems>),
    /// The revisions of an item, newest first.
    History(ReadJob<(ProjectName, Within<String>), Vec<StoredItem>>),
    /// Which items a delete would delete.
    Matching(ReadJob<(ProjectName, Within<DeleteTarget>), MatchingItems>),
    /// How much matches a filter.
    MatchingSize(ReadJob<(ProjectName, ItemFilter), MatchingSize>),
    /// What resembles an item.
    Similar(ReadJob<(ProjectName, Within<String>, usize), SearchOutcome>),
    /// What changed in a project after a commit, a part of it at a time.
    Changes(ReadJob<(ProjectName, i64), ChangePage>),
    /// Count the items of one project, or of each.
    Stats(ReadJob<Option<ProjectName>, StatsReport>),
}

impl std::fmt::Debug for ReaderMessage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Search(_) => "Search",
            Self::List(_) => "List",
            Self::Get(_) => "Get",
            Self::History(_) => "History",
            Self::Matching(_) => "Matching",
            Self::MatchingSize(_) => "MatchingSize",
            Self::Similar(_) => "Similar",
            Self::Changes(_) => "Changes",
            Self::Stats(_) => "Stats",
        })
    }
}

/// One reader. See the module.
pub struct Reader;

impl Actor for Reader {
    type Msg = ReaderMessage;
    type State = Arc<Store>;
    type Arguments = Arc<Store>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        store: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        fail::fail_point!("reader::pre_start", |_| Err(PartFailure::new(
            "failpoint reader::pre_start"
        )
        .into()));
        Ok(store)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        store: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        fail::fail_point!("reader::handle");
        match message {
            ReaderMessage::Search(job) => {
                run(job, async |(projects, request)| {
                    search_projects(store, &projects, &request).await
                })
                .await;
            }
            ReaderMessage::List(job) => {
                run(job, async |(project, request)| {
                    let request = &request;
                    let page = on_view(store, &project, move |view| async move { view.list(request).await });
                    Ok(page.await?.unwrap_or(ListPage {
                        items: Vec::new(),
                        total: 0,
                        more: false,
                    }))
                })
                .await;
            }
            ReaderMessage::Get(job) => {
                run(job, async |(project, request)| {
                    let request = &request;
                    let found = on_view(store, &project, move |view| async move {
                        Ok(FoundItems {
                            items: view.get(&request.wanted, request.max_answer_bytes).await?,
                            version: view.sequence(),
                            degraded: view.degraded(),
                        })
                    });
                    Ok(found.await?.unwrap_or_else(|| FoundItems {
                        degraded: store
                            .lost(&project)
                            .map(|reason| format!("project {project}: {reason}")),
                        ..FoundItems::default()
                    }))
                })
                .await;
            }
            ReaderMessage::History(job) => {
                run(job, async |(project, request)| {
                    let Within {
                        wanted: id,
                        max_answer_bytes: most,
                    } = &request;
                    let found = on_view(
                        store,
                        &project,
                        move |view| async move { view.history(id, *most).await },
                    );
                    Ok(found.await?.unwrap_or_default())
                })
                .await;
            }
            ReaderMessage::Matching(job) => {
                run(job, async |(project, request)| {
                    let request = &request;
                    let most = request.max_answer_bytes;
                    let found = on_view(store, &project, move |view| async move {
                        let ids = match &request.wanted {
                            DeleteTarget::Ids(ids) => view.live_ids(ids, most).await?,
                            DeleteTarget::Matching(filter) => view.matching_ids(filter, most).await?,
                        };
                        Ok(MatchingItems {
                            ids,
                            version: view.sequence(),
                        })
                    });
                    Ok(found.await?.unwrap_or_default())
                })
                .await;
            }
            ReaderMessage::MatchingSize(job) => {
                run(job, async |(project, filter)| {
                    let filter = &filter;
                    let found = on_view(store, &project, move |view| async move {
                        let (items, bytes) = view.matching_size(filter).await?;
                        Ok(MatchingSize { items, bytes })
                    });
                    Ok(found.await?.unwrap_or_default())
                })
                .await;
            }
            ReaderMessage::Similar(job) => {
                run(job, async |(project, request, limit)| {
                    similar(store, &project, &request, limit).await
                })
                .await;
            }
            ReaderMessage::Changes(job) => {
                run(job, async |(project, after)| change_page(store, &project, after).await).await;
            }
            ReaderMessage::Stats(job) => run(job, async |project| project_stats(store, project).await).await,
        }
        Ok(())
    }
}

/// Runs one query: under its deadline, and only for as long as the caller waits.
async fn run<Q, R>(job: ReadJob<Q, R>, query: impl AsyncFnOnce(Q) -> KnowledgeResult<R>) {
    let ReadJob {
        request,
        deadline,
        mut reply,
        lease,
        _permit,
    } = job;
    let late = KnowledgeError::DeadlineExceeded { executed: Executed::No };
    let result = if deadline.expired() {
        Some(Err(late))
    } else {
        tokio::select! {
            biased;
            () = reply.closed() => None,
            result = tokio::time::timeout(deadline.remaining(), query(request)) => Some(result.unwrap_or(Err(late))),
        }
    };
    // Before the answer: whoever asks next with it in hand finds this reader idle.
    lease.finish();
    if let Some(result) = result {
        // A failed send only means that the caller has left.
        reply.send(result).ok();
    }
}

/// Runs a query that may come upon damaged bytes, over which Lance can panic: that is an error like others.
async fn caught<R>(query: impl Future<Output = KnowledgeResult<R>>) -> KnowledgeResult<R> {
    let query = async {
        fail::fail_point!("reader::query");
        query.await
    };
    match panics::catch(query).await {
        Ok(result) => result,
        Err(panic) => Err(KnowledgeError::unreadable(format_args!("reading failed: {panic}"))),
    }
}

/// Looks for what is damaged after a read has failed. True if the read is worth repeating.
async fn reexamine(store: &Store, view: &Arc<ProjectView>, query: Option<&str>) -> bool {
    store.reexamine(view, query).await.unwrap_or_else(|error| {
        tracing::warn!(project = %view.project(), %error, "a project could not be examined");
        false
    })
}

/// Runs a query on a project's present view; none where nothing was stored in it, or no version of it can be read, so
/// that it begins anew. Where it comes upon something damaged, it is repeated without that.
async fn on_view<R, F: Future<Output = KnowledgeResult<R>>>(
    store: &Store,
    project: &ProjectName,
    query: impl Fn(Arc<ProjectView>) -> F,
) -> KnowledgeResult<Option<R>> {
    let Some(view) = store.view_or_empty(project).await? else {
        return Ok(None);
    };
    match caught(query(Arc::clone(&view))).await {
        Err(error @ KnowledgeError::Unreadable { .. }) => {
            if !reexamine(store, &view, None).await {
                return Err(error);
            }
            match store.view_or_empty(project).await? {
                Some(view) => caught(query(view)).await.map(Some),
                None => Ok(None),
            }
        }
        result => result.map(Some),
    }
}

/// As [`on_view`], for a search over one project or several. Of several, those that cannot be searched are left out,
/// and `degraded` says which and why. Where there is more, the versions that it has read are kept for the next page.
async fn search_projects(
    store: &Arc<Store>,
    projects: &Projects,
    request: &SearchRequest,
) -> KnowledgeResult<SearchOutcome> {
    let model = &store.config().model.name;
    let (mut views, mut left_out) = searchable_views(store, projects).await?;
    let mut searched = caught(search_in(store.pools(), &views, request, model)).await;
    if let Err(KnowledgeError::Unreadable { .. }) = &searched {
        if matches!(projects, Projects::At(_)) {
            // Another version is another search, and this one is gone.
            return Err(cursor_expired());
        }
        let words = (request.mode != SearchMode::Vector).then_some(request.query.as_str());
        let mut changed = false;
        for view in &views {
            changed |= reexamine(store, view, words).await;
        }
        if changed {
            (views, left_out) = searchable_views(store, projects).await?;
            searched = caught(search_in(store.pools(), &views, request, model)).await;
        }
    }
    if let Err(error) = &searched
        && views.len() > 1
        && is_of_a_project(error)
    {
        let (sound, failed) = searchable_alone(store, request, &views).await;
        if !sound.is_empty() {
            left_out.extend(failed);
            views = sound;
            searched = caught(search_in(store.pools(), &views, request, model)).await;
        }
    }
    let mut outcome = searched?;
    if !left_out.is_empty() {
        let reasons = outcome.degraded.take().into_iter().chain(left_out);
        outcome.degraded = Some(reasons.collect::<Vec<_>>().join("; "));
    }
    if outcome.more {
        for view in &views {
            store.keep_for_pages(view);
            outcome.page_versions.push(PageVersion {
                project: view.project().clone(),
                version: view.lance_version(),
                epoch: store.lineage(view.project())?.epoch,
            });
        }
    }
    Ok(outcome)
}

/// Whether an error says something about a project, and not about the request or the daemon.
fn is_of_a_project(error: &KnowledgeError) -> bool {
    matches!(
        error,
        KnowledgeError::Unreadable { .. }
            | KnowledgeError::Internal { .. }
            | KnowledgeError::ModelMismatch { .. }
            | KnowledgeError::Expired { .. }
    )
}

fn left_out(project: &ProjectName, error: &KnowledgeError) -> String {
    format!("project {project} is left out: {error}")
}

/// Which of these views can be searched, and why the others cannot: each is searched by itself. Only where a search
/// over all of them has failed.
async fn searchable_alone(
    store: &Store,
    request: &SearchRequest,
    views: &[Arc<ProjectView>],
) -> (Vec<Arc<ProjectView>>, Vec<String>) {
    let (mut sound, mut failed) = (Vec::new(), Vec::new());
    for view in views {
        let alone = std::slice::from_ref(view);
        match caught(search(alone, request, &store.config().model.name)).await {
            Ok(_) => sound.push(Arc::clone(view)),
            Err(error) => failed.push(left_out(view.project(), &error)),
        }
    }
    (sound, failed)
}

fn cursor_expired() -> KnowledgeError {
    KnowledgeError::Expired {
        what: "the cursor".to_owned(),
    }
}

/// The views to search, and why projects are left out that cannot be opened. A project that does not exist has none;
/// of all projects, those of another shape are left out (they are shown by `projects`), while naming one is an error,
/// as is naming only what cannot be opened.
async fn searchable_views(
    store: &Arc<Store>,
    projects: &Projects,
) -> KnowledgeResult<(Vec<Arc<ProjectView>>, Vec<String>)> {
    let (mut views, mut failed) = (Vec::new(), Vec::new());
    let mut first_error = None;
    match projects {
        Projects::Named(names) => {
            for name in names {
                match store.view(name).await {
                    Ok(view) => views.extend(view),
                    Err(error) if names.len() > 1 && is_of_a_project(&error) => {
                        failed.push(left_out(name, &error));
                        first_error.get_or_insert(error);
                    }
                    // It is empty, and that is told.
                    Err(error) if store.lost(name).is_some() => failed.push(left_out(name, &error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Projects::All => {
            for project in store.projects() {
                match project.view().await {
                    Ok(view) => views.extend(view.filter(|view| view.check_shape().is_ok())),
                    Err(error) => {
                        failed.push(left_out(project.name(), &error));
                        first_error.get_or_insert(error);
                    }
                }
            }
            for left in store.not_served().await {
                failed.push(format!("{} is left out: {}", left.project, left.reason));
            }
        }
        Projects::At(pages) => {
            for page in pages {
                views.push(store.page_view(page).await?.ok_or_else(cursor_expired)?);
            }
        }
    }
    match first_error {
        Some(error) if views.is_empty() => Err(error),
        _ => Ok((views, failed)),
    }
}

async fn similar(
    store: &Store,
    project: &ProjectName,
    request: &Within<String>,
    limit: usize,
) -> KnowledgeResult<SearchOutcome> {
    let not_found = || KnowledgeError::NotFound {
        what: format!("item {}", request.wanted),
    };
    let found = on_view(store, project, move |view| similar_in(view, request, limit));
    found.await?.flatten().ok_or_else(not_found)
}

/// None where the view has no such item.
async fn similar_in(
    view: Arc<ProjectView>,
    within: &Within<String>,
    limit: usize,
) -> KnowledgeResult<Option<SearchOutcome>> {
    let id = &within.wanted;
    let Some(vector) = view.item_vector(id).await? else {
        return Ok(None);
    };
    let request = SearchRequest {
        query: String::new(),
        vector: Some(vector),
        mode: SearchMode::Vector,
        filter: ItemFilter::default(),
        // The item itself is the nearest of all.
        limit: limit + 1,
        offset: 0,
        threshold: None,
        min_similarity: -1.0,
        at: None,
        except: Some(id.clone()),
        text_budget: None,
        max_answer_bytes: within.max_answer_bytes,
    };
    // Vectors of one table come from one model, whichever that is.
    let model = match view.shape() {
        crate::store::schema::TableShape::Current { model } => model.clone(),
        crate::store::schema::TableShape::Foreign { .. } => String::new(),
    };
    let mut outcome = search(&[view], &request, &model).await?;
    outcome.hits.truncate(limit);
    Ok(Some(outcome))
}

/// Commits that one page of changes covers at most: with full groups, some ten thousand items.
const COMMITS_PER_PAGE: i64 = 16;

async fn change_page(store: &Store, project: &ProjectName, after: i64) -> KnowledgeResult<ChangePage> {
    let page = on_view(store, project, move |view| async move {
        let newest = view.sequence();
        let until = newest.min(after.saturating_add(COMMITS_PER_PAGE));
        let changes = if until > after {
            view.changes(after, until).await?
        } else {
            Vec::new()
        };
        Ok(ChangePage {
            changes,
            until,
            newest,
            forgotten: view.horizon()?.map(|horizon| horizon.sequence),
            lineage: Lineage::default(),
            lost: view.condition().lost(after),
        })
    });
    let Some(page) = page.await? else {
        return Ok(ChangePage::default());
    };
    // After the view: a restore between the two then shows as the new history, which is the safe side.
    let lineage = store.lineage(project)?;
    Ok(ChangePage { lineage, ..page })
}

async fn project_stats(store: &Arc<Store>, wanted: Option<ProjectName>) -> KnowledgeResult<StatsReport> {
    let mut report = StatsReport::default();
    let not_served = match &wanted {
        None => store.not_served().await,
        Some(_) => Vec::new(),
    };
    for left in &not_served {
        report.failed.push(FailedProject {
            project: left.project.clone(),
            is_project: left.is_project,
            bytes_on_disk: 0,
            error: left.error(),
        });
    }
    for project in store.projects() {
        if not_served.iter().any(|left| left.project == project.name().as_str()) {
            continue; // Out of reach since it was opened.
        }
        if wanted.as_ref().is_some_and(|name| name != project.name()) {
            continue;
        }
        let known = &project;
        let counted = async {
            // Where no version of it can be read, it has no counts.
            project.view().await?;
            on_view(store, project.name(), move |view| async move {
                let (model, needs_migration) = match view.shape() {
                    crate::store::schema::TableShape::Current { model } => (Some(model.clone()), None),
                    crate::store::schema::TableShape::Foreign { detail } => (None, Some(detail.clone())),
                };
                Ok(ProjectStats {
                    project: known.name().to_string(),
                    items: view.stats().await?,
                    rows: view.row_count().await? as u64,
                    bytes_on_disk: known.bytes_on_disk().await?,
                    debt: view.debt().await?,
                    version: view.sequence(),
                    model,
                    needs_migration,
                    degraded: view.degraded(),
                })
            })
            .await
        };
        match counted.await {
            Ok(counted) => report.projects.extend(counted),
            Err(error) if wanted.is_some() => return Err(error),
            Err(error) => report.failed.push(FailedProject {
                project: project.name().to_string(),
                is_project: true,
                bytes_on_disk: project.bytes_on_disk().await.unwrap_or(0),
                error,
            }),
        }
    }
    Ok(report)
}

/// The pool. Cheap to clone; shared by the request handlers and the supervisor, which replaces readers.
#[derive(Clone)]
pub struct ReaderPool {
    idle: Arc<IdleReaders>,
    admission: Admission,
    /// Readers that the change feeds may take at once: they ask after every commit, whoever else is waiting.
    for_feeds: Arc<Semaphore>,
}

struct IdleReaders {
    /// As many permits as `readers` has entries.
    available: Semaphore,
    /// A std lock: held for a push or a pop.
    readers: Mutex<Vec<ActorRef<ReaderMessage>>>,
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
    pub fn add(&self, reader: ActorRef<ReaderMessage>) {
        self.idle
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(reader);
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
        self.ask((projects, request), deadline, ReaderMessage::Search).await
    }

    /// Lists.
    pub async fn list(
        &self,
        project: ProjectName,
        request: ListRequest,
        deadline: Deadline,
    ) -> KnowledgeResult<ListPage> {
        self.ask((project, request), deadline, ReaderMessage::List).await
    }

    /// Gets items by id.
    pub async fn get(
        &self,
        project: ProjectName,
        ids: Within<Vec<String>>,
        deadline: Deadline,
    ) -> KnowledgeResult<FoundItems> {
        self.ask((project, ids), deadline, ReaderMessage::Get).await
    }

    /// The revisions of an item, newest first.
    pub async fn history(
        &self,
        project: ProjectName,
        id: Within<String>,
        deadline: Deadline,
    ) -> KnowledgeResult<Vec<StoredItem>> {
        self.ask((project, id), deadline, ReaderMessage::History).await
    }

    /// Which items a delete would delete.
    pub async fn matching(
        &self,
        project: ProjectName,
        target: Within<DeleteTarget>,
        deadline: Deadline,
    ) -> KnowledgeResult<MatchingItems> {
        self.ask((project, target), deadline, ReaderMessage::Matching).await
    }

    /// How much matches a filter.
    pub async fn matching_size(
        &self,
        project: ProjectName,
        filter: ItemFilter,
        deadline: Deadline,
    ) -> KnowledgeResult<MatchingSize> {
        self.ask((project, filter), deadline, ReaderMessage::MatchingSize).await
    }

    /// What resembles an item, most alike first.
    pub async fn similar(
        &self,
        project: ProjectName,
        id: Within<String>,
        limit: usize,
        deadline: Deadline,
    ) -> KnowledgeResult<SearchOutcome> {
        self.ask((project, id, limit), deadline, ReaderMessage::Similar).await
    }

    /// What changed in a project after a commit: the next part of it. For the change feeds, which together have
    /// half of the readers at most.
    pub async fn changes(&self, project: ProjectName, after: i64, deadline: Deadline) -> KnowledgeResult<ChangePage> {
        let turn = tokio::time::timeout(deadline.remaining(), self.for_feeds.acquire());
        let Ok(_turn) = turn.await else {
            return Err(KnowledgeError::DeadlineExceeded { executed: Executed::No });
        };
        self.ask((project, after), deadline, ReaderMessage::Changes).await
    }

    /// Counts the items of one project, or of each.
    pub async fn project_stats(
        &self,
        project: Option<ProjectName>,
        deadline: Deadline,
    ) -> KnowledgeResult<StatsReport> {
        self.ask(project, deadline, ReaderMessage::Stats).await
    }

    async fn ask<Q, R>(
        &self,
        request: Q,
        deadline: Deadline,
        message: impl FnOnce(ReadJob<Q, R>) -> ReaderMessage,
    ) -> KnowledgeResult<R> {
        let permit = self.admission.try_acquire(1)?;
        let late = KnowledgeError::DeadlineExceeded { executed: Executed::No };
        let Ok(lease) = tokio::time::timeout(deadline.remaining(), self.idle.take()).await else {
            return Err(late);
        };
        let reader = lease.reader.clone();
        let (reply, answer) = oneshot::channel();
        let job = ReadJob {
            request,
            deadline,
            reply,
            lease,
            _permit: permit,
        };
        let unavailable = |reason: &str| KnowledgeError::Unavailable {
            part: "reader",
            reason: reason.to_owned(),
        };
        if reader.cast(message(job)).is_err() {
            return Err(unavailable("it is restarting"));
        }
        match answer.await {
            Ok(result) => result,
            Err(_) => Err(unavailable("it failed on this request")),
        }
    }
}

impl IdleReaders {
    async fn take(self: &Arc<Self>) -> Lease {
        loop {
            // The semaphore is never closed; if it were, waiting for the deadline is the right thing.
            match self.available.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => std::future::pending().await,
            }
            let reader = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
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

fn is_alive(actor: &ActorRef<ReaderMessage>) -> bool {
    matches!(
        actor.get_status(),
        ractor::ActorStatus::Running | ractor::ActorStatus::Starting | ractor::ActorStatus::Upgrading
    )
}

/// A reader that is at work for one request. It travels with the request and is finished by the reader itself: a
/// caller that leaves early, or whose time is up, does not give back a reader that is still at it. A reader that
/// dies lets it fall unfinished, and is never idle again: the supervisor adds its successor.
struct Lease {
    pool: Arc<IdleReaders>,
    reader: ActorRef<ReaderMessage>,
}

impl Lease {
    fn finish(self) {
        let Self { pool, reader } = self;
        pool.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        pool.available.add_permits(1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    /// A reader that answers, but for the id `stuck`: then it sits there until it is told to go on, and `dead`:
    /// then it panics.
    struct Scripted;

    impl Actor for Scripted {
        type Msg = ReaderMessage;
        type State = Arc<Notify>;
        type Arguments = Arc<Notify>;

        async fn pre_start(
            &self,
            _myself: ActorRef<Self::Msg>,
            go_on: Self::Arguments,
        ) -> Result<Self::State, ActorProcessingErr> {
            Ok(go_on)
        }

        async fn handle(
            &self,
            _myself: ActorRef<Self::Msg>,
            message: Self::Msg,
            go_on: &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            let ReaderMessage::Get(job) = message else {
                return Err("only `get` is scripted".into());
            };
            match job.request.1.wanted[0].as_str() {
                "stuck" => go_on.notified().await,
                "dead" => panic!("the script asks for a panic"),
                _ => {}
            }
            run(job, async |_| Ok(FoundItems::default())).await;
            Ok(())
        }
    }

    async fn get(pool: &ReaderPool, id: &str, time: Duration) -> KnowledgeResult<FoundItems> {
        let deadline = Deadline::after(time);
        let ids = Within {
            wanted: vec![id.to_owned()],
            max_answer_bytes: usize::MAX,
        };
        pool.get(ProjectName::default(), ids, deadline).await
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_reader_that_is_stuck_or_dead_gets_no_further_work() {
        let config = ReaderConfig {
            workers: 3,
            queue_requests: 16,
        };
        let (pool, go_on) = (ReaderPool::new(&config), Arc::new(Notify::new()));
        for _ in 0..3 {
            let (reader, _) = Actor::spawn(None, Scripted, Arc::clone(&go_on)).await.unwrap();
            pool.add(reader);
        }
        // Its caller gives up, it does not.
        let gave_up = tokio::time::timeout(Duration::from_millis(20), get(&pool, "stuck", PATIENCE)).await;
        assert!(gave_up.is_err());
        assert_eq!(pool.stats().idle, 2);
        let died = get(&pool, "dead", PATIENCE).await;
        assert!(matches!(died, Err(KnowledgeError::Unavailable { part: "reader", .. })));
        assert_eq!(pool.stats().idle, 1);
        for _ in 0..10 {
            get(&pool, "a", PATIENCE).await.unwrap();
            assert_eq!(pool.stats().idle, 1, "it is back before its answer is out");
        }
        // Once it is done it is one of them again.
        go_on.notify_one();
        while pool.stats().idle < 2 {
            tokio::task::yield_now().await;
        }
        get(&pool, "a", PATIENCE).await.unwrap();
        assert_eq!((pool.stats().idle, pool.stats().waiting), (2, 0));
    }
}
