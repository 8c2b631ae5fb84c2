//! What is known of the damage to a project's table, and when it was last searched for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::table::table_damage::DamagedFragment;

/// How long a version in which nothing damaged was found is not searched for damage again: a read that fails for
/// another reason must not read the whole table each time.
pub(in crate::store) const REEXAMINE_AFTER: Duration = Duration::from_secs(60);

/// A version that was searched for damage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Searched {
    version: u64,
    when: Instant,
}

impl Searched {
    pub(super) fn now(version: u64) -> Self {
        Self {
            version,
            when: Instant::now(),
        }
    }

    /// Whether it tells enough of `version`, which then is not searched again.
    pub(super) fn covers(&self, version: u64) -> bool {
        self.version == version && self.when.elapsed() < REEXAMINE_AFTER
    }
}

/// The damage to a table that reads and writes have come upon, for as long as the process runs.
#[derive(Debug, Default)]
pub(in crate::store) struct DamageLedger {
    /// Fragments that reads have failed on, so that they stay left out when the table is opened again.
    fragments: Mutex<BTreeMap<u64, DamagedFragment>>,
    /// The version that was last searched after a read had failed; held while one is.
    examined: tokio::sync::Mutex<Option<Searched>>,
    /// Whether a write has failed, maybe over something that is damaged: looked for when the table is opened again.
    suspect: AtomicBool,
    /// The version that was last searched after a write had failed.
    suspected: Mutex<Option<Searched>>,
    /// Whether taking damaged fragments out of the table has failed: tried again when it is opened again.
    repair_failed: AtomicBool,
    /// How often something was taken out of the table.
    repairs: AtomicU64,
}

impl DamageLedger {
    pub(super) fn remember(&self, found: &BTreeMap<u64, DamagedFragment>) {
        let mut kept = self.fragments.lock();
        kept.extend(found.iter().map(|(id, fragment)| (*id, fragment.clone())));
    }

    pub(super) fn remembered(&self) -> BTreeMap<u64, DamagedFragment> {
        self.fragments.lock().clone()
    }

    /// The version that was last searched after a read had failed. One such search runs at a time: whoever makes it
    /// holds this.
    pub(super) async fn examined(&self) -> tokio::sync::MutexGuard<'_, Option<Searched>> {
        self.examined.lock().await
    }

    /// Notes that a write has failed, maybe over something that is damaged.
    pub(in crate::store) fn note_failed_write(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    /// Whether `version` is to be searched for damage now because a write has failed: not if it has just been.
    pub(super) fn takes_search_after_write(&self, version: u64) -> bool {
        if !self.suspect.swap(false, Ordering::AcqRel) {
            return false;
        }
        let mut last = self.suspected.lock();
        if last.is_some_and(|searched| searched.covers(version)) {
            return false;
        }
        *last = Some(Searched::now(version));
        true
    }

    pub(super) fn repair_failed(&self) -> bool {
        self.repair_failed.load(Ordering::Acquire)
    }

    pub(super) fn set_repair_failed(&self, failed: bool) {
        self.repair_failed.store(failed, Ordering::Release);
    }

    /// How often something was taken out of the table.
    pub(in crate::store) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }

    /// Notes that what can be read of damaged fragments was saved.
    pub(super) fn note_salvage(&self) {
        self.repairs.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that everything damaged was taken out of the table.
    pub(super) fn note_repair(&self) {
        self.note_salvage();
        self.fragments.lock().clear();
    }

    /// Forgets what was found: another table has taken the place of the damaged one. The repairs still count.
    pub(super) fn clear(&self) {
        self.repair_failed.store(false, Ordering::Release);
        self.suspect.store(false, Ordering::Release);
        *self.suspected.lock() = None;
        self.fragments.lock().clear();
        // Whoever holds it may wait for the table, which the caller holds; what is left then is a version that is
        // not searched again for a minute.
        if let Ok(mut examined) = self.examined.try_lock() {
            *examined = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_searched_once_after_a_write_has_failed() {
        let ledger = DamageLedger::default();
        assert!(!ledger.takes_search_after_write(3), "nothing has failed");
        ledger.note_failed_write();
        assert!(ledger.takes_search_after_write(3));
        assert!(!ledger.takes_search_after_write(3), "it was searched for that");
        ledger.note_failed_write();
        assert!(!ledger.takes_search_after_write(3), "it has just been searched");
        ledger.note_failed_write();
        assert!(ledger.takes_search_after_write(4), "another version");
        ledger.note_failed_write();
        ledger.clear();
        assert!(!ledger.takes_search_after_write(5), "of another table");
        ledger.note_failed_write();
        assert!(ledger.takes_search_after_write(4));
    }

    #[tokio::test]
    async fn repairs_outlast_what_was_found() {
        let ledger = DamageLedger::default();
        let fragment = DamagedFragment {
            files: vec!["data/a.lance".to_owned()],
            rows: 1,
            salvageable: false,
            reason: String::new(),
        };
        ledger.remember(&BTreeMap::from([(3, fragment.clone())]));
        ledger.note_salvage();
        assert_eq!(ledger.remembered().len(), 1);
        ledger.note_repair();
        assert!(ledger.remembered().is_empty());
        ledger.remember(&BTreeMap::from([(3, fragment)]));
        ledger.set_repair_failed(true);
        *ledger.examined().await = Some(Searched::now(3));
        ledger.clear();
        assert!(ledger.remembered().is_empty() && !ledger.repair_failed());
        assert!(ledger.examined().await.is_none());
        assert_eq!(ledger.repairs(), 2);
    }
}
