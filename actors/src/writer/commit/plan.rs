//! What a commit closes and opens.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::concerned::{Concerned, not_alone};
use super::identity::Taken;
use super::ops::{DeleteTarget, Deleted, OpOutcome, PreparedUpdate, UndeleteTarget, Undeleted, Updated, WriteOp};
use super::revision::OwnedRevision;
use crate::domain::{Deletion, ProjectName};
use crate::error::{Executed, KnowledgeError, KnowledgeResult};
use crate::store::table::rows::StoredRevision;

/// What one commit is to write.
#[derive(Default)]
pub(super) struct Plan {
    /// Rows of [`Concerned::live_rows`] that it closes.
    pub(super) closing: Vec<u32>,
    /// When each of these is closed.
    pub(super) closed_at: Vec<DateTime<Utc>>,
    /// When the deletes of the commit close their rows.
    pub(super) deletions: DeletionTimes,
    pub(super) opening: Vec<OwnedRevision>,
}

/// The times at which the deletes of one commit close their rows: one for each, by which its undo token tells its
/// rows from what else the commit closes. They lie in the last milliseconds before the commit, but not before
/// anything that they delete was written.
#[derive(Debug, Default)]
pub(super) struct DeletionTimes {
    /// Where the next one is looked for.
    next: DateTime<Utc>,
    /// Those that are taken, and the time of the commit itself, at which its updates close theirs.
    taken: HashSet<DateTime<Utc>>,
}

impl DeletionTimes {
    /// Those of a commit at `at` with this many deletes.
    pub(super) fn new(at: DateTime<Utc>, deletes: usize) -> Self {
        let deletes = i64::try_from(deletes).unwrap_or(i64::MAX);
        Self {
            next: at - TimeDelta::milliseconds(deletes),
            taken: HashSet::from([at]),
        }
    }

    /// The time of the next delete, which deletes nothing that was written after `newest`.
    pub(super) fn take(&mut self, newest: Option<DateTime<Utc>>) -> DateTime<Utc> {
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
    pub(super) fn last(&self) -> Option<DateTime<Utc>> {
        self.taken.iter().max().copied()
    }
}

impl Plan {
    /// Applies one change; the answer says what it will have done once the plan is committed.
    pub(super) fn change(
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
                let DeleteTarget::Ids(ids) = target else {
                    return Err(not_alone());
                };
                let mut seen = HashSet::new();
                let found: Vec<(&String, &StoredRevision)> = ids
                    .iter()
                    .filter(|id| seen.insert(*id))
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
                    last: sequence,
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
                Ok(OpOutcome::Deleted(Deleted { ids: deleted, deletion }))
            }
            WriteOp::Undelete(target) => {
                let UndeleteTarget::Ids(ids) = target else {
                    return Err(not_alone());
                };
                let mut wanted: Vec<&String> = ids.iter().collect();
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
                Ok(OpOutcome::Undeleted(Undeleted {
                    restored,
                    present,
                    missing,
                }))
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
            return Ok(OpOutcome::Updated(Updated {
                id: id.to_owned(),
                updated_at: current.stored.item.updated_at,
            }));
        }
        self.close(current, at);
        self.opening.push(next);
        Ok(OpOutcome::Updated(Updated {
            id: id.to_owned(),
            updated_at: at,
        }))
    }

    fn close(&mut self, revision: &StoredRevision, at: DateTime<Utc>) {
        self.closing.extend(&revision.rows);
        self.closed_at.resize(self.closing.len(), at);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.closing.is_empty() && self.opening.is_empty()
    }
}
