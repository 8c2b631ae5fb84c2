//! The store: one LanceDB database for each project under `knowledge/`.
//!
//! [`Store`] opens projects on first use and hands out [`ProjectView`]s, which can only be queried. What
//! writes is [`WriteTable`], and it is reached through [`WriteAccess`] alone, of which [`Store::open`] gives
//! exactly one: the supervisor keeps it for the writer. So exclusive write access holds by type.

pub mod backup;
pub mod changes;
pub mod durable;
pub mod error;
pub mod export;
pub mod filter;
pub mod fulltext;
pub mod fusion;
mod identity;
pub mod maintenance;
pub mod restore;
pub mod rows;
pub mod schema;
pub mod search;
pub mod view;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use chrono::TimeDelta;
use lance::Dataset;
use lance::dataset::ReadParams;
use lance::session::Session;
use lancedb::Connection;
use tokio::sync::{Mutex, watch};

pub use durable::Durability;
pub use restore::Lineage;
pub use view::ProjectView;
pub use write::{WriteTable, Written};

use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::durable::DurableCommitHandler;
use crate::store::error::{read_error, write_error};
use crate::store::schema::{TABLE_NAME, TableShape, table_shape};

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
    /// The model that embeds.
    pub model: ModelIdentity,
    /// How long closed rows (replaced revisions, deleted items) are kept.
    pub retention: TimeDelta,
}

/// All projects. See the module.
pub struct Store {
    config: StoreConfig,
    session: Arc<SharedSession>,
    /// By the name folded to lower case, so that a collision is seen on every file system.
    projects: RwLock<BTreeMap<String, Arc<Project>>>,
    /// Counts the published views of all projects: what the change feed waits for.
    published: Arc<watch::Sender<u64>>,
    /// Held shared to publish a view, and alone for the instant in which a backup takes the views of all
    /// projects: so these are of one moment.
    moment: Arc<RwLock<()>>,
    /// Held shared by what reads one version for long (backups, exports), alone by a restore, which takes the
    /// files of that version away.
    transfers: Arc<tokio::sync::RwLock<()>>,
}

/// The caches that all projects share. Lance tells tables apart by place and version number alone, so what
/// puts another table in the same place begins new ones; views of before keep those they were made with.
struct SharedSession {
    index_cache_bytes: usize,
    metadata_cache_bytes: usize,
    current: RwLock<Arc<Session>>,
}

impl SharedSession {
    fn new(index_cache_bytes: usize, metadata_cache_bytes: usize) -> Self {
        Self {
            index_cache_bytes,
            metadata_cache_bytes,
            current: RwLock::new(new_session(index_cache_bytes, metadata_cache_bytes)),
        }
    }

    fn current(&self) -> Arc<Session> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn begin_anew(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) =
            new_session(self.index_cache_bytes, self.metadata_cache_bytes);
    }
}

fn new_session(index_cache_bytes: usize, metadata_cache_bytes: usize) -> Arc<Session> {
    Arc::new(Session::new(
        index_cache_bytes,
        metadata_cache_bytes,
        Arc::new(lancedb::ObjectStoreRegistry::default()),
    ))
}

/// The right to write, of which there is one. See the module.
pub struct WriteAccess {
    store: Arc<Store>,
}

/// One project: its published view, and the table behind it once it is open.
pub struct Project {
    name: ProjectName,
    directory: PathBuf,
    durability: Durability,
    model: ModelIdentity,
    retention: TimeDelta,
    session: Arc<SharedSession>,
    published: Arc<watch::Sender<u64>>,
    moment: Arc<RwLock<()>>,
    /// Where its commit numbers come from; known once the project is opened.
    lineage: RwLock<Lineage>,
    /// What readers see; none until the project is opened. A std lock: held for a pointer's copy, never
    /// across an await.
    view: RwLock<Option<Arc<ProjectView>>>,
    /// The table. Held by the writer for the whole of a commit, so that a commit that outlives the actor which
    /// started it is never joined by a second one.
    table: Mutex<Option<WriteTable>>,
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
    /// Opens the store: lists the projects, opens none of them yet.
    pub fn open(config: StoreConfig) -> KnowledgeResult<(Arc<Self>, WriteAccess)> {
        let session = Arc::new(SharedSession::new(
            config.index_cache_bytes,
            config.metadata_cache_bytes,
        ));
        restore::finish_interrupted(&config.knowledge_dir)?;
        let store = Arc::new(Self {
            config,
            session,
            projects: RwLock::new(BTreeMap::new()),
            published: Arc::new(watch::Sender::new(0)),
            moment: Arc::default(),
            transfers: Arc::default(),
        });
        store.discover()?;
        let access = WriteAccess {
            store: Arc::clone(&store),
        };
        Ok((store, access))
    }

