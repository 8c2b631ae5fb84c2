//! Backups: a copy of the projects as they were at one instant, made while they are read and written.
//!
//! ```text
//! <backup>/backup.json                                   what is in it: counts, and each file's size and SHA-256
//! <backup>/knowledge/<project>/orchestra_knowledge.lance the table, exactly the files of one version
//! ```
//!
//! A view holds its version: what it names is not pruned while somebody reads it. The views of
//! all projects are taken together, in one instant (see `Store::backup_instant`); the copying takes its time, and nobody
//! waits for it. Everything is written beside the target and renamed into its place when it
//! is complete and on disk: a backup under its own name is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_io::local::to_local_path;

use crate::clock;
use crate::domain::{ProjectName, format_time, now_ms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::disk::{create_directory, fsync_directory, sync_tree};
use crate::store::error::{file_read_error, is_denied, is_passing, read_error};
use crate::store::project::Project;
use crate::store::swap::home_of;
use crate::store::table::durable::referenced_files;
use crate::store::table::holds_table;
use crate::store::table::schema::{TABLE_NAME, TableShape};
use crate::store::transfer::archive::{Backup, BackupFile, BackupProject, FORMAT, KNOWLEDGE};
use crate::store::transfer::check::{check_table, of_the_moment};
use crate::store::transfer::copy::{CopyError, Watcher, blocking, copy_file};
use crate::store::transfer::place::{NewPlace, new_place, partial_beside, unwritable};
use crate::store::transfer::records::BackupRecord;
use crate::store::verify::{TakenAway, taken_away};
use crate::store::view::ProjectView;
use crate::store::{Store, inventory};

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
    /// What of the projects in it was lost before, a sentence each: only an older backup may hold that.
    pub lost: Vec<String>,
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
const VERIFY: &str = "run `ccoctl verify`, which says what is wrong with the project";

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
    /// Copies projects as they are at one instant. Writes go on; each of them is in the copy or is not, and what
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
        let (views, mut warnings) = self.views_of_one_instant(&request, watcher.as_ref()).await?;
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
        let backed_up = |project: &Arc<Project>| views.contains_key(project.name().as_str());
        let lost = inventory::losses(self.projects().into_iter().filter(backed_up).collect()).await;
        let bytes = backup.projects.iter().map(BackupProject::bytes).sum();
        let (target, written) = (path.clone(), backup.clone());
        blocking(move || partial.publish(&target, &written)).await?;
        Ok(BackupReport {
            path,
            backup,
            bytes,
            warnings: warnings.into_iter().map(|left_out| left_out.what).collect(),
            lost,
        })
    }

    /// The views of the projects at one instant, and why some are missing. Publishing a view waits for the
    /// instant in which they are taken together; opening what is not open comes before.
    async fn views_of_one_instant(
        &self,
        request: &BackupRequest,
        watcher: &dyn Watcher,
    ) -> KnowledgeResult<(Vec<Arc<ProjectView>>, Vec<LeftOut>)> {
        loop {
            watcher.check()?;
            self.discover();
            let (mut viewless, mut warnings) = (BTreeSet::new(), Vec::new());
            if request.project.is_none() {
                let left_aside = self.left_aside.read();
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
    /// another try may succeed: what fails for a reason that passes must not cost the backup a project.
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
        if let Some(how) = taken_away(self, &view, self.lineage(project)?).await? {
            let what = match how {
                TakenAway::Purged => "it has been removed, by a purge",
                TakenAway::Replaced => "it has been replaced",
                TakenAway::Missing => "files of it are missing",
            };
            return Err(retry(format!("{what}: {error}")));
        }
        if let Cause::Missing(_) = cause {
            // So that others are told as well. An index is rebuilt by it, and then the project is whole again.
            let mended = self.reexamine(&view, None).await.unwrap_or(false);
            let now = self.view(project).await.ok().flatten();
            if mended && now.is_some_and(|now| now.damage().is_sound()) {
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
        let _instant = self.backup_instant.write();
        let mut views = Vec::new();
        for project in self.projects() {
            if !request.wants(project.name()) {
                continue;
            }
            match project.published() {
                Some(view) => views.push(view),
                None if viewless.contains(project.name()) => {}
                // What cannot be looked at is opened, which says why it cannot be.
                None if !matches!(holds_table(project.directory()), Ok(false)) => return None,
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

impl Source {
    async fn of(view: Arc<ProjectView>) -> Result<Self, Cause> {
        // Known to be damaged: what the copy would lack is in no backup as if it were all.
        if !view.damage().fragments.is_empty() {
            let found = view.damage().describe().join("; ");
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
            .map_or(Ok(()), fsync_directory)
            .map_err(|error| unwritable(copy, &error)),
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
        fsync_directory(&self.path).map_err(failed)?;
        // Onto an empty directory or nothing; anything else makes it fail.
        std::fs::rename(&self.path, target).map_err(failed)?;
        target.parent().map_or(Ok(()), fsync_directory).map_err(failed)
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
