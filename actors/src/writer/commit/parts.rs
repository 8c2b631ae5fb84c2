//! Writes that may concern any number of items, cut into parts: a delete by filter, and the undoing of a delete.
//!
//! What a commit writes is in memory while it is made, and a row is written as a whole, with its vector. So which items
//! are concerned is decided by their outlines, which are small, and then one part after another is read, committed and
//! forgotten. The parts count as one write all the same: they have one time, and so one state as of any time; a delete
//! has one undo token, which names all of its commits; nothing else is written between them; and readers see them
//! together, since the table is published when all are made.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use chrono::{DateTime, Utc};

use super::group::{GroupOutcome, await_time};
use super::ops::{Deleted, OpOutcome, Undeleted};
use super::plan::DeletionTimes;
use super::revision::OwnedRevision;
use crate::domain::{Deletion, Filter, now_ms};
use crate::error::{Executed, KnowledgeError, KnowledgeResult};
use crate::store::WriteTable;
use crate::store::table::rows::{NewRevision, revisions};
use crate::store::table::schema::column;
use crate::store::view::{Outline, PlacedRows, ProjectView, filter};
use crate::writer::lane::GroupLimits;
use crate::writer::turn;
use crate::writer::undo::UndoNote;

/// How many groups of the largest size a part may be. No write waits for another here, so it may be more than one, and
/// fewer commits are faster: 4,000 rows or 32 MiB with the default limits, counted at four bytes a character. While a
/// part is written, it is in memory up to four times.
const GROUPS_IN_A_PART: usize = 4;

/// How a write in parts has begun, of which a part may be committed: an attempt after it goes on where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The number of its first commit.
    pub sequence: i64,
    /// The time of its commits.
    pub at: DateTime<Utc>,
}

/// A write in parts, decided.
pub struct PlannedParts {
    /// The number of the next commit.
    sequence: i64,
    /// The time of all of them.
    at: DateTime<Utc>,
    /// What is to be written, in the order of the table.
    items: Vec<Outline>,
    /// Which of them go into which commit.
    parts: Vec<Range<usize>>,
    work: Work,
    /// Whether an attempt before has committed a part.
    goes_on: bool,
}

enum Work {
    /// Close the items.
    Delete { deleted: Deleted, note: UndoNote },
    /// Open them again, each as the revision after its last one.
    Undelete {
        undeleted: Undeleted,
        last_revisions: HashMap<String, i64>,
    },
}

impl PlannedParts {
    /// Decides which items a delete by filter closes.
    pub(super) async fn delete(
        table: &WriteTable,
        filter: &Filter,
        note: &UndoNote,
        limits: GroupLimits,
        begun: Option<&Begun>,
    ) -> KnowledgeResult<Self> {
        let view = table.snapshot().await?;
        let mut items = view.outlines_matching(filter).await?;
        let parts = cut(&items, limits);
        let sequence = table.next_sequence();
        let now = now_ms();
        // What an import dates into the future was not written then.
        let newest = items.iter().map(|item| item.updated_at.min(now)).max();
        let mut deletion = Deletion {
            project: table.project().clone(),
            sequence,
            last: last_of(sequence, &parts),
            at: DeletionTimes::new(now, 1).take(newest),
        };
        let mut ids = Vec::new();
        if let Some(begun) = begun {
            // The same items are left as were there when it began: none was written after its time.
            (deletion.sequence, deletion.at) = (begun.sequence, begun.at);
            ids = committed_before(&view, &deletion, sequence).await?;
        }
        let goes_on = !ids.is_empty();
        // From here on the places of an item are enough.
        ids.extend(items.iter_mut().map(|item| std::mem::take(&mut item.id)));
        ids.sort_unstable();
        let at = deletion.at;
        let deletion = (!ids.is_empty()).then_some(deletion);
        if let Some(deletion) = &deletion
            && !note.note(deletion)
        {
            let executed = Executed::No;
            return Err(KnowledgeError::DeadlineExceeded { executed });
        }
        let deleted = Deleted { ids, deletion };
        let note = note.clone();
        Ok(Self {
            sequence,
            at,
            items,
            parts,
            work: Work::Delete { deleted, note },
            goes_on,
        })
    }

