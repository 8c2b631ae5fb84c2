//! The last commits of a project in memory: what each has changed, as a feed tells it, without the texts.
//!
//! A feed that is up with its project reads what comes here, and the table not at all. It is made from the rows that a
//! commit has written and the writer still has at hand, when the next view is made. Whatever does not follow from them
//! without a gap (another history, a purge, a repair, a commit that a process before has made) makes it begin again
//! behind that: who is further back reads the table, which always knows. So it can be forgotten at any time.
//!
//! Agents are overwritten when they are dropped, and a purge drops everything: what is left of an item is its id, as in
//! the table.

use std::collections::VecDeque;
use std::sync::Arc;

use ccod_index::WipedText;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;

use crate::domain::KnowledgeType;
use crate::error::KnowledgeResult;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;
use crate::store::table::table_damage::TableDamage;
use crate::store::table::written::WrittenFragment;
use crate::store::view::changes::{Change, ChangeKind, ChangeRow, FoundChange, changes_of};

/// Changes of one project that are kept. A feed is behind by a commit or two mostly; one that was away for longer reads
/// the table once.
const KEPT: usize = 2_048;
/// Bytes that they may take.
const KEPT_BYTES: usize = 256 << 10;
/// Changes that are handed out at once, but for a commit that has more.
const AT_ONCE: usize = 256;

/// A change as it is kept.
struct Kept {
    sequence: i64,
    kind: ChangeKind,
    id: Box<str>,
    revision: i64,
    knowledge_type: KnowledgeType,
    agent: Option<WipedText>,
    updated_at: DateTime<Utc>,
}

/// The last commits of a project. Kept by the project and by its table; cloning shares it.
#[derive(Clone, Default)]
pub(crate) struct RecentChanges(Arc<Mutex<Ring>>);

#[derive(Default)]
struct Ring {
    /// The history that the commits are of.
    epoch: i64,
    /// All commits after this one and up to `newest` are here; none as long as nothing is known.
    range: Option<(i64, i64)>,
    changes: VecDeque<Kept>,
    bytes: usize,
    /// What of the table could not be read.
    damage: Arc<TableDamage>,
}

impl std::fmt::Debug for RecentChanges {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ring = self.0.lock();
        formatter
            .debug_struct("RecentChanges")
            .field("range", &ring.range)
            .field("changes", &ring.changes.len())
            .finish()
    }
}

/// Changes that follow a commit.
#[derive(Clone, Debug, PartialEq)]
pub struct FollowingChanges {
    /// In the order of the commits, without their texts.
    pub changes: Vec<Change>,
    /// The commit up to which this is all.
    pub until: i64,
}

/// What is known in memory of what follows a commit.
#[derive(Clone, Debug, PartialEq)]
pub enum Recent {
    /// Nothing does.
    Nothing,
    /// This does.
    Changes(FollowingChanges),
    /// The table has to be asked.
    Elsewhere,
}

impl RecentChanges {
    /// What follows is of this history ([`crate::store::Lineage::epoch`]).
    pub(crate) fn begin_history(&self, epoch: i64) {
        let mut ring = self.0.lock();
        if ring.epoch != epoch {
            ring.forget();
            ring.epoch = epoch;
        }
    }

    /// Takes in what the commits up to `sequence` have changed, as far as it follows from what they have `written`.
    /// `damage` is what of the table cannot be read.
    pub(crate) fn follow(&self, sequence: i64, damage: &Arc<TableDamage>, written: &[WrittenFragment]) {
        let mut ring = self.0.lock();
        if ring.damage != *damage {
            ring.damage = Arc::clone(damage);
            ring.restart(sequence);
            return;
        }
        match ring.range {
            Some((_, newest)) if newest == sequence => {}
            Some((_, newest)) if newest < sequence => match commits(written, newest, sequence) {
                Ok(Some(commits)) => ring.add(commits, sequence),
                // What cannot be read here is read from the table.
                Ok(None) | Err(_) => ring.restart(sequence),
            },
            _ => ring.restart(sequence),
        }
    }

