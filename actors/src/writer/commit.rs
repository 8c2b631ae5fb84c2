//! One group of items becomes one commit.
//!
//! Every item is first compared with what is there (and with the items before it in the group): a retry gets
//! the first answer again, a conflict its error, and what is new goes into one batch.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::domain::{NewItem, OnDuplicate, now_ms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::WriteTable;
use crate::store::rows::{EmbeddedPassage, NewRevision};
use crate::store::view::IdentityRow;

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

/// What became of a group.
#[derive(Debug)]
pub struct GroupOutcome {
    /// One for each item, in order.
    pub items: Vec<KnowledgeResult<ItemOutcome>>,
    /// The project's newest commit after the group.
    pub version: i64,
    /// Whether anything was written.
    pub committed: bool,
}

/// What an identity stands for: an item of the table, or one before it in the group.
#[derive(Clone, Debug)]
struct Holder {
    content_hash: String,
    outcome: ItemOutcome,
}

/// Identities that are taken, as far as the group is concerned.
#[derive(Debug, Default)]
struct Taken {
    by_id: HashMap<String, Holder>,
    by_key: HashMap<String, Holder>,
    by_content: HashMap<String, Holder>,
    /// The last revision of ids whose items were deleted.
    closed_revisions: HashMap<String, i64>,
}

/// What is to be done with one item.
enum Decision {
    /// It stands already.
    Duplicate(ItemOutcome),
    /// It is new, under this id and revision.
    Write { id: String, revision: i64 },
}

impl Taken {
    fn from_rows(mut rows: Vec<IdentityRow>) -> Self {
        let mut taken = Self::default();
        // Oldest first: the first item with a content is the one that a duplicate is told of.
        rows.sort_by(|a, b| (a.valid_from, &a.id).cmp(&(b.valid_from, &b.id)));
        for row in rows {
            if row.valid_to.is_some() {
                let last = taken.closed_revisions.entry(row.id).or_default();
                *last = row.revision.max(*last);
                continue;
            }
            let holder = Holder {
                content_hash: row.content_hash.clone(),
                outcome: ItemOutcome {
                    id: row.id.clone(),
                    duplicate: true,
                    timestamp: row.timestamp,
                    passages: row.passages,
                },
            };
            taken.insert(row.id, row.content_hash, row.idempotency_key, holder);
        }
        taken
    }

    fn insert(&mut self, id: String, content_hash: String, key: Option<String>, holder: Holder) {
        self.by_id.insert(id, holder.clone());
        if let Some(key) = key {
            self.by_key.insert(key, holder.clone());
        }
        self.by_content.entry(content_hash).or_insert(holder);
    }

    /// Identity is the idempotency key, else the id, else the content.
    fn decide(&self, prepared: &PreparedItem) -> KnowledgeResult<Decision> {
        let item = &prepared.item;
        if let Some(key) = &item.idempotency_key
            && let Some(holder) = self.by_key.get(key)
        {
            return if holder.content_hash == prepared.content_hash {
                Ok(Decision::Duplicate(holder.outcome.clone()))
            } else {
                Err(KnowledgeError::invalid(
                    "idempotency_key",
                    "idempotency_key was used for other content before; use a new key for new content",
                ))
            };
        }
        if let Some(id) = &item.id {
            return match self.by_id.get(id) {
                Some(holder) if holder.content_hash == prepared.content_hash => {
                    Ok(Decision::Duplicate(holder.outcome.clone()))
                }
                Some(_) => Err(KnowledgeError::AlreadyExists { id: id.clone() }),
                None => Ok(Decision::Write {
                    id: id.clone(),
                    revision: self.closed_revisions.get(id).map_or(1, |last| last + 1),
                }),
            };
        }
        let same_content = self.by_content.get(&prepared.content_hash);
        if let Some(holder) = same_content
            && item.idempotency_key.is_none()
            && item.on_duplicate == OnDuplicate::Return
        {
            return Ok(Decision::Duplicate(holder.outcome.clone()));
        }
        let mut id = item.generated_id();
        while self.by_id.contains_key(&id) {
            id = item.generated_id();
        }
        Ok(Decision::Write { id, revision: 1 })
    }
}

