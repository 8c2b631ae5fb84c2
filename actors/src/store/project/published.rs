//! What readers of a project see.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::store::table::lineage::Lineage;
use crate::store::view::ProjectView;
use crate::store::view::held::HeldVersions;

/// The view of a project that readers see now, and the older ones that they still read.
pub(in crate::store) struct Published {
    /// Held shared while a view is published; see `Store::backup_instant`.
    backup_instant: Arc<RwLock<()>>,
    /// Counts the published views of all projects; none where nobody follows the changes of this one.
    publications: Option<Arc<watch::Sender<u64>>>,
    /// None until the project is opened. Held for a pointer's copy, never across an await.
    view: RwLock<Option<Arc<ProjectView>>>,
    /// Where the commit numbers come from; known once the project is opened.
    lineage: RwLock<Lineage>,
    /// Versions that readers hold.
    held: HeldVersions,
}

impl Published {
    pub(in crate::store) fn new(
        backup_instant: Arc<RwLock<()>>,
        publications: Option<Arc<watch::Sender<u64>>>,
    ) -> Self {
        Self {
            backup_instant,
            publications,
            view: RwLock::default(),
            lineage: RwLock::default(),
            held: HeldVersions::default(),
        }
    }

    pub(super) fn view(&self) -> Option<Arc<ProjectView>> {
        self.view.read().clone()
    }

    /// Publishes a view: from now on every new request sees it.
    pub(super) fn set_view(&self, view: Arc<ProjectView>) {
        let _not_within_the_instant_of_a_backup = self.backup_instant.read();
        *self.view.write() = Some(view);
        if let Some(publications) = &self.publications {
            publications.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn clear_view(&self) {
        *self.view.write() = None;
    }

    pub(super) fn lineage(&self) -> Lineage {
        *self.lineage.read()
    }

    pub(super) fn set_lineage(&self, lineage: Lineage) {
        *self.lineage.write() = lineage;
    }

    pub(super) fn held(&self) -> &HeldVersions {
        &self.held
    }
}
