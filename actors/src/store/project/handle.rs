//! A project as the rest of the store knows it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard};

use super::disk_size::DiskSize;
use super::{Counts, DamageLedger, LastUse, OpeningRecord, ProjectSettings, Published};
use crate::clock;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::caches::ProjectCaches;
use crate::store::damage;
use crate::store::disk_space::WriteState;
use crate::store::index::Keeper;
use crate::store::table::lineage::Lineage;
use crate::store::table::schema::TableShape;
use crate::store::upkeep;
use crate::store::view::ProjectView;
use crate::store::view::held::HeldVersions;
use crate::store::view::recent::RecentChanges;
use crate::store::write::WriteTable;

/// What to do about a project that is no longer where it was.
pub(super) const PUT_BACK: &str = "put the directory back in place of what is there now, or mount the disk that it lies on; if it \
                        was removed on purpose, restart the daemon";
/// Why a project is not written to after a restore has stopped halfway.
pub(in crate::store) const HALF_RESTORED: &str = "a restore of the project stopped halfway; start the daemon again, it then finishes the \
                             restore, and what would be written until then would be moved aside";

/// What is to become of what cannot be read of a table: its files may still be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Losses {
    /// Somebody writes: it is taken out of the table for good.
    Accepted,
    /// The table is left as it is; whether anything is to be written is not known yet.
    Undecided,
    /// The table is left as it is, and so is all the rest.
    Refused,
}

/// One project: its published view, and the table behind it once it is open.
pub struct Project {
    pub(super) settings: ProjectSettings,
    pub(super) published: Published,
    /// When it was last used.
    pub(super) used: LastUse,
    /// What was last counted of it.
    pub(super) counts: parking_lot::Mutex<Option<Counts>>,
    /// The table. Held by the writer for the whole of a commit, so that a commit that outlives the actor which
    /// started it is never joined by a second one.
    pub(super) table: Mutex<Option<WriteTable>>,
    /// The index of what is live.
    pub(super) keeper: Arc<Keeper>,
    pub(super) record: OpeningRecord,
    pub(super) damage: DamageLedger,
    /// Whether the last write failed because there was no space or no permission.
    pub(super) writes: WriteState,
    /// Why not all bytes of what a purge has removed could be erased when that was last tried, if so.
    pub(super) unerased: parking_lot::Mutex<Option<String>>,
    /// What it takes on disk.
    pub(super) size: Arc<DiskSize>,
    /// Whether a restore has stopped halfway: the next start finishes it, and moves aside what is here.
    pub(super) suspended: AtomicBool,
    /// How often a version of the table was about to be published.
    pub(super) publications: Arc<AtomicU64>,
}

impl std::fmt::Debug for Project {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Project")
            .field("name", self.name())
            .finish_non_exhaustive()
    }
}