    /// What follows commit `after` of the history `epoch`, up to commit `until`, or the first of it where it is much.
    /// None where that is not known here.
    pub(crate) fn after(&self, after: i64, until: i64, epoch: i64) -> Option<FollowingChanges> {
        let ring = self.0.lock();
        let (floor, newest) = ring.range?;
        if ring.epoch != epoch || after < floor || until > newest {
            return None;
        }
        let first = ring.changes.partition_point(|kept| kept.sequence <= after);
        let mut last = ring.changes.partition_point(|kept| kept.sequence <= until);
        let mut until = until;
        if last > first + AT_ONCE {
            // Whole commits: what follows resumes behind them.
            until = ring.changes[first + AT_ONCE].sequence - 1;
            if until < ring.changes[first].sequence {
                until = ring.changes[first].sequence;
            }
            last = ring.changes.partition_point(|kept| kept.sequence <= until);
        }
        let changes = ring.changes.range(first..last).map(Kept::told).collect();
        Some(FollowingChanges { changes, until })
    }

    /// Forgets everything.
    pub(crate) fn forget(&self) {
        self.0.lock().forget();
    }
}

impl Ring {
    fn forget(&mut self) {
        self.changes = VecDeque::new();
        self.bytes = 0;
        self.range = None;
    }

    /// Knows from now on what comes after this commit.
    fn restart(&mut self, sequence: i64) {
        self.forget();
        self.range = Some((sequence, sequence));
    }

    fn add(&mut self, commits: Vec<FoundChange>, newest: i64) {
        let Some((mut floor, _)) = self.range else { return };
        for found in commits {
            let kept = Kept::of(found.change);
            self.bytes += kept.bytes();
            self.changes.push_back(kept);
        }
        while self.changes.len() > KEPT || self.bytes > KEPT_BYTES {
            // A commit of which a part is gone is not known any more.
            let Some(oldest) = self.changes.front().map(|kept| kept.sequence) else {
                break;
            };
            while let Some(kept) = self.changes.pop_front_if(|kept| kept.sequence == oldest) {
                self.bytes -= kept.bytes();
            }
            floor = oldest;
        }
        self.range = Some((floor, newest));
    }
}

impl Kept {
    fn of(change: Change) -> Self {
        Self {
            sequence: change.sequence,
            kind: change.kind,
            id: change.id.into(),
            revision: change.revision,
            knowledge_type: change.knowledge_type,
            agent: change.agent.map(WipedText::from),
            updated_at: change.updated_at,
        }
    }

    fn told(&self) -> Change {
        Change {
            sequence: self.sequence,
            kind: self.kind,
            id: self.id.to_string(),
            revision: self.revision,
            knowledge_type: self.knowledge_type,
            agent: self.agent.as_deref().map(str::to_owned),
            updated_at: self.updated_at,
            text: None,
        }
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.id.len() + self.agent.as_ref().map_or(0, |agent| agent.len())
    }
}

