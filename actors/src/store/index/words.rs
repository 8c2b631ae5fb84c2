//! The words of rows that were read without them.
//!
//! To analyse the texts of a large project takes longer than to read its vectors, and the first search does not wait for
//! it. So the index is made without words, LanceDB's keyword index is asked, and this fills in the words meanwhile, some
//! rows at a time. Rows that are written later come with theirs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ccod_index::Precision;

use super::keeper::Keeper;
use super::snapshot::Snapshot;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::guarded::guarded;

/// Rows whose words are read at a time: some 50 ms of work, in most of which nobody has to wait.
const ROWS_AT_ONCE: usize = 2_048;
/// What words add to an index, about: 500 bytes to 950. An index that would not fit with them stays without.
const WORDS_PART: f64 = 0.6;

impl Keeper {
    /// Starts reading the words that the newest index lacks, unless that is under way.
    pub(super) fn fill_words(self: &Arc<Self>) {
        if !self.lacks_words() || self.is_filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            self.is_filling.store(false, Ordering::Release);
            return;
        };
        let keeper = Arc::downgrade(self);
        runtime.spawn(async move {
            loop {
                let Some(keeper) = keeper.upgrade() else { return };
                let filled = keeper.fill_some().await;
                if let Filled::More = filled {
                    continue;
                }
                keeper.is_filling.store(false, Ordering::Release);
                // Rows may have come since it was looked.
                let goes_on = matches!(filled, Filled::All) && keeper.lacks_words();
                if !goes_on || keeper.is_filling.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
    }

    fn lacks_words(&self) -> bool {
        let Some(latest) = self.latest() else { return false };
        let index = latest.index;
        index.unread_words() > 0 && index.precision() == Precision::Exact && self.can_grow(WORDS_PART)
    }

    /// Reads the words of some rows.
    async fn fill_some(self: &Arc<Self>) -> Filled {
        let Some(snapshot) = self.latest().filter(|_| self.lacks_words()) else {
            return Filled::All;
        };
        let before = snapshot.index.unread_words();
        let added = self.add_some(&snapshot).await;
        let Some(latest) = self.latest() else {
            return Filled::All;
        };
        let after = latest.index.unread_words();
        match added {
            Ok(()) if after == 0 => Filled::All,
            Ok(()) if after != before => Filled::More,
            Ok(()) => Filled::Stuck,
            // Its files may have been pruned meanwhile.
            Err(_) if latest.version() != snapshot.version() => Filled::More,
            Err(error) => {
                // Searches go on with the keyword index; the next version is another try.
                tracing::warn!(%error, "the words of a project are not held in memory");
                Filled::Stuck
            }
        }
    }

    async fn add_some(self: &Arc<Self>, snapshot: &Snapshot) -> KnowledgeResult<()> {
        let source = snapshot.clone();
        let words = guarded(async move { source.missing_words(ROWS_AT_ONCE).await });
        let words = words.await.map_err(KnowledgeError::unreadable)??;
        self.add_words(snapshot, &words).await
    }
}

/// How far [`Keeper::fill_some`] has come.
enum Filled {
    /// Nothing is left to be done.
    All,
    /// There are further rows.
    More,
    /// No row has got its words.
    Stuck,
}
