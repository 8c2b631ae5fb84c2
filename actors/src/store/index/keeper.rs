//! The index of a project through its versions.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use ccod_index::{Entry, Index, Tokens};
use lance::Dataset;
use parking_lot::Mutex;

use super::budget::{Budget, Residence};
use super::snapshot::{Snapshot, dimensions, rows_of};
use super::texts::ShownRow;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::panics;
use crate::store::guarded::guarded;
use crate::store::table::table_damage::TableDamage;
use crate::store::table::written::WrittenFragment;

/// Passages from which on an index is freed where nobody waits for it: freeing overwrites it.
const LARGE_PASSAGES: usize = 50_000;
/// An index is measured again when it has grown or shrunk by one part in so many. Measuring walks all of it.
const MEASURED_PART: u64 = 16;

/// Makes and keeps the newest index of a project. Kept by the project, so that a table that is opened again after a
/// failure is compared with the index and not read again.
pub(crate) struct Keeper {
    budget: Arc<Budget>,
    latest: Mutex<Option<Snapshot>>,
    /// Held while a snapshot is made: who needs the same one waits for it.
    making: tokio::sync::Mutex<()>,
    /// The views that have an index of their version.
    slots: Mutex<Vec<Weak<Slot>>>,
    /// What the newest index takes: rows and bytes when it was last measured.
    measured: Mutex<(u64, u64)>,
    bytes: AtomicU64,
    /// Rows of the table when its index was found too large; `u64::MAX` if it was not.
    too_large: AtomicU64,
    /// The number of the table among the rows that were shown lately.
    number: AtomicU64,
    /// Whether words are being read that the newest index lacks.
    pub(super) is_filling: AtomicBool,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes();
        formatter
            .debug_struct("Keeper")
            .field("bytes", &bytes)
            .finish_non_exhaustive()
    }
}

/// The index of a view, if it has been made and has not given way to others since.
#[derive(Default)]
struct Slot(Mutex<Option<Index>>);

impl fmt::Debug for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Slot").field(&self.get().is_some()).finish()
    }
}

impl Slot {
    fn get(&self) -> Option<Index> {
        self.0.lock().clone()
    }

    fn set(&self, index: Option<Index>) -> Option<Index> {
        std::mem::replace(&mut *self.0.lock(), index)
    }
}

/// What a view has of its project's index.
#[derive(Clone, Debug, Default)]
pub(crate) struct ViewIndex {
    /// None for a view beside the store, which reads its table once.
    keeper: Option<Arc<Keeper>>,
    slot: Arc<Slot>,
    /// The number of the table among the rows that were shown lately.
    number: u64,
}

impl ViewIndex {
    /// For a view of the project whose index this is.
    pub(crate) fn of(keeper: &Arc<Keeper>) -> Self {
        Self {
            keeper: Some(Arc::clone(keeper)),
            slot: Arc::default(),
            number: keeper.number(),
        }
    }

    /// The index of this version, read from the table if need be; none where it would be too large.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub(crate) async fn get(
        &self,
        dataset: &Arc<Dataset>,
        damage: &Arc<TableDamage>,
    ) -> KnowledgeResult<Option<Index>> {
        match &self.keeper {
            Some(keeper) => keeper.index_of(&self.slot, dataset, damage).await,
            None => Ok(None),
        }
    }

    /// The index of this version, if it is at hand.
    pub(crate) fn at_hand(&self, dataset: &Arc<Dataset>, damage: &Arc<TableDamage>) -> Option<Index> {
        let made = || {
            let latest = self.keeper.as_ref()?.latest.lock();
            let latest = latest.as_ref().filter(|latest| latest.is_of(dataset, damage));
            latest.map(|latest| latest.index.clone())
        };
        self.slot.get().or_else(made)
    }

    /// Compares the index of this version, if it is at hand, with one that is read from the table now. Answers what is
    /// other in it; then all of the project's are forgotten, and the next reader makes them again.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub(crate) async fn check(
        &self,
        dataset: &Arc<Dataset>,
        damage: &Arc<TableDamage>,
    ) -> KnowledgeResult<Option<String>> {
        let (Some(index), Some(keeper)) = (self.at_hand(dataset, damage), &self.keeper) else {
            return Ok(None);
        };
        let differs = Snapshot::read_whole(dataset, damage).await?.difference_to(&index);
        if differs.is_some() {
            keeper.clear();
            keeper.forget_shown();
        }
        Ok(differs)
    }

    /// Puts another index in the place of the one of this version.
    #[cfg(test)]
    pub(crate) fn replace(&self, index: Index) {
        self.slot.set(Some(index));
    }

    /// A row that was shown lately, if it is kept.
    pub(crate) fn shown(&self, entry: &Entry<'_>) -> Option<ShownRow> {
        let keeper = self.keeper.as_ref()?;
        keeper.budget.texts.get(self.number, entry)
    }

    /// Keeps a row that is shown.
    pub(crate) fn keep_shown(&self, entry: &Entry<'_>, row: &ShownRow) {
        if let Some(keeper) = self.keeper.as_ref().filter(|keeper| keeper.number() == self.number) {
            keeper.budget.texts.put(self.number, entry, row);
        }
    }

    /// Makes the index of this version, if there is one of a version before, out of that and what was `written` since.
    pub(crate) async fn follow(&self, dataset: &Arc<Dataset>, damage: &Arc<TableDamage>, written: &[WrittenFragment]) {
        if let Some(keeper) = &self.keeper {
            keeper.follow(&self.slot, dataset, damage, written).await;
        }
    }
}

