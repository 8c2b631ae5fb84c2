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

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

use super::{Project, Store, WriteAccess, WriteTable};
use crate::clock;
use crate::domain::{ProjectName, now_ms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::backup::{
    ASIDE, Backup, BackupProject, CopyError, KNOWLEDGE, Watcher, bad_path, blocking, check_table, copy_file,
    create_directory, create_file, home_of, sync_directory, sync_tree,
};
use crate::store::error::write_error;
use crate::store::state;

/// How the directory of a restore under way begins.
const STAGING_PREFIX: &str = ".restore-";
/// File of such a directory that says what is to be done. Its being there means that it will be.
const INTENT_FILE: &str = "intent.json";
/// File of a project's directory that holds its [`Lineage`].
pub(crate) const LINEAGE_FILE: &str = "restored.json";
/// How long searches that run on the old version may take before its files are moved under them.
const READERS_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at whether they are done.
const READERS_PAUSE: Duration = Duration::from_millis(5);

/// Where the commit numbers of a project come from: the last restore, or the last time that it began anew because
/// nothing of it could be read, if there was one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Names the history: the time at which it began, in milliseconds since 1970; 0 for the first one.
    pub epoch: i64,
    /// The number that the restore itself took; every later commit has a higher one.
    pub sequence: i64,
}

impl Lineage {
    /// The lineage of the project in this directory.
    ///
    /// # Errors
    /// [`KnowledgeError::Unreadable`] where it cannot be read: numbers might be given twice.
    pub(crate) fn read(directory: &Path) -> KnowledgeResult<Self> {
        let place = directory.join(LINEAGE_FILE);
        let remedy = format!(
            "it holds where commit numbers go on: {}",
            state::begin_another_history(&place)
        );
        Ok(state::read(&place, &remedy)?.unwrap_or_default())
    }

    /// Puts it in place of the one before.
    pub(crate) fn replace(self, directory: &Path) -> KnowledgeResult<()> {
        state::write(&directory.join(LINEAGE_FILE), &self)
    }
}

/// What is to be renamed. Written before the first rename.
#[derive(Debug, Serialize, Deserialize)]
struct Intent {
    /// Name of the directory below `aside/` for what is replaced.
    aside: String,
    projects: Vec<String>,
}

