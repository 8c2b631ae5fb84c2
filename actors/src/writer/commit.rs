//! One group of writes becomes one commit.
//!
//! Every item to store is first compared with what is there (and with the items before it in the group): a retry
//! gets the first answer again, a conflict its error, and what is new goes into one batch. Updates, deletions and
//! undeletions close the rows that they end and open those that begin, in the same commit. Closing a row is
//! writing it again with its end; no row is ever changed otherwise.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use arrow_array::{RecordBatch, UInt32Array};
use arrow_select::take::take_record_batch;
use chrono::{DateTime, TimeDelta, Utc};
use lancedb::datafusion::logical_expr::Expr;
use lancedb::expr::col;

use crate::domain::{Deletion, Filter, NewItem, OnDuplicate, ProjectName, UpdateParams, now_ms};
use crate::error::{Executed, KnowledgeError, KnowledgeResult};
use crate::store::WriteTable;
use crate::store::table::rows::{EmbeddedPassage, NewRevision, StoredRevision, revisions};
use crate::store::table::schema::column;
use crate::store::view::filter;
use crate::store::view::{IdentityRow, ProjectView};
use crate::writer::undo::UndoNote;

/// How long a commit waits at most for the times of its deletes: one for each millisecond, and a group has some
/// hundreds of them at most.
const DELETION_TIMES_AHEAD: Duration = Duration::from_secs(1);

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
    /// The content that it has now.
    content_hash: String,
    /// The content that it was first stored with, before any update; none where that is not known any more.
    first_hash: Option<String>,
    outcome: ItemOutcome,
}

impl Holder {
    /// The answer to a store of this item, if it is a repetition: of the store that made the holder, whatever has
    /// become of it since, or else of what it is now. That it is the same content makes it the same passages.
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
struct Taken {
    by_id: HashMap<String, Holder>,
    /// A key is free once its item is deleted. One that was used again then, and whose first item was brought back,
    /// has several holders.
    by_key: HashMap<String, Vec<Holder>>,
    by_content: HashMap<String, Holder>,
    /// The last revision of ids whose items were deleted.
    closed_revisions: HashMap<String, i64>,
}

/// The content that a live item was first stored with. Tables of before schema 1.1 do not say it of items that were
/// updated; then it is that of the oldest revision from which updates alone lead to this one, if that is the first.
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

    fn insert(&mut self, id: String, content_hash: String, key: Option<String>, holder: Holder) {
        self.by_id.insert(id, holder.clone());
        if let Some(key) = key {
            self.by_key.entry(key).or_default().push(holder.clone());
        }
        self.by_content.entry(content_hash).or_insert(holder);
    }

    /// The last revision of an id; 0 if it never was.
    fn last_revision(&self, id: &str) -> i64 {
        self.closed_revisions.get(id).copied().unwrap_or(0)
    }