impl Keeper {
    pub(crate) fn new(budget: Arc<Budget>) -> Arc<Self> {
        let number = AtomicU64::new(budget.texts.number());
        Arc::new(Self {
            budget,
            number,
            latest: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            slots: Mutex::default(),
            measured: Mutex::default(),
            bytes: AtomicU64::new(0),
            too_large: AtomicU64::new(u64::MAX),
            is_filling: AtomicBool::new(false),
        })
    }

    /// What the newest index takes, about; 0 where there is none.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Passages in the newest index, if there is one.
    pub(super) fn passages(&self) -> Option<u64> {
        self.latest.lock().as_ref().map(|latest| latest.index.len() as u64)
    }

    /// The index of a version, which is read from the table if need be; none where it would be too large.
    ///
    /// # Errors
    /// Where the table cannot be read.
    async fn index_of(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        dataset: &Arc<Dataset>,
        damage: &Arc<TableDamage>,
    ) -> KnowledgeResult<Option<Index>> {
        if let Some(index) = slot.get() {
            self.budget.note_use(self);
            return Ok(Some(index));
        }
        if self.is_too_large(dataset) {
            return Ok(None);
        }
        let (keeper, slot) = (Arc::clone(self), Arc::clone(slot));
        let (dataset, damage) = (Arc::clone(dataset), Arc::clone(damage));
        // In a task of its own: a caller whose time is up must not make the next one begin again.
        let made = guarded(async move { keeper.make(&slot, &dataset, &damage).await });
        match made.await {
            Ok(made) => made.map(Some),
            Err(unfinished) => Err(KnowledgeError::unreadable(format_args!(
                "the table cannot be read: {unfinished}"
            ))),
        }
    }

    async fn make(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        dataset: &Arc<Dataset>,
        damage: &Arc<TableDamage>,
    ) -> KnowledgeResult<Index> {
        let _making = self.making.lock().await;
        if let Some(index) = slot.get() {
            return Ok(index); // Made while this one waited.
        }
        let latest = self.latest.lock().clone();
        let snapshot = match latest {
            Some(latest) if latest.is_of(dataset, damage) => latest,
            Some(latest) => match latest.at(dataset, damage, &[]).await {
                Err(error @ KnowledgeError::Internal { .. }) => {
                    self.mistrust(&error);
                    Snapshot::read(dataset, damage).await?
                }
                other => other?,
            },
            None => Snapshot::read(dataset, damage).await?,
        };
        Ok(self.keep(slot, snapshot, false))
    }

    /// Makes the index of a version that the writer is about to publish, if there is one of a version before.
    async fn follow(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        dataset: &Arc<Dataset>,
        damage: &Arc<TableDamage>,
        written: &[WrittenFragment],
    ) {
        // While a reader makes one, the writer does not wait: the next reader takes it from there.
        let Ok(_making) = self.making.try_lock() else { return };
        let Some(latest) = self.latest.lock().clone() else {
            return;
        };
        if latest.is_of(dataset, damage) {
            slot.set(Some(latest.index));
            self.note_slot(slot);
            return;
        }
        // The commit is made: a panic over what is damaged elsewhere must not make its outcome unknown.
        match panics::catch(latest.at(dataset, damage, written)).await {
            Ok(Ok(snapshot)) => {
                self.keep(slot, snapshot, true);
            }
            Ok(Err(error)) => self.mistrust(&error),
            Err(panic) => self.mistrust(&KnowledgeError::unreadable(panic)),
        }
    }

    /// Gives up an index that does not follow from the table any more: the next reader reads it again.
    fn mistrust(&self, error: &KnowledgeError) {
        tracing::warn!(%error, "the resident index of a project is made again");
        self.clear();
    }

    /// Keeps a snapshot for its view, and as the newest if it is `published` now or no other is newer.
    fn keep(self: &Arc<Self>, slot: &Arc<Slot>, snapshot: Snapshot, published: bool) -> Index {
        let index = snapshot.index.clone();
        free(slot.set(Some(index.clone())));
        self.note_slot(slot);
        let replaced = {
            let mut latest = self.latest.lock();
            // A page of a search may have asked for an older one; and a table that was restored begins with other
            // versions than the one before, of which somebody may still have made a snapshot.
            let is_newer = latest
                .as_ref()
                .is_none_or(|latest| latest.version() <= snapshot.version());
            if published || is_newer {
                self.measure(&snapshot.index);
                latest.replace(snapshot)
            } else {
                Some(snapshot)
            }
        };
        free(replaced.map(|replaced| replaced.index));
        self.budget.note_change(self);
        self.fill_words();
        index
    }

