//! Backups: a copy of the projects as they were at one moment, made while they are read and written.
//!
//! ```text
//! <backup>/backup.json                                   what is in it: counts, and each file's size and SHA-256
//! <backup>/knowledge/<project>/orchestra_knowledge.lance the table, exactly the files of one version
//! ```
//!
//! A view holds its version: what it names is not pruned while somebody reads it. So the moment is only the
//! instant in which the views of all projects are taken together (see `Store::moment`); the copying takes its
//! time, and nobody waits for it. Everything is written beside the target and renamed into its place when it
//! is complete and on disk: a backup under its own name is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError};

use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::index::DatasetIndexExt;
use lance_io::local::to_local_path;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::{Store, state, table_directory};
use crate::clock;
use crate::domain::{ProjectName, format_time, hex, now_ms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::discover::holds_table;
use crate::store::durable::referenced_files;
use crate::store::error::{file_read_error, is_denied, is_passing, read_error, told};
use crate::store::schema::{TABLE_NAME, TableShape};
use crate::store::verify::is_taken_away;
use crate::store::view::ProjectView;

/// Name of the file that says what a backup holds.
pub const BACKUP_FILE: &str = "backup.json";
/// Directory of the projects inside a backup; named as in a home, so that a backup can be read as one.
pub const KNOWLEDGE: &str = "knowledge";
/// Directory of a home that keeps what a restore replaced.
pub const ASIDE: &str = "aside";
/// File of a home that remembers where backups were written.
const RECORD_FILE: &str = "backups.jsonl";
/// Version of the layout and of `backup.json`.
const FORMAT: u32 = 1;
/// Bytes copied between two looks at whether the work is still wanted.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of each cache that reads a copy back once.
const CHECK_CACHE_BYTES: usize = 8 << 20;

/// Whoever waits for a long operation: is told how far it is, and asked whether it is still wanted.
pub trait Watcher: Send + Sync + 'static {
    /// Tells how far the work is: `done` of `total`, in a unit that fits it.
    fn progress(&self, done: u64, total: u64, message: &str);

    /// Fails, with the reason, once the work is not wanted any more.
    fn check(&self) -> KnowledgeResult<()>;
}

/// What a backup holds: the content of `backup.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Version of the layout.
    pub format: u32,
    /// When it was made (RFC 3339).
    pub created: String,
    /// By which version of the daemon.
    pub daemon_version: String,
    /// The model that the daemon ran, `name@hash`.
    pub model: String,
    /// The projects, by name.
    pub projects: Vec<BackupProject>,
}

/// One project of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupProject {
    /// Its name.
    pub project_id: String,
    /// The model of its vectors, `name@hash`; none where the table has another schema.
    pub model: Option<String>,
    /// Why it has to be migrated before it can be used, if it has.
    pub needs_migration: Option<String>,
    /// Its newest commit.
    pub sequence: i64,
    /// Live items.
    pub items: u64,
    /// Rows, closed ones and further passages included.
    pub rows: u64,
    /// Its files.
    pub files: Vec<BackupFile>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFile {
    /// Below the project's directory.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, as hexadecimal.
    pub sha256: String,
}

/// `backup.json` as written: what it holds, with a sum over exactly those bytes.
#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    sha256: String,
    #[serde(borrow)]
    backup: &'a RawValue,
}

/// What is to be backed up.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// Where to: a directory that does not exist or is empty. Absolute.
    pub path: PathBuf,
    /// One project; all of them if absent.
    pub project: Option<ProjectName>,
}

/// What was backed up.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds.
    pub backup: Backup,
    /// Its size in bytes, without `backup.json`.
    pub bytes: u64,
    /// What is not in it, and why.
    pub warnings: Vec<String>,
}

