//! The store: one LanceDB database for each project under `knowledge/`.
//!
//! [`Store`] opens projects on first use and hands out [`ProjectView`]s, which can only be queried. What
//! writes is [`WriteTable`], and it is reached through [`WriteAccess`] alone, of which [`Store::open`] gives
//! exactly one: the supervisor keeps it for the writer. So exclusive write access holds by type.

pub mod backup;
mod cache;
pub mod changes;
mod columns;
mod discover;
pub mod durable;
pub mod error;
pub mod export;
pub mod filter;
pub mod fulltext;
pub mod fusion;
mod gather;
mod growth;
mod held;
mod identity;
mod inventory;
mod legs;
pub mod lock;
pub mod maintenance;
pub mod recovery;
mod repair;
pub mod restore;
pub mod room;
pub mod rows;
pub mod schema;
pub mod search;
mod state;
pub mod survey;
pub mod verify;
pub mod view;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use lance::Dataset;
use lance::dataset::ReadParams;
use lance::index::DatasetIndexExt;
use lance::session::{CacheSpec, Session};
use lance_table::io::commit::CommitHandler;
use lancedb::Connection;
use tokio::sync::{Mutex, watch};

pub use durable::Durability;
pub use inventory::NotServed;
pub use lock::{StoreLock, StoreLockError};
pub use restore::Lineage;
pub use view::ProjectView;
use write::current_dataset;
pub use write::{WriteTable, Written};

use crate::clock;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::cache::SweptCache;
use crate::store::discover::{LeftAside, holds_table};
use crate::store::durable::DurableCommitHandler;
use crate::store::error::{is_passing, read_error, write_error};
use crate::store::held::HeldVersions;
use crate::store::recovery::{Condition, DamagedFragment};
use crate::store::room::WriteState;
use crate::store::schema::{TABLE_NAME, TableShape, table_shape};
use crate::store::search::PageVersion;

/// How long a version in which nothing damaged was found is not searched for damage again: a read that fails for
/// another reason must not read the whole table each time.
const REEXAMINE_AFTER: Duration = Duration::from_secs(60);
/// Why a project is not written to after a restore has stopped halfway.
const HALF_RESTORED: &str = "a restore of the project stopped halfway; start the daemon again, it then finishes the \
                             restore, and what would be written until then would be moved aside";
/// What the caches hold and nobody has asked for in this time goes with the next pruning of old versions.
const CACHE_IDLE: Duration = Duration::from_secs(30);

/// The model whose vectors the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Name and hash, such as `all-MiniLM-L6-v2@0123456789ab`.
    pub name: String,
    /// Components of each vector.
    pub dimensions: usize,
}

/// Settings of the store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The directory that holds one directory for each project.
    pub knowledge_dir: PathBuf,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Cache of index pages, for all projects together, in bytes (Lance's default is 6 GiB a connection).
    pub index_cache_bytes: usize,
    /// Cache of manifests and file metadata, for all projects together, in bytes (default 1 GiB a connection).
    pub metadata_cache_bytes: usize,
    /// Bytes of the file system that stay free: what adds to a project is refused below it, so that upkeep still has
    /// room. 0 lets the disk fill up.
    pub min_free_bytes: u64,
    /// The model that embeds.
    pub model: ModelIdentity,
    /// How long closed rows (replaced revisions, deleted items) are kept.
    pub retention: TimeDelta,
}

/// All projects. See the module.
pub struct Store {
    config: StoreConfig,
    /// Held for as long as anything of the store is in use.
    lock: StoreLock,
    session: Arc<SharedSession>,
    /// What became of the interrupted restores when the store was opened.
    finished: restore::Finished,
    /// By the name folded to lower case, so that a collision is seen on every file system.
    projects: RwLock<BTreeMap<String, Arc<Project>>>,
    /// What lies in the data directory and is not served, as it was last looked at.
    left_aside: RwLock<Vec<LeftAside>>,
    /// Counts the published views of all projects: what the change feed waits for.
    published: Arc<watch::Sender<u64>>,
    /// Held shared to publish a view, and alone for the instant in which a backup takes the views of all
    /// projects: so these are of one moment.
    moment: Arc<RwLock<()>>,
    /// Held shared by what reads one version for long (backups, exports), alone by a restore, which takes the
    /// files of that version away.
    transfers: Arc<tokio::sync::RwLock<()>>,
    /// Rankings of the last searches, for their next pages.
    pools: search::Pools,
}

/// The caches that all projects share. Lance tells tables apart by place and version number alone, so what
/// puts another table in the same place begins new ones; views of before keep those they were made with.
struct SharedSession {
    index_cache_bytes: usize,
    metadata_cache_bytes: usize,
    current: RwLock<Caches>,
}

#[derive(Clone)]
struct Caches {
    session: Arc<Session>,
    behind: [Arc<SweptCache>; 2],
}

impl Caches {
    fn new(index_cache_bytes: usize, metadata_cache_bytes: usize) -> Self {
        let behind = [index_cache_bytes, metadata_cache_bytes].map(|bytes| Arc::new(SweptCache::new(bytes)));
        let [index, metadata] = behind.clone().map(|cache| CacheSpec::Backend(cache));
        let registry = Arc::new(lancedb::ObjectStoreRegistry::default());
        Self {
            session: Arc::new(Session::with_cache_backends(index, metadata, registry)),
            behind,
        }
    }
}