impl Project {
    /// A project that is not open yet. `suspended` as in [`Project::suspend`].
    pub(in crate::store) fn new(
        settings: ProjectSettings,
        published: Published,
        writes: WriteState,
        suspended: bool,
    ) -> Self {
        let keeper = Keeper::new(Arc::clone(&settings.resident));
        Self {
            settings,
            published,
            used: LastUse::default(),
            counts: parking_lot::Mutex::default(),
            table: Mutex::default(),
            keeper,
            record: OpeningRecord::default(),
            damage: DamageLedger::default(),
            writes,
            unerased: parking_lot::Mutex::default(),
            size: Arc::default(),
            suspended: AtomicBool::new(suspended),
            publications: Arc::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &ProjectName {
        &self.settings.name
    }

    pub(in crate::store) fn directory(&self) -> &Path {
        &self.settings.directory
    }

    pub(in crate::store) fn caches(&self) -> &ProjectCaches {
        &self.settings.caches
    }

    /// Refuses once the lock of the store is lost.
    pub(in crate::store) fn check_lock(&self) -> KnowledgeResult<()> {
        self.settings.lock.check()
    }

    /// The view as published, without opening anything.
    pub fn published(&self) -> Option<Arc<ProjectView>> {
        self.published.view()
    }

    pub(in crate::store) fn set_view(&self, view: Arc<ProjectView>) {
        *self.counts.lock() = None;
        self.published.set_view(view);
    }

    pub(in crate::store) fn clear_view(&self) {
        self.published.clear_view();
    }

    pub(in crate::store) fn lineage(&self) -> Lineage {
        self.published.lineage()
    }

    /// What the last commits have changed.
    pub(in crate::store) fn recent(&self) -> &RecentChanges {
        self.published.recent()
    }

    /// Versions that readers hold.
    pub(in crate::store) fn held(&self) -> &HeldVersions {
        self.published.held()
    }

    /// Takes the table; waits for whoever has it.
    pub(in crate::store) async fn lock_table(&self) -> MutexGuard<'_, Option<WriteTable>> {
        self.table.lock().await
    }

    pub(in crate::store) fn record(&self) -> &OpeningRecord {
        &self.record
    }

    pub(in crate::store) fn damage(&self) -> &DamageLedger {
        &self.damage
    }

    /// What is wrong with writing to it now, if anything is.
    pub(in crate::store) async fn write_trouble(&self) -> Option<String> {
        self.writes.trouble(self.directory()).await
    }

    /// How often a version of the table was about to be published. For whoever holds the table: as long as it is the
    /// same, what is on disk is, too.
    pub(in crate::store) fn publications(&self) -> u64 {
        self.publications.load(Ordering::Relaxed)
    }

    /// Takes note of a write that failed; answers its error, with the place and what is free there.
    pub(in crate::store) fn write_failed(&self, error: KnowledgeError) -> KnowledgeError {
        self.writes.failed(self.directory(), error)
    }

    /// Takes note of a write that succeeded.
    pub(in crate::store) fn write_succeeded(&self) {
        self.writes.succeeded();
    }

    /// Why nothing may be added now: its file system has less space than is kept free.
    pub(in crate::store) async fn shortage(&self) -> Option<KnowledgeError> {
        self.writes.shortage(self.directory()).await
    }

    /// Why a purge could not erase everything when that was last tried, if so.
    pub(in crate::store) fn unerased(&self) -> Option<String> {
        self.unerased.lock().clone()
    }

    pub(in crate::store) fn set_unerased(&self, reason: Option<String>) {
        *self.unerased.lock() = reason;
    }

    /// The present view, opening the project on first use; nothing where there is none, be it that nothing was stored
    /// or that no version of it can be read.
    pub(in crate::store) async fn open(self: &Arc<Self>) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        // What is open cannot be read either.
        clock::check()?;
        self.used.now();
        if let Some(view) = self.published() {
            return Ok(Some(view));
        }
        // In a task of its own: a caller whose time is up must not break off what opening repairs.
        let project = Arc::clone(self);
        tokio::spawn(async move { project.open_view().await })
            .await
            .map_err(KnowledgeError::internal)?
    }

    pub(in crate::store) async fn open_view(&self) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        let mut guard = self.lock_table().await;
        if let Some(view) = self.published() {
            return Ok(Some(view)); // Opened while this one waited.
        }
        if guard.is_none() {
            *guard = self.open_table().await?;
        }
        match guard.as_mut() {
            None if self.is_suspended() => Err(KnowledgeError::Unreadable {
                message: HALF_RESTORED.to_owned(),
            }),
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
        let (directory, size) = (self.settings.directory.clone(), Arc::clone(&self.size));
        tokio::task::spawn_blocking(move || size.of(&directory))
            .await
            .map_err(KnowledgeError::internal)
    }

    /// A view that stayed published while the table was forgotten gives way to one that says what is damaged.
    async fn show_what_was_found(&self, table: &mut Option<WriteTable>) -> KnowledgeResult<()> {
        if let (Some(table), Some(published)) = (table, self.published())
            && published.damage() != table.damage()
        {
            let view = table.view().await?;
            self.set_view(view);
        }
        Ok(())
    }