/// What the commits after `newest` up to `sequence` have changed, as their rows tell; none unless each of them is among
/// what was written, or where rows that are not at hand say what has happened.
fn commits(written: &[WrittenFragment], newest: i64, sequence: i64) -> KnowledgeResult<Option<Vec<FoundChange>>> {
    let mut found = Vec::new();
    let mut next = newest + 1;
    for fragment in written {
        let rows = RowReader(&fragment.rows);
        let mut changed = Vec::new();
        let mut of = None;
        for row in 0..fragment.rows.num_rows() {
            // A row is written by the commit that opens it, or again by the one that closes it.
            let valid_from = rows.int(column::VALID_FROM, row)?.unwrap_or(0);
            let commit = rows.int(column::VALID_TO, row)?.unwrap_or(valid_from);
            if *of.get_or_insert(commit) != commit {
                return Ok(None);
            }
            if rows.small_int(column::PASSAGE, row)? == 0 {
                changed.push(ChangeRow::read(&rows, row, 0)?);
            }
        }
        match of {
            None => continue,
            Some(commit) if commit <= newest => continue, // It is here already.
            Some(commit) if commit != next => return Ok(None),
            Some(commit) => {
                let changes = changes_of(&changed, commit - 1, commit);
                if changes.iter().any(FoundChange::came_back) {
                    return Ok(None);
                }
                found.extend(changes);
                next += 1;
            }
        }
    }
    Ok((next == sequence + 1).then_some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(sequence: i64, id: &str) -> FoundChange {
        FoundChange {
            change: Change {
                sequence,
                kind: ChangeKind::Store,
                id: id.to_owned(),
                revision: 1,
                knowledge_type: KnowledgeType::General,
                agent: Some("agent".to_owned()),
                updated_at: DateTime::UNIX_EPOCH,
                text: None,
            },
            content_hash: String::new(),
            place: 0,
        }
    }

    fn ring(floor: i64) -> RecentChanges {
        let recent = RecentChanges::default();
        recent.0.lock().restart(floor);
        recent
    }

    fn add(recent: &RecentChanges, sequence: i64, changes: usize) {
        let changes = (0..changes).map(|number| change(sequence, &number.to_string()));
        recent.0.lock().add(changes.collect(), sequence);
    }

    fn sequences(found: &FollowingChanges) -> Vec<i64> {
        found.changes.iter().map(|change| change.sequence).collect()
    }

    #[test]
    fn what_follows_a_commit_is_told_whole_or_not_at_all() {
        let recent = ring(4);
        for sequence in 5..8 {
            add(&recent, sequence, 2);
        }
        let found = recent.after(5, 7, 0).unwrap();
        assert_eq!((sequences(&found), found.until), (vec![6, 6, 7, 7], 7));
        // What is not published yet is not told.
        assert_eq!(sequences(&recent.after(4, 5, 0).unwrap()), [5, 5]);
        assert_eq!(recent.after(3, 7, 0), None, "commit 4 is not known here");
        assert_eq!(recent.after(5, 8, 0), None, "commit 8 is not known here");
        assert_eq!(recent.after(5, 7, 1), None, "of another history");
        recent.begin_history(1);
        assert_eq!(recent.after(5, 7, 1), None, "nothing is known of it yet");
    }

    #[test]
    fn only_the_last_commits_are_kept_and_each_whole() {
        let recent = ring(0);
        for sequence in 1..=3 {
            add(&recent, sequence, KEPT / 2 - 1);
        }
        assert_eq!(recent.after(0, 3, 0), None);
        let found = recent.after(1, 3, 0).unwrap();
        // More than is handed out at once, and one commit.
        assert_eq!((found.changes.len(), found.until), (KEPT / 2 - 1, 2));
        // One that is too large is passed over.
        add(&recent, 4, KEPT + 1);
        assert_eq!(recent.after(3, 4, 0), None);
        assert!(recent.after(4, 4, 0).unwrap().changes.is_empty());
        add(&recent, 5, 1);
        assert_eq!(sequences(&recent.after(4, 5, 0).unwrap()), [5]);
        assert_eq!(recent.0.lock().changes.len(), 1);
    }

    #[test]
    fn much_is_handed_out_in_parts_of_whole_commits() {
        let recent = ring(0);
        for sequence in 1..=6 {
            add(&recent, sequence, AT_ONCE / 2 - 1);
        }
        let (mut after, mut told) = (0, Vec::new());
        while after < 6 {
            let found = recent.after(after, 6, 0).unwrap();
            assert!(found.until > after && found.changes.len() <= AT_ONCE);
            after = found.until;
            told.extend(sequences(&found));
        }
        let all: Vec<i64> = (1..=6).flat_map(|sequence| vec![sequence; AT_ONCE / 2 - 1]).collect();
        assert_eq!(told, all);
    }

    #[test]
    fn the_bytes_that_are_kept_are_bounded_too() {
        let recent = ring(0);
        let long = "x".repeat(KEPT_BYTES / 4);
        for sequence in 1..=8 {
            recent.0.lock().add(vec![change(sequence, &long)], sequence);
        }
        assert_eq!(sequences(&recent.after(5, 8, 0).unwrap()), [6, 7, 8]);
        assert_eq!(recent.after(4, 8, 0), None);
        assert!(recent.0.lock().bytes <= KEPT_BYTES);
    }
}
