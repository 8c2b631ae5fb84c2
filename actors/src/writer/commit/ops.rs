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
    /// The passages of its text. They may be left out where the item is believed to have that text already; where it
    /// has another text when the update is committed, the outcome is [`OpOutcome::NotEmbedded`].
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
    Updated(Updated),
    /// Nothing was changed: the item's text is not the update's, and the update came without the passages of its
    /// text. With them it can be repeated.
    NotEmbedded,
    /// The items are gone.
    Deleted(Deleted),
    /// The items are back.
    Undeleted(Undeleted),
}

/// An item after an update.
#[derive(Clone, Debug, PartialEq)]
pub struct Updated {
    /// Its id.
    pub id: String,
    /// Its last change; before this write if that changed nothing.
    pub updated_at: DateTime<Utc>,
}

/// What a delete has deleted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deleted {
    /// Those that existed.
    pub ids: Vec<String>,
    /// Undoes it; none if nothing was deleted.
    pub deletion: Option<Deletion>,
}

/// The items of an undelete.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Undeleted {
    /// Those that were deleted.
    pub restored: Vec<String>,
    /// Those that are there: never deleted, or brought back before.
    pub present: Vec<String>,
    /// Those that never existed, that are no longer kept, or whose id another item has by now.
    pub missing: Vec<String>,
}
