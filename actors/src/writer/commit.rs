//! One group of writes becomes one commit.
//!
//! Every item to store is first compared with what is there (and with the items before it in the group): a retry
//! gets the first answer again, a conflict its error, and what is new goes into one batch. Updates, deletions and
//! undeletions close the rows that they end and open those that begin, in the same commit. Closing a row is
//! writing it again with its end; no row is ever changed otherwise.

use std::collections::{HashMap, HashSet};

use arrow_array::{RecordBatch, UInt32Array};
use arrow_select::take::take_record_batch;
use chrono::{DateTime, TimeDelta, Utc};
use lancedb::datafusion::logical_expr::Expr;
use lancedb::expr::col;

use crate::domain::{Deletion, ItemFilter, ItemPatch, KnowledgeKind, NewItem, OnDuplicate, ProjectName, now_ms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::rows::{EmbeddedPassage, NewRevision, StoredRevision, revisions};
use crate::store::schema::column;
use crate::store::view::{IdentityRow, ProjectView};
use crate::store::{WriteTable, filter};

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
    /// The item's id, alone: what the update concerns.
    pub ids: [String; 1],
    /// What changes.
    pub patch: ItemPatch,
    /// The passages of the new text, if it changes.
    pub passages: Option<Vec<EmbeddedPassage>>,
}

impl PreparedUpdate {
    /// The item.
    pub fn id(&self) -> &str {
        &self.ids[0]
    }
}

/// Which items a delete concerns.
#[derive(Clone, Debug)]
pub enum DeleteTarget {
    /// Those of these that exist.
    Ids(Vec<String>),
    /// All that match.
    Matching(ItemFilter),
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
    Delete(DeleteTarget),
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
        /// Those that were not, or are no longer kept.
        missing: Vec<String>,
    },
}

/// What became of a group.
#[derive(Debug)]
pub struct GroupOutcome {
    /// One for each write, in order.
    pub items: Vec<KnowledgeResult<OpOutcome>>,
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

