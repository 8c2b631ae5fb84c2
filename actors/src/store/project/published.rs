//! What readers of a project see.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::store::project::listeners::Listeners;
use crate::store::table::lineage::Lineage;
use crate::store::view::ProjectView;
use crate::store::view::held::HeldVersions;
use crate::store::view::recent::RecentChanges;

/// The view of a project that readers see now, and the older ones that they still read.
pub(in crate::store) struct Published {
    /// Held shared while a view is published; see `Store::backup_instant`.
    backup_instant: Arc<RwLock<()>>,
    /// Who waits for changes; none where nobody follows those of this project.
    listeners: Option<Arc<Listeners>>,
    /// None until the project is opened. Held for a pointer's copy, never across an await.
    view: RwLock<Option<Arc<ProjectView>>>,
    /// The newest commit of a project that was closed because nobody used it; none while it is open.
    resting: RwLock<Option<i64>>,
    /// Where the commit numbers come from; known once the project is opened.
    lineage: RwLock<Lineage>,
    /// Versions that readers hold.
    held: HeldVersions,
    /// What the last commits have changed.
    recent: RecentChanges,
}

impl Published {
    pub(in crate::store) fn new(backup_instant: Arc<RwLock<()>>, listeners: Option<Arc<Listeners>>) -> Self {
        Self {
            backup_instant,
            listeners,
            view: RwLock::default(),
            resting: RwLock::default(),
            lineage: RwLock::default(),
            held: HeldVersions::default(),
            recent: RecentChanges::default(),
        }
    }

    pub(super) fn view(&self) -> Option<Arc<ProjectView>> {
        self.view.read().clone()
    }

    /// Publishes a view: from now on every new request sees it. Feeds are woken where it has something to tell them:
    /// not by upkeep, which moves rows and changes none.
    pub(super) fn set_view(&self, view: Arc<ProjectView>) {
        let before = {
            let _not_within_the_instant_of_a_backup = self.backup_instant.read();
            let before = self.view.write().replace(Arc::clone(&view));
            *self.resting.write() = None;
            before
        };
        let as_before =
            |before: Arc<ProjectView>| before.sequence() == view.sequence() && before.damage() == view.damage();
        if let Some(listeners) = self.listeners.as_ref().filter(|_| !before.is_some_and(as_before)) {
            listeners.tell(view.project());
        }
    }

    pub(super) fn clear_view(&self) {
        let _before = self.view.write().take();
        *self.resting.write() = None;
        self.recent.forget();
    }

    /// Takes the view back from a project that stands at `commit` and that nobody uses.
    pub(super) fn rest(&self, commit: i64) {
        *self.resting.write() = Some(commit);
        let _before = self.view.write().take();
        self.recent.forget();
    }

    /// At which commit the project was closed, if it was because nobody used it.
    pub(super) fn resting(&self) -> Option<i64> {
        *self.resting.read()
    }

    pub(super) fn lineage(&self) -> Lineage {
        *self.lineage.read()
    }

    pub(super) fn set_lineage(&self, lineage: Lineage) {
        *self.lineage.write() = lineage;
        self.recent.begin_history(lineage.epoch);
    }

    pub(super) fn recent(&self) -> &RecentChanges {
        &self.recent
    }

    pub(super) fn held(&self) -> &HeldVersions {
        &self.held
    }
}