    /// Decides which of the items that a deletion closed are opened again.
    pub(super) async fn undelete(
        table: &WriteTable,
        deletion: &Deletion,
        limits: GroupLimits,
        begun: Option<&Begun>,
    ) -> KnowledgeResult<Self> {
        let view = table.snapshot().await?;
        let mut items = view.outlines(filter::closed_by(deletion)).await?;
        // Purged since.
        items.retain(|item| !item.is_tombstone);
        let standing = Standing::of(&view, &items).await?;
        let mut undeleted = Undeleted::default();
        let mut last_revisions = HashMap::new();
        let mut goes_on = false;
        items.retain(|item| {
            let id = item.id.clone();
            let Some(live) = standing.live.get(&id) else {
                let last = standing.last_revisions.get(&id).copied().unwrap_or(0);
                last_revisions.insert(id.clone(), last);
                undeleted.restored.push(id);
                return true;
            };
            if begun.is_some_and(|begun| live.valid_from >= begun.sequence) {
                goes_on = true;
                undeleted.restored.push(id);
            } else if live.timestamp == item.timestamp {
                // An undo that is asked for again, as after an answer that got lost.
                undeleted.present.push(id);
            } else {
                undeleted.missing.push(id);
            }
            false
        });
        for ids in [&mut undeleted.restored, &mut undeleted.present, &mut undeleted.missing] {
            ids.sort_unstable();
        }
        Ok(Self {
            sequence: table.next_sequence(),
            at: begun.map_or_else(now_ms, |begun| begun.at),
            parts: cut(&items, limits),
            items,
            work: Work::Undelete {
                undeleted,
                last_revisions,
            },
            goes_on,
        })
    }

    /// See [`super::Planned::is_empty`].
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The number of the last commit.
    pub(super) fn last(&self) -> i64 {
        last_of(self.sequence, &self.parts)
    }

    /// The time of the commits.
    pub(super) fn at(&self) -> DateTime<Utc> {
        self.at
    }

    /// Commits one part after another. On an error those before may be committed; the error of a delete is answered
    /// with the token of these.
    pub(super) async fn commit(self, table: &mut WriteTable) -> KnowledgeResult<GroupOutcome> {
        if !self.is_empty() {
            await_time(self.at).await;
            turn::hold("writer::hold_planned").await;
        }
        for (number, part) in self.parts.iter().enumerate() {
            if let Err(error) = self.commit_part(table, number, part).await {
                if let Work::Delete { deleted, note } = &self.work
                    && let Some(deletion) = &deleted.deletion
                {
                    // Whether this one was made is not known; those after it were not.
                    let last = self.sequence + number as i64;
                    note.note(&Deletion {
                        last,
                        ..deletion.clone()
                    });
                }
                return Err(error);
            }
        }
        Ok(GroupOutcome {
            version: self.last(),
            committed: self.goes_on || !self.is_empty(),
            items: vec![Ok(match self.work {
                Work::Delete { deleted, .. } => OpOutcome::Deleted(deleted),
                Work::Undelete { undeleted, .. } => OpOutcome::Undeleted(undeleted),
            })],
        })
    }