/// Commits `group` to `table` as one version. The outer error concerns the whole group: nothing of it is known
/// to be stored.
pub async fn commit_group(table: &mut WriteTable, group: &[PreparedItem]) -> KnowledgeResult<GroupOutcome> {
    let ids = group
        .iter()
        .filter_map(|prepared| prepared.item.id.as_deref())
        .collect();
    let hashes = group.iter().map(|prepared| prepared.content_hash.as_str()).collect();
    let keys = group
        .iter()
        .filter_map(|prepared| prepared.item.idempotency_key.as_deref())
        .collect();
    let mut taken = Taken::from_rows(table.find_identities(ids, hashes, keys).await?);

    let sequence = table.next_sequence();
    let updated_at = now_ms();
    let mut items: Vec<KnowledgeResult<ItemOutcome>> = Vec::with_capacity(group.len());
    let mut writes: Vec<(usize, String, i64)> = Vec::new();
    for (index, prepared) in group.iter().enumerate() {
        let outcome = match taken.decide(prepared) {
            Err(error) => Err(error),
            Ok(Decision::Duplicate(outcome)) => Ok(outcome),
            Ok(Decision::Write { id, revision }) => {
                let outcome = ItemOutcome {
                    id: id.clone(),
                    duplicate: false,
                    timestamp: prepared.item.timestamp,
                    passages: prepared.passages.len() as u32,
                };
                let holder = Holder {
                    content_hash: prepared.content_hash.clone(),
                    outcome: ItemOutcome {
                        duplicate: true,
                        ..outcome.clone()
                    },
                };
                let key = prepared.item.idempotency_key.clone();
                taken.insert(id.clone(), prepared.content_hash.clone(), key, holder);
                writes.push((index, id, revision));
                Ok(outcome)
            }
        };
        items.push(outcome);
    }
    if writes.is_empty() {
        return Ok(GroupOutcome {
            items,
            version: sequence - 1,
            committed: false,
        });
    }

    let revisions: Vec<NewRevision<'_>> = writes
        .iter()
        .map(|(index, id, revision)| NewRevision {
            id,
            revision: *revision,
            item: &group[*index].item,
            content_hash: &group[*index].content_hash,
            passages: &group[*index].passages,
            updated_at,
            valid_from: sequence,
        })
        .collect();
    let written = table.append(&revisions).await?;
    Ok(GroupOutcome {
        items,
        version: written.sequence,
        committed: true,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::domain::KnowledgeKind;

    fn prepared(text: &str, id: Option<&str>, key: Option<&str>) -> PreparedItem {
        let item = NewItem {
            text: text.to_owned(),
            kind: KnowledgeKind::General,
            agent: None,
            session_id: None,
            metadata: Map::new(),
            id: id.map(str::to_owned),
            idempotency_key: key.map(str::to_owned),
            on_duplicate: OnDuplicate::Return,
            timestamp: now_ms(),
        };
        PreparedItem {
            content_hash: item.content_hash(),
            item,
            passages: Vec::new(),
        }
    }

    fn row(text: &str, id: &str, key: Option<&str>, valid_to: Option<i64>) -> IdentityRow {
        IdentityRow {
            id: id.to_owned(),
            content_hash: prepared(text, None, None).content_hash,
            idempotency_key: key.map(str::to_owned),
            revision: 3,
            timestamp: now_ms(),
            passages: 1,
            valid_from: 1,
            valid_to,
        }
    }

    fn duplicate_of(taken: &Taken, item: &PreparedItem) -> Option<String> {
        match taken.decide(item).unwrap() {
            Decision::Duplicate(outcome) => Some(outcome.id),
            Decision::Write { .. } => None,
        }
    }

    #[test]
    fn identity_is_key_then_id_then_content() {
        let taken = Taken::from_rows(vec![row("a", "one", Some("k"), None)]);
        assert_eq!(
            duplicate_of(&taken, &prepared("a", None, Some("k"))).as_deref(),
            Some("one")
        );
        assert_eq!(
            duplicate_of(&taken, &prepared("a", Some("one"), None)).as_deref(),
            Some("one")
        );
        assert_eq!(duplicate_of(&taken, &prepared("a", None, None)).as_deref(), Some("one"));
        // A new key or id is a new item, whatever its content.
        assert_eq!(duplicate_of(&taken, &prepared("a", None, Some("other"))), None);
        assert_eq!(duplicate_of(&taken, &prepared("a", Some("two"), None)), None);

        let conflict = taken.decide(&prepared("b", None, Some("k"))).err();
        assert!(
            matches!(conflict, Some(KnowledgeError::InvalidParameter { parameter, .. }) if parameter == "idempotency_key")
        );
        let conflict = taken.decide(&prepared("b", Some("one"), None)).err();
        assert!(matches!(conflict, Some(KnowledgeError::AlreadyExists { .. })));
    }

    #[test]
    fn a_deleted_id_comes_back_as_the_next_revision() {
        let taken = Taken::from_rows(vec![row("a", "one", None, Some(2))]);
        let Decision::Write { id, revision } = taken.decide(&prepared("b", Some("one"), None)).unwrap() else {
            panic!("a deleted item is not there");
        };
        assert_eq!((id.as_str(), revision), ("one", 4));
        assert_eq!(duplicate_of(&taken, &prepared("a", None, None)), None);
    }

    #[test]
    fn on_duplicate_store_stores_again() {
        let taken = Taken::from_rows(vec![row("a", "one", None, None)]);
        let mut again = prepared("a", None, None);
        again.item.on_duplicate = OnDuplicate::Store;
        assert_eq!(duplicate_of(&taken, &again), None);
    }
}
