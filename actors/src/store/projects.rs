//! The list of projects: which there are, under which names, and the settings that they share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::RwLock;

use crate::clock;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::access::WriteAccess;
use crate::store::bookmarks::Bookmarks;
use crate::store::caches::{ProjectCaches, SharedCaches};
use crate::store::discover::{self, LeftAside};
use crate::store::disk_space::WriteState;
use crate::store::index::{Budget, ResidentStats};
use crate::store::lock::StoreLock;
use crate::store::project::{Listener, Listeners, Project, ProjectSettings, Published};
use crate::store::swap::{self, Finished};
use crate::store::table::durable::Durability;
use crate::store::table::holds_table;
use crate::store::table::lineage::Lineage;
use crate::store::table::schema::ModelIdentity;
use crate::store::table::table_directory;
use crate::store::view::recent::Recent;
use crate::store::view::search::{self, PageVersion};
use crate::store::view::{Horizon, ProjectView};

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
    /// Bytes that the indexes of live items may take in memory, of all projects together.
    pub resident_bytes: u64,
    /// Bytes that the rows may take that answers have shown lately, of all projects together.
    pub text_cache_bytes: u64,
    /// Bytes of the file system that stay free: what adds to a project is refused below it, so that upkeep still has
    /// space. 0 lets the disk fill up.
    pub min_free_bytes: u64,
    /// The model that embeds.
    pub model: ModelIdentity,
    /// How long closed rows (replaced revisions, deleted items) are kept.
    pub retention: TimeDelta,
}

