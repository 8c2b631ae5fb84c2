//! A group of writes: planned, then committed.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::concerned::Concerned;
use super::identity::{Decision, Holder, Taken};
use super::ops::{ItemOutcome, OpOutcome, PreparedItem, WriteOp};
use super::plan::{DeletionTimes, Plan};
use super::revision::opened_at;
use crate::domain::now_ms;
use crate::error::KnowledgeResult;
use crate::store::WriteTable;
use crate::store::table::rows::NewRevision;
use crate::writer::turn;

/// How long a commit waits at most for the times of its deletes: one for each millisecond, and a group has some
/// hundreds of them at most.
const DELETION_TIMES_AHEAD: Duration = Duration::from_secs(1);

/// Waits until the time of a delete is past: none is closed later than it is answered.
pub(super) async fn await_time(last: DateTime<Utc>) {
    let ahead = (last - now_ms()).to_std().unwrap_or_default();
    tokio::time::sleep(ahead.min(DELETION_TIMES_AHEAD)).await;
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
/// writes of the group may concern the same item (see [`crate::writer::lane`]).
pub(super) async fn plan_group<'g>(table: &WriteTable, group: &'g [WriteOp]) -> KnowledgeResult<PlannedGroup<'g>> {
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
            // Many deletes of what has just been written.
            await_time(last).await;
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
        let changed = self.plan.opening.iter().map(|revision| revision.opened(sequence, at));
        let revisions: Vec<NewRevision<'_>> = stored.chain(changed).collect();
        turn::hold("writer::hold_planned").await;
        let written = match &self.concerned.live_rows {
            Some(rows) if !self.plan.closing.is_empty() => {
                let closing = rows.take(self.plan.closing)?;
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