impl Backup {
    /// Reads and checks `backup.json`; the files that it names are not looked at.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for `path` where this is no backup, a damaged one, or one of a
    /// layout that this version does not know.
    pub fn read(directory: &Path) -> KnowledgeResult<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let place = directory.join(BACKUP_FILE);
        let mut text = String::new();
        let read = open_regular(&place).and_then(|mut file| file.read_to_string(&mut text));
        read.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                bad_path(format!("{} is no backup: it has no {BACKUP_FILE}", directory.display()))
            }
            _ => bad_path(format!("{} cannot be read: {error}", place.display())),
        })?;
        let damaged = |what: &str| {
            bad_path(format!(
                "the backup is damaged, {} {what}; use another backup",
                place.display()
            ))
        };
        let sealed: Sealed<'_> = serde_json::from_str(&text).map_err(|_| damaged("cannot be understood"))?;
        if let Ok(Format { format }) = serde_json::from_str(sealed.backup.get())
            && format != FORMAT
        {
            return Err(bad_path(format!(
                "the backup has format {format}, this daemon knows {FORMAT}; restore it with a newer ccod"
            )));
        }
        if sha256(sealed.backup.get().as_bytes()) != sealed.sha256 {
            return Err(damaged("is not as it was written"));
        }
        let backup: Self = serde_json::from_str(sealed.backup.get()).map_err(|_| damaged("cannot be understood"))?;
        // The sum guards against damage, not against malice: no name may lead out of its place.
        let mut seen = BTreeSet::new();
        for project in &backup.projects {
            let name = ProjectName::parse(&project.project_id, "path").map_err(|_| damaged("names no project"))?;
            let contained = project.files.iter().all(|file| is_inside(Path::new(&file.path)));
            if !contained || !seen.insert(name.folded()) {
                return Err(damaged("names what a backup cannot hold"));
            }
        }
        Ok(backup)
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        // Laid out for people; the sum is over these very bytes.
        let backup = RawValue::from_string(serde_json::to_string_pretty(self)?)?;
        let sealed = Sealed {
            sha256: sha256(backup.get().as_bytes()),
            backup: &backup,
        };
        let mut text = serde_json::to_vec(&sealed)?;
        text.push(b'\n');
        let mut file = create_file(&directory.join(BACKUP_FILE))?;
        file.write_all(&text)?;
        file.sync_all()
    }
}

/// Whether a path goes down only.
fn is_inside(path: &Path) -> bool {
    let mut components = path.components().peekable();
    components.peek().is_some() && components.all(|component| matches!(component, Component::Normal(_)))
}

/// One project that is being backed up.
struct Source {
    record: BackupProject,
    /// The table's directory.
    table: PathBuf,
    /// Its files, below that directory.
    files: Vec<PathBuf>,
    /// Keeps the version from being pruned.
    view: Arc<ProjectView>,
}

/// Something that is not in a backup.
#[derive(Debug)]
struct LeftOut {
    /// What, why, and what to do.
    what: String,
    /// What to do, by itself.
    fix: &'static str,
}

/// What to do about a project that cannot be copied.
const VERIFY: &str = "run `ccoctl verify`, which says what is the matter with the project";

impl From<LeftOut> for KnowledgeError {
    fn from(left_out: LeftOut) -> Self {
        Self::OutOfReach {
            message: left_out.what,
            fix: left_out.fix,
        }
    }
}

/// Why a project was not copied.
#[derive(Debug)]
struct Failure {
    view: Arc<ProjectView>,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    /// A file is not there: it was lost, or a purge has taken the version away meanwhile.
    Missing(PathBuf),
    /// Anything else.
    Error(KnowledgeError),
}

impl From<KnowledgeError> for Cause {
    fn from(error: KnowledgeError) -> Self {
        Self::Error(error)
    }
}

