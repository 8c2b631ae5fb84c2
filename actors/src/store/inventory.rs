//! Which projects there are and what state each is in: decided here, and nowhere else.
//!
//! A project
//!
//! - can be read: it has a view, whose [`TableDamage`](super::damage::TableDamage) says what of it is damaged;
//! - has nothing stored in it: no view, and nothing to report;
//! - has no version that can be read: whoever reads it is told so, [`Store::view_or_empty`] takes it for empty, since
//!   the next store begins it again;
//! - cannot be opened: the error says why;
//! - is left aside, out of reach or beside another of its name: [`Store::not_served`].
//!
//! Calls over several projects take [`Store::projects`] with their [`Project::view`]s, and [`Store::not_served`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::discover::LeftAside;
use crate::store::project::{HALF_RESTORED, Project, REEXAMINE_AFTER};
use crate::store::table::table_directory;
use crate::store::view::ProjectView;
use crate::store::{Store, damage};

/// Something in the data directory that may hold knowledge and is not served.
#[derive(Clone, Debug)]
pub struct NotServed {
    /// Its name on disk; `*` where it may be any project.
    pub project: String,
    /// Whether it is a project that is out of reach, and not something beside one.
    pub is_project: bool,
    /// What it is, why it is not served, and what to do.
    pub reason: String,
    /// What to do, by itself.
    pub fix: &'static str,
}

impl NotServed {
    /// As the error of a call that needs it.
    pub fn error(&self) -> KnowledgeError {
        KnowledgeError::Unreadable {
            message: self.reason.clone(),
        }
    }
}

impl Project {
    /// The present view, opening the project on first use; nothing where nothing was stored in it.
    ///
    /// # Errors
    /// When it cannot be read, also where no version of its table can be.
    pub async fn view(self: &Arc<Self>) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        match (self.open().await?, self.record().lost()) {
            (None, Some(message)) => Err(KnowledgeError::Unreadable { message }),
            (view, _) => Ok(view),
        }
    }

    /// Whether it has to be opened to know what state it is in: it could not be a while ago, or it was never
    /// opened and something is wrong with it at a glance.
    async fn is_to_be_opened(self: &Arc<Self>) -> bool {
        if self.published().is_some() {
            return false;
        }
        if self.record().lost().is_some() {
            return true; // It may have been put back.
        }
        if let Some((when, _)) = self.record().unopened() {
            return when.elapsed() >= REEXAMINE_AFTER;
        }
        if self.record().is_recovered() || self.record().looked_sound() {
            return false;
        }
        let directory = self.directory().to_path_buf();
        let glance = tokio::task::spawn_blocking(move || damage::glance(&directory, &table_directory(&directory)));
        match glance.await {
            Ok(Ok(damage::Glance::Nothing)) => false,
            Ok(Ok(damage::Glance::Sound)) => {
                self.record().note_sound_look();
                false
            }
            _ => true,
        }
    }

    /// What of the project cannot be read now.
    fn unreadable(&self) -> Vec<String> {
        let unopened = self.record().unopened();
        let unopened = unopened.map(|(_, reason)| format!("it cannot be opened: {reason}"));
        let view = self.published();
        let damage = view.map(|view| view.damage().describe()).unwrap_or_default();
        let half_restored = self.is_suspended().then(|| HALF_RESTORED.to_owned());
        self.record()
            .lost()
            .into_iter()
            .chain(unopened)
            .chain(damage)
            .chain(half_restored)
            .collect()
    }

    /// What a purge has left on disk, if it could not erase everything.
    fn unerased_told(&self) -> Option<String> {
        self.unerased().map(|reason| {
            format!(
                "not all bytes of what a purge has removed are erased yet, which is tried again by itself: {reason}"
            )
        })
    }

    /// What recovery did and found, a sentence each: what lies in `set-aside`, what was done at the start, and what
    /// cannot be read now. Blocks for the reading of one directory.
    fn recovery(&self) -> Vec<String> {
        let mut told = damage::set_aside_so_far(self.directory());
        told.extend(self.record().notes());
        told.extend(self.unreadable());
        told
    }
}

/// Whether there is something at `path`, as far as can be told.
async fn is_there(path: &Path) -> bool {
    tokio::fs::try_exists(path).await.unwrap_or(true)
}

