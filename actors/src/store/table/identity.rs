//! Which identities a project has ever seen, small enough to keep in memory.
//!
//! Most stores are of something new. To know that without a query, every id, content hash and idempotency key
//! of the table is kept as 64 bits: what is not in the set is certainly new, what is in it is looked up in the
//! table (a false alarm costs one query, once in some 10^13 stores at 10^6 items).

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

use crate::error::KnowledgeResult;

/// The kinds of identity, kept apart in the hash.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) enum IdentityKind {
    Id,
    Content,
    Key,
}

/// The set. See the module. Only writes ask it, so what the table held when it was opened is read before the first one;
/// until then it holds what was written since.
#[derive(Debug, Default)]
pub(crate) struct SeenIdentities {
    fingerprints: Mutex<HashSet<u64>>,
    is_loaded: OnceCell<()>,
}

impl SeenIdentities {
    fn fingerprint(kind: IdentityKind, value: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        kind.hash(&mut hasher);
        value.hash(&mut hasher);
        hasher.finish()
    }

    pub(crate) fn insert(&self, kind: IdentityKind, value: &str) {
        self.fingerprints.lock().insert(Self::fingerprint(kind, value));
    }

    /// Has `load` add what the table holds, unless that was done.
    ///
    /// # Errors
    /// Those of `load`; the next one tries again.
    pub(crate) async fn load_once(&self, load: impl Future<Output = KnowledgeResult<()>>) -> KnowledgeResult<()> {
        self.is_loaded.get_or_try_init(|| load).await?;
        Ok(())
    }

    /// False: certainly new. True: look it up. As long as nothing is loaded, everything has to be looked up.
    pub(crate) fn may_contain(&self, kind: IdentityKind, value: &str) -> bool {
        !self.is_loaded.initialized() || self.fingerprints.lock().contains(&Self::fingerprint(kind, value))
    }
}