impl Store {
    /// Copies projects as they are at one moment. Writes go on; each of them is in the copy or is not, and what
    /// was acknowledged before the call is.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for `path` where it cannot be used; the error of the watcher once
    /// the backup is not wanted any more. Nothing is left at the path then.
    pub async fn back_up(&self, request: BackupRequest, watcher: Arc<dyn Watcher>) -> KnowledgeResult<BackupReport> {
        clock::check()?;
        let knowledge_dir = self.config.knowledge_dir.clone();
        let path = request.path.clone();
        let path = blocking(move || new_place(&path, &knowledge_dir, NewPlace::Directory)).await?;
        // The files of a view must stay where they are.
        let _turn = self.reading_for_long().await;
        let (views, mut warnings) = self.moment(&request, watcher.as_ref()).await?;
        if let (Some(project), true) = (&request.project, views.is_empty()) {
            return Err(match warnings.into_iter().next() {
                Some(left_out) => left_out.into(),
                None => KnowledgeError::invalid("project_id", format!("project {project} has nothing to back up")),
            });
        }
        let mut sources = Vec::with_capacity(views.len());
        for view in views {
            match Source::of(Arc::clone(&view)).await {
                Ok(source) => sources.push(source),
                Err(cause) => warnings.push(self.left_out(&request, Failure { view, cause }).await?),
            }
        }
        let views: BTreeMap<String, Arc<ProjectView>> = sources
            .iter()
            .map(|source| (source.record.project_id.clone(), Arc::clone(&source.view)))
            .collect();
        let mut backup = Backup {
            format: FORMAT,
            created: format_time(now_ms()),
            daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.config.model.name.clone(),
            projects: Vec::new(),
        };

        let home = home_of(&self.config.knowledge_dir);
        let target = path.clone();
        let created = backup.created.clone();
        let copier = Arc::clone(&watcher);
        let (partial, copied) = blocking(move || {
            let partial = Partial::beside(&target)?;
            let record = BackupRecord {
                path: target,
                partial: partial.path.clone(),
                created,
                projects: sources.iter().map(|source| source.record.project_id.clone()).collect(),
            };
            // Before the first byte: no copy of an item exists that a purge would not be told of.
            record.append(&home)?;
            let copied = copy_sources(sources, &partial.path, copier.as_ref())?;
            Ok((partial, copied))
        })
        .await?;
        for failure in copied.failed {
            warnings.push(self.left_out(&request, failure).await?);
        }

        let bytes = copied.projects.iter().map(BackupProject::bytes).sum();
        let knowledge = partial.path.join(KNOWLEDGE);
        for project in copied.projects {
            watcher.check()?;
            watcher.progress(bytes, bytes, &format!("reading back {}", project.project_id));
            match check_table(&knowledge, &project, true).await {
                Ok(()) => backup.projects.push(project),
                Err(error) => {
                    let view = views.get(&project.project_id).cloned();
                    let view = view.ok_or_else(|| KnowledgeError::internal("a project was copied without a view"))?;
                    let cause = Cause::Error(error);
                    warnings.push(self.left_out(&request, Failure { view, cause }).await?);
                    let copy = knowledge.join(&project.project_id);
                    blocking(move || remove_copy(&copy)).await?;
                }
            }
        }
        watcher.check()?;
        if backup.projects.is_empty() && !warnings.is_empty() {
            return Err(warnings.swap_remove(0).into());
        }
        let bytes = backup.projects.iter().map(BackupProject::bytes).sum();
        let (target, written) = (path.clone(), backup.clone());
        blocking(move || partial.publish(&target, &written)).await?;
        Ok(BackupReport {
            path,
            backup,
            bytes,
            warnings: warnings.into_iter().map(|left_out| left_out.what).collect(),
        })
    }