    /// The last revision of an id; 0 if it never was.
    fn last_revision(&self, id: &str) -> i64 {
        self.closed_revisions.get(id).copied().unwrap_or(0)
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

/// The live items and deleted revisions that the changes of a group concern, read in one go.
#[derive(Default)]
struct Concerned {
    /// Whole rows of the live revisions.
    live_rows: Option<RecordBatch>,
    /// The live revisions, by id.
    live: HashMap<String, StoredRevision>,
    /// The newest closed revision of items that are to be undeleted, by id.
    closed: HashMap<String, StoredRevision>,
}

impl Concerned {
    async fn read(view: &ProjectView, group: &[WriteOp]) -> KnowledgeResult<Self> {
        let mut concerned = Self::default();
        let mut live_ids: Vec<String> = Vec::new();
        let mut undeleted_ids: Vec<String> = Vec::new();
        let mut matching: Option<Expr> = None;
        for op in group {
            match op {
                WriteOp::Store(_) => {}
                WriteOp::Update(update) => live_ids.push(update.id().to_owned()),
                WriteOp::Delete(DeleteTarget::Ids(ids)) => live_ids.extend(ids.iter().cloned()),
                // Alone in its group, see `lane`.
                WriteOp::Delete(DeleteTarget::Matching(filter)) => matching = Some(filter::matching(filter, None)),
                WriteOp::Undelete(UndeleteTarget::Ids(ids)) => undeleted_ids.extend(ids.iter().cloned()),
                WriteOp::Undelete(UndeleteTarget::Deletion(deletion)) => {
                    let rows = view.rows(filter::closed_by(deletion.sequence, deletion.at)).await?;
                    concerned.add_closed(&rows)?;
                }
            }
        }
        if let Some(ids) = filter::any_of(column::ID, &undeleted_ids) {
            let rows = view.rows(ids.and(col(column::VALID_TO).is_not_null())).await?;
            concerned.add_closed(&rows)?;
        }
        // What is live is not deleted, and its rows cannot be opened again.
        live_ids.extend(concerned.closed.keys().cloned());
        let live = match matching {
            Some(matching) => Some(matching),
            None => filter::any_of(column::ID, &live_ids).map(|ids| ids.and(filter::live(None))),
        };
        if let Some(live) = live {
            let rows = view.rows(live).await?;
            for ((id, _), revision) in revisions(&rows)? {
                concerned.live.insert(id, revision);
            }
            concerned.live_rows = Some(rows);
        }
        Ok(concerned)
    }

    fn add_closed(&mut self, rows: &RecordBatch) -> KnowledgeResult<()> {
        // In the order of the revisions: the last one stays.
        for ((id, _), revision) in revisions(rows)? {
            if revision.item.is_tombstone() {
                self.closed.remove(&id);
            } else {
                self.closed.insert(id, revision);
            }
        }
        Ok(())
    }
}

/// What one commit is to write.
#[derive(Default)]
struct Plan {
    /// Rows of [`Concerned::live_rows`] that it closes.
    closing: Vec<u32>,
    /// When each of these is closed.
    closed_at: Vec<DateTime<Utc>>,
    /// Changes planned so far.
    changes: i64,
    opening: Vec<OwnedRevision>,
}

/// A revision that replaces or revives another.
struct OwnedRevision {
    id: String,
    revision: i64,
    item: NewItem,
    content_hash: String,
    /// With which content its idempotency key was first stored, as far as known.
    key_hash: Option<String>,
    passages: Vec<EmbeddedPassage>,
}

impl Plan {
    /// Applies one change; the answer says what it will have done once the plan is committed.
    fn change(
        &mut self,
        op: &WriteOp,
        concerned: &Concerned,
        taken: &Taken,
        sequence: i64,
        at: DateTime<Utc>,
        project: &ProjectName,
    ) -> KnowledgeResult<OpOutcome> {
        self.changes += 1;
        match op {
            WriteOp::Store(_) => Err(KnowledgeError::internal("a store is not a change")),
            WriteOp::Update(update) => self.update(update, concerned, at),
            WriteOp::Delete(target) => {
                let ids: Vec<&String> = match target {
                    DeleteTarget::Ids(ids) => {
                        let mut seen = HashSet::new();
                        ids.iter().filter(|id| seen.insert(*id)).collect()
                    }
                    DeleteTarget::Matching(_) => {
                        let mut ids: Vec<&String> = concerned.live.keys().collect();
                        ids.sort();
                        ids
                    }
                };
                // A time of its own within the commit, by which its undo token tells it from what else the
                // commit closes: a moment ago, when it came.
                let at = at - TimeDelta::milliseconds(self.changes);
                let mut deleted = Vec::new();
                for id in ids {
                    if let Some(revision) = concerned.live.get(id) {
                        self.close(revision, at);
                        deleted.push(id.clone());
                    }
                }
                let deletion = (!deleted.is_empty()).then(|| Deletion {
                    project: project.clone(),
                    sequence,
                    at,
                });
                Ok(OpOutcome::Deleted { ids: deleted, deletion })
            }
            WriteOp::Undelete(target) => {
                let mut wanted: Vec<&String> = match target {
                    UndeleteTarget::Ids(ids) => ids.iter().collect(),
                    UndeleteTarget::Deletion(deletion) => concerned
                        .closed
                        .iter()
                        .filter(|(_, revision)| revision.item.valid_to == Some(deletion.sequence))
                        .map(|(id, _)| id)
                        .collect(),
                };
                wanted.sort();
                wanted.dedup();
                let (mut restored, mut missing) = (Vec::new(), Vec::new());
                for id in wanted {
                    match concerned.closed.get(id) {
                        Some(revision) if !concerned.live.contains_key(id) => {
                            self.opening
                                .push(OwnedRevision::revived(revision, taken.last_revision(id)));
                            restored.push(id.clone());
                        }
                        _ => missing.push(id.clone()),
                    }
                }
                Ok(OpOutcome::Undeleted { restored, missing })
            }
        }
    }

    fn update(
        &mut self,
        update: &PreparedUpdate,
        concerned: &Concerned,
        at: DateTime<Utc>,
    ) -> KnowledgeResult<OpOutcome> {
        let id = update.id();
        let current = concerned.live.get(id).ok_or_else(|| KnowledgeError::NotFound {
            what: format!("item {id}"),
        })?;
        let next = OwnedRevision::patched(current, update);
        if next.is_like(current) {
            return Ok(OpOutcome::Updated {
                id: id.to_owned(),
                updated_at: current.item.updated_at,
            });
        }
        self.close(current, at);
        self.opening.push(next);
        Ok(OpOutcome::Updated {
            id: id.to_owned(),
            updated_at: at,
        })
    }

    fn close(&mut self, revision: &StoredRevision, at: DateTime<Utc>) {
        self.closing.extend(&revision.rows);
        self.closed_at.resize(self.closing.len(), at);
    }

    fn is_empty(&self) -> bool {
        self.closing.is_empty() && self.opening.is_empty()
    }
}

impl OwnedRevision {
    /// A closed revision once more, as the one after `last`.
    fn revived(closed: &StoredRevision, last: i64) -> Self {
        Self {
            id: closed.item.id.clone(),
            revision: last.max(closed.item.revision) + 1,
            item: stored_as_new(closed),
            content_hash: closed.item.content_hash.clone(),
            key_hash: closed.key_hash.clone(),
            passages: closed.passages.clone(),
        }
    }

    /// The revision after `current`, with what the update changes.
    fn patched(current: &StoredRevision, update: &PreparedUpdate) -> Self {
        let mut item = stored_as_new(current);
        let ItemPatch {
            text,
            kind,
            agent,
            session_id,
            metadata,
        } = update.patch.clone();
        // The passages belong to the text: they change with it.
        let mut passages = None;
        if let Some(text) = text
            && text != item.text
        {
            item.text = text;
            passages = update.passages.clone();
        }
        item.kind = kind.unwrap_or(item.kind);
        item.agent = agent.or(item.agent);
        item.session_id = session_id.or(item.session_id);
        item.metadata = metadata.unwrap_or(item.metadata);
        Self {
            id: current.item.id.clone(),
            revision: current.item.revision + 1,
            content_hash: item.content_hash(),
            key_hash: current.key_hash.clone(),
            item,
            passages: passages.unwrap_or_else(|| current.passages.clone()),
        }
    }

    fn is_like(&self, current: &StoredRevision) -> bool {
        let old = &current.item;
        self.content_hash == old.content_hash
            && self.item.session_id == old.session_id
            && self.item.metadata == old.metadata
    }
}

/// What is stored of an item, as it would be stored again. A kind that a later version of this program stored
/// is general here.
fn stored_as_new(revision: &StoredRevision) -> NewItem {
    let item = revision.item.clone();
    NewItem {
        text: item.text,
        kind: item.kind.parse().unwrap_or(KnowledgeKind::General),
        agent: item.agent,
        session_id: item.session_id,
        metadata: item.metadata,
        id: Some(item.id),
        idempotency_key: revision.idempotency_key.clone(),
        on_duplicate: OnDuplicate::Return,
        timestamp: item.timestamp,
        updated_at: None,
    }
}

/// Since when a stored item counts, for who asks how things were at a time. A new one counts from its creation,
/// which is what its caller is told; its commit, at `at`, comes milliseconds later. What comes from elsewhere has a
/// creation of its own, and was not here before its commit; neither was what takes the place of a deleted item.
fn opened_at(item: &NewItem, revision: i64, at: DateTime<Utc>) -> DateTime<Utc> {
    if item.updated_at.is_some() || revision > 1 {
        at
    } else {
        item.timestamp.min(at)
    }
}

/// Commits `group` to `table` as one version. The outer error concerns the whole group: nothing of it is known
/// to be stored. No two writes of the group may concern the same item (see [`super::lane`]).
pub async fn commit_group(table: &mut WriteTable, group: &[WriteOp]) -> KnowledgeResult<GroupOutcome> {
    let stores = || {
        group.iter().filter_map(|op| match op {
            WriteOp::Store(prepared) => Some(prepared),
            _ => None,
        })
    };
    let mut ids: Vec<&str> = stores().filter_map(|prepared| prepared.item.id.as_deref()).collect();
    let hashes = stores().map(|prepared| prepared.content_hash.as_str()).collect();
    let keys = stores()
        .filter_map(|prepared| prepared.item.idempotency_key.as_deref())
        .collect();
    let only_stores = group.iter().all(|op| matches!(op, WriteOp::Store(_)));
    let concerned = if only_stores {
        Concerned::default()
    } else {
        Concerned::read(&table.snapshot().await?, group).await?
    };
    // What is undeleted gets the revision after the last, which may have been closed by another deletion.
    ids.extend(concerned.closed.keys().map(String::as_str));
    let mut taken = Taken::from_rows(table.find_identities(ids, hashes, keys).await?);

    let sequence = table.next_sequence();
    let at = now_ms();
    let mut items: Vec<KnowledgeResult<OpOutcome>> = Vec::with_capacity(group.len());
    let mut writes: Vec<(&PreparedItem, String, i64)> = Vec::new();
    let mut plan = Plan::default();
    for op in group {
        let prepared = match op {
            WriteOp::Store(prepared) => prepared,
            change => {
                items.push(plan.change(change, &concerned, &taken, sequence, at, table.project()));
                continue;
            }
        };
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
                writes.push((prepared, id, revision));
                Ok(outcome)
            }
        };
        items.push(outcome.map(OpOutcome::Stored));
    }
    if writes.is_empty() && plan.is_empty() {
        return Ok(GroupOutcome {
            items,
            version: sequence - 1,
            committed: false,
        });
    }

