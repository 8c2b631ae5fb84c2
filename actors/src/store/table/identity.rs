//! Which identities a project has ever seen, small enough to keep in memory.
//!
//! Most stores are of something new. To know that without a query, every id, content hash and idempotency key
//! of the table is kept as 64 bits: what is not in the set is certainly new, what is in it is looked up in the
//! table (a false alarm costs one query, once in some 10^13 stores at 10^6 items).

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The kinds of identity, kept apart in the hash.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) enum IdentityKind {
    Id,
    Content,
    Key,
}

/// The set. See the module.
#[derive(Debug, Default)]
pub(crate) struct SeenIdentities(HashSet<u64>);

impl SeenIdentities {
    fn fingerprint(kind: IdentityKind, value: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        kind.hash(&mut hasher);
        value.hash(&mut hasher);
        hasher.finish()
    }

    pub(crate) fn insert(&mut self, kind: IdentityKind, value: &str) {
        self.0.insert(Self::fingerprint(kind, value));
    }

    /// False: certainly new. True: look it up.
    pub(crate) fn may_contain(&self, kind: IdentityKind, value: &str) -> bool {
        self.0.contains(&Self::fingerprint(kind, value))
    }
}