impl Intent {
    fn write(&self, staging: &Path) -> io::Result<()> {
        let draft = staging.join("intent.draft");
        let mut file = create_file(&draft)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&draft, staging.join(INTENT_FILE))?;
        sync_directory(staging)
    }

    fn read(staging: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(staging.join(INTENT_FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove(staging: &Path) -> io::Result<()> {
        match std::fs::remove_file(staging.join(INTENT_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_directory(staging),
        }
    }
}

/// The directory of a restore under way. Removed when the restore ends, unless something is left to finish.
struct Staging {
    path: PathBuf,
    unfinished: bool,
}

impl Staging {
    fn new(knowledge: &Path) -> io::Result<Self> {
        let path = knowledge.join(format!("{STAGING_PREFIX}{:08x}", rand::random::<u32>()));
        create_directory(&path)?;
        Ok(Self {
            path,
            unfinished: false,
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.unfinished {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "what a restore left could not be removed, the next start tries again");
        }
    }
}

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
    staging.parent().map_or(Ok(()), sync_directory).map_err(write_error)
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
            tables.push(project.table.lock().await);
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
        // What there was is not there any more, or may not be: everybody opens it anew.
        for (project, table) in projects.iter().zip(&mut tables) {
            **table = None;
            project.begin_anew();
            // The next start moves aside what is in their places then.
            project.suspend(halfway);
        }
        self.store().session.begin_anew();
        drop(tables);
        self.store().published.send_modify(|count| *count += 1);
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
        let written = Lineage::read(&self.directory).map_or_else(
            |error| {
                // The restore begins another history, in which any number is a new one.
                tracing::warn!(project = %self.name, %error, "is replaced by a restore");
                0
            },
            |lineage| lineage.sequence,
        );
        if table.is_none() {
            match self.open_table().await {
                Ok(opened) => *table = opened,
                Err(error) => {
                    tracing::warn!(project = %self.name, %error, "cannot be opened, and is replaced by a restore");
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

/// Notes what is to be done, does it, and where that fails undoes it. Where the old directories are now.
fn swap_or_undo(staging: &mut Staging, knowledge: &Path, intent: &Intent) -> KnowledgeResult<Vec<PathBuf>> {
    // A panic leaves all of it to the next start.
    staging.unfinished = true;
    let mut unfinished = false;
    let swapped = try_swap(&staging.path, &mut unfinished, knowledge, intent);
    staging.unfinished = unfinished;
    swapped
}

/// `unfinished` becomes true where the next start has to go on.
fn try_swap(staging: &Path, unfinished: &mut bool, knowledge: &Path, intent: &Intent) -> KnowledgeResult<Vec<PathBuf>> {
    let failed = |error: &io::Error| {
        KnowledgeError::internal(format!(
            "the restored projects could not be put in place ({error}); nothing was changed"
        ))
    };
    let halfway = |error: &io::Error, second: &io::Error| {
        KnowledgeError::internal(format!(
            "the restore stopped halfway ({error}; {second}); start the daemon again, it then finishes the restore"
        ))
    };
    if let Err(error) = intent.write(staging) {
        // It may be there all the same, and would be carried out.
        let removed = Intent::remove(staging);
        *unfinished = removed.is_err();
        return Err(removed.map_or_else(|second| halfway(&error, &second), |()| failed(&error)));
    }
    fail::fail_point!("restore::intended", |_| {
        *unfinished = true;
        Err(KnowledgeError::internal("failpoint restore::intended"))
    });
    let mut renames = Vec::new();
    let swapped = swap(staging, knowledge, intent, &mut renames);
    let outcome = match swapped {
        Ok(kept) => Ok(kept),
        Err(error) => {
            let undone = renames.iter().rev().try_for_each(|(from, to)| {
                std::fs::rename(to, from)?;
                from.parent().map_or(Ok(()), sync_directory)
            });
            match undone {
                Ok(()) => Err(error),
                Err(second) => {
                    *unfinished = true;
                    return Err(halfway(&error, &second));
                }
            }
        }
    };
    match (outcome, Intent::remove(staging)) {
        (outcome, Ok(())) => outcome.map_err(|error| failed(&error)),
        (Err(error), Err(second)) => {
            *unfinished = true;
            Err(halfway(&error, &second))
        }
        (Ok(kept), Err(error)) => {
            // The next start does it again, which does nothing where all is in place.
            *unfinished = true;
            tracing::warn!(%error, "what a restore left could not be removed, the next start tries again");
            Ok(kept)
        }
    }
}

/// Puts every staged project in its place and what was there aside. Can be repeated: what is done already is
/// passed over. Each rename is durable before the next.
fn swap(
    staging: &Path,
    knowledge: &Path,
    intent: &Intent,
    renames: &mut Vec<(PathBuf, PathBuf)>,
) -> io::Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    for project in &intent.projects {
        let (fresh, place) = (staging.join(project), knowledge.join(project));
        if std::fs::symlink_metadata(&fresh).is_err() {
            continue;
        }
        if std::fs::symlink_metadata(&place).is_ok() {
            let aside = aside_root(knowledge)?.join(&intent.aside);
            create_directory(&aside)?;
            aside.parent().map_or(Ok(()), sync_directory)?;
            let old = unused(aside.join(project));
            std::fs::rename(&place, &old)?;
            renames.push((place.clone(), old.clone()));
            kept.push(old);
            sync_directory(&aside)?;
            sync_directory(knowledge)?;
        }
        std::fs::rename(&fresh, &place)?;
        renames.push((fresh, place));
        sync_directory(knowledge)?;
        sync_directory(staging)?;
    }
    Ok(kept)
}

/// The directory for what is replaced: in the home, or among the projects where these lie on a file system of
/// their own, for a rename cannot leave it.
fn aside_root(knowledge: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let home = home_of(knowledge);
    let same_file_system = std::fs::metadata(&home)?.dev() == std::fs::metadata(knowledge)?.dev();
    let root = if same_file_system {
        home.join(ASIDE)
    } else {
        knowledge.join(format!(".{ASIDE}"))
    };
    create_directory(&root)?;
    root.parent().map_or(Ok(()), sync_directory)?;
    Ok(root)
}

/// `path`, or it with a number where that is taken.
fn unused(path: PathBuf) -> PathBuf {
    let mut candidate = path.clone();
    let mut number = 2;
    while std::fs::symlink_metadata(&candidate).is_ok() {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!("-{number}"));
        candidate = path.with_file_name(name);
        number += 1;
    }
    candidate
}

/// What became of the interrupted restores, a sentence each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finished {
    /// What was finished.
    pub(crate) done: Vec<String>,
    /// What could not be, and is tried again by the next start.
    pub(crate) failed: Vec<String>,
    /// The projects that the next start will put in place. What is written to them before would be moved aside.
    pub(crate) awaited: Vec<ProjectName>,
}

/// Finishes the restores that a crash interrupted, and removes what those left that had not begun to change
/// anything. Runs before the store knows a project.
pub(crate) fn finish_interrupted(knowledge: &Path) -> Finished {
    let mut finished = Finished::default();
    let stagings = match state::entries(knowledge) {
        Ok(entries) => entries,
        Err(error) => {
            finished.failed.push(error.to_string());
            return finished;
        }
    };
    for staging in stagings {
        let name = staging.file_name().unwrap_or_default().to_string_lossy();
        let is_no_directory = std::fs::metadata(&staging).is_ok_and(|found| !found.is_dir());
        if !name.starts_with(STAGING_PREFIX) || is_no_directory {
            continue;
        }
        match finish(&staging, knowledge) {
            Ok(told) => finished.done.extend(told),
            Err(error) => {
                let what = format!(
                    "the restore in {} could not be finished ({error}), so some of its projects may be missing or as \
                     before it; the next start tries again, or move that directory away and restore anew",
                    staging.display()
                );
                tracing::error!("{what}");
                finished.failed.push(what);
                if !matches!(Intent::read(&staging), Ok(None)) {
                    finished.awaited.extend(staged_projects(&staging));
                }
            }
        }
    }
    finished
}

/// The projects that still wait in the directory of a restore.
fn staged_projects(staging: &Path) -> Vec<ProjectName> {
    let entries = state::entries(staging).unwrap_or_else(|error| {
        tracing::error!(%error, "the projects of an unfinished restore are not known");
        Vec::new()
    });
    let names = entries
        .iter()
        .filter(|entry| std::fs::metadata(entry).map_or(true, |found| found.is_dir()));
    names
        .filter_map(|entry| ProjectName::parse(entry.file_name()?.to_str()?, "project_id").ok())
        .collect()
}

fn finish(staging: &Path, knowledge: &Path) -> io::Result<Option<String>> {
    let mut told = None;
    if let Some(intent) = Intent::read(staging)? {
        let kept = swap(staging, knowledge, &intent, &mut Vec::new())?;
        let mut what = format!(
            "a restore of {} was interrupted and was finished",
            intent.projects.join(", ")
        );
        if !kept.is_empty() {
            let kept: Vec<String> = kept.iter().map(|path| path.display().to_string()).collect();
            what.push_str(&format!("; what was there before is kept in {}", kept.join(", ")));
        }
        tracing::warn!("{what}");
        told = Some(what);
        Intent::remove(staging)?;
    }
    std::fs::remove_dir_all(staging)?;
    sync_directory(knowledge)?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home whose projects hold one file each, which says what they are.
    struct Home(tempfile::TempDir);

    impl Home {
        fn new(projects: &[&str]) -> Self {
            let home = Self(tempfile::tempdir().unwrap());
            create_directory(&home.knowledge()).unwrap();
            for project in projects {
                mark(&home.knowledge().join(project), "old");
            }
            home
        }

        fn knowledge(&self) -> PathBuf {
            self.0.path().join("knowledge")
        }

        fn staging(&self) -> PathBuf {
            self.knowledge().join(".restore-00000001")
        }

        fn aside(&self, project: &str) -> PathBuf {
            self.0.path().join("aside/t").join(project)
        }

        /// A restore of `projects` that has come as far as `renames`.
        fn interrupted(&self, projects: &[&str], renames: usize) {
            for project in projects {
                mark(&self.staging().join(project), "new");
            }
            let intent = intent(projects);
            intent.write(&self.staging()).unwrap();
            let mut left = renames;
            for project in projects {
                let place = self.knowledge().join(project);
                if left > 0 && place.exists() {
                    create_directory(&self.0.path().join("aside/t")).unwrap();
                    std::fs::rename(&place, self.aside(project)).unwrap();
                    left -= 1;
                }
                if left > 0 {
                    std::fs::rename(self.staging().join(project), &place).unwrap();
                    left -= 1;
                }
            }
            assert_eq!(left, 0);
        }

        fn held(&self, project: &str) -> Option<String> {
            read_mark(&self.knowledge().join(project))
        }
    }

    fn intent(projects: &[&str]) -> Intent {
        Intent {
            aside: "t".to_owned(),
            projects: projects.iter().map(|project| (*project).to_owned()).collect(),
        }
    }

    fn mark(directory: &Path, what: &str) {
        create_directory(directory).unwrap();
        std::fs::write(directory.join("mark"), what).unwrap();
    }

    fn read_mark(directory: &Path) -> Option<String> {
        std::fs::read_to_string(directory.join("mark")).ok()
    }

    #[test]
    fn a_restore_that_had_not_begun_leaves_nothing() {
        let home = Home::new(&["a"]);
        mark(&home.staging().join("a"), "new");
        // A draft is not yet an intent.
        std::fs::write(home.staging().join("intent.draft"), "{").unwrap();
        assert!(finish_interrupted(&home.knowledge()).failed.is_empty());
        assert_eq!(home.held("a").as_deref(), Some("old"));
        assert!(!home.staging().exists() && !home.0.path().join("aside").exists());
    }

    #[test]
    fn a_restore_is_finished_from_wherever_it_was_interrupted() {
        // Two renames for each project that was there, one for each that was not.
        for renames in 0..=5 {
            let home = Home::new(&["a", "b", "untouched"]);
            home.interrupted(&["a", "b", "c"], renames);
            let Finished {
                done: told,
                failed,
                awaited,
            } = finish_interrupted(&home.knowledge());
            assert_eq!((failed, awaited), (Vec::<String>::new(), Vec::new()));
            assert!(told.len() == 1 && told[0].contains("a, b, c"), "{told:?}");
            for project in ["a", "b", "c"] {
                assert_eq!(home.held(project).as_deref(), Some("new"), "{project} after {renames}");
            }
            for project in ["a", "b"] {
                assert_eq!(read_mark(&home.aside(project)).as_deref(), Some("old"), "{renames}");
            }
            assert!(!home.aside("c").exists());
            assert_eq!(home.held("untouched").as_deref(), Some("old"));
            assert!(!home.staging().exists());
            // Once is enough, and again does nothing.
            assert!(finish_interrupted(&home.knowledge()).done.is_empty());
            assert_eq!(home.held("a").as_deref(), Some("new"));
        }
    }

    #[test]
    fn what_was_done_before_is_not_done_again() {
        // All was in place, only the intent was left; then the project went on, and another one was removed.
        let home = Home::new(&[]);
        home.interrupted(&["a", "b"], 2);
        mark(&home.knowledge().join("a"), "newer");
        std::fs::remove_dir_all(home.knowledge().join("b")).unwrap();
        assert!(finish_interrupted(&home.knowledge()).failed.is_empty());
        assert_eq!(home.held("a").as_deref(), Some("newer"));
        assert_eq!(home.held("b"), None);
    }

    #[test]
    fn a_damaged_intent_is_told_and_nothing_is_touched() {
        let home = Home::new(&["a"]);
        home.interrupted(&["a"], 0);
        std::fs::write(home.staging().join(INTENT_FILE), "{").unwrap();
        let finished = finish_interrupted(&home.knowledge());
        assert!(finished.done.is_empty());
        assert!(finished.failed[0].contains(".restore-00000001"), "{finished:?}");
        assert_eq!(finished.awaited, [ProjectName::parse("a", "project_id").unwrap()]);
        assert_eq!(home.held("a").as_deref(), Some("old"));
        assert_eq!(read_mark(&home.staging().join("a")).as_deref(), Some("new"));
    }

    #[test]
    fn what_fails_halfway_is_undone() {
        let home = Home::new(&["a", "b"]);
        for project in ["a", "b"] {
            mark(&home.staging().join(project), "new");
        }
        // The second project's old directory cannot be put aside: its place is a file's.
        let mut staging = Staging {
            path: home.staging(),
            unfinished: false,
        };
        let blocked = Intent {
            aside: "t".to_owned(),
            projects: vec!["a".to_owned(), "b/mark".to_owned()],
        };
        std::fs::write(home.staging().join("b/mark"), "new").unwrap();
        create_directory(&home.0.path().join("aside/t")).unwrap();
        let error = swap_or_undo(&mut staging, &home.knowledge(), &blocked).unwrap_err();
        assert!(error.to_string().contains("nothing was changed"), "{error}");
        assert_eq!(home.held("a").as_deref(), Some("old"));
        assert_eq!(home.held("b").as_deref(), Some("old"));
        assert!(!staging.unfinished && !home.staging().join(INTENT_FILE).exists());
    }

    #[test]
    fn nothing_that_was_kept_aside_is_overwritten() {
        let home = Home::new(&["a"]);
        mark(&home.aside("a"), "older");
        home.interrupted(&["a"], 0);
        assert!(finish_interrupted(&home.knowledge()).failed.is_empty());
        assert_eq!(read_mark(&home.aside("a")).as_deref(), Some("older"));
        assert_eq!(read_mark(&home.aside("a-2")).as_deref(), Some("old"));
    }

    #[test]
    fn lineages_survive_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Lineage::read(directory.path()).unwrap(), Lineage::default());
        let lineage = Lineage {
            epoch: 1_795_362_864_593,
            sequence: 42,
        };
        lineage.replace(directory.path()).unwrap();
        assert_eq!(Lineage::read(directory.path()).unwrap(), lineage);
        // None is assumed where it is damaged.
        std::fs::write(directory.path().join(LINEAGE_FILE), "").unwrap();
        let error = Lineage::read(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("restored.json is damaged") && error.contains("\"epoch\":"),
            "{error}"
        );
    }
}