    /// The views of the projects at one moment, and why some are missing. Publishing a view waits for the
    /// instant in which they are taken together; opening what is not open comes before.
    async fn moment(
        &self,
        request: &BackupRequest,
        watcher: &dyn Watcher,
    ) -> KnowledgeResult<(Vec<Arc<ProjectView>>, Vec<LeftOut>)> {
        loop {
            watcher.check()?;
            self.discover();
            let (mut viewless, mut warnings) = (BTreeSet::new(), Vec::new());
            if request.project.is_none() {
                let left_aside = self.left_aside.read().unwrap_or_else(PoisonError::into_inner);
                let knowledge = left_aside.iter().filter(|left| left.holds_knowledge);
                warnings.extend(knowledge.map(|left| LeftOut {
                    what: format!("not in the backup: {}", left.reason),
                    fix: left.fix,
                }));
            }
            for project in self.projects() {
                let name = project.name();
                if !request.wants(name) {
                    continue;
                }
                match project.view().await {
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        viewless.insert(name.clone());
                    }
                    // What is damaged is left out; what could be opened the next time is not dropped for that.
                    Err(error) if is_passing(&error) && !is_denied(&error) => return Err(of_the_moment(error)),
                    Err(error @ (KnowledgeError::NoDescriptors | KnowledgeError::Unavailable { .. })) => {
                        return Err(error);
                    }
                    Err(reason) => {
                        viewless.insert(name.clone());
                        warnings.push(LeftOut {
                            what: format!(
                                "project {name} cannot be opened and is not in the backup ({reason}); verify it"
                            ),
                            fix: VERIFY,
                        });
                    }
                }
            }
            if let Some(views) = self.views_now(request, &viewless) {
                return Ok((views, warnings));
            }
        }
    }

    /// Why a project is not in the backup: it is damaged for good. An error where it was asked for by name, or where
    /// another try may succeed: what fails for a reason of the moment must not cost the backup a project.
    async fn left_out(&self, request: &BackupRequest, failure: Failure) -> KnowledgeResult<LeftOut> {
        let Failure { view, cause } = failure;
        let project = view.project();
        let retry = |reason: String| KnowledgeError::Unavailable {
            part: "the version that is being copied",
            reason,
        };
        let error = match &cause {
            Cause::Missing(file) => KnowledgeError::unreadable(format_args!("{} is missing", file.display())),
            Cause::Error(error) if is_passing(error) => return Err(of_the_moment(error.clone())),
            Cause::Error(error) => error.clone(),
        };
        if !matches!(
            error,
            KnowledgeError::Internal { .. } | KnowledgeError::Unreadable { .. }
        ) {
            return Err(error);
        }
        // A purge waits for readers for a while only.
        if is_taken_away(self, &view, self.lineage(project)?).await? {
            return Err(retry(format!("it has been removed, by a purge: {error}")));
        }
        if let Cause::Missing(_) = cause {
            // So that others are told as well. An index is made anew by it, and then the project is whole again.
            let mended = self.reexamine(&view, None).await.unwrap_or(false);
            let now = self.view(project).await.ok().flatten();
            if mended && now.is_some_and(|now| now.condition().is_sound()) {
                return Err(retry(format!("the project has been mended: {error}")));
            }
        }
        match &request.project {
            Some(_) => Err(error),
            None => Ok(LeftOut {
                what: format!("project {project} cannot be copied and is not in the backup ({error}); verify it"),
                fix: VERIFY,
            }),
        }
    }

    /// The published views, taken in one instant; none where a project has a table and no view just now, unless
    /// it is known to be `viewless`.
    fn views_now(&self, request: &BackupRequest, viewless: &BTreeSet<ProjectName>) -> Option<Vec<Arc<ProjectView>>> {
        let _instant = self.moment.write().unwrap_or_else(PoisonError::into_inner);
        let mut views = Vec::new();
        for project in self.projects() {
            if !request.wants(project.name()) {
                continue;
            }
            match project.published() {
                Some(view) => views.push(view),
                None if viewless.contains(project.name()) => {}
                // What cannot be looked at is opened, which says why it cannot be.
                None if !matches!(holds_table(&project.directory), Ok(false)) => return None,
                None => {}
            }
        }
        Some(views)
    }
}

impl BackupRequest {
    fn wants(&self, name: &ProjectName) -> bool {
        self.project.as_ref().is_none_or(|project| project == name)
    }
}

