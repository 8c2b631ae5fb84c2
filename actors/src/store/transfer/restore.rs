//! Restoring projects from a backup, while the daemon runs.
//!
//! 1. Every file is copied into `knowledge/.restore-<random>` and compared with what the backup says of it, then
//!    each table is opened there. Until then nothing is touched; an error removes the copy.
//! 2. With the tables of all these projects locked (stores wait), the old directories go to
//!    `aside/<time>/<project>` and the copies take their places. Before the first rename, a file says durably
//!    what is to be done: from then on a crash does not undo the restore, the next start finishes it.
//!
//! What was acknowledged before the second step is in the directory that is kept aside.
//!
//! A restored project is another history. Its commit numbers go on above those that were given before, and its
//! [`Lineage`] says that they do, so that the change feed can tell a cursor of before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

use crate::clock;
use crate::domain::{ProjectName, now_ms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::disk::sync_tree;
use crate::store::disk::{create_directory, fsync_directory};
use crate::store::error::write_error;
use crate::store::swap::{Intent, Staging, swap_or_undo};
use crate::store::table::lineage::Lineage;
use crate::store::transfer::archive::{Backup, BackupProject, KNOWLEDGE};
use crate::store::transfer::check::check_table;
use crate::store::transfer::copy::{CopyError, Watcher, blocking, copy_file};
use crate::store::transfer::place::bad_path;
use crate::store::{Project, Store, WriteAccess, WriteTable};

/// How long searches that run on the old version may take before its files are moved under them.
const READERS_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at whether they are done.
const READERS_PAUSE: Duration = Duration::from_millis(5);

/// Projects of a backup that were copied and verified, and wait for their place.
pub struct Staged {
    staging: Staging,
    knowledge: PathBuf,
    projects: Vec<BackupProject>,
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Staged")
            .field("staging", &self.staging.path)
            .finish_non_exhaustive()
    }
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// The projects, as the backup describes them.
    pub projects: Vec<BackupProject>,
    /// Where what they replaced is kept.
    pub kept_aside: Vec<PathBuf>,
    /// What has to be done before they can be used as before.
    pub warnings: Vec<String>,
}

impl Store {
    /// Copies the projects of a backup to where they can be put in place from, and verifies the copies. Changes
    /// nothing else.
    ///
    /// # Errors
    /// [`KnowledgeError::InvalidParameter`] for `path` where the backup is damaged, naming the file; the error
    /// of the watcher once the restore is not wanted any more.
    pub async fn stage(
        &self,
        path: PathBuf,
        project: Option<ProjectName>,
        watcher: Arc<dyn Watcher>,
    ) -> KnowledgeResult<Staged> {
        clock::check()?;
        let knowledge = self.config.knowledge_dir.clone();
        let copier = Arc::clone(&watcher);
        let staged = blocking(move || {
            let mut projects = Backup::read(&path)?.projects;
            if let Some(wanted) = project {
                projects.retain(|project| project.project_id == wanted.as_str());
                if projects.is_empty() {
                    return Err(KnowledgeError::invalid(
                        "project_id",
                        format!("the backup does not hold project {wanted}"),
                    ));
                }
            }
            projects.sort_by(|a, b| a.project_id.cmp(&b.project_id));
            let staging = Staging::new(&knowledge).map_err(write_error)?;
            copy_verified(&path, &staging.path, &projects, copier.as_ref())?;
            Ok(Staged {
                staging,
                knowledge,
                projects,
            })
        })
        .await?;
        for project in &staged.projects {
            watcher.check()?;
            check_table(&staged.staging.path, project, false).await?;
        }
        watcher.check()?;
        Ok(staged)
    }

    /// Keeps the files of every view where they are until the guard is dropped: for who reads one for long.
    pub async fn reading_for_long(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.transfers).read_owned().await
    }

    /// Waits until nobody reads one version for long, and keeps it so until the guard is dropped: what a restore
    /// needs before it moves files.
    pub async fn alone(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.transfers).write_owned().await
    }
}

/// Copies the projects of a backup and compares every file with what the backup says of it.
fn copy_verified(
    backup: &Path,
    staging: &Path,
    projects: &[BackupProject],
    watcher: &dyn Watcher,
) -> KnowledgeResult<()> {
    let total = projects.iter().map(BackupProject::bytes).sum();
    let mut done = 0;
    for project in projects {
        let message = format!("verifying {}", project.project_id);
        let target = staging.join(&project.project_id);
        create_directory(&target).map_err(write_error)?;
        for file in &project.files {
            let from = backup.join(KNOWLEDGE).join(&project.project_id).join(&file.path);
            let damaged = |what: String| {
                bad_path(format!(
                    "the backup is damaged, {} {what}; nothing was changed, use another backup",
                    from.display()
                ))
            };
            let copied = copy_file(&from, &target.join(&file.path), watcher, |bytes| {
                done += bytes;
                watcher.progress(done, total, &message);
            });
            let copied = copied.map_err(|error| match error {
                CopyError::Source(error) => damaged(format!("cannot be read: {error}")),
                CopyError::Target(error) => write_error(error),
                CopyError::Over(error) => error,
            })?;
            if copied.bytes != file.bytes {
                return Err(damaged(format!("has {} bytes instead of {}", copied.bytes, file.bytes)));
            }
            if copied.sha256 != file.sha256 {
                return Err(damaged("is not as it was written".to_owned()));
            }
        }
    }
    sync_tree(staging).map_err(write_error)?;
    staging.parent().map_or(Ok(()), fsync_directory).map_err(write_error)
}