impl SharedSession {
    fn new(index_cache_bytes: usize, metadata_cache_bytes: usize) -> Self {
        Self {
            index_cache_bytes,
            metadata_cache_bytes,
            current: RwLock::new(Caches::new(index_cache_bytes, metadata_cache_bytes)),
        }
    }

    fn caches(&self) -> Caches {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn current(&self) -> Arc<Session> {
        self.caches().session
    }

    fn begin_anew(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) =
            Caches::new(self.index_cache_bytes, self.metadata_cache_bytes);
    }
}

/// Whether what cannot be read may be taken out of a table for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Losses {
    /// Somebody writes.
    Accepted,
    /// Its files may still be put back.
    Refused,
}

/// The right to write, of which there is one. See the module.
pub struct WriteAccess {
    store: Arc<Store>,
}

/// One project: its published view, and the table behind it once it is open.
pub struct Project {
    name: ProjectName,
    directory: PathBuf,
    lock: StoreLock,
    durability: Durability,
    model: ModelIdentity,
    retention: TimeDelta,
    session: Arc<SharedSession>,
    published: Arc<watch::Sender<u64>>,
    moment: Arc<RwLock<()>>,
    /// Versions that readers hold.
    held: HeldVersions,
    /// Where its commit numbers come from; known once the project is opened.
    lineage: RwLock<Lineage>,
    /// What readers see; none until the project is opened. A std lock: held for a pointer's copy, never
    /// across an await.
    view: RwLock<Option<Arc<ProjectView>>>,
    /// The table. Held by the writer for the whole of a commit, so that a commit that outlives the actor which
    /// started it is never joined by a second one.
    table: Mutex<Option<WriteTable>>,
    /// Whether it was looked at without being opened, and nothing was wrong with it.
    glanced_at: AtomicBool,
    /// Why not all bytes of what a purge has removed could be erased when that was last tried, if so.
    unerased: std::sync::Mutex<Option<String>>,
    /// Whether recovery has run: once in a process, when nothing can be in flight.
    recovered: AtomicBool,
    /// What recovery did in this process, for `admin.status`.
    notes: std::sync::Mutex<Vec<String>>,
    /// Why the project is empty though there is something on disk, if so.
    lost: std::sync::Mutex<Option<String>>,
    /// Why it could not be opened when that was last tried, and when.
    unopened: std::sync::Mutex<Option<(Instant, String)>>,
    /// Whether taking damaged fragments out of the table has failed: tried again when it is opened again.
    repair_failed: AtomicBool,
    /// How often something was taken out of the table.
    repairs: AtomicU64,
    /// Fragments that reads have failed on, so that they stay left out when the table is opened again.
    damage: std::sync::Mutex<BTreeMap<u64, DamagedFragment>>,
    /// The version that was last searched for damage after a read had failed, and when; held while one is.
    examined: Mutex<Option<(u64, Instant)>>,
    /// Whether a write has failed, maybe over something that is damaged: looked for when the table is opened again.
    suspect: AtomicBool,
    /// The version that was last searched for damage after that, and when.
    suspected: std::sync::Mutex<Option<(u64, Instant)>>,
    /// Whether the last write could not be made for want of room or permission.
    writes: WriteState,
    /// Whether a restore has stopped halfway: the next start finishes it, and moves aside what is here.
    suspended: AtomicBool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Store")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Project {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Project")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store: finishes what a restore has left, and lists the projects; opens none of them yet. `lock` is
    /// that of its directory. Nothing that lies in the data directory makes it fail: what cannot be used is told of by
    /// [`Store::troubles`] and [`Store::recovery`].
    pub fn open(config: StoreConfig, lock: StoreLock) -> KnowledgeResult<(Arc<Self>, WriteAccess)> {
        let session = Arc::new(SharedSession::new(
            config.index_cache_bytes,
            config.metadata_cache_bytes,
        ));
        lock.check()?;
        let finished = restore::finish_interrupted(&config.knowledge_dir);
        discover::remove_left_probes(&config.knowledge_dir, |_| false);
        let store = Arc::new(Self {
            config,
            lock,
            session,
            finished,
            projects: RwLock::new(BTreeMap::new()),
            left_aside: RwLock::default(),
            published: Arc::new(watch::Sender::new(0)),
            moment: Arc::default(),
            pools: search::Pools::default(),
            transfers: Arc::default(),
        });
        store.discover();
        for project in &store.finished.awaited {
            if let Err(error) = store.register(project) {
                tracing::warn!(%project, %error, "a project of an unfinished restore is not known");
            }
        }
        clock::begin(store.last_commit());
        let access = WriteAccess {
            store: Arc::clone(&store),
        };
        Ok((store, access))
    }

    /// When anything was last committed to any project, as the file system tells: each commit puts a manifest into a
    /// table's directory of versions.
    fn last_commit(&self) -> Option<DateTime<Utc>> {
        let written = self.projects().into_iter().filter_map(|project| {
            let versions = table_directory(&project.directory).join("_versions");
            std::fs::metadata(versions).and_then(|found| found.modified()).ok()
        });
        written.max().map(DateTime::from)
    }

    /// Finds the projects on disk. Blocks for the reading of one directory.
    fn discover(&self) {
        let known: BTreeMap<String, ProjectName> = {
            let projects = self.projects.read().unwrap_or_else(PoisonError::into_inner);
            let named = projects
                .iter()
                .map(|(folded, project)| (folded.clone(), project.name.clone()));
            named.collect()
        };
        let found = discover::look(&self.config.knowledge_dir, |name| {
            known.get(&name.folded()) == Some(name)
        });
        for project in found.projects {
            // What is refused has got in by another spelling since; the next look tells of it.
            self.register(&project).ok();
        }
        let mut left_aside = self.left_aside.write().unwrap_or_else(PoisonError::into_inner);
        for new in found.left_aside.iter().filter(|new| !left_aside.contains(new)) {
            tracing::warn!("{}", new.reason);
        }
        *left_aside = found.left_aside;
    }

    /// Refuses a name that is no project's though something of that name lies in the data directory.
    fn check_left_aside(&self, name: &ProjectName) -> KnowledgeResult<()> {
        let reason = || {
            let left_aside = self.left_aside.read().unwrap_or_else(PoisonError::into_inner);
            let found = left_aside
                .iter()
                .find(|left| left.name.as_deref() == Some(name.as_str()));
            found.map(|left| left.reason.clone())
        };
        let there = self.config.knowledge_dir.join(name.as_str()).symlink_metadata();
        if reason().is_none() && there.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            return Ok(());
        }
        // It may have been cleared away meanwhile, or have come: a link to the directory of another project above all,
        // for two would write that one behind each other's back.
        self.discover();
        reason().map_or(Ok(()), |reason| Err(KnowledgeError::invalid("project_id", reason)))
    }

    /// The project of this name, if it is known; another spelling of its name is refused.
    fn known(&self, name: &ProjectName) -> KnowledgeResult<Option<Arc<Project>>> {
        let projects = self.projects.read().unwrap_or_else(PoisonError::into_inner);
        match projects.get(&name.folded()) {
            None => Ok(None),
            Some(project) if project.name == *name => Ok(Some(Arc::clone(project))),
            Some(project) => Err(KnowledgeError::invalid(
                "project_id",
                format!(
                    "project_id {name} differs from the existing project {} only in case; use that name",
                    project.name
                ),
            )),
        }
    }

    fn register(&self, name: &ProjectName) -> KnowledgeResult<Arc<Project>> {
        if let Some(project) = self.known(name)? {
            return Ok(project);
        }
        let project = Arc::new(Project {
            name: name.clone(),
            directory: self.config.knowledge_dir.join(name.as_str()),
            lock: self.lock.clone(),
            durability: self.config.durability,
            model: self.config.model.clone(),
            retention: self.config.retention,
            session: Arc::clone(&self.session),
            published: Arc::clone(&self.published),
            held: HeldVersions::default(),
            moment: Arc::clone(&self.moment),
            lineage: RwLock::default(),
            view: RwLock::new(None),
            table: Mutex::new(None),
            glanced_at: AtomicBool::new(false),
            unerased: std::sync::Mutex::default(),
            recovered: AtomicBool::new(false),
            notes: std::sync::Mutex::default(),
            lost: std::sync::Mutex::default(),
            unopened: std::sync::Mutex::default(),
            repair_failed: AtomicBool::new(false),
            repairs: AtomicU64::new(0),
            damage: std::sync::Mutex::default(),
            examined: Mutex::new(None),
            suspect: AtomicBool::new(false),
            suspected: std::sync::Mutex::default(),
            writes: WriteState::new(self.config.min_free_bytes),
            suspended: AtomicBool::new(self.finished.awaited.contains(name)),
        });
        let mut projects = self.projects.write().unwrap_or_else(PoisonError::into_inner);
        let entry = projects.entry(name.folded()).or_insert(project);
        let entry = Arc::clone(entry);
        drop(projects);
        if entry.name == *name {
            Ok(entry)
        } else {
            // Another spelling got in between the two locks.
            self.known(name)?;
            Ok(entry)
        }
    }

    /// The settings.
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// The known projects of users, by name.
    pub fn projects(&self) -> Vec<Arc<Project>> {
        let projects = self.projects.read().unwrap_or_else(PoisonError::into_inner);
        let users = projects.values().filter(|project| !project.name.is_own());
        users.cloned().collect()
    }

    /// The present view of a project; nothing where nothing was stored in it. Opens it on first use.
    ///
    /// # Errors
    /// When it cannot be read, also where no version of its table can be.
    pub async fn view(&self, name: &ProjectName) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        match self.on_disk(name)? {
            Some(project) => project.view().await,
            None => Ok(None),
        }
    }

    /// The project of this name, if it is known or something was stored in it.
    fn on_disk(&self, name: &ProjectName) -> KnowledgeResult<Option<Arc<Project>>> {
        if let Some(project) = self.known(name)? {
            return Ok(Some(project));
        }
        self.check_left_aside(name)?;
        if !holds_table(&self.config.knowledge_dir.join(name.as_str()))? {
            return Ok(None);
        }
        // Copied in while the daemon runs, as a migration does it.
        self.register(name).map(Some)
    }

    /// Changes whenever a view of any project is published.
    pub fn publications(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Rankings of the last searches.
    pub fn pools(&self) -> &search::Pools {
        &self.pools
    }

    /// Keeps a view for the next page of a search, for some minutes.
    pub fn keep_for_pages(&self, view: &Arc<ProjectView>) {
        if let Ok(Some(project)) = self.known(view.project()) {
            project.held.keep_for_pages(view);
        }
    }

    /// The version that a page of a search began with, if it can still be read.
    pub async fn page_view(&self, page: &PageVersion) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        let present = self.view(&page.project).await?;
        let Some(project) = self.known(&page.project)? else {
            return Ok(None);
        };
        if project.lineage().epoch != page.epoch {
            return Ok(None); // Restored since: another history with numbers of its own.
        }
        let present = present.filter(|view| view.lance_version() == page.version);
        Ok(present.or_else(|| project.held.find(page.version)))
    }

    /// Whether a project is known to stand at this commit of this history ([`Lineage::epoch`]), with nothing of it
    /// lost: then there are no changes to look for. Costs nothing; false where the project is not open.
    pub fn stands_at(&self, name: &ProjectName, commit: i64, epoch: i64) -> bool {
        let Ok(Some(project)) = self.known(name) else {
            return false;
        };
        project.published().is_some_and(|view| {
            let stands = view.sequence() == commit && project.lineage().epoch == epoch;
            stands && !view.condition().lost(commit)
        })
    }

    /// After a read of `view` has failed: looks for what is damaged, and leaves it out of the next view. True if the
    /// read is worth repeating. `query` are the words that were searched for, if words were.
    pub async fn reexamine(&self, view: &Arc<ProjectView>, query: Option<&str>) -> KnowledgeResult<bool> {
        let Some(project) = self.known(view.project())? else {
            return Ok(true);
        };
        let (view, query) = (Arc::clone(view), query.map(str::to_owned));
        // In a task of its own: a caller whose time is up must not make the next one begin again.
        tokio::spawn(async move { project.reexamine(&view, query.as_deref()).await })
            .await
            .map_err(KnowledgeError::internal)?
    }

    /// Bytes in use of the shared caches.
    pub fn cache_bytes(&self) -> u64 {
        self.session.current().size_bytes()
    }

    /// Where the commit numbers of a project come from, as far as it is open.
    pub fn lineage(&self, name: &ProjectName) -> KnowledgeResult<Lineage> {
        Ok(self.known(name)?.map(|project| project.lineage()).unwrap_or_default())
    }
}