impl BackupProject {
    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl Source {
    async fn of(view: Arc<ProjectView>) -> Result<Self, Cause> {
        // Known to be damaged: what the copy would lack is in no backup as if it were all.
        if !view.condition().fragments.is_empty() {
            let found = view.condition().describe().join("; ");
            return Err(KnowledgeError::unreadable(found).into());
        }
        let dataset = view.dataset();
        let base = dataset.branch_location().path;
        let table = PathBuf::from(to_local_path(&base));
        let (model, needs_migration, files) = match view.shape() {
            TableShape::Current { model } => (Some(model.clone()), None, version_files(dataset, &table).await?),
            // Nobody writes to it, and what belongs to it is not ours to know.
            TableShape::Foreign { detail } => {
                let walked = table.clone();
                (None, Some(detail.clone()), blocking(move || all_files(&walked)).await?)
            }
        };
        let record = BackupProject {
            project_id: view.project().to_string(),
            model,
            needs_migration,
            sequence: view.sequence(),
            items: view.stats().await?.total,
            rows: view.row_count().await? as u64,
            files: Vec::new(),
        };
        let files = files
            .into_iter()
            .map(|file| {
                file.strip_prefix(&table)
                    .map(Path::to_path_buf)
                    .map_err(|_| KnowledgeError::internal(format!("{} lies outside its table", file.display())))
            })
            .collect::<KnowledgeResult<_>>()?;
        Ok(Self {
            record,
            table,
            files,
            view,
        })
    }
}

/// Every file of one version, its manifest included.
async fn version_files(dataset: &Dataset, table: &Path) -> Result<BTreeSet<PathBuf>, Cause> {
    let indices = dataset.load_indices().await.map_err(read_error)?;
    let base = dataset.branch_location().path;
    let mut files: BTreeSet<PathBuf> = referenced_files(dataset.manifest(), &indices, &base)
        .map_err(read_error)?
        .into_iter()
        .collect();
    for index in indices.iter() {
        let directory = table.join("_indices").join(index.uuid.to_string());
        let listed = index.files.iter().flatten().map(|file| directory.join(&file.path));
        for file in listed {
            if !files.contains(&file) {
                return Err(Cause::Missing(file));
            }
        }
    }
    files.insert(PathBuf::from(to_local_path(&dataset.manifest_location().path)));
    // Its content stands in the manifest as well, so an old version may have lost it.
    if let Some(name) = &dataset.manifest().transaction_file {
        let transaction = table.join("_transactions").join(name);
        if transaction.is_file() {
            files.insert(transaction);
        }
    }
    Ok(files)
}

fn all_files(directory: &Path) -> KnowledgeResult<BTreeSet<PathBuf>> {
    let unreadable = |error: io::Error| KnowledgeError::internal(format!("{}: {error}", directory.display()));
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.file_type().map_err(unreadable)?.is_dir() {
            files.append(&mut all_files(&entry.path())?);
        } else {
            files.insert(entry.path());
        }
    }
    Ok(files)
}

/// What was copied.
#[derive(Default)]
struct Copied {
    projects: Vec<BackupProject>,
    /// Why others were not.
    failed: Vec<Failure>,
}

