//! Whether a store is new, a repetition or a conflict.

use std::collections::HashMap;

use super::ops::{ItemOutcome, PreparedItem};
use crate::domain::OnDuplicate;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::view::IdentityRow;

/// What an identity stands for: an item of the table, or one before it in the group.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    /// The content that it has now.
    pub(super) content_hash: String,
    /// The content that it was first stored with, before any update; none where that is no longer known.
    pub(super) first_hash: Option<String>,
    pub(super) outcome: ItemOutcome,
}

impl Holder {
    /// The answer to a store of this item, if it is a repetition: of the store that made the holder, however it
    /// was changed since, or else of what it is now. That it is the same content makes it the same passages.
    fn answer(&self, prepared: &PreparedItem) -> Option<ItemOutcome> {
        let same = self.was_stored_with(prepared) || self.content_hash == prepared.content_hash;
        same.then(|| ItemOutcome {
            duplicate: true,
            passages: prepared.passages.len() as u32,
            ..self.outcome.clone()
        })
    }

    fn was_stored_with(&self, prepared: &PreparedItem) -> bool {
        self.first_hash.as_ref() == Some(&prepared.content_hash)
    }
}

/// Identities that are taken, as far as the group is concerned.
#[derive(Debug, Default)]
pub(super) struct Taken {
    by_id: HashMap<String, Holder>,
    /// A key is free once its item is deleted. One that was used again then, and whose first item was brought back,
    /// has several holders.
    by_key: HashMap<String, Vec<Holder>>,
    by_content: HashMap<String, Holder>,
    /// The last revision of ids whose items were deleted.
    closed_revisions: HashMap<String, i64>,
}

/// The content that a live item was first stored with. Tables from before schema 1.1 do not have it for items that
/// were updated; then it is that of the oldest revision from which updates alone lead to this one, if that is the
/// first.
fn first_hash(live: &IdentityRow, closed: &HashMap<(String, i64), IdentityRow>) -> Option<String> {
    let mut row = live;
    while row.key_hash.is_none() {
        let before = closed.get(&(row.id.clone(), row.revision - 1))?;
        if before.valid_to != Some(row.valid_from) {
            return None;
        }
        row = before;
    }
    row.key_hash.clone()
}

/// What is to be done with one item.
pub(super) enum Decision {
    /// It stands already.
    Duplicate(ItemOutcome),
    /// It is new, under this id and revision.
    Write { id: String, revision: i64 },
}

impl Taken {
    pub(super) fn from_rows(mut rows: Vec<IdentityRow>) -> Self {
        let mut taken = Self::default();
        // Oldest first: a duplicate is answered with the first item of that content.
        rows.sort_by(|a, b| (a.valid_from, &a.id).cmp(&(b.valid_from, &b.id)));
        let closed: HashMap<(String, i64), IdentityRow> = rows
            .iter()
            .filter(|row| row.valid_to.is_some())
            .map(|row| ((row.id.clone(), row.revision), row.clone()))
            .collect();
        for row in rows {
            if row.valid_to.is_some() {
                let last = taken.closed_revisions.entry(row.id).or_default();
                *last = row.revision.max(*last);
                continue;
            }
            let holder = Holder {
                content_hash: row.content_hash.clone(),
                first_hash: first_hash(&row, &closed),
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

    pub(super) fn insert(&mut self, id: String, content_hash: String, key: Option<String>, holder: Holder) {
        self.by_id.insert(id, holder.clone());
        if let Some(key) = key {
            self.by_key.entry(key).or_default().push(holder.clone());
        }
        self.by_content.entry(content_hash).or_insert(holder);
    }

    /// The last revision of an id; 0 if it never was.
    pub(super) fn last_revision(&self, id: &str) -> i64 {
        self.closed_revisions.get(id).copied().unwrap_or(0)
    }

    /// Identity is the idempotency key, else the id, else the content. `in_use` tells whether the table may hold an
    /// id: one that is made here must not be that of another item, live or deleted.
    pub(super) fn decide(&self, prepared: &PreparedItem, in_use: impl Fn(&str) -> bool) -> KnowledgeResult<Decision> {
        let item = &prepared.item;
        if let Some(key) = &item.idempotency_key
            && let Some(holders) = self.by_key.get(key)
        {
            // The one that was made last: a retry follows soon after its first try.
            let stored_with = holders.iter().filter(|holder| holder.was_stored_with(prepared));
            let own = stored_with.max_by_key(|holder| holder.outcome.timestamp);
            let answer = own
                .into_iter()
                .chain(holders)
                .find_map(|holder| holder.answer(prepared));
            return answer.map(Decision::Duplicate).ok_or_else(|| {
                KnowledgeError::invalid(
                    "idempotency_key",
                    "idempotency_key was used for other content before; use a new key for new content",
                )
            });
        }
        if let Some(id) = &item.id {
            return match self.by_id.get(id) {
                Some(holder) => match holder.answer(prepared) {
                    Some(outcome) => Ok(Decision::Duplicate(outcome)),
                    None => Err(KnowledgeError::AlreadyExists { id: id.clone() }),
                },
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
            return Ok(Decision::Duplicate(ItemOutcome {
                duplicate: true,
                ..holder.outcome.clone()
            }));
        }
        let mut id = item.generated_id();
        while self.by_id.contains_key(&id) || in_use(&id) {
            id = item.generated_id();
        }
        Ok(Decision::Write { id, revision: 1 })
    }
}