    async fn commit_part(&self, table: &mut WriteTable, number: usize, part: &Range<usize>) -> KnowledgeResult<()> {
        if number > 0 {
            fail::fail_point!("writer::between_parts", |_| Err(KnowledgeError::internal(
                "failpoint writer::between_parts"
            )));
            turn::hold("writer::hold_between_parts").await;
        }
        // Of the version that the part before has made: places in fragments are as they were, the fragments are not.
        let rows = table.snapshot().await?.rows_of(&self.items[part.clone()]).await?;
        match &self.work {
            Work::Delete { .. } => {
                let closed_at = vec![self.at; rows.rows.num_rows()];
                table.change(&rows, &closed_at, &[]).await?;
            }
            Work::Undelete { last_revisions, .. } => {
                let sequence = table.next_sequence();
                let revived = revived(rows, last_revisions)?;
                let opened: Vec<NewRevision<'_>> = revived
                    .iter()
                    .map(|revision| revision.opened(sequence, self.at))
                    .collect();
                table.append(&opened).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl PlannedParts {
    /// Commits only the first parts, as an attempt that then fails.
    pub(super) async fn commit_first(&self, table: &mut WriteTable, parts: usize) {
        for (number, part) in self.parts[..parts].iter().enumerate() {
            self.commit_part(table, number, part).await.unwrap();
        }
    }
}

/// The revisions in these rows, each as the one after the last of its item.
fn revived(closed: PlacedRows, last_revisions: &HashMap<String, i64>) -> KnowledgeResult<Vec<OwnedRevision>> {
    let closed = revisions(&closed.rows)?.into_values();
    Ok(closed
        .map(|closed| {
            let last = last_revisions.get(&closed.stored.item.id).copied().unwrap_or(0);
            OwnedRevision::revived(&closed, last)
        })
        .collect())
}

/// The number of the last commit, where the first one has this number.
fn last_of(sequence: i64, parts: &[Range<usize>]) -> i64 {
    sequence - 1 + parts.len() as i64
}

/// Which items go into which commit: as many as fit, and at least one, since an item is never divided. Pure.
fn cut(items: &[Outline], limits: GroupLimits) -> Vec<Range<usize>> {
    let max_rows = limits.max_rows.saturating_mul(GROUPS_IN_A_PART);
    let max_bytes = limits.max_bytes.saturating_mul(GROUPS_IN_A_PART);
    let mut parts = Vec::new();
    let (mut begin, mut rows, mut bytes) = (0, 0_usize, 0_usize);
    for (number, item) in items.iter().enumerate() {
        rows += item.addresses.len();
        bytes += item.bytes;
        if number > begin && (rows > max_rows || bytes > max_bytes) {
            parts.push(begin..number);
            (begin, rows, bytes) = (number, item.addresses.len(), item.bytes);
        }
    }
    if begin < items.len() {
        parts.push(begin..items.len());
    }
    parts
}

/// The items that the commits of `deletion` before `sequence` have closed.
async fn committed_before(view: &ProjectView, deletion: &Deletion, sequence: i64) -> KnowledgeResult<Vec<String>> {
    let before = Deletion {
        last: sequence - 1,
        ..deletion.clone()
    };
    if before.last < before.sequence {
        return Ok(Vec::new());
    }
    let mut ids = Vec::new();
    let closed = filter::closed_by(&before).and(filter::first_passage());
    view.for_each_identity(closed, |row| ids.push(row.id)).await?;
    Ok(ids)
}

/// How items stand that are to be opened again.
#[derive(Default)]
struct Standing {
    /// Those that are live.
    live: HashMap<String, Live>,
    /// The last revision of each.
    last_revisions: HashMap<String, i64>,
}

struct Live {
    timestamp: DateTime<Utc>,
    valid_from: i64,
}

/// More ids than this are looked for one by one in all rows, not asked for.
const ASKED_IDS: usize = 1_000;

impl Standing {
    async fn of(view: &ProjectView, items: &[Outline]) -> KnowledgeResult<Self> {
        let wanted: HashSet<&str> = items.iter().map(|item| item.id.as_str()).collect();
        let mut standing = Self::default();
        if wanted.is_empty() {
            return Ok(standing);
        }
        let mut rows = filter::first_passage();
        if wanted.len() <= ASKED_IDS {
            let ids: Vec<&str> = wanted.iter().copied().collect();
            rows = filter::any_of(column::ID, &ids).map_or(rows.clone(), |ids| ids.and(rows));
        }
        view.for_each_identity(rows, |row| {
            if !wanted.contains(row.id.as_str()) {
                return;
            }
            if row.valid_to.is_none() {
                let live = Live {
                    timestamp: row.timestamp,
                    valid_from: row.valid_from,
                };
                standing.live.insert(row.id.clone(), live);
            }
            let last = standing.last_revisions.entry(row.id).or_default();
            *last = row.revision.max(*last);
        })
        .await?;
        Ok(standing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outline(rows: usize, bytes: usize) -> Outline {
        Outline {
            id: String::new(),
            revision: 1,
            is_tombstone: false,
            timestamp: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            bytes,
            addresses: vec![0; rows],
        }
    }

    const LIMITS: GroupLimits = GroupLimits {
        max_rows: 10,
        max_bytes: 100,
    };

    #[test]
    fn parts_are_as_large_as_they_may_be_and_divide_no_item() {
        let of = |items: &[(usize, usize)]| {
            let items: Vec<Outline> = items.iter().map(|(rows, bytes)| outline(*rows, *bytes)).collect();
            let parts = cut(&items, LIMITS).into_iter();
            parts.map(|part| (part.start, part.end)).collect::<Vec<_>>()
        };
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[(1, 1); 40]), [(0, 40)]);
        assert_eq!(of(&[(1, 1); 41]), [(0, 40), (40, 41)]);
        assert_eq!(of(&[(1, 200); 5]), [(0, 2), (2, 4), (4, 5)]);
        // What is too large by itself.
        assert_eq!(
            of(&[(1, 1), (90, 1), (1, 1_000), (1, 1)]),
            [(0, 1), (1, 2), (2, 3), (3, 4)]
        );
    }

    proptest! {
        #[test]
        fn each_item_is_in_one_part_and_no_part_is_too_large(
            items in prop::collection::vec((1usize..60, 1usize..500), 0..60),
        ) {
            let items: Vec<Outline> = items.iter().map(|(rows, bytes)| outline(*rows, *bytes)).collect();
            let parts = cut(&items, LIMITS);
            let all: Vec<usize> = parts.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..items.len()).collect::<Vec<_>>());
            for part in parts {
                let rows: usize = items[part.clone()].iter().map(|item| item.addresses.len()).sum();
                let bytes: usize = items[part.clone()].iter().map(|item| item.bytes).sum();
                prop_assert!(part.len() == 1 || (rows <= 40 && bytes <= 400));
            }
        }
    }
}