/// Copies the files of every source into `target/knowledge`, durably, and notes their sums.
fn copy_sources(sources: Vec<Source>, target: &Path, watcher: &dyn Watcher) -> KnowledgeResult<Copied> {
    let files = sources
        .iter()
        .flat_map(|source| source.files.iter().map(|file| source.table.join(file)));
    // What cannot be looked at cannot be read either, which is told when its turn comes.
    let total = files
        .map(|file| std::fs::metadata(file).map_or(0, |metadata| metadata.len()))
        .sum();
    let knowledge = target.join(KNOWLEDGE);
    create_directory(&knowledge).map_err(|error| unwritable(&knowledge, &error))?;
    let mut done = 0;
    let mut copied = Copied::default();
    'sources: for mut source in sources {
        let message = format!("copying {}", source.record.project_id);
        let project = knowledge.join(&source.record.project_id);
        for file in &source.files {
            fail::fail_point!("backup::file");
            let path = Path::new(&format!("{TABLE_NAME}.lance")).join(file);
            let (from, to) = (source.table.join(file), project.join(&path));
            let file = copy_of(&from, &to, watcher, |bytes| {
                done += bytes;
                watcher.progress(done, total, &message);
            });
            let file = match file {
                Ok(file) => file,
                Err(CopyError::Source(error)) if is_passing(&error) => {
                    return Err(of_the_moment(file_read_error(&from, error)));
                }
                Err(CopyError::Source(error)) => {
                    let cause = match error.kind() {
                        io::ErrorKind::NotFound => Cause::Missing(from),
                        _ => Cause::Error(file_read_error(&from, error)),
                    };
                    copied.failed.push(Failure {
                        view: source.view,
                        cause,
                    });
                    remove_copy(&project)?;
                    continue 'sources;
                }
                Err(CopyError::Target(error)) => return Err(unwritable(&to, &error)),
                Err(CopyError::Over(error)) => return Err(error),
            };
            let path = path.to_str().map(str::to_owned);
            source.record.files.push(BackupFile {
                path: path
                    .ok_or_else(|| KnowledgeError::internal("a file of the table has a name that is not UTF-8"))?,
                ..file
            });
        }
        copied.projects.push(source.record);
    }
    sync_tree(target).map_err(|error| unwritable(target, &error))?;
    Ok(copied)
}

/// As [`copy_file`], which tests make fail.
fn copy_of(from: &Path, to: &Path, watcher: &dyn Watcher, advanced: impl FnMut(u64)) -> Result<BackupFile, CopyError> {
    fail::fail_point!("backup::source", |errno| {
        let errno = errno.and_then(|number| number.parse().ok()).unwrap_or_default();
        Err(CopyError::Source(io::Error::from_raw_os_error(errno)))
    });
    copy_file(from, to, watcher, advanced)
}

/// Takes out of an unfinished backup what was copied of a project.
fn remove_copy(copy: &Path) -> KnowledgeResult<()> {
    match std::fs::remove_dir_all(copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unwritable(copy, &error)),
        _ => copy
            .parent()
            .map_or(Ok(()), sync_directory)
            .map_err(|error| unwritable(copy, &error)),
    }
}

/// Why a file was not copied.
pub(crate) enum CopyError {
    /// It cannot be read.
    Source(io::Error),
    /// Its copy cannot be written.
    Target(io::Error),
    /// Nobody wants it any more.
    Over(KnowledgeError),
}

/// Copies one file, with the directories that lead to it, and syncs it. The path in the result is left empty.
pub(crate) fn copy_file(
    from: &Path,
    to: &Path,
    watcher: &dyn Watcher,
    mut advanced: impl FnMut(u64),
) -> Result<BackupFile, CopyError> {
    let mut source = open_regular(from).map_err(CopyError::Source)?;
    if let Some(parent) = to.parent() {
        create_directory(parent).map_err(CopyError::Target)?;
    }
    let mut target = create_file(to).map_err(CopyError::Target)?;
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        watcher.check().map_err(CopyError::Over)?;
        let length = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Source(error)),
        };
        hasher.update(&chunk[..length]);
        target.write_all(&chunk[..length]).map_err(CopyError::Target)?;
        bytes += length as u64;
        advanced(length as u64);
    }
    target.sync_all().map_err(CopyError::Target)?;
    Ok(BackupFile {
        path: String::new(),
        bytes,
        sha256: hex(&hasher.finalize()),
    })
}