    /// Identity is the idempotency key, else the id, else the content. `in_use` tells whether the table may hold an
    /// id: one that is made here must not be that of another item, live or deleted.
    fn decide(&self, prepared: &PreparedItem, in_use: impl Fn(&str) -> bool) -> KnowledgeResult<Decision> {
        let item = &prepared.item;
        if let Some(key) = &item.idempotency_key
            && let Some(holders) = self.by_key.get(key)
        {
            // The one that was made last: whoever asks again has asked a moment ago.
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
                WriteOp::Update(update) => live_ids.push(update.change.id.clone()),
                WriteOp::Delete(DeleteTarget::Ids(ids), _) => live_ids.extend(ids.iter().cloned()),
                // Alone in its group, see `lane`.
                WriteOp::Delete(DeleteTarget::Matching(filter), _) => matching = Some(filter::matching(filter, None)),
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
        live_ids.extend(undeleted_ids);
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
            if revision.stored.is_tombstone() {
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
    /// When the deletes of the commit close their rows.
    deletions: DeletionTimes,
    opening: Vec<OwnedRevision>,
}

/// The times at which the deletes of one commit close their rows: one for each, by which its undo token tells its
/// rows from what else the commit closes. They lie in the last milliseconds before the commit, but not before
/// anything that they delete was written.
#[derive(Debug, Default)]
struct DeletionTimes {
    /// Where the next one is looked for.
    next: DateTime<Utc>,
    /// Those that are taken, and the time of the commit itself, at which its updates close theirs.
    taken: HashSet<DateTime<Utc>>,
}

impl DeletionTimes {
    /// Those of a commit at `at` with this many deletes.
    fn new(at: DateTime<Utc>, deletes: usize) -> Self {
        let deletes = i64::try_from(deletes).unwrap_or(i64::MAX);
        Self {
            next: at - TimeDelta::milliseconds(deletes),
            taken: HashSet::from([at]),
        }
    }

    /// The time of the next delete, which deletes nothing that was written after `newest`.
    fn take(&mut self, newest: Option<DateTime<Utc>>) -> DateTime<Utc> {
        let earliest = newest.map_or(self.next, |newest| newest.max(self.next));
        let mut time = earliest;
        while !self.taken.insert(time) {
            time += TimeDelta::milliseconds(1);
        }
        if earliest == self.next {
            self.next = time + TimeDelta::milliseconds(1);
        }
        time
    }

    /// The last of them.
    fn last(&self) -> Option<DateTime<Utc>> {
        self.taken.iter().max().copied()
    }
}

/// A revision that replaces or revives another.
struct OwnedRevision {
    id: String,
    revision: i64,
    item: NewItem,
    content_hash: String,
    /// The content that the item was first stored with, as far as known.
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
        match op {
            WriteOp::Store(_) => Err(KnowledgeError::internal("a store is not a change")),
            WriteOp::Update(update) => self.update(update, concerned, at),
            WriteOp::Delete(target, note) => {
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
                let found: Vec<(&String, &StoredRevision)> = ids
                    .into_iter()
                    .filter_map(|id| Some((id, concerned.live.get(id)?)))
                    .collect();
                // What an import dates into the future was not written then.
                let written = found
                    .iter()
                    .map(|(_, revision)| revision.stored.item.updated_at.min(at));
                let at = self.deletions.take(written.max());
                let deletion = (!found.is_empty()).then(|| Deletion {
                    project: project.clone(),
                    sequence,
                    at,
                });
                if let Some(deletion) = &deletion
                    && !note.note(deletion)
                {
                    let executed = Executed::No;
                    return Err(KnowledgeError::DeadlineExceeded { executed });
                }
                let mut deleted = Vec::new();
                for (id, revision) in found {
                    self.close(revision, at);
                    deleted.push(id.clone());
                }
                Ok(OpOutcome::Deleted { ids: deleted, deletion })
            }
            WriteOp::Undelete(target) => {
                let mut wanted: Vec<&String> = match target {
                    UndeleteTarget::Ids(ids) => ids.iter().collect(),
                    UndeleteTarget::Deletion(deletion) => concerned
                        .closed
                        .iter()
                        .filter(|(_, revision)| revision.stored.valid_to == Some(deletion.sequence))
                        .map(|(id, _)| id)
                        .collect(),
                };
                wanted.sort();
                wanted.dedup();
                let (mut restored, mut present, mut missing) = (Vec::new(), Vec::new(), Vec::new());
                for id in wanted {
                    match (concerned.closed.get(id), concerned.live.get(id)) {
                        (Some(closed), None) => {
                            self.opening
                                .push(OwnedRevision::revived(closed, taken.last_revision(id)));
                            restored.push(id.clone());
                        }
                        // An undo that is asked for again, as after an answer that got lost.
                        (Some(closed), Some(live)) if closed.stored.item.timestamp == live.stored.item.timestamp => {
                            present.push(id.clone());
                        }
                        (None, Some(_)) => present.push(id.clone()),
                        _ => missing.push(id.clone()),
                    }
                }
                Ok(OpOutcome::Undeleted {
                    restored,
                    present,
                    missing,
                })
            }
        }
    }

    fn update(
        &mut self,
        update: &PreparedUpdate,
        concerned: &Concerned,
        at: DateTime<Utc>,
    ) -> KnowledgeResult<OpOutcome> {
        let id = update.change.id.as_str();
        let current = concerned.live.get(id).ok_or_else(|| KnowledgeError::NotFound {
            id: id.to_owned(),
            degraded: None,
        })?;
        let Some(next) = OwnedRevision::patched(current, update) else {
            return Ok(OpOutcome::NotEmbedded);
        };
        if next.is_like(current) {
            return Ok(OpOutcome::Updated {
                id: id.to_owned(),
                updated_at: current.stored.item.updated_at,
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
            id: closed.stored.item.id.clone(),
            revision: last.max(closed.stored.revision) + 1,
            item: stored_as_new(closed),
            content_hash: closed.stored.content_hash.clone(),
            key_hash: closed.key_hash.clone(),
            passages: closed.passages.clone(),
        }
    }

    /// The revision after `current`, with what the update changes. None where the text changes and the passages of
    /// the new one are not there: those of another text would be found by what the item no longer says.
    fn patched(current: &StoredRevision, update: &PreparedUpdate) -> Option<Self> {
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

    fn is_like(&self, current: &StoredRevision) -> bool {
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

/// A group of writes, decided: what each is answered once what it writes is committed.
pub struct PlannedGroup<'g> {
    /// The number of the commit.
    sequence: i64,
    /// Its time.
    at: DateTime<Utc>,
    /// One for each write, in order.
    items: Vec<KnowledgeResult<OpOutcome>>,
    /// New items, with their ids and revisions.
    stores: Vec<(&'g PreparedItem, String, i64)>,
    plan: Plan,
    concerned: Concerned,
}

/// Decides what `group` writes to `table`, which stays as it is. The outer error concerns the whole group. No two
/// writes of the group may concern the same item (see [`super::lane`]).
pub async fn plan_group<'g>(table: &WriteTable, group: &'g [WriteOp]) -> KnowledgeResult<PlannedGroup<'g>> {
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
    let mut new: Vec<(&'g PreparedItem, String, i64)> = Vec::new();
    let deletes = group.iter().filter(|op| matches!(op, WriteOp::Delete(..))).count();
    let mut plan = Plan {
        deletions: DeletionTimes::new(at, deletes),
        ..Plan::default()
    };
    for op in group {
        let prepared = match op {
            WriteOp::Store(prepared) => prepared,
            change => {
                items.push(plan.change(change, &concerned, &taken, sequence, at, table.project()));
                continue;
            }
        };
        let outcome = match taken.decide(prepared, |id| table.may_hold(id)) {
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
                    first_hash: Some(prepared.content_hash.clone()),
                    outcome: outcome.clone(),
                };
                let key = prepared.item.idempotency_key.clone();
                taken.insert(id.clone(), prepared.content_hash.clone(), key, holder);
                new.push((prepared, id, revision));
                Ok(outcome)
            }
        };
        items.push(outcome.map(OpOutcome::Stored));
    }
    Ok(PlannedGroup {
        sequence,
        at,
        items,
        stores: new,
        plan,
        concerned,
    })
}

impl PlannedGroup<'_> {
    /// Whether nothing is to be written: all of it is there already, or concerns nothing that is.
    pub fn is_empty(&self) -> bool {
        self.stores.is_empty() && self.plan.is_empty()
    }

    /// Commits it as one version, if it writes anything. On an error nothing of it is known to be stored.
    pub async fn commit(self, table: &mut WriteTable) -> KnowledgeResult<GroupOutcome> {
        if self.is_empty() {
            return Ok(GroupOutcome {
                items: self.items,
                version: self.sequence - 1,
                committed: false,
            });
        }
        if let Some(last) = self.plan.deletions.last() {
            // Many deletes of what has just been written: none is closed later than it is answered.
            let ahead = (last - now_ms()).to_std().unwrap_or_default();
            tokio::time::sleep(ahead.min(DELETION_TIMES_AHEAD)).await;
        }

        let (sequence, at) = (self.sequence, self.at);
        let stored = self.stores.iter().map(|(prepared, id, revision)| NewRevision {
            id,
            revision: *revision,
            item: &prepared.item,
            content_hash: &prepared.content_hash,
            passages: &prepared.passages,
            updated_at: prepared.item.updated_at.unwrap_or(at),
            valid_from: sequence,
            key_hash: Some(&prepared.content_hash),
            opened_at: opened_at(&prepared.item, *revision, at),
        });
        let changed = self.plan.opening.iter().map(|revision| NewRevision {
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
        super::turn::hold("writer::hold_planned").await;
        let written = match &self.concerned.live_rows {
            Some(rows) if !self.plan.closing.is_empty() => {
                let indices = UInt32Array::from(self.plan.closing);
                let closing = take_record_batch(rows, &indices).map_err(KnowledgeError::internal)?;
                table.change(&closing, &self.plan.closed_at, &revisions).await?
            }
            _ => table.append(&revisions).await?,
        };
        Ok(GroupOutcome {
            items: self.items,
            version: written.sequence,
            committed: true,
        })
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::domain::{Content, Item, KnowledgeType, StoredItem};

    fn prepared(text: &str, id: Option<&str>, key: Option<&str>) -> PreparedItem {
        let item = NewItem {
            content: Content {
                text: text.to_owned(),
                ..Content::default()
            },
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
        match taken.decide(item, |_| false).unwrap() {
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

        let conflict = taken.decide(&prepared("b", None, Some("k")), |_| false).err();
        assert!(
            matches!(conflict, Some(KnowledgeError::InvalidParameter { parameter, .. }) if parameter == "idempotency_key")
        );
        let conflict = taken.decide(&prepared("b", Some("one"), None), |_| false).err();
        assert!(matches!(conflict, Some(KnowledgeError::AlreadyExists { .. })));
    }

    #[test]
    fn a_deleted_id_comes_back_as_the_next_revision() {
        let taken = Taken::from_rows(vec![row("a", "one", None, Some(2))]);
        let Decision::Write { id, revision } = taken.decide(&prepared("b", Some("one"), None), |_| false).unwrap()
        else {
            panic!("a deleted item is not there");
        };
        assert_eq!((id.as_str(), revision), ("one", 4));
        assert_eq!(duplicate_of(&taken, &prepared("a", None, None)), None);
    }

    fn hash(text: &str) -> String {
        prepared(text, None, None).content_hash
    }

    fn refused(taken: &Taken, item: &PreparedItem) -> bool {
        taken.decide(item, |_| false).is_err()
    }

    #[test]
    fn a_retry_after_an_update_gets_its_own_first_answer() {
        let updated = IdentityRow {
            revision: 2,
            valid_from: 5,
            key_hash: Some(hash("a")),
            ..row("b", "one", Some("k"), None)
        };
        // As a table of before schema 1.1 has it: only the first revision tells, while it is kept.
        let first = |valid_to| IdentityRow {
            revision: 1,
            key_hash: Some(hash("a")),
            ..row("a", "one", Some("k"), Some(valid_to))
        };
        let old = IdentityRow {
            key_hash: None,
            ..updated.clone()
        };
        for rows in [vec![updated], vec![first(5), old.clone()]] {
            let taken = Taken::from_rows(rows);
            for text in ["a", "b"] {
                for item in [prepared(text, None, Some("k")), prepared(text, Some("one"), None)] {
                    assert_eq!(duplicate_of(&taken, &item).as_deref(), Some("one"), "{text}");
                }
            }
            assert!(refused(&taken, &prepared("c", None, Some("k"))));
            assert!(refused(&taken, &prepared("c", Some("one"), None)));
        }
        // Deleted and stored again since, with other content: that was another store.
        let taken = Taken::from_rows(vec![first(4), old]);
        assert!(refused(&taken, &prepared("a", None, Some("k"))));
    }

    #[test]
    fn a_key_that_several_items_hold_answers_each_store_with_its_own() {
        let stored = |text: &str, id: &str, milliseconds: i64| IdentityRow {
            key_hash: Some(hash(text)),
            timestamp: now_ms() + TimeDelta::milliseconds(milliseconds),
            ..row(text, id, Some("k"), None)
        };
        // The first was deleted, its key used again, and the first brought back: it has the newer revision.
        let brought_back = IdentityRow {
            valid_from: 9,
            ..stored("a", "first", 0)
        };
        let taken = Taken::from_rows(vec![brought_back.clone(), stored("b", "second", 1)]);
        assert_eq!(
            duplicate_of(&taken, &prepared("a", None, Some("k"))).as_deref(),
            Some("first")
        );
        assert_eq!(
            duplicate_of(&taken, &prepared("b", None, Some("k"))).as_deref(),
            Some("second")
        );
        assert!(refused(&taken, &prepared("c", None, Some("k"))));
        // With the same content twice, it is a retry of the last one.
        let taken = Taken::from_rows(vec![brought_back, stored("a", "second", 1)]);
        assert_eq!(
            duplicate_of(&taken, &prepared("a", None, Some("k"))).as_deref(),
            Some("second")
        );
    }

    #[test]
    fn on_duplicate_store_stores_again() {
        let taken = Taken::from_rows(vec![row("a", "one", None, None)]);
        let mut again = prepared("a", None, None);
        again.item.on_duplicate = OnDuplicate::Store;
        assert_eq!(duplicate_of(&taken, &again), None);
    }

    #[test]
    fn a_generated_id_is_of_no_item_of_the_table() {
        let refused = std::cell::RefCell::new(Vec::new());
        let in_use = |id: &str| {
            let mut refused = refused.borrow_mut();
            let new = refused.len() < 3;
            if new {
                refused.push(id.to_owned());
            }
            new || refused.iter().any(|other| other == id)
        };
        let Decision::Write { id, .. } = Taken::default().decide(&prepared("a", None, None), in_use).unwrap() else {
            panic!("there is nothing it could be a duplicate of");
        };
        assert_eq!(refused.borrow().len(), 3);
        assert!(!refused.borrow().contains(&id));
    }

    /// Item "one", with this text and a passage of it.
    fn stored(text: &str) -> StoredRevision {
        let prepared = prepared(text, Some("one"), None);
        StoredRevision {
            stored: StoredItem {
                item: Item {
                    id: "one".to_owned(),
                    text: text.to_owned(),
                    passages: 1,
                    ..Item::default()
                },
                revision: 1,
                content_hash: prepared.content_hash,
                valid_from: 1,
                valid_to: None,
            },
            idempotency_key: None,
            key_hash: Some(hash(text)),
            passages: vec![passage(text)],
            rows: vec![0],
        }
    }

    fn passage(text: &str) -> EmbeddedPassage {
        EmbeddedPassage {
            start: 0,
            end: text.len(),
            text: text.to_owned(),
            vector: Vec::new().into(),
        }
    }

    #[test]
    fn a_text_is_never_written_with_the_passages_of_another() {
        let update = |text: Option<&str>, embedded: bool| PreparedUpdate {
            change: UpdateParams {
                id: "one".to_owned(),
                text: text.map(str::to_owned),
                knowledge_type: Some(KnowledgeType::Issue),
                ..UpdateParams::default()
            },
            passages: text.filter(|_| embedded).map(|text| vec![passage(text)]),
        };
        let passages = |current: &str, update: PreparedUpdate| {
            let next = OwnedRevision::patched(&stored(current), &update)?;
            let texts: Vec<String> = next.passages.into_iter().map(|passage| passage.text).collect();
            Some((next.item.content.text, texts))
        };
        let both = |text: &str| Some((text.to_owned(), vec![text.to_owned()]));
        // It was "a" when the update was made, so that it came without passages: by now it is "b".
        assert_eq!(passages("b", update(Some("a"), false)), None);
        assert_eq!(passages("b", update(Some("a"), true)), both("a"));
        assert_eq!(passages("a", update(Some("a"), false)), both("a"));
        assert_eq!(passages("a", update(Some("a"), true)), both("a"));
        assert_eq!(passages("b", update(None, false)), both("b"));
    }

    #[test]
    fn deletes_of_one_commit_have_times_of_their_own_and_none_before_what_they_delete() {
        let at = now_ms();
        let ago = |milliseconds| at - TimeDelta::milliseconds(milliseconds);
        let mut times = DeletionTimes::new(at, 3);
        // Of something old, of nothing, of something old: in the milliseconds before the commit.
        assert_eq!(times.take(Some(ago(5_000))), ago(3));
        assert_eq!(times.take(None), ago(2));
        assert_eq!(times.take(Some(ago(4_000))), ago(1));

        let mut times = DeletionTimes::new(at, 40);
        let mut taken = HashSet::new();
        for written in (0..40).map(|number| ago(number % 2)) {
            let time = times.take(Some(written));
            assert!(
                time >= written && time != at,
                "{time} for what was written at {written}"
            );
            assert!(taken.insert(time), "{time} was given twice");
        }
        assert_eq!(times.last(), taken.iter().max().copied());
    }
}