    /// Finds the projects on disk.
    fn discover(&self) -> KnowledgeResult<()> {
        let entries = match std::fs::read_dir(&self.config.knowledge_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(KnowledgeError::internal(format!(
                    "{} cannot be read: {error}",
                    self.config.knowledge_dir.display()
                )));
            }
        };
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str() else { continue };
            if name.starts_with('.') {
                continue; // Of a restore; no project is named so.
            }
            match ProjectName::parse(name, "project_id") {
                Ok(project) if table_directory(&entry.path()).is_dir() => {
                    self.register(&project)?;
                }
                Ok(_) => {}
                Err(_) => tracing::warn!(directory = ?file_name, "not a project name, ignored"),
            }
        }
        Ok(())
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
            durability: self.config.durability,
            model: self.config.model.clone(),
            retention: self.config.retention,
            session: Arc::clone(&self.session),
            published: Arc::clone(&self.published),
            moment: Arc::clone(&self.moment),
            lineage: RwLock::default(),
            view: RwLock::new(None),
            table: Mutex::new(None),
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

    /// The known projects, by name.
    pub fn projects(&self) -> Vec<Arc<Project>> {
        let projects = self.projects.read().unwrap_or_else(PoisonError::into_inner);
        projects.values().cloned().collect()
    }

    /// The present view of a project; nothing where the project does not exist. Opens it on first use.
    pub async fn view(&self, name: &ProjectName) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        match self.known(name)? {
            Some(project) => project.view().await,
            // Copied in while the daemon runs, as a migration does it.
            None if table_directory(&self.config.knowledge_dir.join(name.as_str())).is_dir() => {
                self.register(name)?.view().await
            }
            None => Ok(None),
        }
    }

    /// Changes whenever a view of any project is published.
    pub fn publications(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
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
        self.store.register(name)
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Removes a project with everything in it, at once and for good: for the daemon's own probes.
    pub async fn drop_project(&self, name: &ProjectName) -> KnowledgeResult<()> {
        let Some(project) = self.store.known(name)? else {
            return Ok(());
        };
        let mut guard = project.table.lock().await;
        *guard = None;
        project.clear_view();
        let directory = project.directory.clone();
        tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
        .map_err(KnowledgeError::internal)?
        .map_err(write_error)?;
        self.store
            .projects
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&name.folded());
        Ok(())
    }

    /// Takes a project's table for writing; waits for a commit that is under way. The table is opened on first
    /// use and created where there is none and `create` is set.
    pub async fn lock<'a>(&self, project: &'a Project, create: bool) -> KnowledgeResult<WriteGuard<'a>> {
        let mut guard = project.table.lock().await;
        if guard.is_none() {
            *guard = project.open_table().await?;
        }
        if guard.is_none() && create {
            *guard = Some(project.create_table().await?);
        }
        Ok(WriteGuard { project, guard })
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

    /// Publishes what was committed: from now on every new request sees it.
    pub async fn publish(&mut self) -> KnowledgeResult<Arc<ProjectView>> {
        let table = self
            .guard
            .as_mut()
            .ok_or_else(|| KnowledgeError::internal("there is no table to publish"))?;
        let view = table.view().await?;
        self.project.set_view(Arc::clone(&view));
        Ok(view)
    }

    /// Forgets the table after a failure whose effect is not known; the next user opens it from disk.
    pub fn forget(mut self) {
        *self.guard = None;
        self.project.clear_view();
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
        self.published.send_modify(|count| *count += 1);
    }

    fn lineage(&self) -> Lineage {
        *self.lineage.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn clear_view(&self) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The present view, opening the project on first use.
    pub async fn view(&self) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        if let Some(view) = self.published() {
            return Ok(Some(view));
        }
        let mut guard = self.table.lock().await;
        if let Some(view) = self.published() {
            return Ok(Some(view)); // Opened while this one waited.
        }
        if guard.is_none() {
            *guard = self.open_table().await?;
        }
        match guard.as_mut() {
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

    /// Opens the table, if there is one.
    async fn open_table(&self) -> KnowledgeResult<Option<WriteTable>> {
        if !table_directory(&self.directory).is_dir() {
            return Ok(None);
        }
        let handler = Arc::new(DurableCommitHandler::new(self.durability));
        let mut read_params = ReadParams::default();
        read_params.session(self.session.current());
        read_params.commit_handler = Some(handler);
        let connection = self.connect().await?;
        // A torn manifest can make Lance panic on its bytes; in a task of its own that is an error like others.
        let opened = tokio::spawn(async move {
            connection
                .open_table(TABLE_NAME)
                .lance_read_params(read_params)
                .execute()
                .await
        })
        .await;
        match opened {
            Ok(Ok(table)) => {
                let lineage = Lineage::read(&self.directory);
                *self.lineage.write().unwrap_or_else(PoisonError::into_inner) = lineage;
                let mut table = WriteTable::opened(self.name.clone(), table, self.retention).await?;
                table.continue_after(lineage.sequence);
                Ok(Some(table))
            }
            Ok(Err(lancedb::Error::TableNotFound { .. })) => Ok(None),
            Ok(Err(error)) => Err(read_error(error)),
            Err(panic) => Err(KnowledgeError::internal(format!(
                "project {} cannot be opened, its newest version is damaged: {panic}",
                self.name
            ))),
        }
    }

    /// Creates the table with its keyword index.
    async fn create_table(&self) -> KnowledgeResult<WriteTable> {
        std::fs::create_dir_all(&self.directory).map_err(write_error)?;
        let handler = Arc::new(DurableCommitHandler::new(self.durability));
        let connection = self.connect().await?;
        WriteTable::create(&connection, &self.model, handler, self.session.current()).await?;
        // Opened as any other table is: the index is made there.
        self.open_table()
            .await?
            .ok_or_else(|| KnowledgeError::internal(format!("project {} was created and cannot be found", self.name)))
    }
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
