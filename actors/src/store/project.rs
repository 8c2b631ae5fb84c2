//! One project: its table, which the writer holds, and the view of it that readers see.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use lance::index::DatasetIndexExt;
use lance_table::io::commit::CommitHandler;
use lancedb::Connection;
use parking_lot::RwLock;
use tokio::sync::{Mutex, watch};

use crate::clock;
use crate::domain::ProjectName;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::caches::SharedSession;
use crate::store::damage;
use crate::store::disk_space::WriteState;
use crate::store::error::{is_passing, read_error, write_error};
use crate::store::lock::StoreLock;
use crate::store::table::durable::{Durability, DurableCommitHandler};
use crate::store::table::holds_table;
use crate::store::table::lineage::Lineage;
use crate::store::table::schema::ModelIdentity;
use crate::store::table::schema::{TABLE_NAME, TableShape};
use crate::store::table::table_damage::{DamagedFragment, TableDamage};
use crate::store::table::{checked_reads, table_directory};
use crate::store::upkeep;
use crate::store::view::ProjectView;
use crate::store::view::held::HeldVersions;
use crate::store::write::{WriteTable, current_dataset};

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

    pub(super) async fn connect(&self) -> KnowledgeResult<Connection> {
        let uri = self
            .directory
            .to_str()
            .ok_or_else(|| KnowledgeError::internal("the data directory's path is not UTF-8"))?;
        lancedb::connect(uri)
            .session(self.session.current())
            .execute()
            .await
            .map_err(read_error)
    }

    /// No table, as it is before the first store.
    ///
    /// # Errors
    /// Where there was one in this process: somebody has moved it away, or a disk is gone. To begin anew in its place
    /// would keep it from coming back.
    fn unless_vanished(&self) -> KnowledgeResult<Option<WriteTable>> {
        match self.had_table.load(Ordering::Acquire) {
            true => Err(self.vanished()),
            false => Ok(None),
        }
    }

    fn vanished(&self) -> KnowledgeError {
        KnowledgeError::OutOfReach {
            message: format!(
                "the data of project {} is no longer in {}",
                self.name,
                self.directory.display()
            ),
            fix: PUT_BACK,
        }
    }

    /// That the table is no longer where it was, and what to do.
    pub(super) fn vanished_told(&self) -> String {
        format!("{}; {PUT_BACK}", self.vanished())
    }

    /// Opens the table, if there is one. Why it cannot be opened is shown until it can be.
    pub(super) async fn open_table(&self) -> KnowledgeResult<Option<WriteTable>> {
        let opened = self.try_open_table().await;
        let mut unopened = self.unopened.lock();
        *unopened = opened.as_ref().err().map(|error| {
            let told = match error {
                KnowledgeError::OutOfReach { message, fix } => format!("{message}; {fix}"),
                error => error.to_string(),
            };
            (Instant::now(), told)
        });
        drop(unopened);
        opened
    }

    pub(super) async fn try_open_table(&self) -> KnowledgeResult<Option<WriteTable>> {
        // Recovery may change what it finds.
        self.lock.check()?;
        clock::check()?;
        fail::fail_point!("store::open", |_| Err(KnowledgeError::Unreadable {
            message: "failpoint store::open".to_owned(),
        }));
        if !holds_table(&self.directory)? {
            self.set_lost(None);
            return self.unless_vanished();
        }
        let location = table_directory(&self.directory);
        if !self.recovered.load(Ordering::Acquire) {
            let (name, directory, table) = (self.name.clone(), self.directory.clone(), location.clone());
            let recovered = tokio::task::spawn_blocking(move || damage::recover(&name, &directory, &table))
                .await
                .map_err(KnowledgeError::internal)??;
            self.note(recovered.notes);
            self.set_lost(recovered.lost);
            if recovered.vacant {
                return self.unless_vanished();
            }
            self.recovered.store(true, Ordering::Release);
        }
        let mut read_params = checked_reads();
        read_params.session(self.session.current());
        let handler = Arc::new(DurableCommitHandler::new(self.durability, self.lock.clone()));
        read_params.commit_handler = Some(Arc::clone(&handler) as Arc<dyn CommitHandler>);
        let connection = self.connect().await?;
        // Damaged bytes can make Lance panic; in a task of its own that is an error like others.
        let opened = tokio::spawn(async move {
            connection
                .open_table(TABLE_NAME)
                .lance_read_params(read_params)
                .execute()
                .await
        })
        .await;
        let table = match opened {
            Ok(Ok(table)) => table,
            // LanceDB takes a table whose files cannot be opened now for none.
            Ok(Err(error @ lancedb::Error::TableNotFound { .. })) if !is_passing(&error) => {
                tracing::debug!(project = %self.name, %error, "there is no table");
                return self.unless_vanished();
            }
            Ok(Err(error)) => return Err(read_error(error)),
            Err(panic) => {
                return Err(KnowledgeError::unreadable(format_args!(
                    "project {} cannot be opened: {panic}",
                    self.name
                )));
            }
        };
        let dataset = current_dataset(&table).await?;
        let indices = dataset.load_indices().await.map_err(read_error)?;
        handler.builds_upon(&dataset, &indices)?;
        let mut damage = damage::inspect(&dataset, &location, &self.remembered()).await?;
        let version = dataset.version().version;
        if self.suspect.swap(false, Ordering::AcqRel) && self.is_to_be_searched(version) {
            tracing::warn!(project = %self.name, version, "a write failed, looking for what is damaged");
            let found = damage::unreadable_fragments(&dataset, &damage.fragments).await?;
            self.remember(&found);
            damage.fragments.extend(found);
        }
        let mut taken = self.take_over(&table, &damage).await;
        if let Err(KnowledgeError::Unreadable { message }) = &taken {
            tracing::error!(project = %self.name, error = message, "a table cannot be read, looking for what is damaged");
            let found = damage::unreadable_fragments(&dataset, &damage.fragments).await?;
            if !found.is_empty() {
                self.remember(&found);
                damage.fragments.extend(found);
                taken = self.take_over(&table, &damage).await;
            }
        }
        let mut taken = taken?;
        self.had_table.store(true, Ordering::Release);
        let lineage = Lineage::read(&self.directory)?;
        *self.lineage.write() = lineage;
        taken.continue_after(lineage.sequence);
        self.repair_failed.store(false, Ordering::Release);
        self.number_after_losses(&mut taken, version).await?;
        self.salvage(&mut taken).await;
        for what in taken.damage().describe() {
            tracing::error!(project = %self.name, "{what}");
        }
        Ok(Some(taken))
    }

    /// Whether a version is worth being searched for damage: not if it has just been.
    pub(super) fn is_to_be_searched(&self, version: u64) -> bool {
        let mut last = self.suspected.lock();
        if last.is_some_and(|(searched, when)| searched == version && when.elapsed() < REEXAMINE_AFTER) {
            return false;
        }
        *last = Some((version, Instant::now()));
        true
    }

    /// Saves what can be read of damaged fragments at once: left out whole, they would take it along.
    pub(super) async fn salvage(&self, table: &mut WriteTable) {
        if !matches!(table.shape(), TableShape::Current { .. }) {
            return;
        }
        if table.damage().is_sound() || table.damage().configuration.is_some() {
            return;
        }
        match table.repair(&self.directory, true).await {
            Ok(()) => {
                self.repairs.fetch_add(1, Ordering::AcqRel);
            }
            // The writer tries again; until then they are left out.
            Err(error) => tracing::error!(project = %self.name, %error, "a damaged table could not be repaired"),
        }
        self.note(table.take_notes());
    }

    /// Reads what the writer keeps in memory of a table, in a task of its own for the same reason as above.
    pub(super) async fn take_over(&self, table: &lancedb::Table, damage: &TableDamage) -> KnowledgeResult<WriteTable> {
        let opened = WriteTable::opened(
            self.name.clone(),
            table.clone(),
            self.retention,
            damage.clone(),
            self.held.clone(),
        );
        match tokio::spawn(opened).await {
            Ok(opened) => opened,
            Err(panic) => Err(KnowledgeError::unreadable(format_args!(
                "project {} cannot be read: {panic}",
                self.name
            ))),
        }
    }

    /// Takes care that no commit number is given twice: what was lost had some.
    pub(super) async fn number_after_losses(&self, table: &mut WriteTable, version: u64) -> KnowledgeResult<()> {
        self.note(table.take_notes());
        let damage = (**table.damage()).clone();
        let (directory, last, fragments) = (
            self.directory.clone(),
            table.next_sequence() - 1,
            damage.fragments.clone(),
        );
        let gaps = tokio::task::spawn_blocking(move || damage::gaps(&directory, last, &fragments, version))
            .await
            .map_err(KnowledgeError::internal)??;
        table.set_damage(TableDamage { gaps, ..damage });
        Ok(())
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

    /// After a read of `view` has failed: looks for what is damaged, all fragments and, with the words that were
    /// searched for, the keyword index. True if the next view is another one, so that the read is worth repeating.
    pub(super) async fn reexamine(&self, view: &ProjectView, query: Option<&str>) -> KnowledgeResult<bool> {
        let mut examined = self.examined.lock().await;
        let same = |now: Arc<ProjectView>| now.lance_version() == view.lance_version() && now.damage() == view.damage();
        if !self.published().is_some_and(same) {
            return Ok(true); // Somebody else has found it, or it is another version by now.
        }
        let version = view.lance_version();
        if examined.is_some_and(|(last, when)| last == version && when.elapsed() < REEXAMINE_AFTER) {
            return Ok(false);
        }
        tracing::warn!(project = %self.name, version, "a read failed, looking for what is damaged");
        let location = table_directory(&self.directory);
        let plain = damage::inspect(view.dataset(), &location, &BTreeMap::new()).await?;
        let mut found = plain.fragments;
        found.extend(damage::unreadable_fragments(view.dataset(), &view.damage().fragments).await?);
        found.retain(|id, _| !view.damage().fragments.contains_key(id));
        let mut keyword_index = plain.keyword_index;
        if found.is_empty() && keyword_index.is_none() {
            keyword_index = damage::keyword_index_damage(view, query).await;
        }
        *examined = Some((version, Instant::now()));
        if found.is_empty() && keyword_index.is_none() {
            return Ok(false);
        }
        self.remember(&found);
        let mut guard = self.table.lock().await;
        if guard.is_none() {
            *guard = self.open_table().await?;
        }
        let Some(table) = guard.as_mut() else { return Ok(true) };
        let mut damage = (**table.damage()).clone();
        damage.fragments.extend(found);
        // The writer may have made it anew since.
        if keyword_index.is_some() && current_dataset(table.lancedb()).await?.version().version == version {
            damage.keyword_index = keyword_index;
        }
        for what in damage.describe() {
            tracing::error!(project = %self.name, "{what}");
        }
        table.set_damage(damage);
        self.number_after_losses(table, version).await?;
        self.salvage(table).await;
        let view = table.view().await?;
        self.set_view(view);
        Ok(true)
    }

    /// Creates the table with its keyword index.
    pub(super) async fn create_table(&self) -> KnowledgeResult<WriteTable> {
        std::fs::create_dir_all(&self.directory).map_err(write_error)?;
        let (name, directory, table) = (
            self.name.clone(),
            self.directory.clone(),
            table_directory(&self.directory),
        );
        tokio::task::spawn_blocking(move || damage::clear_site(&name, &directory, &table))
            .await
            .map_err(KnowledgeError::internal)??;
        self.set_lost(None);
        let handler = Arc::new(DurableCommitHandler::new(self.durability, self.lock.clone()));
        let connection = self.connect().await?;
        WriteTable::create(&connection, &self.model, handler, self.session.current()).await?;
        // Opened as any other table is: the index is made there.
        self.open_table()
            .await?
            .ok_or_else(|| KnowledgeError::internal(format!("project {} was created and cannot be found", self.name)))
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