impl WriteAccess {
    /// The project of this name, made known if it is new. Nothing is created on disk before the first write.
    pub fn project(&self, name: &ProjectName) -> KnowledgeResult<Arc<Project>> {
        match self.store.known(name)? {
            Some(project) => Ok(project),
            None => {
                self.store.check_left_aside(name)?;
                self.store.register(name)
            }
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The projects in which a purge was begun and not finished, as those that a crash has cut short.
    pub fn unfinished_purges(&self) -> Vec<ProjectName> {
        let projects = self.store.projects().into_iter();
        // Where that cannot be told, the attempt tells.
        let marked = projects.filter(|project| {
            let mark = project.directory.join(write::ERASING_MARK);
            mark.try_exists().unwrap_or(true)
        });
        marked.map(|project| project.name.clone()).collect()
    }

    /// Removes a project of the daemon's own with everything in it, at once and for good, and what other probes have
    /// left.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for a project of a user; otherwise the next one tries again.
    pub async fn drop_own_project(&self, name: &ProjectName) -> KnowledgeResult<()> {
        if !name.is_own() {
            return Err(KnowledgeError::invalid(
                "project_id",
                format!("project {name} is not dropped"),
            ));
        }
        self.store.lock.check()?;
        if let Some(project) = self.store.known(name)? {
            let mut guard = project.table.lock().await;
            *guard = None;
            project.clear_view();
        }
        let store = Arc::clone(&self.store);
        let directory = self.store.config.knowledge_dir.join(name.as_str());
        let folded = name.folded();
        tokio::task::spawn_blocking(move || {
            let removed = std::fs::remove_dir_all(directory);
            let mut projects = store.projects.write().unwrap_or_else(PoisonError::into_inner);
            projects.remove(&folded);
            drop(projects);
            discover::remove_left_probes(&store.config.knowledge_dir, |name| {
                let projects = store.projects.read().unwrap_or_else(PoisonError::into_inner);
                projects.contains_key(name)
            });
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(write_error(error)),
                _ => Ok(()),
            }
        })
        .await
        .map_err(KnowledgeError::internal)?
    }

    /// Takes a project's table for writing; waits for a commit that is under way. The table is opened on first
    /// use and created where there is none and `create` is set. What of it cannot be read is taken out of it first.
    pub async fn lock<'a>(&self, project: &'a Project, create: bool) -> KnowledgeResult<WriteGuard<'a>> {
        self.lock_for(project, create, Losses::Accepted).await
    }

    /// As [`WriteAccess::lock`] for upkeep, which nobody loses anything by: it creates nothing, and a table of which a
    /// file is missing or damaged is left as it is, since the file may still be put back.
    ///
    /// # Errors
    /// [`KnowledgeError::Unreadable`] with what to do, where the table is such a one.
    pub async fn lock_for_upkeep<'a>(&self, project: &'a Project) -> KnowledgeResult<WriteGuard<'a>> {
        // A purge is finished all the same. Where that cannot be told, the attempt tells.
        let erasing = project.directory.join(write::ERASING_MARK).try_exists().unwrap_or(true);
        let losses = if erasing { Losses::Accepted } else { Losses::Refused };
        self.lock_for(project, false, losses).await
    }

    async fn lock_for<'a>(
        &self,
        project: &'a Project,
        create: bool,
        losses: Losses,
    ) -> KnowledgeResult<WriteGuard<'a>> {
        let mut guard = project.table.lock().await;
        project.lock.check()?;
        match project.prepare_to_write(&mut guard, create, losses).await {
            Ok(()) => Ok(WriteGuard { project, guard }),
            Err(error) if project.is_suspended() => Err(error), // Not for want of room.
            Err(error) => Err(project.writes.failed(&project.directory, error)),
        }
    }

    /// Forgets a project's table after a panic, whose effect is not known; the next user opens it from disk. Waits for
    /// whoever holds it.
    pub async fn forget(&self, project: &Project) {
        let mut table = project.table.lock().await;
        *table = None;
        project.clear_view();
    }

    /// After a write has failed with `error`: looks whether something damaged was in its way, and takes that out of
    /// the table. True if the write is worth repeating.
    pub async fn mend(&self, project: &Project, error: &KnowledgeError) -> bool {
        self.mend_by(project, error, Losses::Accepted).await
    }

    /// As [`WriteAccess::mend`] after upkeep: what would be lost by it is left as it is.
    pub async fn mend_for_upkeep(&self, project: &Project, error: &KnowledgeError) -> bool {
        self.mend_by(project, error, Losses::Refused).await
    }

    async fn mend_by(&self, project: &Project, error: &KnowledgeError, losses: Losses) -> bool {
        if !matches!(
            error,
            KnowledgeError::Internal { .. } | KnowledgeError::Unreadable { .. }
        ) {
            return false;
        }
        let before = project.repairs.load(Ordering::Acquire);
        // Opening the table looks for damage, taking it for writing repairs it.
        self.lock_for(project, false, losses).await.is_ok() && project.repairs.load(Ordering::Acquire) != before
    }

    /// Why nothing may be added to a project now, if so: the disk is nearly full. Old versions that nobody reads are
    /// given up first.
    pub async fn shortage(&self, project: &Project) -> Option<KnowledgeError> {
        let shortage = project.writes.shortage(&project.directory).await?;
        if project.give_up_versions().await {
            let left = project.writes.shortage(&project.directory).await?;
            return Some(project.writes.failed(&project.directory, left));
        }
        Some(project.writes.failed(&project.directory, shortage))
    }
}