/// What has been lost of these projects, a sentence each.
pub(super) async fn losses(projects: Vec<Arc<Project>>) -> Vec<String> {
    let told = tokio::task::spawn_blocking(move || {
        let of = |project: &Arc<Project>| {
            let name = project.name().clone();
            let losses = damage::losses(project.directory()).into_iter();
            losses.map(move |what| format!("project {name}: {what}"))
        };
        projects.iter().flat_map(of).collect::<Vec<_>>()
    });
    told.await.unwrap_or_default()
}

impl Store {
    /// As [`Store::view`], for calls that a project without a version that can be read is empty for: what is stored
    /// next begins it again.
    pub async fn view_or_empty(&self, name: &ProjectName) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        match self.on_disk(name)? {
            Some(project) => project.open().await,
            None => Ok(None),
        }
    }

    /// Where things that recovery has set aside of a project lie, if there are any.
    pub async fn set_aside(&self, name: &ProjectName) -> KnowledgeResult<Option<PathBuf>> {
        let Some(project) = self.known(name)? else {
            return Ok(None);
        };
        let directory = project.directory().to_path_buf();
        tokio::task::spawn_blocking(move || damage::set_aside_in(&directory))
            .await
            .map_err(KnowledgeError::internal)
    }

    /// Why a project that was opened has no version that can be read, if so.
    pub fn lost(&self, name: &ProjectName) -> Option<String> {
        self.known(name)
            .ok()
            .flatten()
            .and_then(|project| project.record().lost())
    }

    /// What lies in the data directory now, may hold knowledge and is not served.
    pub async fn not_served(self: &Arc<Self>) -> Vec<NotServed> {
        let found = self.look_again().await.into_iter().filter(|left| left.holds_knowledge);
        found
            .map(|left| NotServed {
                project: left.shown,
                is_project: left.is_project,
                reason: left.reason,
                fix: left.fix,
            })
            .collect()
    }

    /// What recovery did and found, in the store and in each project, for `admin.status`.
    pub async fn recovery(self: &Arc<Self>) -> Vec<String> {
        let finished = self.finished.done.iter().chain(&self.finished.failed).cloned();
        let left_aside = self.look_again().await.into_iter().map(|left| left.reason);
        let finished: Vec<String> = finished.chain(left_aside).collect();
        let projects = self.projects();
        let told = tokio::task::spawn_blocking(move || {
            let tell = |project: &Arc<Project>| {
                let name = project.name().clone();
                let told = project.recovery().into_iter();
                told.map(move |what| format!("project {name}: {what}"))
            };
            finished.into_iter().chain(projects.iter().flat_map(tell)).collect()
        });
        told.await.unwrap_or_default()
    }

    /// What is wrong with each project now, for `admin.health`: what cannot be read, what was set aside as a whole,
    /// and why nothing can be written where the last write failed because there was no space or no permission. That is
    /// looked at each time, so it ends when its cause does. Also of projects that nobody has used yet.
    pub async fn troubles(self: &Arc<Self>) -> Vec<String> {
        let mut found = self.finished.failed.clone();
        found.extend(self.not_served().await.into_iter().map(|left| left.reason));
        let clock = clock::check().err();
        found.extend(clock.as_ref().map(ToString::to_string));
        for project in self.projects() {
            if clock.is_none() && project.is_to_be_opened().await {
                // Only to know its state; if it cannot be opened, that is reported below.
                project.view().await.ok();
            }
            let known = project.published().is_some() || project.resting().is_some();
            if known && !is_there(&table_directory(project.directory())).await {
                found.push(project.vanished_told());
            }
            let writes = project.write_trouble().await;
            let all = writes
                .into_iter()
                .chain(project.unerased_told())
                .chain(project.unreadable());
            found.extend(all.map(|what| format!("project {}: {what}", project.name())));
        }
        let projects = self.projects();
        found.extend(losses(projects).await);
        found
    }

    /// What lies in the data directory now and is not served.
    async fn look_again(self: &Arc<Self>) -> Vec<LeftAside> {
        let store = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || store.discover());
        if let Err(error) = looked.await {
            tracing::error!(%error, "looking through the data directory failed, this is what was found before");
        }
        self.left_aside.read().clone()
    }
}