/// All projects. See the module.
pub struct Store {
    pub(super) config: StoreConfig,
    /// Held for as long as anything of the store is in use.
    pub(super) lock: StoreLock,
    pub(super) caches: Arc<SharedCaches>,
    /// Which projects have an index in memory.
    pub(super) resident: Arc<Budget>,
    /// What became of the interrupted restores when the store was opened.
    pub(super) finished: Finished,
    /// By the name folded to lower case, so that a collision is seen on every file system.
    pub(super) projects: RwLock<BTreeMap<String, Arc<Project>>>,
    /// What lies in the data directory and is not served, as it was last looked at.
    pub(super) left_aside: RwLock<Vec<LeftAside>>,
    /// Who waits for the changes of which projects.
    pub(super) listeners: Arc<Listeners>,
    /// Held shared to publish a view, and alone for the instant in which a backup takes the views of all
    /// projects: so these belong together.
    pub(super) backup_instant: Arc<RwLock<()>>,
    /// Held shared by what reads one version for long (backups, exports), alone by a restore, which takes the
    /// files of that version away.
    pub(super) transfers: Arc<tokio::sync::RwLock<()>>,
    /// Where feeds of all projects stand.
    pub(super) bookmarks: Arc<Bookmarks>,
    /// Rankings of the last searches, for their next pages.
    pub(super) pools: search::Pools,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Store")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store: finishes what a restore has left, and lists the projects; opens none of them yet. `lock` is
    /// that of its directory. Nothing that lies in the data directory makes it fail: [`Store::troubles`] and
    /// [`Store::recovery`] report what cannot be used.
    pub fn open(config: StoreConfig, lock: StoreLock) -> KnowledgeResult<(Arc<Self>, WriteAccess)> {
        let caches = Arc::new(SharedCaches::new(config.index_cache_bytes, config.metadata_cache_bytes));
        let resident = Arc::new(Budget::new(config.resident_bytes, config.text_cache_bytes));
        lock.check()?;
        let finished = swap::finish_interrupted(&config.knowledge_dir);
        discover::remove_left_probes(&config.knowledge_dir, |_| false);
        // A cursor is good for as long as the history behind it.
        let kept = config.retention.to_std().unwrap_or_default();
        let bookmarks = Arc::new(Bookmarks::new(&config.knowledge_dir, kept));
        let store = Arc::new(Self {
            config,
            bookmarks,
            lock,
            caches,
            resident,
            finished,
            projects: RwLock::new(BTreeMap::new()),
            left_aside: RwLock::default(),
            listeners: Arc::default(),
            backup_instant: Arc::default(),
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
    pub(super) fn last_commit(&self) -> Option<DateTime<Utc>> {
        let written = self.projects().into_iter().filter_map(|project| {
            let versions = table_directory(project.directory()).join("_versions");
            std::fs::metadata(versions).and_then(|found| found.modified()).ok()
        });
        written.max().map(DateTime::from)
    }

    /// Finds the projects on disk. Blocks for the reading of one directory.
    pub(super) fn discover(&self) {
        let known: BTreeMap<String, ProjectName> = {
            let projects = self.projects.read();
            let named = projects
                .iter()
                .map(|(folded, project)| (folded.clone(), project.name().clone()));
            named.collect()
        };
        let found = discover::look(&self.config.knowledge_dir, |name| {
            known.get(&name.folded()) == Some(name)
        });
        for project in found.projects {
            // What is refused has got in by another spelling since; the next look reports it.
            self.register(&project).ok();
        }
        let mut left_aside = self.left_aside.write();
        for new in found.left_aside.iter().filter(|new| !left_aside.contains(new)) {
            tracing::warn!("{}", new.reason);
        }
        *left_aside = found.left_aside;
    }

    /// Refuses a name that is not that of a project though something of that name lies in the data directory.
    pub(super) fn check_left_aside(&self, name: &ProjectName) -> KnowledgeResult<()> {
        let reason = || {
            let left_aside = self.left_aside.read();
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
    pub(super) fn known(&self, name: &ProjectName) -> KnowledgeResult<Option<Arc<Project>>> {
        let projects = self.projects.read();
        match projects.get(&name.folded()) {
            None => Ok(None),
            Some(project) if *project.name() == *name => Ok(Some(Arc::clone(project))),
            Some(project) => Err(KnowledgeError::invalid(
                "project_id",
                format!(
                    "project_id {name} differs from the existing project {} only in case; use that name",
                    project.name()
                ),
            )),
        }
    }

    pub(super) fn register(&self, name: &ProjectName) -> KnowledgeResult<Arc<Project>> {
        if let Some(project) = self.known(name)? {
            return Ok(project);
        }
        let settings = ProjectSettings {
            name: name.clone(),
            directory: self.config.knowledge_dir.join(name.as_str()),
            lock: self.lock.clone(),
            durability: self.config.durability,
            model: self.config.model.clone(),
            retention: self.config.retention,
            caches: ProjectCaches::new(Arc::clone(&self.caches)),
            resident: Arc::clone(&self.resident),
        };
        // Nobody follows the changes of the daemon's own projects.
        let listeners = (!name.is_own()).then(|| Arc::clone(&self.listeners));
        let project = Arc::new(Project::new(
            settings,
            Published::new(Arc::clone(&self.backup_instant), listeners),
            WriteState::new(self.config.min_free_bytes),
            self.finished.awaited.contains(name),
        ));
        let mut projects = self.projects.write();
        let entry = projects.entry(name.folded()).or_insert(project);
        let entry = Arc::clone(entry);
        drop(projects);
        if *entry.name() == *name {
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
        let projects = self.projects.read();
        let users = projects.values().filter(|project| !project.name().is_own());
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
    pub(super) fn on_disk(&self, name: &ProjectName) -> KnowledgeResult<Option<Arc<Project>>> {
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

    /// Learns from now on when a project changes, or any of them.
    pub fn listen(&self, to: Option<ProjectName>) -> Listener {
        self.listeners.listen(to)
    }

    /// Rankings of the last searches.
    pub fn pools(&self) -> &search::Pools {
        &self.pools
    }

    /// Keeps a view for the next page of a search, for some minutes.
    pub fn keep_for_pages(&self, view: &Arc<ProjectView>) {
        if let Ok(Some(project)) = self.known(view.project()) {
            project.held().keep_for_pages(view);
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
        Ok(present.or_else(|| project.held().find(page.version)))
    }

    /// What is known in memory of the changes of a project after commit `after` of the history `epoch`
    /// ([`Lineage::epoch`]). Reads nothing and opens nothing.
    pub fn recent_changes(&self, name: &ProjectName, after: i64, epoch: i64) -> Recent {
        let Ok(Some(project)) = self.known(name) else {
            return Recent::Elsewhere;
        };
        // The view before the history: a restore clears it first.
        let Some(view) = project.published() else {
            // Nothing was wrong with it when it was closed, and nobody writes to it without opening it.
            let rests_there = project.resting() == Some(after) && project.lineage().epoch == epoch;
            return if rests_there {
                Recent::Nothing
            } else {
                Recent::Elsewhere
            };
        };
        if project.lineage().epoch != epoch || view.damage().lost(after) {
            return Recent::Elsewhere;
        }
        if view.sequence() == after {
            return Recent::Nothing;
        }
        // Who has missed something is told so by who reads the table, wherever the rest is.
        let is_forgotten = |horizon: Option<Horizon>| horizon.is_some_and(|horizon| after < horizon.sequence);
        if view.horizon().map_or(true, is_forgotten) {
            return Recent::Elsewhere;
        }
        let found = project.recent().after(after, view.sequence(), epoch);
        found.map_or(Recent::Elsewhere, Recent::Changes)
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
        self.caches.bytes()
    }

    /// What the indexes of live items take in memory.
    pub fn resident(&self) -> ResidentStats {
        self.resident.stats()
    }

    /// Where the commit numbers of a project come from, as far as it is open.
    pub fn lineage(&self, name: &ProjectName) -> KnowledgeResult<Lineage> {
        Ok(self.known(name)?.map(|project| project.lineage()).unwrap_or_default())
    }
}
