//! The right to write, of which there is one: [`WriteAccess`], and a project's table held for writing: [`WriteGuard`].

use std::sync::Arc;
use std::time::Duration;

use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::Store;
use crate::store::damage;
use crate::store::discover;
use crate::store::error::write_error;
use crate::store::project::{Losses, Project};
use crate::store::table::table_damage::TableDamage;
use crate::store::view::ProjectView;
use crate::store::write::{ERASING_MARK, WriteTable};

/// What the caches hold of a project and nobody has asked for in this time goes with the next pruning of old versions.
const CACHE_IDLE: Duration = Duration::from_secs(30);

/// The right to write, of which there is one. See the module.
pub struct WriteAccess {
    pub(super) store: Arc<Store>,
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
            let mark = project.directory().join(ERASING_MARK);
            mark.try_exists().unwrap_or(true)
        });
        marked.map(|project| project.name().clone()).collect()
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
            let mut guard = project.lock_table().await;
            *guard = None;
            project.clear_view();
        }
        let store = Arc::clone(&self.store);
        let directory = self.store.config.knowledge_dir.join(name.as_str());
        let folded = name.folded();
        tokio::task::spawn_blocking(move || {
            let removed = std::fs::remove_dir_all(directory);
            let mut projects = store.projects.write();
            projects.remove(&folded);
            drop(projects);
            discover::remove_left_probes(&store.config.knowledge_dir, |name| {
                let projects = store.projects.read();
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
    /// use and created where there is none and `create` is set. What of it cannot be read is still in it: call
    /// [`WriteGuard::accept_losses`] once there is something to write.
    pub async fn lock<'a>(&self, project: &'a Project, create: bool) -> KnowledgeResult<WriteGuard<'a>> {
        self.lock_for(project, create, Losses::Undecided).await
    }

    /// As [`WriteAccess::lock`] for upkeep, which nobody loses anything by: it creates nothing, and a table of which a
    /// file is missing or damaged is left as it is, since the file may still be put back.
    ///
    /// # Errors
    /// [`KnowledgeError::Unreadable`] with what to do, where the table is such a one.
    pub async fn lock_for_upkeep<'a>(&self, project: &'a Project) -> KnowledgeResult<WriteGuard<'a>> {
        // A purge is finished all the same. Where that cannot be told, the attempt tells.
        let erasing = project.directory().join(ERASING_MARK).try_exists().unwrap_or(true);
        let losses = if erasing { Losses::Accepted } else { Losses::Refused };
        self.lock_for(project, false, losses).await
    }

    async fn lock_for<'a>(
        &self,
        project: &'a Project,
        create: bool,
        losses: Losses,
    ) -> KnowledgeResult<WriteGuard<'a>> {
        let mut guard = project.lock_table().await;
        project.check_lock()?;
        match project.prepare_to_write(&mut guard, create, losses).await {
            Ok(()) => Ok(WriteGuard {
                project,
                guard,
                publications: project.publications(),
            }),
            Err(error) if project.is_suspended() => Err(error), // Space has nothing to do with it.
            Err(error) => Err(project.write_failed(error)),
        }
    }

    /// Forgets a project's table after a panic, whose effect is not known; the next user opens it from disk. Waits for
    /// whoever holds it.
    pub async fn forget(&self, project: &Project) {
        let mut table = project.lock_table().await;
        *table = None;
        project.clear_view();
    }

    /// Forgets a project's table and all that is kept of it in memory: the next user reads it from disk. For whoever
    /// measures how long that takes.
    pub async fn forget_all(&self, project: &Project) {
        self.forget(project).await;
        project.forget_memory();
    }

    /// After a write to a table with the damage `before` has failed with `error`: looks whether something damaged was
    /// in its way. True if the write is worth repeating without that.
    pub async fn mend(&self, project: &Project, error: &KnowledgeError, before: Option<&TableDamage>) -> bool {
        self.mend_by(project, error, before, Losses::Undecided).await
    }

    /// As [`WriteAccess::mend`] after upkeep: what would be lost by it is left as it is.
    pub async fn mend_for_upkeep(
        &self,
        project: &Project,
        error: &KnowledgeError,
        before: Option<&TableDamage>,
    ) -> bool {
        self.mend_by(project, error, before, Losses::Refused).await
    }

    async fn mend_by(
        &self,
        project: &Project,
        error: &KnowledgeError,
        before: Option<&TableDamage>,
        losses: Losses,
    ) -> bool {
        if !matches!(
            error,
            KnowledgeError::Internal { .. } | KnowledgeError::Unreadable { .. }
        ) {
            return false;
        }
        let repairs = project.damage().repairs();
        // Opening the table looks for damage, and saves what it can of it.
        let Ok(mut guard) = self.lock_for(project, false, losses).await else {
            return false;
        };
        let found = |before: &TableDamage| guard.table().is_some_and(|table| **table.damage() != *before);
        before.is_some_and(found) || project.damage().repairs() != repairs
    }

    /// Why nothing may be added to a project now, if so: the disk is nearly full. Old versions that nobody reads are
    /// given up first.
    pub async fn shortage(&self, project: &Project) -> Option<KnowledgeError> {
        let shortage = project.shortage().await?;
        if project.give_up_versions().await {
            let left = project.shortage().await?;
            return Some(project.write_failed(left));
        }
        Some(project.write_failed(shortage))
    }
}