    /// The newest snapshot, if there is one.
    pub(super) fn latest(&self) -> Option<Snapshot> {
        self.latest.lock().clone()
    }

    /// Puts words into the newest index, if there still is one, that were missing in `source`.
    ///
    /// # Errors
    /// Where there are more rows than words can be kept of.
    pub(super) async fn add_words(self: &Arc<Self>, source: &Snapshot, words: &[(u64, Tokens)]) -> KnowledgeResult<()> {
        let _making = self.making.lock().await;
        let Some(latest) = self.latest() else { return Ok(()) };
        let filled = latest.with_words(source, words)?;
        let index = filled.index.clone();
        {
            let mut current = self.latest.lock();
            // It may have given way to others.
            let Some(current) = current.as_mut().filter(|current| current.index.is_same(&latest.index)) else {
                return Ok(());
            };
            *current = filled;
        }
        let slots: Vec<Arc<Slot>> = self.slots.lock().iter().filter_map(Weak::upgrade).collect();
        for slot in slots {
            let mut own = slot.0.lock();
            if let Some(own) = own.as_mut().filter(|own| own.is_same(&latest.index)) {
                *own = index.clone();
            }
        }
        if index.unread_words() == 0 {
            *self.measured.lock() = (0, 0);
            self.measure(&index);
            self.budget.note_change(self);
        }
        Ok(())
    }

    /// Whether an index that becomes larger by this part of itself still fits.
    pub(super) fn can_grow(&self, part: f64) -> bool {
        self.budget.can_hold((self.bytes() as f64 * (1.0 + part)) as u64)
    }

    fn note_slot(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.lock();
        let own = Arc::downgrade(slot);
        slots.retain(|known| known.strong_count() > 0 && !known.ptr_eq(&own));
        slots.push(own);
    }

    fn measure(&self, index: &Index) {
        let rows = index.len() as u64;
        let mut measured = self.measured.lock();
        let (known_rows, known_bytes) = *measured;
        if known_rows == 0 || rows.abs_diff(known_rows) > known_rows / MEASURED_PART {
            *measured = (rows, index.bytes() as u64);
            self.bytes.store(measured.1, Ordering::Relaxed);
        } else {
            self.bytes.store(known_bytes * rows / known_rows, Ordering::Relaxed);
        }
    }

    /// Whether a table of this size was found too large, or is larger than what can be held.
    fn is_too_large(&self, dataset: &Dataset) -> bool {
        let rows = rows_of(dataset);
        // A row takes one byte for each component, and more.
        let least_bytes = rows.saturating_mul(dimensions(dataset).unwrap_or(0) as u64);
        rows >= self.too_large.load(Ordering::Relaxed) || !self.budget.can_hold(least_bytes)
    }

    /// Whether the index of this table belongs into memory. None where the table has no vectors.
    pub(crate) fn residence(&self, dataset: &Dataset) -> Option<Residence> {
        let dimensions = dimensions(dataset).ok()?;
        if self.is_too_large(dataset) {
            return Some(Residence::TooLarge);
        }
        let measured = Some(self.bytes()).filter(|bytes| *bytes > 0);
        Some(self.budget.residence(rows_of(dataset), dimensions, measured))
    }

    /// Gives way to others, or to nobody where it is too large by itself: then it is not made again until the table has
    /// become smaller.
    pub(super) fn evict(&self) {
        if !self.budget.can_hold(self.bytes())
            && let Some(latest) = &*self.latest.lock()
        {
            self.too_large.store(latest.rows(), Ordering::Relaxed);
        }
        self.clear();
    }

    fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Forgets the rows that were shown, since something was removed from the table for good or another table has taken
    /// its place. Readers of versions from before keep none of them from now on.
    pub(crate) fn forget_shown(&self) {
        let texts = &self.budget.texts;
        let before = self.number.swap(texts.number(), Ordering::AcqRel);
        texts.forget(before);
    }

    /// Forgets the index of every version.
    pub(crate) fn clear(&self) {
        let latest = self.latest.lock().take();
        *self.measured.lock() = (0, 0);
        self.bytes.store(0, Ordering::Relaxed);
        free(latest.map(|latest| latest.index));
        let slots = std::mem::take(&mut *self.slots.lock());
        for slot in slots.iter().filter_map(Weak::upgrade) {
            free(slot.set(None));
        }
    }
}

/// Drops an index where nobody waits for it. What it shares with other versions stays.
fn free(index: Option<Index>) {
    let Some(index) = index else { return };
    if index.len() >= LARGE_PASSAGES
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        runtime.spawn_blocking(move || drop(index));
    }
}