/// Opens a copied table by itself and counts its rows; `thorough` reads every one of them, all columns.
pub(crate) async fn check_table(knowledge: &Path, project: &BackupProject, thorough: bool) -> KnowledgeResult<()> {
    if project.needs_migration.is_some() {
        return Ok(());
    }
    let table = table_directory(&knowledge.join(&project.project_id));
    let unusable = |reason: String| {
        KnowledgeError::internal(format!(
            "the copy of project {} cannot be read back: {reason}; verify the project",
            project.project_id
        ))
    };
    let place = table
        .to_str()
        .ok_or_else(|| bad_path("the path must be UTF-8"))?
        .to_owned();
    // Damaged bytes can make Lance panic; in a task of its own that is an error like others.
    let counted = tokio::spawn(async move {
        fail::fail_point!("backup::read_back", |errno| {
            let errno = errno.and_then(|number| number.parse().ok()).unwrap_or_default();
            Err(lance::Error::io_source(Box::new(io::Error::from_raw_os_error(errno))))
        });
        let session = super::Caches::new(CHECK_CACHE_BYTES, CHECK_CACHE_BYTES).session;
        let dataset = DatasetBuilder::from_uri(place).with_session(session).load().await?;
        if !thorough {
            return dataset.count_rows(None).await;
        }
        let mut stream = dataset.scan().try_into_stream().await?;
        let mut rows = 0;
        while let Some(batch) = stream.try_next().await? {
            rows += batch.num_rows();
        }
        Ok::<usize, lance::Error>(rows)
    })
    .await;
    match counted {
        Ok(Ok(rows)) if rows as u64 == project.rows => Ok(()),
        Ok(Ok(rows)) => Err(unusable(format!("it has {rows} rows instead of {}", project.rows))),
        Ok(Err(error)) if is_passing(&error) => Err(of_the_moment(read_error(error))),
        Ok(Err(error)) => Err(unusable(told(&error))),
        Err(panic) => Err(unusable(told(&panic))),
    }
}

/// A directory that is being written, beside the place that it will have. Removed unless it gets there.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn beside(target: &Path) -> KnowledgeResult<Self> {
        let path = partial_beside(target);
        create_directory(&path).map_err(|error| unwritable(&path, &error))?;
        Ok(Self { path })
    }

    fn publish(self, target: &Path, backup: &Backup) -> KnowledgeResult<()> {
        let failed = |error: io::Error| unwritable(target, &error);
        backup.write(&self.path).map_err(failed)?;
        sync_directory(&self.path).map_err(failed)?;
        // Onto an empty directory or nothing; anything else makes it fail.
        std::fs::rename(&self.path, target).map_err(failed)?;
        target.parent().map_or(Ok(()), sync_directory).map_err(failed)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "an unfinished backup could not be removed");
            }
            _ => {}
        }
    }
}

/// A name beside `target` that nothing has.
pub fn partial_beside(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{:08x}", rand::random::<u32>()));
    target.with_file_name(name)
}

/// What is to be made at a new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewPlace {
    /// A directory; an empty one may be there.
    Directory,
    /// A file.
    File,
}

/// Checks a path that something new is to be written to, and resolves the directory that will hold it.
///
/// # Errors
/// [`KnowledgeError::InvalidParameter`] for `path`: something is there, the directory that should hold it is
/// not, or it lies among the projects.
pub fn new_place(path: &Path, knowledge_dir: &Path, what: NewPlace) -> KnowledgeResult<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(bad_path(format!("{} cannot be written to", path.display())));
    };
    let parent = parent
        .canonicalize()
        .map_err(|error| bad_path(format!("{} must be an existing directory: {error}", parent.display())))?;
    let place = parent.join(name);
    let knowledge = knowledge_dir.canonicalize();
    if knowledge.is_ok_and(|knowledge| place.starts_with(knowledge)) {
        return Err(bad_path(format!(
            "{} lies in the directory of the projects; choose a place outside",
            place.display()
        )));
    }
    match std::fs::symlink_metadata(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(place),
        Err(error) => Err(bad_path(format!("{} cannot be looked at: {error}", place.display()))),
        Ok(found) => {
            let empty = what == NewPlace::Directory
                && found.is_dir()
                && std::fs::read_dir(&place).is_ok_and(|mut entries| entries.next().is_none());
            if empty {
                Ok(place)
            } else {
                Err(bad_path(format!(
                    "{} exists already and is not overwritten; choose another path or remove it",
                    place.display()
                )))
            }
        }
    }
}

/// A backup that was begun, as `backups.jsonl` remembers it.
#[derive(Debug, Serialize, Deserialize)]
struct BackupRecord {
    path: PathBuf,
    /// Where it stands until it is complete.
    partial: PathBuf,
    created: String,
    projects: Vec<String>,
}