    /// Opens or creates the table, and takes out of it what cannot be read if that is accepted.
    pub(in crate::store) async fn prepare_to_write(
        &self,
        table: &mut Option<WriteTable>,
        create: bool,
        losses: Losses,
    ) -> KnowledgeResult<()> {
        self.check_suspended()?;
        clock::check()?;
        self.used.now();
        if table.is_none() {
            *table = self.open_table().await?;
            self.show_what_was_found(table).await?;
        }
        match table {
            None if create => *table = Some(self.create_table().await?),
            None => {}
            Some(table) if table.damage().configuration.is_some() => {
                return Err(KnowledgeError::Unreadable {
                    message: table.damage().configuration.clone().unwrap_or_default(),
                });
            }
            Some(table) if losses == Losses::Refused && !table.damage().fragments.is_empty() => {
                let reasons = table
                    .damage()
                    .fragments
                    .values()
                    .map(|fragment| fragment.reason.as_str());
                return Err(KnowledgeError::Unreadable {
                    message: format!(
                        "project {} is left as it is: {}. {}",
                        self.name(),
                        reasons.collect::<Vec<_>>().join("; "),
                        damage::PUT_BACK
                    ),
                });
            }
            Some(_) if losses == Losses::Undecided => {}
            Some(table) if table.damage().is_sound() || self.damage.repair_failed() => {}
            // A table of another shape is left as it is.
            Some(table) if matches!(table.shape(), TableShape::Foreign { .. }) => {}
            Some(table) => match table.repair(self.directory(), false).await {
                Ok(()) => {
                    self.damage.note_repair();
                    self.record.add_notes(table.take_notes());
                    let repaired = table.view().await?;
                    self.set_view(repaired);
                }
                Err(error @ (KnowledgeError::ReadOnly { .. } | KnowledgeError::NoDescriptors)) => return Err(error),
                Err(error) => {
                    // Adding to the table needs none of what is damaged.
                    tracing::error!(project = %self.name(), %error, "a damaged table could not be repaired");
                    self.damage.set_repair_failed(true);
                }
            },
        }
        Ok(())
    }

    /// Removes the versions that nobody reads, whatever their number. True if there were any.
    pub(in crate::store) async fn give_up_versions(&self) -> bool {
        let mut guard = self.lock_table().await;
        let Some(table) = guard.as_mut() else { return false };
        // The files may be another daemon's by now.
        if self.check_lock().is_err() || !matches!(table.shape(), TableShape::Current { .. }) {
            return false;
        }
        let given_up = async {
            if table.debt().await?.versions <= 1 {
                return Ok(false);
            }
            table.release_pages();
            table.maintain(upkeep::Step::Prune).await
        };
        given_up.await.unwrap_or_else(|error| {
            tracing::warn!(project = %self.name(), %error, "old versions could not be removed to free space");
            false
        })
    }

    /// Forgets what was found in a table that another has taken the place of. The caller holds the table.
    pub(in crate::store) fn forget_findings(&self) {
        self.record.clear(self.name());
        self.damage.clear();
        self.forget_memory();
        self.set_unerased(None);
    }

    /// Forgets the index of what is live, and what was shown of it.
    pub(in crate::store) fn forget_memory(&self) {
        self.keeper.clear();
        self.keeper.forget_shown();
    }

    /// From now on nothing is written to the project; with `false`, it is written to again.
    pub(in crate::store) fn suspend(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Release);
    }

    /// Refuses while a restore of the project is not finished.
    pub(in crate::store) fn check_suspended(&self) -> KnowledgeResult<()> {
        match self.is_suspended() {
            true => Err(KnowledgeError::ReadOnly {
                reason: HALF_RESTORED.to_owned(),
            }),
            false => Ok(()),
        }
    }

    pub(in crate::store) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }
}
