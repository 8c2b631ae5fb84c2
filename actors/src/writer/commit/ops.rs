//! What is written, and what becomes of it.

use chrono::{DateTime, Utc};

use crate::domain::{Deletion, Filter, NewItem, UpdateParams};
use crate::store::table::rows::EmbeddedPassage;
use crate::writer::undo::UndoNote;

/// An item, checked and embedded.
#[derive(Clone, Debug)]
pub struct PreparedItem {
    /// The item.
    pub item: NewItem,
    /// SHA-256 of its content.
    pub content_hash: String,
    /// Its passages.
    pub passages: Vec<EmbeddedPassage>,
}

/// What became of an item.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemOutcome {
    /// Its id, or that of the item that was there.
    pub id: String,
    /// Whether the same content was there already.
    pub duplicate: bool,
    /// Creation of the item that stands.
    pub timestamp: DateTime<Utc>,
    /// Number of its passages.
    pub passages: u32,
}

/// An update, checked and embedded.
#[derive(Clone, Debug)]
pub struct PreparedUpdate {
    /// What changes, and in which item.
    pub change: UpdateParams,
    /// The passages of its text. They may be left out where the item is believed to have that text already;
    /// where it has another one when the update is committed, the outcome is [`OpOutcome::NotEmbedded`].
    pub passages: Option<Vec<EmbeddedPassage>>,
}

/// Which items a delete concerns.
#[derive(Clone, Debug)]
pub enum DeleteTarget {
    /// Those of these that exist.
    Ids(Vec<String>),
    /// All that match.
    Matching(Filter),
}

/// Which items an undelete concerns.
#[derive(Clone, Debug)]
pub enum UndeleteTarget {
    /// Those of these that are deleted, as they were at last.
    Ids(Vec<String>),
    /// All that one deletion closed.
    Deletion(Deletion),
}

/// One write of a project.
#[derive(Clone, Debug)]
pub enum WriteOp {
    /// Store an item.
    Store(PreparedItem),
    /// Change an item.
    Update(PreparedUpdate),
    /// Delete items.
    Delete(DeleteTarget, UndoNote),
    /// Bring deleted items back.
    Undelete(UndeleteTarget),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum OpOutcome {
    /// The item stands.
    Stored(ItemOutcome),
    /// The item is as asked.
    Updated {
        /// Its id.
        id: String,
        /// Its last change; before this write if that changed nothing.
        updated_at: DateTime<Utc>,
    },
    /// Nothing was changed: the item's text is not the update's, and the update came without the passages of its
    /// text. With them it can be repeated.
    NotEmbedded,
    /// The items are gone.
    Deleted {
        /// Those that existed.
        ids: Vec<String>,
        /// Undoes it; none if nothing was deleted.
        deletion: Option<Deletion>,
    },
    /// The items are back.
    Undeleted {
        /// Those that were deleted.
        restored: Vec<String>,
        /// Those that are there: never deleted, or brought back before.
        present: Vec<String>,
        /// Those that never were, are no longer kept, or whose id another item has by now.
        missing: Vec<String>,
    },
}
