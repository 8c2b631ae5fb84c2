//! One project: its table, which the writer holds, and the view of it that readers see.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use parking_lot::RwLock;
use tokio::sync::{Mutex, watch};

use crate::clock;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::caches::SharedSession;
use crate::store::damage;
use crate::store::disk_space::WriteState;
use crate::store::lock::StoreLock;
use crate::store::table::durable::Durability;
use crate::store::table::lineage::Lineage;
use crate::store::table::schema::ModelIdentity;
use crate::store::table::schema::TableShape;
use crate::store::table::table_damage::DamagedFragment;
use crate::store::upkeep;
use crate::store::view::ProjectView;
use crate::store::view::held::HeldVersions;
use crate::store::write::WriteTable;

mod damaged;
mod opening;

/// How long a version in which nothing damaged was found is not searched for damage again: a read that fails for
/// another reason must not read the whole table each time.
pub(super) const REEXAMINE_AFTER: Duration = Duration::from_secs(60);
/// What to do about a project that is no longer where it was.
const PUT_BACK: &str = "put the directory back in place of what is there now, or mount the disk that it lies on; if it \
                        was removed on purpose, restart the daemon";
/// Why a project is not written to after a restore has stopped halfway.
pub(super) const HALF_RESTORED: &str = "a restore of the project stopped halfway; start the daemon again, it then finishes the \
                             restore, and what would be written until then would be moved aside";

/// What is to become of what cannot be read of a table: its files may still be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Losses {
    /// Somebody writes: it is taken out of the table for good.
    Accepted,
    /// The table is left as it is; whether anything is to be written is not known yet.
    Undecided,
    /// The table is left as it is, and so is all the rest.
    Refused,
}

/// One project: its published view, and the table behind it once it is open.
pub struct Project {
    pub(super) name: ProjectName,
    pub(super) directory: PathBuf,
    pub(super) lock: StoreLock,
    pub(super) durability: Durability,
    pub(super) model: ModelIdentity,
    pub(super) retention: TimeDelta,
    pub(super) session: Arc<SharedSession>,
    pub(super) published: Arc<watch::Sender<u64>>,
    pub(super) moment: Arc<RwLock<()>>,
    /// Versions that readers hold.
    pub(super) held: HeldVersions,
    /// Where its commit numbers come from; known once the project is opened.
    pub(super) lineage: RwLock<Lineage>,
    /// What readers see; none until the project is opened. A std lock: held for a pointer's copy, never
    /// across an await.
    pub(super) view: RwLock<Option<Arc<ProjectView>>>,
    /// The table. Held by the writer for the whole of a commit, so that a commit that outlives the actor which
    /// started it is never joined by a second one.
    pub(super) table: Mutex<Option<WriteTable>>,
    /// Whether a table of it was open in this process.
    pub(super) had_table: AtomicBool,
    /// Whether it was looked at without being opened, and nothing was wrong with it.
    pub(super) glanced_at: AtomicBool,
    /// Why not all bytes of what a purge has removed could be erased when that was last tried, if so.
    pub(super) unerased: parking_lot::Mutex<Option<String>>,
    /// Whether recovery has run: once in a process, when nothing can be in flight.
    pub(super) recovered: AtomicBool,
    /// What recovery did in this process, for `admin.status`.
    pub(super) notes: parking_lot::Mutex<Vec<String>>,
    /// Why the project is empty though there is something on disk, if so.
    pub(super) lost: parking_lot::Mutex<Option<String>>,
    /// Why it could not be opened when that was last tried, and when.
    pub(super) unopened: parking_lot::Mutex<Option<(Instant, String)>>,
    /// Whether taking damaged fragments out of the table has failed: tried again when it is opened again.
    pub(super) repair_failed: AtomicBool,
    /// How often something was taken out of the table.
    pub(super) repairs: AtomicU64,
    /// Fragments that reads have failed on, so that they stay left out when the table is opened again.
    pub(super) damage: parking_lot::Mutex<BTreeMap<u64, DamagedFragment>>,
    /// The version that was last searched for damage after a read had failed, and when; held while one is.
    pub(super) examined: Mutex<Option<(u64, Instant)>>,
    /// Whether a write has failed, maybe over something that is damaged: looked for when the table is opened again.
    pub(super) suspect: AtomicBool,
    /// The version that was last searched for damage after that, and when.
    pub(super) suspected: parking_lot::Mutex<Option<(u64, Instant)>>,
    /// Whether the last write could not be made for want of room or permission.
    pub(super) writes: WriteState,
    /// Whether a restore has stopped halfway: the next start finishes it, and moves aside what is here.
    pub(super) suspended: AtomicBool,
}

impl std::fmt::Debug for Project {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Project")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Project {
    /// Its name.
    pub fn name(&self) -> &ProjectName {
        &self.name
    }

    /// The view as published, without opening anything.
    pub fn published(&self) -> Option<Arc<ProjectView>> {
        self.view.read().clone()
    }