impl WriteAccess {
    /// Puts staged projects in place of those that are there. Stores to them wait meanwhile. The caller holds
    /// [`Store::alone`].
    ///
    /// # Errors
    /// Nothing was changed, unless the message says that the next start finishes the work.
    pub async fn put_in_place(&self, mut staged: Staged) -> KnowledgeResult<RestoreReport> {
        let running = &self.store().config().model.name;
        let warnings = staged
            .projects
            .iter()
            .filter_map(|project| warning(project, running))
            .collect();
        let projects: Vec<Arc<Project>> = staged
            .projects
            .iter()
            .map(|project| self.project(&ProjectName::parse(&project.project_id, "path")?))
            .collect::<KnowledgeResult<_>>()?;

        // One restore at a time, and everybody else holds one table at most: no order of locks to mind.
        let mut tables = Vec::with_capacity(projects.len());
        for project in &projects {
            tables.push(project.lock_table().await);
            // The next start finishes the restore that stopped, over whatever is in its place by then.
            project.check_suspended()?;
        }
        let epoch = now_ms().timestamp_millis();
        for ((project, table), restored) in projects.iter().zip(&mut tables).zip(&staged.projects) {
            let last = project.last_sequence(table).await.max(restored.sequence);
            let lineage = Lineage {
                epoch,
                sequence: last + 1,
            };
            let directory = staged.staging.path.join(&restored.project_id);
            blocking(move || lineage.replace(&directory)).await?;
        }
        self.store().lock.check()?;
        for (project, table) in projects.iter().zip(&tables) {
            project.clear_view();
            if let Some(table) = table.as_ref() {
                wait_for_readers(table).await;
            }
        }

        let intent = Intent {
            aside: now_ms().format("%Y%m%dT%H%M%S%3fZ").to_string(),
            projects: staged
                .projects
                .iter()
                .map(|project| project.project_id.clone())
                .collect(),
        };
        let knowledge = staged.knowledge.clone();
        let swapped = blocking(move || {
            let swapped = swap_or_undo(&mut staged.staging, &knowledge, &intent);
            Ok((staged, swapped))
        })
        .await;
        let halfway = match &swapped {
            Ok((staged, swapped)) => staged.staging.unfinished && swapped.is_err(),
            // It panicked, nobody knows where.
            Err(_) => true,
        };
        // What there was is not there any more, or may not be: everybody reopens it.
        for (project, table) in projects.iter().zip(&mut tables) {
            **table = None;
            project.forget_findings();
            project.caches().retire();
            // The next start moves aside what is in their places then.
            project.suspend(halfway);
        }
        drop(tables);
        for project in &projects {
            self.store().listeners.tell(project.name());
        }
        let (staged, swapped) = swapped.map_err(|_| {
            // What a panic said stays inside.
            KnowledgeError::internal(
                "the restore failed unexpectedly and may have stopped halfway; start the daemon again, it then finishes \
                 the restore",
            )
        })?;
        Ok(RestoreReport {
            kept_aside: swapped?,
            projects: staged.projects.clone(),
            warnings,
        })
    }
}

fn warning(project: &BackupProject, running: &str) -> Option<String> {
    let name = &project.project_id;
    match (&project.model, &project.needs_migration) {
        (_, Some(detail)) => Some(format!(
            "project {name} holds data of another schema ({detail}), which this version does not read; use the version that wrote it"
        )),
        (Some(model), None) if model != running => Some(format!(
            "project {name} was embedded with model {model}, this daemon runs {running}; re-embed it, until then \
             it answers model_mismatch"
        )),
        _ => None,
    }
}

impl Project {
    /// The newest commit number that was given for it, as far as can be known: what cannot be opened is replaced
    /// all the same.
    async fn last_sequence(&self, table: &mut Option<WriteTable>) -> i64 {
        let written = Lineage::read(self.directory()).map_or_else(
            |error| {
                // The restore begins another history, in which any number is a new one.
                tracing::warn!(project = %self.name(), %error, "is replaced by a restore");
                0
            },
            |lineage| lineage.sequence,
        );
        if table.is_none() {
            match self.open_table().await {
                Ok(opened) => *table = opened,
                Err(error) => {
                    tracing::warn!(project = %self.name(), %error, "cannot be opened, and is replaced by a restore");
                }
            }
        }
        table.as_ref().map_or(written, |table| table.next_sequence() - 1)
    }
}

/// Waits until no view of the table is read any more, for a while at most.
async fn wait_for_readers(table: &WriteTable) {
    let read_on = async {
        loop {
            table.release_pages();
            if table.oldest_held_version().is_none() {
                return;
            }
            tokio::time::sleep(READERS_PAUSE).await;
        }
    };
    if tokio::time::timeout(READERS_PATIENCE, read_on).await.is_err() {
        tracing::warn!("a search on a version that a restore replaces takes long, and may fail");
    }
}