    let stored = writes.iter().map(|(prepared, id, revision)| NewRevision {
        id,
        revision: *revision,
        item: &prepared.item,
        content_hash: &prepared.content_hash,
        passages: &prepared.passages,
        updated_at: prepared.item.updated_at.unwrap_or(at),
        valid_from: sequence,
        key_hash: prepared
            .item
            .idempotency_key
            .as_ref()
            .map(|_| prepared.content_hash.as_str()),
        opened_at: opened_at(&prepared.item, *revision, at),
    });
    let changed = plan.opening.iter().map(|revision| NewRevision {
        id: &revision.id,
        revision: revision.revision,
        item: &revision.item,
        content_hash: &revision.content_hash,
        passages: &revision.passages,
        updated_at: at,
        valid_from: sequence,
        key_hash: revision.key_hash.as_deref(),
        opened_at: at,
    });
    let revisions: Vec<NewRevision<'_>> = stored.chain(changed).collect();
    let written = match &concerned.live_rows {
        Some(rows) if !plan.closing.is_empty() => {
            let indices = UInt32Array::from(plan.closing);
            let closing = take_record_batch(rows, &indices).map_err(KnowledgeError::internal)?;
            table.change(&closing, &plan.closed_at, &revisions).await?
        }
        _ => table.append(&revisions).await?,
    };
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
            updated_at: None,
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
            key_hash: None,
            revision: 3,
            timestamp: now_ms(),
            passages: 1,
            valid_from: 1,
            valid_to,
            closed_at: valid_to.map(|_| now_ms()),
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