    pub(super) fn set_view(&self, view: Arc<ProjectView>) {
        let _not_amid_a_backup = self.moment.read();
        *self.view.write() = Some(view);
        if !self.name.is_own() {
            self.published.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn lineage(&self) -> Lineage {
        *self.lineage.read()
    }

    pub(super) fn clear_view(&self) {
        *self.view.write() = None;
    }

    /// The present view, opening the project on first use; nothing where there is none, be it that nothing was stored
    /// or that no version of it can be read.
    pub(super) async fn open(self: &Arc<Self>) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        // What is open cannot be read either.
        clock::check()?;
        if let Some(view) = self.published() {
            return Ok(Some(view));
        }
        // In a task of its own: a caller whose time is up must not break off what opening repairs.
        let project = Arc::clone(self);
        tokio::spawn(async move { project.open_view().await })
            .await
            .map_err(KnowledgeError::internal)?
    }

    pub(super) async fn open_view(&self) -> KnowledgeResult<Option<Arc<ProjectView>>> {
        let mut guard = self.table.lock().await;
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
        let directory = self.directory.clone();
        tokio::task::spawn_blocking(move || directory_bytes(&directory))
            .await
            .map_err(KnowledgeError::internal)
    }

    /// Opens or creates the table, and takes out of it what cannot be read if that is accepted.
    pub(super) async fn prepare_to_write(
        &self,
        table: &mut Option<WriteTable>,
        create: bool,
        losses: Losses,
    ) -> KnowledgeResult<()> {
        self.check_suspended()?;
        clock::check()?;
        if table.is_none() {
            *table = self.open_table().await?;
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
                        self.name,
                        reasons.collect::<Vec<_>>().join("; "),
                        damage::PUT_BACK
                    ),
                });
            }
            Some(_) if losses == Losses::Undecided => {}
            Some(table) if table.damage().is_sound() || self.repair_failed.load(Ordering::Acquire) => {}
            // A table of another shape is left as it is.
            Some(table) if matches!(table.shape(), TableShape::Foreign { .. }) => {}
            Some(table) => match table.repair(&self.directory, false).await {
                Ok(()) => {
                    self.repairs.fetch_add(1, Ordering::AcqRel);
                    self.note(table.take_notes());
                    self.damage.lock().clear();
                    let repaired = table.view().await?;
                    self.set_view(repaired);
                }
                Err(error @ (KnowledgeError::ReadOnly { .. } | KnowledgeError::NoDescriptors)) => return Err(error),
                Err(error) => {
                    // Adding to the table needs none of what is damaged.
                    tracing::error!(project = %self.name, %error, "a damaged table could not be repaired");
                    self.repair_failed.store(true, Ordering::Release);
                }
            },
        }
        Ok(())
    }

    /// Removes the versions that nobody reads, whatever their number. True if there were any.
    pub(super) async fn give_up_versions(&self) -> bool {
        let mut guard = self.table.lock().await;
        let Some(table) = guard.as_mut() else { return false };
        // The files may be another daemon's by now.
        if self.lock.check().is_err() || !matches!(table.shape(), TableShape::Current { .. }) {
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
            tracing::warn!(project = %self.name, %error, "old versions could not be removed to make room");
            false
        })
    }

    /// Forgets what was found in a table that another has taken the place of.
    pub(super) fn begin_anew(&self) {
        self.recovered.store(false, Ordering::Release);
        self.repair_failed.store(false, Ordering::Release);
        self.suspect.store(false, Ordering::Release);
        *self.suspected.lock() = None;
        self.notes.lock().clear();
        self.damage.lock().clear();
        self.set_lost(None);
        self.glanced_at.store(false, Ordering::Release);
        self.had_table.store(false, Ordering::Release);
        *self.unerased.lock() = None;
        *self.unopened.lock() = None;
        // Whoever holds it may wait for the table, which the caller holds; what is left then is a version that is
        // not searched again for a minute.
        if let Ok(mut examined) = self.examined.try_lock() {
            *examined = None;
        }
    }

    /// From now on nothing is written to the project, or again.
    pub(super) fn suspend(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Release);
    }

    /// Refuses while a restore of the project is not finished.
    pub(super) fn check_suspended(&self) -> KnowledgeResult<()> {
        match self.is_suspended() {
            true => Err(KnowledgeError::ReadOnly {
                reason: HALF_RESTORED.to_owned(),
            }),
            false => Ok(()),
        }
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.suspended.load(Ordering::Acquire)
    }

    pub(super) fn note(&self, notes: Vec<String>) {
        let mut kept = self.notes.lock();
        kept.extend(notes);
    }

    pub(super) fn remember(&self, found: &BTreeMap<u64, DamagedFragment>) {
        let mut kept = self.damage.lock();
        kept.extend(found.iter().map(|(id, fragment)| (*id, fragment.clone())));
    }

    pub(super) fn remembered(&self) -> BTreeMap<u64, DamagedFragment> {
        self.damage.lock().clone()
    }
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