/// A project's table, held for writing.
pub struct WriteGuard<'a> {
    project: &'a Project,
    guard: tokio::sync::MutexGuard<'a, Option<WriteTable>>,
}

impl WriteGuard<'_> {
    /// The table, if the project has one.
    pub fn table(&mut self) -> Option<&mut WriteTable> {
        self.guard.as_mut()
    }

    /// Publishes what was committed: from now on every new request sees it. Where nothing has changed, the view that
    /// is published stays, with what it has computed, and no feed looks for changes.
    pub async fn publish(&mut self) -> KnowledgeResult<Arc<ProjectView>> {
        let table = self
            .guard
            .as_mut()
            .ok_or_else(|| KnowledgeError::internal("there is no table to publish"))?;
        let before = self.project.published();
        let version = table.lance_version().await?;
        let same_version = before.filter(|before| before.lance_version() == version);
        if same_version.is_none() {
            self.project.writes.succeeded();
        }
        if let Some(before) = same_version
            && before.sequence() == table.next_sequence() - 1
            && before.condition() == table.condition()
        {
            return Ok(before);
        }
        let view = table.view().await?;
        self.project.set_view(Arc::clone(&view));
        Ok(view)
    }

    /// Removes what recovery has set aside of the project: after a purge nothing of it may stay.
    pub async fn discard_set_aside(&self) -> KnowledgeResult<()> {
        let directory = self.project.directory.clone();
        tokio::task::spawn_blocking(move || recovery::discard_set_aside(&directory))
            .await
            .map_err(KnowledgeError::internal)?
    }

    /// Keeps why a purge could not erase everything, for `admin.health`; nothing once it could.
    pub fn note_erasing(&self, failure: Option<&KnowledgeError>) {
        let mut unerased = self.project.unerased.lock().unwrap_or_else(PoisonError::into_inner);
        *unerased = failure.map(ToString::to_string);
    }

    /// Drops what the caches hold and nobody has asked for lately: of files that upkeep has replaced, mostly.
    pub fn sweep_caches(&self) {
        for cache in self.project.session.caches().behind {
            cache.sweep(CACHE_IDLE);
        }
    }

    /// Drops all that the caches hold, with the removed files that they keep open.
    pub fn empty_caches(&self) {
        for cache in self.project.session.caches().behind {
            cache.empty();
        }
    }

    /// Forgets the table after a failure whose effect is not known; the next user opens it from disk.
    pub fn forget(mut self) {
        *self.guard = None;
        self.project.clear_view();
    }

    /// As [`WriteGuard::forget`], after `error`: `admin.health` shows for how long nothing can be written, and an
    /// error that has no better reason makes the next user look for damage. Answers the error, with where there is
    /// no room or no permission.
    pub fn failed(self, error: KnowledgeError) -> KnowledgeError {
        let error = self.project.writes.failed(&self.project.directory, error);
        if matches!(
            error,
            KnowledgeError::Internal { .. } | KnowledgeError::Unreadable { .. }
        ) {
            self.project.suspect.store(true, Ordering::Release);
        }
        self.forget();
        error
    }
}

