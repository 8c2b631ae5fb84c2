//! The revisions that a commit opens.

use chrono::{DateTime, Utc};

use super::ops::PreparedUpdate;
use crate::domain::{NewItem, OnDuplicate};
use crate::store::table::rows::{EmbeddedPassage, NewRevision, StoredRevision};

/// A revision that replaces or revives another.
pub(super) struct OwnedRevision {
    pub(super) id: String,
    pub(super) revision: i64,
    pub(super) item: NewItem,
    pub(super) content_hash: String,
    /// The content that the item was first stored with, as far as known.
    pub(super) key_hash: Option<String>,
    pub(super) passages: Vec<EmbeddedPassage>,
}

impl OwnedRevision {
    /// A closed revision again, as the one after `last`.
    pub(super) fn revived(closed: &StoredRevision, last: i64) -> Self {
        Self {
            id: closed.stored.item.id.clone(),
            revision: last.max(closed.stored.revision) + 1,
            item: stored_as_new(closed),
            content_hash: closed.stored.content_hash.clone(),
            key_hash: closed.key_hash.clone(),
            passages: closed.passages.clone(),
        }
    }

    /// The revision after `current`, with what the update changes. None where the text changes and the passages of
    /// the new one are missing: with those of the old text, searches would find the item by what it no longer says.
    pub(super) fn patched(current: &StoredRevision, update: &PreparedUpdate) -> Option<Self> {
        let mut item = stored_as_new(current);
        update.change.apply_to(&mut item.content);
        // The passages belong to the text: they change with it.
        let passages = if item.content.text == current.stored.item.text {
            current.passages.clone()
        } else {
            update.passages.clone()?
        };
        Some(Self {
            id: current.stored.item.id.clone(),
            revision: current.stored.revision + 1,
            content_hash: item.content_hash(),
            key_hash: current.key_hash.clone(),
            item,
            passages,
        })
    }

    /// As the commit `sequence` at this time opens it.
    pub(super) fn opened(&self, sequence: i64, at: DateTime<Utc>) -> NewRevision<'_> {
        NewRevision {
            id: &self.id,
            revision: self.revision,
            item: &self.item,
            content_hash: &self.content_hash,
            passages: &self.passages,
            updated_at: at,
            valid_from: sequence,
            key_hash: self.key_hash.as_deref(),
            opened_at: at,
        }
    }

    pub(super) fn is_like(&self, current: &StoredRevision) -> bool {
        self.content_hash == current.stored.content_hash && self.item.content == current.stored.item.content()
    }
}

/// What is stored of an item, as it would be stored again. A type that a later version of this program stored
/// is general here.
fn stored_as_new(revision: &StoredRevision) -> NewItem {
    let item = &revision.stored.item;
    NewItem {
        content: item.content(),
        id: Some(item.id.clone()),
        idempotency_key: revision.idempotency_key.clone(),
        on_duplicate: OnDuplicate::Return,
        timestamp: item.timestamp,
        updated_at: None,
    }
}

/// Since when a stored item counts, for a query as of a time. A new item counts from its creation, which its caller
/// gets as the answer; its commit, at `at`, comes milliseconds later. An item from elsewhere has a creation time of
/// its own, and was not here before its commit; the same holds for one that takes the place of a deleted item.
pub(super) fn opened_at(item: &NewItem, revision: i64, at: DateTime<Utc>) -> DateTime<Utc> {
    if item.updated_at.is_some() || revision > 1 {
        at
    } else {
        item.timestamp.min(at)
    }
}
