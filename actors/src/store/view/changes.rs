//! What has changed in a project, and how the rows of its table tell it: the source of the change feed.
//!
//! History lives in rows, so the feed needs no log of its own: a row says with which commit it came
//! (`valid_from`) and with which it was closed (`valid_to`). What a commit has just written is told from the rows that
//! the writer still has at hand ([`super::recent`]), everything else from the table ([`super::replay`]): it is the same
//! rows, and they are read in the same way.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};

use crate::domain::KnowledgeType;
use crate::error::KnowledgeResult;
use crate::store::table::rows::{RowReader, row_key};
use crate::store::table::schema::column;
use crate::store::view::{ProjectView, filter};

/// What happened to an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It came to be.
    Store,
    /// It was changed.
    Update,
    /// It was deleted.
    Delete,
    /// It came back as it was.
    Undelete,
    /// Every trace of it was removed.
    Purge,
}

/// One change. The item is as it became, or as it was before it was deleted.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The commit.
    pub sequence: i64,
    /// What happened.
    pub kind: ChangeKind,
    /// The item's id.
    pub id: String,
    /// The revision that came, or that was closed.
    pub revision: i64,
    /// What kind of knowledge it is.
    pub knowledge_type: KnowledgeType,
    /// Its agent.
    pub agent: Option<String>,
    /// Its last change.
    pub updated_at: DateTime<Utc>,
    /// Its text, where somebody wants it and it is not gone.
    pub text: Option<String>,
}

impl Change {
    /// Whether there is a text to tell: an item that is gone has none.
    pub fn has_text(&self) -> bool {
        !matches!(self.kind, ChangeKind::Delete | ChangeKind::Purge)
    }
}

/// The first row of a revision, as far as the feed needs it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChangeRow {
    pub(crate) id: String,
    pub(crate) revision: i64,
    pub(crate) knowledge_type: KnowledgeType,
    pub(crate) agent: Option<String>,
    pub(crate) updated_at: DateTime<Utc>,
    pub(crate) valid_from: i64,
    pub(crate) valid_to: Option<i64>,
    pub(crate) content_hash: String,
    /// Whether this is what a purge leaves.
    pub(crate) is_tombstone: bool,
    /// Where it lies in the version that it was read from.
    pub(crate) place: u64,
}

/// Columns of a [`ChangeRow`]. The text is not among them.
pub(crate) const CHANGE_COLUMNS: [&str; 9] = [
    column::ID,
    column::REVISION,
    column::PASSAGES,
    column::TYPE,
    column::AGENT,
    column::UPDATED_AT,
    column::VALID_FROM,
    column::VALID_TO,
    column::CONTENT_HASH,
];

impl ChangeRow {
    pub(crate) fn read(rows: &RowReader<'_>, row: usize, place: u64) -> KnowledgeResult<Self> {
        Ok(Self {
            id: rows.required_text(column::ID, row)?.to_owned(),
            revision: rows.int(column::REVISION, row)?.unwrap_or(1),
            knowledge_type: KnowledgeType::of_stored(rows.required_text(column::TYPE, row)?),
            agent: rows.text(column::AGENT, row)?.map(str::to_owned),
            updated_at: rows.time(column::UPDATED_AT, row)?,
            valid_from: rows.int(column::VALID_FROM, row)?.unwrap_or(0),
            valid_to: rows.int(column::VALID_TO, row)?,
            content_hash: rows.required_text(column::CONTENT_HASH, row)?.to_owned(),
            is_tombstone: rows.small_int(column::PASSAGES, row)? == 0,
            place,
        })
    }
}

/// A change, and what of its row is not told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FoundChange {
    pub(crate) change: Change,
    pub(crate) content_hash: String,
    pub(crate) place: u64,
}

impl FoundChange {
    fn of(row: &ChangeRow, sequence: i64, kind: ChangeKind) -> Self {
        Self {
            change: Change {
                sequence,
                kind,
                id: row.id.clone(),
                revision: row.revision,
                knowledge_type: row.knowledge_type,
                agent: row.agent.clone(),
                updated_at: row.updated_at,
                text: None,
            },
            content_hash: row.content_hash.clone(),
            place: row.place,
        }
    }