/// Where LanceDB keeps a project's table.
fn table_directory(project_directory: &Path) -> PathBuf {
    project_directory.join(format!("{TABLE_NAME}.lance"))
}

impl Project {
    /// Its name.
    pub fn name(&self) -> &ProjectName {
        &self.name
    }

    /// The view as published, without opening anything.
    pub fn published(&self) -> Option<Arc<ProjectView>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_view(&self, view: Arc<ProjectView>) {
        let _not_amid_a_backup = self.moment.read().unwrap_or_else(PoisonError::into_inner);
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Some(view);
        if !self.name.is_own() {
            self.published.send_modify(|count| *count += 1);
        }
    }

    fn lineage(&self) -> Lineage {
        *self.lineage.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear_view(&self) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The present view, opening the project on first use; nothing where there is none, be it that nothing was stored
    /// or that no version of it can be read.
    async fn open(self: &Arc<Self>) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        // What is open cannot be read either.
        clock::check()?;
        if let Some(view) = self.published() {
            return Ok(Some(view));
        }
        // In a task of its own: a caller whose time is up must not break off what opening repairs.
        let project = Arc::clone(self);
        tokio::spawn(async move { project.open_view().await })
            .await
            .map_err(KnowledgeError::internal)?
    }

    async fn open_view(&self) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        let mut guard = self.table.lock().await;
        if let Some(view) = self.published() {
            return Ok(Some(view)); // Opened while this one waited.
        }
        if guard.is_none() {
            *guard = self.open_table().await?;
        }
        match guard.as_mut() {
            None if self.is_suspended() => Err(KnowledgeError::Unreadable {
                message: HALF_RESTORED.to_owned(),
            }),
            None => Ok(None),
            Some(table) => {
                let view = table.view().await?;
                self.set_view(Arc::clone(&view));
                Ok(Some(view))
            }
        }
    }

    /// Bytes of the project's directory on disk, old versions included.
    pub async fn bytes_on_disk(&self) -> KnowledgeResult<u64> {
        let directory = self.directory.clone();
        tokio::task::spawn_blocking(move || directory_bytes(&directory))
            .await
            .map_err(KnowledgeError::internal)
    }

    async fn connect(&self) -> KnowledgeResult<Connection> {
        let uri = self
            .directory
            .to_str()
            .ok_or_else(|| KnowledgeError::internal("the data directory's path is not UTF-8"))?;
        lancedb::connect(uri)
            .session(self.session.current())
            .execute()
            .await
            .map_err(read_error)
    }

    /// Opens the table, if there is one. Why it cannot be opened is shown until it can be.
    async fn open_table(&self) -> KnowledgeResult<Option<WriteTable>> {
        let opened = self.try_open_table().await;
        let mut unopened = self.unopened.lock().unwrap_or_else(PoisonError::into_inner);
        *unopened = opened.as_ref().err().map(|error| (Instant::now(), error.to_string()));
        drop(unopened);
        opened
    }

    async fn try_open_table(&self) -> KnowledgeResult<Option<WriteTable>> {
        // Recovery may change what it finds.
        self.lock.check()?;
        clock::check()?;
        fail::fail_point!("store::open", |_| Err(KnowledgeError::Unreadable {
            message: "failpoint store::open".to_owned(),
        }));
        if !holds_table(&self.directory)? {
            self.set_lost(None);
            return Ok(None);
        }
        let location = table_directory(&self.directory);
        if !self.recovered.load(Ordering::Acquire) {
            let (name, directory, table) = (self.name.clone(), self.directory.clone(), location.clone());
            let recovered = tokio::task::spawn_blocking(move || recovery::recover(&name, &directory, &table))
                .await
                .map_err(KnowledgeError::internal)??;
            self.note(recovered.notes);
            self.set_lost(recovered.lost);
            if recovered.vacant {
                return Ok(None);
            }
            self.recovered.store(true, Ordering::Release);
        }
        let mut read_params = checked_reads();
        read_params.session(self.session.current());
        let handler = Arc::new(DurableCommitHandler::new(self.durability, self.lock.clone()));
        read_params.commit_handler = Some(Arc::clone(&handler) as Arc<dyn CommitHandler>);
        let connection = self.connect().await?;
        // Damaged bytes can make Lance panic; in a task of its own that is an error like others.
        let opened = tokio::spawn(async move {
            connection
                .open_table(TABLE_NAME)
                .lance_read_params(read_params)
                .execute()
                .await
        })
        .await;
        let table = match opened {
            Ok(Ok(table)) => table,
            // LanceDB takes a table whose files cannot be opened now for none.
            Ok(Err(error @ lancedb::Error::TableNotFound { .. })) if !is_passing(&error) => {
                tracing::debug!(project = %self.name, %error, "there is no table");
                return Ok(None);
            }
            Ok(Err(error)) => return Err(read_error(error)),
            Err(panic) => {
                return Err(KnowledgeError::unreadable(format_args!(
                    "project {} cannot be opened: {panic}",
                    self.name
                )));
            }
        };
        let dataset = current_dataset(&table).await?;
        let indices = dataset.load_indices().await.map_err(read_error)?;
        handler.builds_upon(&dataset, &indices)?;
        let mut condition = recovery::inspect(&dataset, &location, &self.remembered()).await?;
        let version = dataset.version().version;
        if self.suspect.swap(false, Ordering::AcqRel) && self.is_to_be_searched(version) {
            tracing::warn!(project = %self.name, version, "a write failed, looking for what is damaged");
            let found = recovery::unreadable_fragments(&dataset, &condition.fragments).await?;
            self.remember(&found);
            condition.fragments.extend(found);
        }
        let mut taken = self.take_over(&table, &condition).await;
        if let Err(KnowledgeError::Unreadable { message }) = &taken {
            tracing::error!(project = %self.name, error = message, "a table cannot be read, looking for what is damaged");
            let found = recovery::unreadable_fragments(&dataset, &condition.fragments).await?;
            if !found.is_empty() {
                self.remember(&found);
                condition.fragments.extend(found);
                taken = self.take_over(&table, &condition).await;
            }
        }
        let mut taken = taken?;
        let lineage = Lineage::read(&self.directory)?;
        *self.lineage.write().unwrap_or_else(PoisonError::into_inner) = lineage;
        taken.continue_after(lineage.sequence);
        self.repair_failed.store(false, Ordering::Release);
        self.number_after_losses(&mut taken, version).await?;
        self.salvage(&mut taken).await;
        for what in taken.condition().describe() {
            tracing::error!(project = %self.name, "{what}");
        }
        Ok(Some(taken))
    }

    /// Whether a version is worth being searched for damage: not if it has just been.
    fn is_to_be_searched(&self, version: u64) -> bool {
        let mut last = self.suspected.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|(searched, when)| searched == version && when.elapsed() < REEXAMINE_AFTER) {
            return false;
        }
        *last = Some((version, Instant::now()));
        true
    }

    /// Saves what can be read of damaged fragments at once: left out whole, they would take it along.
    async fn salvage(&self, table: &mut WriteTable) {
        if !matches!(table.shape(), TableShape::Current { .. }) {
            return;
        }
        if table.condition().is_sound() || table.condition().configuration.is_some() {
            return;
        }
        match table.repair(&self.directory, true).await {
            Ok(()) => {
                self.repairs.fetch_add(1, Ordering::AcqRel);
            }
            // The writer tries again; until then they are left out.
            Err(error) => tracing::error!(project = %self.name, %error, "a damaged table could not be repaired"),
        }
        self.note(table.take_notes());
    }

    /// Reads what the writer keeps in memory of a table, in a task of its own for the same reason as above.
    async fn take_over(&self, table: &lancedb::Table, condition: &Condition) -> KnowledgeResult<WriteTable> {
        let opened = WriteTable::opened(
            self.name.clone(),
            table.clone(),
            self.retention,
            condition.clone(),
            self.held.clone(),
        );
        match tokio::spawn(opened).await {
            Ok(opened) => opened,
            Err(panic) => Err(KnowledgeError::unreadable(format_args!(
                "project {} cannot be read: {panic}",
                self.name
            ))),
        }
    }

    /// Takes care that no commit number is given twice: what was lost had some.
    async fn number_after_losses(&self, table: &mut WriteTable, version: u64) -> KnowledgeResult<()> {
        self.note(table.take_notes());
        let condition = (**table.condition()).clone();
        let (directory, last, damage) = (
            self.directory.clone(),
            table.next_sequence() - 1,
            condition.fragments.clone(),
        );
        let gaps = tokio::task::spawn_blocking(move || recovery::gaps(&directory, last, &damage, version))
            .await
            .map_err(KnowledgeError::internal)??;
        table.set_condition(Condition { gaps, ..condition });
        Ok(())
    }

    /// Opens or creates the table, and takes out of it what cannot be read.
    async fn prepare_to_write(
        &self,
        table: &mut Option<WriteTable>,
        create: bool,
        losses: Losses,
    ) -> KnowledgeResult<()> {
        self.check_suspended()?;
        clock::check()?;
        if table.is_none() {
            *table = self.open_table().await?;
        }
        match table {
            None if create => *table = Some(self.create_table().await?),
            None => {}
            Some(table) if table.condition().configuration.is_some() => {
                return Err(KnowledgeError::Unreadable {
                    message: table.condition().configuration.clone().unwrap_or_default(),
                });
            }
            Some(table) if losses == Losses::Refused && !table.condition().fragments.is_empty() => {
                let reasons = table
                    .condition()
                    .fragments
                    .values()
                    .map(|fragment| fragment.reason.as_str());
                return Err(KnowledgeError::Unreadable {
                    message: format!(
                        "project {} is left as it is: {}. {}",
                        self.name,
                        reasons.collect::<Vec<_>>().join("; "),
                        recovery::PUT_BACK
                    ),
                });
            }
            Some(table) if table.condition().is_sound() || self.repair_failed.load(Ordering::Acquire) => {}
            // A table of another shape is left as it is.
            Some(table) if matches!(table.shape(), TableShape::Foreign { .. }) => {}
            Some(table) => match table.repair(&self.directory, false).await {
                Ok(()) => {
                    self.repairs.fetch_add(1, Ordering::AcqRel);
                    self.note(table.take_notes());
                    self.damage.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    let repaired = table.view().await?;
                    self.set_view(repaired);
                }
                Err(error @ (KnowledgeError::ReadOnly { .. } | KnowledgeError::NoDescriptors)) => return Err(error),
                Err(error) => {
                    // Adding to the table needs none of what is damaged.
                    tracing::error!(project = %self.name, %error, "a damaged table could not be repaired");
                    self.repair_failed.store(true, Ordering::Release);
                }
            },
        }
        Ok(())
    }

    /// Removes the versions that nobody reads, whatever their number. True if there were any.
    async fn give_up_versions(&self) -> bool {
        let mut guard = self.table.lock().await;
        let Some(table) = guard.as_mut() else { return false };
        // The files may be another daemon's by now.
        if self.lock.check().is_err() || !matches!(table.shape(), TableShape::Current { .. }) {
            return false;
        }
        let given_up = async {
            if table.debt().await?.versions <= 1 {
                return Ok(false);
            }
            table.release_pages();
            table.maintain(maintenance::Step::Prune).await
        };
        given_up.await.unwrap_or_else(|error| {
            tracing::warn!(project = %self.name, %error, "old versions could not be removed to make room");
            false
        })
    }

    /// Forgets what was found in a table that another has taken the place of.
    fn begin_anew(&self) {
        self.recovered.store(false, Ordering::Release);
        self.repair_failed.store(false, Ordering::Release);
        self.suspect.store(false, Ordering::Release);
        *self.suspected.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.set_lost(None);
        self.glanced_at.store(false, Ordering::Release);
        *self.unerased.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.unopened.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Whoever holds it may wait for the table, which the caller holds; what is left then is a version that is
        // not searched again for a minute.
        if let Ok(mut examined) = self.examined.try_lock() {
            *examined = None;
        }
    }

    /// From now on nothing is written to the project, or again.
    fn suspend(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Release);
    }

    /// Refuses while a restore of the project is not finished.
    fn check_suspended(&self) -> KnowledgeResult<()> {
        match self.is_suspended() {
            true => Err(KnowledgeError::ReadOnly {
                reason: HALF_RESTORED.to_owned(),
            }),
            false => Ok(()),
        }
    }

    fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    fn note(&self, notes: Vec<String>) {
        let mut kept = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(notes);
    }

    fn remember(&self, found: &BTreeMap<u64, DamagedFragment>) {
        let mut kept = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(found.iter().map(|(id, fragment)| (*id, fragment.clone())));
    }

    fn remembered(&self) -> BTreeMap<u64, DamagedFragment> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// After a read of `view` has failed: looks for what is damaged, all fragments and, with the words that were
    /// searched for, the keyword index. True if the next view is another one, so that the read is worth repeating.
    async fn reexamine(&self, view: &ProjectView, query: Option<&str>) -> KnowledgeResult<bool> {
        let mut examined = self.examined.lock().await;
        let same =
            |now: Arc<ProjectView>| now.lance_version() == view.lance_version() && now.condition() == view.condition();
        if !self.published().is_some_and(same) {
            return Ok(true); // Somebody else has found it, or it is another version by now.
        }
        let version = view.lance_version();
        if examined.is_some_and(|(last, when)| last == version && when.elapsed() < REEXAMINE_AFTER) {
            return Ok(false);
        }
        tracing::warn!(project = %self.name, version, "a read failed, looking for what is damaged");
        let location = table_directory(&self.directory);
        let plain = recovery::inspect(view.dataset(), &location, &BTreeMap::new()).await?;
        let mut found = plain.fragments;
        found.extend(recovery::unreadable_fragments(view.dataset(), &view.condition().fragments).await?);
        found.retain(|id, _| !view.condition().fragments.contains_key(id));
        let mut keyword_index = plain.keyword_index;
        if found.is_empty() && keyword_index.is_none() {
            keyword_index = verify::keyword_index_damage(view, query).await;
        }
        *examined = Some((version, Instant::now()));
        if found.is_empty() && keyword_index.is_none() {
            return Ok(false);
        }
        self.remember(&found);
        let mut guard = self.table.lock().await;
        if guard.is_none() {
            *guard = self.open_table().await?;
        }
        let Some(table) = guard.as_mut() else { return Ok(true) };
        let mut condition = (**table.condition()).clone();
        condition.fragments.extend(found);
        // The writer may have made it anew since.
        if keyword_index.is_some() && current_dataset(table.lancedb()).await?.version().version == version {
            condition.keyword_index = keyword_index;
        }
        for what in condition.describe() {
            tracing::error!(project = %self.name, "{what}");
        }
        table.set_condition(condition);
        self.number_after_losses(table, version).await?;
        self.salvage(table).await;
        let view = table.view().await?;
        self.set_view(view);
        Ok(true)
    }

    /// Creates the table with its keyword index.
    async fn create_table(&self) -> KnowledgeResult<WriteTable> {
        std::fs::create_dir_all(&self.directory).map_err(write_error)?;
        let (name, directory, table) = (
            self.name.clone(),
            self.directory.clone(),
            table_directory(&self.directory),
        );
        tokio::task::spawn_blocking(move || recovery::clear_site(&name, &directory, &table))
            .await
            .map_err(KnowledgeError::internal)??;
        self.set_lost(None);
        let handler = Arc::new(DurableCommitHandler::new(self.durability, self.lock.clone()));
        let connection = self.connect().await?;
        WriteTable::create(&connection, &self.model, handler, self.session.current()).await?;
        // Opened as any other table is: the index is made there.
        self.open_table()
            .await?
            .ok_or_else(|| KnowledgeError::internal(format!("project {} was created and cannot be found", self.name)))
    }
}

/// How tables are read: what is decoded is checked (texts are UTF-8, lengths fit), since a damaged file must be an
/// error and not a text that is none.
fn checked_reads() -> ReadParams {
    let mut params = ReadParams::default();
    let mut options = params.file_reader_options.take().unwrap_or_default();
    options.decoder_config.validate_on_decode = true;
    params.file_reader_options = Some(options);
    params
}

/// What a dataset's schema says it is.
fn dataset_shape(dataset: &Dataset) -> TableShape {
    let schema: arrow_schema::Schema = dataset.schema().into();
    table_shape(&schema)
}

fn directory_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => directory_bytes(&entry.path()),
            Ok(_) => entry.metadata().map_or(0, |metadata| metadata.len()),
            Err(_) => 0,
        })
        .sum()
}