impl BackupRecord {
    fn append(&self, home: &Path) -> KnowledgeResult<()> {
        let place = home.join(RECORD_FILE);
        let write = || {
            let mut line = serde_json::to_vec(self)?;
            line.push(b'\n');
            let mut file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&place)?;
            // A line that a power cut left unfinished must not swallow this one.
            let mut whole = Vec::new();
            file.read_to_end(&mut whole)?;
            if whole.last().is_some_and(|byte| *byte != b'\n') {
                line.insert(0, b'\n');
            }
            file.write_all(&line)?;
            file.sync_all()?;
            sync_directory(home)
        };
        write().map_err(|error: io::Error| crate::store::error::write_error(error))
    }
}

/// Where copies of a project are that a purge does not reach: the backups that were made of it and are still in
/// their place, unfinished ones too, and what restores have kept aside.
pub fn known_backups(home: &Path, project: &str) -> Vec<String> {
    let mut places = BTreeSet::new();
    let mut unknown = Vec::new();
    let records_file = home.join(RECORD_FILE);
    let records = match std::fs::read(&records_file) {
        Ok(records) => records,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            unknown.push(format!(
                "those that {} names, which cannot be read ({error})",
                records_file.display()
            ));
            Vec::new()
        }
    };
    let lines = records.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let (records, damaged): (Vec<_>, Vec<_>) = lines
        .map(serde_json::from_slice::<BackupRecord>)
        .partition(Result::is_ok);
    if !damaged.is_empty() {
        unknown.push(format!(
            "those that {} damaged lines of {} named",
            damaged.len(),
            records_file.display()
        ));
    }
    let records = records.into_iter().flatten();
    for record in records.filter(|record| record.projects.iter().any(|name| name == project)) {
        for place in [record.path, record.partial] {
            // What cannot be looked at may be there.
            if place.join(KNOWLEDGE).join(project).try_exists().unwrap_or(true) {
                places.insert(place);
            }
        }
    }
    for root in [home.join(ASIDE), home.join("knowledge").join(format!(".{ASIDE}"))] {
        match state::entries(&root) {
            Ok(restores) => places.extend(
                restores
                    .iter()
                    .map(|restore| restore.join(project))
                    .filter(|place| place.try_exists().unwrap_or(true)),
            ),
            Err(error) => unknown.push(format!("those that restores have kept aside: {error}")),
        }
    }
    let places = places.iter().map(|place| place.display().to_string());
    places.chain(unknown).collect()
}

/// The home that a knowledge directory belongs to.
pub(crate) fn home_of(knowledge_dir: &Path) -> PathBuf {
    knowledge_dir.parent().unwrap_or(knowledge_dir).to_path_buf()
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> KnowledgeResult<T> + Send + 'static,
) -> KnowledgeResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(KnowledgeError::internal)?
}

/// A directory for its owner alone, with its parents.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a file that somebody has named to be read. What is looked at is what was opened, and nothing is waited for:
/// a pipe would be, and a device has no end.
///
/// # Errors
/// When it is no file, or the system refuses.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it must be a file"))
    }
}

/// A new file for its owner alone.
pub(crate) fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the entries of a directory durable, and of all below it, the lowest first.
pub(crate) fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_directory(path)
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A path that the caller has to change.
pub(crate) fn bad_path(message: impl std::fmt::Display) -> KnowledgeError {
    KnowledgeError::of_path(message)
}

fn unwritable(path: &Path, error: &io::Error) -> KnowledgeError {
    bad_path(format!("{} cannot be written: {error}", path.display()))
}

/// An error that says nothing about what is stored: another try may succeed.
fn of_the_moment(error: KnowledgeError) -> KnowledgeError {
    match error {
        KnowledgeError::Internal { message } | KnowledgeError::Unreadable { message } => KnowledgeError::Unavailable {
            part: "what is to be copied",
            reason: message,
        },
        error => error,
    }
}