/// A project's table, held for writing.
pub struct WriteGuard<'a> {
    project: &'a Project,
    guard: tokio::sync::MutexGuard<'a, Option<WriteTable>>,
    /// How often a version of the table had been about to be published when it was taken.
    publications: u64,
}

impl WriteGuard<'_> {
    /// The table, if the project has one.
    pub fn table(&mut self) -> Option<&mut WriteTable> {
        self.guard.as_mut()
    }

    /// Takes what cannot be read out of the table for good, since a write is to be made of it that has an effect: one
    /// that has none must not cost anybody a file that may still be put back. True if the table is another one now, so
    /// that what was read of it for the write has to be read again.
    pub async fn accept_losses(&mut self) -> KnowledgeResult<bool> {
        let before = self.project.damage().repairs();
        let project = self.project;
        match project.prepare_to_write(&mut self.guard, false, Losses::Accepted).await {
            Ok(()) => Ok(project.damage().repairs() != before),
            Err(error) => Err(project.write_failed(error)),
        }
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
            self.project.write_succeeded();
        }
        if let Some(before) = same_version
            && before.sequence() == table.next_sequence() - 1
            && before.damage() == table.damage()
        {
            return Ok(before);
        }
        let view = table.view().await?;
        self.project.set_view(Arc::clone(&view));
        Ok(view)
    }

    /// Removes what recovery has set aside of the project: after a purge nothing of it may stay.
    pub async fn discard_set_aside(&self) -> KnowledgeResult<()> {
        let directory = self.project.directory().to_path_buf();
        tokio::task::spawn_blocking(move || damage::discard_set_aside(&directory))
            .await
            .map_err(KnowledgeError::internal)?
    }

    /// Keeps why a purge could not erase everything, for `admin.health`; nothing once it could.
    pub fn note_erasing(&self, failure: Option<&KnowledgeError>) {
        self.project.set_unerased(failure.map(ToString::to_string));
    }

    /// Drops what the caches hold of the project and nobody has asked for lately: of files that upkeep has replaced,
    /// mostly.
    pub fn sweep_caches(&self) {
        self.project.caches().sweep(CACHE_IDLE);
    }

    /// Drops all that the caches hold of the project, with the removed files that they keep open.
    pub fn empty_caches(&self) {
        self.project.caches().empty();
    }

    /// Forgets the table after a failure whose effect is not known; the next user opens it from disk.
    pub fn forget(mut self) {
        *self.guard = None;
        self.project.clear_view();
    }

    /// Takes note of `error`: `admin.health` shows for how long nothing can be written. Answers the error, with where
    /// there is no space or no permission.
    ///
    /// The table is forgotten as by [`WriteGuard::forget`] if a version of it may have been published, for then what is
    /// on disk may not be what is known. Otherwise readers go on with the version that they have, and the table is
    /// only opened again, by the next write, if the error has no better reason than that something is damaged: then it
    /// is looked for.
    pub fn failed(mut self, error: KnowledgeError) -> KnowledgeError {
        let error = self.project.write_failed(error);
        let may_be_damage = matches!(
            error,
            KnowledgeError::Internal { .. } | KnowledgeError::Unreadable { .. }
        );
        if may_be_damage {
            self.project.damage().note_failed_write();
        }
        if self.project.publications() != self.publications {
            self.forget();
        } else if may_be_damage {
            *self.guard = None;
        }
        error
    }
}