    /// Whether the item has been there before: then the revision before tells whether it came back as it was, or was
    /// stored again under its old id.
    pub(crate) fn came_back(&self) -> bool {
        self.change.kind == ChangeKind::Store && self.change.revision > 1
    }
}

impl ProjectView {
    /// Tells which of the items that came back are as they were: these were undeleted.
    pub(crate) async fn tell_undeletes(&self, changes: &mut [FoundChange]) -> KnowledgeResult<()> {
        let before = |found: &FoundChange| row_key(&found.change.id, found.change.revision - 1, 0);
        let came_back = changes.iter().filter(|found| found.came_back());
        let keys: Vec<String> = came_back.map(before).collect();
        let Some(predicate) = filter::any_of(column::ROW_KEY, &keys) else {
            return Ok(());
        };
        let mut contents = HashMap::new();
        self.for_each_identity(predicate, |row| {
            contents.insert(row_key(&row.id, row.revision, 0), row.content_hash);
        })
        .await?;
        for found in changes.iter_mut().filter(|found| found.came_back()) {
            if contents.get(&before(found)) == Some(&found.content_hash) {
                found.change.kind = ChangeKind::Undelete;
            }
        }
        Ok(())
    }
}

/// Turns rows into the changes after commit `after` up to and including `until`, in the order of the commits. `rows`
/// are all those of passage 0 that a commit in between has opened or closed. An update is one change, though it closes a
/// row and opens another. Pure.
pub(crate) fn changes_of(rows: &[ChangeRow], after: i64, until: i64) -> Vec<FoundChange> {
    let within = |sequence: i64| sequence > after && sequence <= until;
    // Which commits opened a revision of an item: a row closed by the same commit was updated, not deleted.
    let opened: HashSet<(&str, i64)> = rows.iter().map(|row| (row.id.as_str(), row.valid_from)).collect();
    let closed: HashSet<(&str, i64)> = rows
        .iter()
        .filter_map(|row| Some((row.id.as_str(), row.valid_to?)))
        .collect();
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        if row.is_tombstone {
            // It may also be here for its end alone.
            if within(row.valid_from) {
                changes.push(FoundChange::of(row, row.valid_from, ChangeKind::Purge));
            }
            continue;
        }
        if let Some(sequence) = row.valid_to.filter(|sequence| within(*sequence))
            && !opened.contains(&(row.id.as_str(), sequence))
        {
            changes.push(FoundChange::of(row, sequence, ChangeKind::Delete));
        }
        if within(row.valid_from) {
            let kind = if closed.contains(&(row.id.as_str(), row.valid_from)) {
                ChangeKind::Update
            } else {
                ChangeKind::Store
            };
            changes.push(FoundChange::of(row, row.valid_from, kind));
        }
    }
    changes.sort_by(|a, b| (a.change.sequence, &a.change.id).cmp(&(b.change.sequence, &b.change.id)));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, revision: i64, valid_from: i64, valid_to: Option<i64>) -> ChangeRow {
        ChangeRow {
            id: id.to_owned(),
            revision,
            knowledge_type: KnowledgeType::General,
            agent: None,
            updated_at: DateTime::UNIX_EPOCH,
            valid_from,
            valid_to,
            content_hash: String::new(),
            is_tombstone: false,
            place: 0,
        }
    }

    #[test]
    fn rows_tell_stores_updates_and_deletes_apart() {
        let rows = vec![
            row("a", 1, 1, Some(3)),
            row("a", 2, 3, None),
            row("b", 1, 2, Some(4)),
            row("c", 1, 5, None),
        ];
        let told: Vec<(i64, ChangeKind, String)> = changes_of(&rows, 1, 5)
            .into_iter()
            .map(|found| (found.change.sequence, found.change.kind, found.change.id))
            .collect();
        let expected = [
            (2, ChangeKind::Store, "b"),
            (3, ChangeKind::Update, "a"),
            (4, ChangeKind::Delete, "b"),
            (5, ChangeKind::Store, "c"),
        ];
        let expected: Vec<(i64, ChangeKind, String)> = expected
            .iter()
            .map(|(sequence, kind, id)| (*sequence, *kind, (*id).to_owned()))
            .collect();
        assert_eq!(told, expected);
    }
}
