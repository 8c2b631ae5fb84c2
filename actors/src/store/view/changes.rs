//! What has changed in a project since a commit: the source of the change feed.
//!
//! History lives in rows, so the feed needs no log of its own: a row says with which commit it came
//! (`valid_from`) and with which it was closed (`valid_to`). A replay after a restart and the live feed are the
//! same query.

use std::collections::HashMap;

use futures::TryStreamExt;
use lancedb::datafusion::logical_expr::lit;
use lancedb::expr::col;

use crate::domain::StoredItem;
use crate::error::KnowledgeResult;
use crate::store::error::read_error;
use crate::store::table::columns::item_columns;
use crate::store::table::rows::{RowReader, row_key};
use crate::store::table::schema::column;
use crate::store::view::ProjectView;
use crate::store::view::filter;

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

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The commit.
    pub sequence: i64,
    /// What happened.
    pub kind: ChangeKind,
    /// The item as it became, or as it was before it was deleted.
    pub stored: StoredItem,
}

impl ProjectView {
    /// The changes after commit `after` up to and including `until`, in the order of the commits. An update is
    /// one change, though it closes a row and opens another.
    pub async fn changes(&self, after: i64, until: i64) -> KnowledgeResult<Vec<Change>> {
        self.check_shape()?;
        let within = |name: &str| col(name).gt(lit(after)).and(col(name).lt_eq(lit(until)));
        let predicate = filter::first_passage().and(within(column::VALID_FROM).or(within(column::VALID_TO)));
        let scanner = self.scan(&item_columns(), predicate)?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut rows = Vec::new();
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            for row in 0..batch.num_rows() {
                rows.push(RowReader(&batch).item(row)?);
            }
        }
        let mut changes = changes_of(rows, after, until);
        self.tell_undeletes(&mut changes).await?;
        Ok(changes)
    }

    /// A revision after the first that replaces no other is an item that came back: as it was, or stored again
    /// under its old id. The revision before tells which.
    async fn tell_undeletes(&self, changes: &mut [Change]) -> KnowledgeResult<()> {
        let came_back = |change: &Change| change.kind == ChangeKind::Store && change.stored.revision > 1;
        let before = |change: &Change| row_key(&change.stored.item.id, change.stored.revision - 1, 0);
        let keys: Vec<String> = changes.iter().filter(|change| came_back(change)).map(before).collect();
        let Some(predicate) = filter::any_of(column::ROW_KEY, &keys) else {
            return Ok(());
        };
        let mut contents = HashMap::new();
        self.for_each_identity(predicate, |row| {
            contents.insert(row_key(&row.id, row.revision, 0), row.content_hash);
        })
        .await?;
        for change in changes.iter_mut().filter(|change| came_back(change)) {
            if contents.get(&before(change)) == Some(&change.stored.content_hash) {
                change.kind = ChangeKind::Undelete;
            }
        }
        Ok(())
    }
}

/// Turns rows into changes. Pure.
fn changes_of(rows: Vec<StoredItem>, after: i64, until: i64) -> Vec<Change> {
    let within = |sequence: i64| sequence > after && sequence <= until;
    // Which commits opened a revision of an item: a row closed by the same commit was updated, not deleted.
    let mut opened: HashMap<(String, i64), ()> = HashMap::new();
    let mut closed: HashMap<(String, i64), ()> = HashMap::new();
    for row in &rows {
        opened.insert((row.item.id.clone(), row.valid_from), ());
        if let Some(valid_to) = row.valid_to {
            closed.insert((row.item.id.clone(), valid_to), ());
        }
    }
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        if row.is_tombstone() {
            // It may also be here for its end alone.
            if within(row.valid_from) {
                changes.push(Change {
                    sequence: row.valid_from,
                    kind: ChangeKind::Purge,
                    stored: row,
                });
            }
            continue;
        }
        if let Some(sequence) = row.valid_to.filter(|sequence| within(*sequence))
            && !opened.contains_key(&(row.item.id.clone(), sequence))
        {
            changes.push(Change {
                sequence,
                kind: ChangeKind::Delete,
                stored: row.clone(),
            });
        }
        if within(row.valid_from) {
            let replaced = closed.contains_key(&(row.item.id.clone(), row.valid_from));
            changes.push(Change {
                sequence: row.valid_from,
                kind: if replaced {
                    ChangeKind::Update
                } else {
                    ChangeKind::Store
                },
                stored: row,
            });
        }
    }
    changes.sort_by(|a, b| (a.sequence, &a.stored.item.id).cmp(&(b.sequence, &b.stored.item.id)));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Item;

    fn row(id: &str, revision: i64, valid_from: i64, valid_to: Option<i64>) -> StoredItem {
        StoredItem {
            item: Item {
                id: id.to_owned(),
                passages: 1,
                ..Item::default()
            },
            revision,
            content_hash: String::new(),
            valid_from,
            valid_to,
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
        let told: Vec<(i64, ChangeKind, String)> = changes_of(rows, 1, 5)
            .into_iter()
            .map(|change| (change.sequence, change.kind, change.stored.item.id))
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
