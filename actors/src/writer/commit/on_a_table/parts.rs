//! Writes that are cut into parts: of four rows each, with these limits.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::*;
use crate::domain::{Deletion, OneOrMany};
use crate::store::view::changes::{Change, ChangeKind};
use crate::store::view::filter::AsOf;
use crate::store::view::replay::Replay;
use crate::writer::commit::{Begun, Deleted, Planned, Undeleted};

const GONE: &str = "gone";

/// Stores an item of agent `agent` with as many passages.
fn store_of(agent: &str, id: &str, passages: usize) -> WriteOp {
    let WriteOp::Store(mut prepared) = store(id, &vec!["zebra"; passages]) else {
        unreachable!();
    };
    prepared.item.content.agent = Some(agent.to_owned());
    prepared.content_hash = prepared.item.content_hash();
    WriteOp::Store(prepared)
}

fn of_agent(agent: &str) -> Filter {
    Filter {
        agent: Some(OneOrMany::One(agent.to_owned())),
        ..Filter::default()
    }
}

fn delete_matching() -> WriteOp {
    WriteOp::Delete(DeleteTarget::Matching(of_agent(GONE)), UndoNote::default())
}

fn undelete(deletion: &Deletion) -> WriteOp {
    WriteOp::Undelete(UndeleteTarget::Deletion(deletion.clone()))
}

fn deleted(outcome: &GroupOutcome) -> &Deleted {
    match outcome.items.as_slice() {
        [Ok(OpOutcome::Deleted(deleted))] => deleted,
        other => panic!("{other:?}"),
    }
}

fn undeleted(outcome: &GroupOutcome) -> &Undeleted {
    match outcome.items.as_slice() {
        [Ok(OpOutcome::Undeleted(undeleted))] => undeleted,
        other => panic!("{other:?}"),
    }
}

fn numbered(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("i{number}")).collect()
}

impl Bench {
    /// Ten items that are to go, the fourth of five passages, in three commits among others that stay: 14 rows, in the
    /// parts i0 to i2, i3, i4 to i7, i8 and i9.
    async fn filled() -> Self {
        let bench = Self::new().await;
        for numbers in [0..4, 4..8, 8..10] {
            let mut group = vec![store_of("stays", &format!("kept{}", numbers.start), 2)];
            group.extend(numbers.map(|number| {
                let passages = if number == 3 { 5 } else { 1 };
                store_of(GONE, &format!("i{number}"), passages)
            }));
            bench.write(group).await;
        }
        bench
    }

    async fn sequence(&self) -> i64 {
        self.view().await.sequence()
    }

    /// How many items were live then.
    async fn live_as_of(&self, at: AsOf) -> usize {
        let then = filter::live(Some(at)).and(filter::first_passage());
        self.view().await.rows(then).await.unwrap().num_rows()
    }

    async fn changes(&self, after: i64) -> Vec<Change> {
        let replay = Replay::plan(self.view().await, after, 0).await.unwrap();
        replay.changes(after).await.unwrap().changes
    }

    /// The commits that have closed rows, and when.
    async fn closed(&self) -> BTreeSet<(i64, DateTime<Utc>)> {
        let rows = self
            .view()
            .await
            .rows(col(column::VALID_TO).is_not_null())
            .await
            .unwrap();
        let reader = RowReader(&rows);
        (0..rows.num_rows())
            .map(|row| {
                let commit = reader.int(column::VALID_TO, row).unwrap().unwrap();
                (commit, reader.time(column::CLOSED_AT, row).unwrap())
            })
            .collect()
    }
}

#[tokio::test]
async fn a_delete_by_filter_is_several_commits_that_count_as_one_and_are_undone_as_one() {
    for indexed in [false, true] {
        let bench = Bench::filled().await;
        if indexed {
            bench.view().await.index().await.unwrap();
        }
        assert_eq!(bench.view().await.index_at_hand().is_some(), indexed);
        let (sequence, before) = (bench.sequence().await, bench.shape().await);
        let outcome = bench.write(vec![delete_matching()]).await;
        let deletion = deleted(&outcome).deletion.clone().unwrap();
        assert_eq!(deleted(&outcome).ids, numbered(0..10));
        assert_eq!((deletion.sequence, deletion.last), (sequence + 1, sequence + 4));
        assert_eq!((outcome.version, outcome.committed), (sequence + 4, true));
        let after = bench.shape().await;
        assert_eq!(after.version, before.version + 4);
        // What stays, in the fragments that it was in, and what each commit has closed.
        assert_eq!(
            after.fragments,
            [(10, 8), (6, 4), (4, 2), (3, 0), (5, 0), (4, 0), (2, 0)]
        );
        let commits: BTreeSet<_> = (sequence + 1..=sequence + 4)
            .map(|commit| (commit, deletion.at))
            .collect();
        assert_eq!(bench.closed().await, commits);
        assert_eq!(bench.live().await.len(), 6);
        // One moment, as far as times go, and one change of each item.
        assert_eq!(bench.live_as_of(AsOf::Time(deletion.at)).await, 3);
        assert_eq!(bench.live_as_of(AsOf::Commit(sequence)).await, 13);
        assert_eq!(bench.live_as_of(AsOf::Commit(sequence + 4)).await, 3);
        let changes = bench.changes(sequence).await;
        assert!(changes.iter().all(|change| change.kind == ChangeKind::Delete));
        let ids: BTreeSet<String> = changes.into_iter().map(|change| change.id).collect();
        assert_eq!(ids.into_iter().collect::<Vec<_>>(), numbered(0..10));
        assert_eq!(bench.found("zebra").await, ["kept0", "kept4", "kept8"]);

        // By what the token says.
        let deletion = Deletion::parse(&deletion.token()).unwrap();
        let outcome = bench.write(vec![undelete(&deletion)]).await;
        assert_eq!(undeleted(&outcome).restored, numbered(0..10));
        assert_eq!(outcome.version, sequence + 8);
        assert_eq!(bench.shape().await.version, before.version + 8);
        let live = bench.live().await;
        assert_eq!(live.len(), 6 + 14);
        for passage in 0..5 {
            assert!(live.contains(&format!("i3/2/{passage}")), "{live:?}");
        }
        let kinds = bench.changes(sequence + 4).await.into_iter().map(|change| change.kind);
        assert_eq!(kinds.collect::<Vec<_>>(), [ChangeKind::Undelete; 10]);
        // Once more, it changes nothing.
        let outcome = bench.write(vec![undelete(&deletion)]).await;
        assert_eq!(undeleted(&outcome).present, numbered(0..10));
        assert_eq!((outcome.version, outcome.committed), (sequence + 8, false));
        assert_eq!(bench.shape().await.version, before.version + 8);
    }
}

#[tokio::test]
async fn what_matches_nothing_makes_no_commit_and_has_no_token() {
    let bench = Bench::filled().await;
    let (sequence, before) = (bench.sequence().await, bench.shape().await);
    let nothing = WriteOp::Delete(DeleteTarget::Matching(of_agent("nobody")), UndoNote::default());
    let outcome = bench.write(vec![nothing]).await;
    assert_eq!(*deleted(&outcome), Deleted::default());
    assert_eq!((outcome.version, outcome.committed), (sequence, false));
    assert_eq!(bench.shape().await, before);
}

#[tokio::test]
async fn an_undo_brings_back_what_nothing_has_taken_the_place_of() {
    let bench = Bench::filled().await;
    let outcome = bench.write(vec![delete_matching()]).await;
    let deletion = deleted(&outcome).deletion.clone().unwrap();
    // One is there again, and was deleted again; another has its id taken; one was brought back; one is purged.
    bench.write(vec![store("i0", &["again"])]).await;
    bench.write(vec![delete(&["i0"])]).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    bench.write(vec![store("i1", &["another"])]).await;
    bench
        .write(vec![WriteOp::Undelete(UndeleteTarget::Ids(vec!["i2".to_owned()]))])
        .await;
    {
        let mut guard = bench.access.lock(&bench.project, false).await.unwrap();
        guard.table().unwrap().purge(&["i3".to_owned()]).await.unwrap();
    }
    let outcome = bench.write(vec![undelete(&deletion)]).await;
    let Undeleted {
        restored,
        present,
        missing,
    } = undeleted(&outcome);
    assert_eq!(*restored, [numbered(0..1), numbered(4..10)].concat());
    assert_eq!(
        (present.as_slice(), missing.as_slice()),
        (&numbered(2..3)[..], &numbered(1..2)[..])
    );
    // As the deletion found it, with the revision after the last.
    let live = bench.live().await;
    for key in ["i0/3/0", "i1/2/0", "i2/2/0", "i4/2/0"] {
        assert!(live.contains(&key.to_owned()), "{key}: {live:?}");
    }
    assert!(!live.iter().any(|key| key.starts_with("i3/")), "{live:?}");
}

#[tokio::test]
async fn an_attempt_after_one_that_has_failed_goes_on_where_it_was_under_the_same_token() {
    let bench = Bench::filled().await;
    let sequence = bench.sequence().await;
    let note = UndoNote::default();
    let ops = [WriteOp::Delete(DeleteTarget::Matching(of_agent(GONE)), note.clone())];
    let begun = {
        let mut guard = bench.access.lock(&bench.project, true).await.unwrap();
        let table = guard.table().unwrap();
        let Planned::Parts(planned) = plan(table, &ops, LIMITS, None).await.unwrap() else {
            panic!("it is alone");
        };
        planned.commit_first(table, 2).await;
        let at = planned.at();
        let sequence = sequence + 1;
        Begun { sequence, at }
    };
    assert_eq!(bench.live().await.len(), 6 + 6);
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    // Two more parts, of what is left; the second time there is nothing left.
    let mut tokens = BTreeSet::new();
    for _ in 0..2 {
        let mut guard = bench.access.lock(&bench.project, true).await.unwrap();
        let table = guard.table().unwrap();
        let planned = plan(table, &ops, LIMITS, Some(&begun)).await.unwrap();
        let outcome = planned.commit(table).await.unwrap();
        assert_eq!((outcome.version, outcome.committed), (sequence + 4, true));
        assert_eq!(deleted(&outcome).ids, numbered(0..10));
        tokens.insert(deleted(&outcome).deletion.as_ref().unwrap().token());
    }
    assert_eq!(tokens.len(), 1);
    let deletion = Deletion::parse(tokens.first().unwrap()).unwrap();
    assert_eq!(
        (deletion.sequence, deletion.last, deletion.at),
        (sequence + 1, sequence + 4, begun.at)
    );
    assert_eq!(bench.live().await.len(), 6);

    // The same of its undoing.
    let ops = [undelete(&deletion)];
    let begun = {
        let mut guard = bench.access.lock(&bench.project, true).await.unwrap();
        let table = guard.table().unwrap();
        let Planned::Parts(planned) = plan(table, &ops, LIMITS, None).await.unwrap() else {
            panic!("it is alone");
        };
        planned.commit_first(table, 1).await;
        Begun {
            sequence: sequence + 5,
            at: planned.at(),
        }
    };
    let mut guard = bench.access.lock(&bench.project, true).await.unwrap();
    let table = guard.table().unwrap();
    let planned = plan(table, &ops, LIMITS, Some(&begun)).await.unwrap();
    let outcome = planned.commit(table).await.unwrap();
    assert_eq!(undeleted(&outcome).restored, numbered(0..10));
    assert_eq!(outcome.version, sequence + 8);
    drop(guard);
    assert_eq!(bench.live().await.len(), 6 + 14);
}

#[tokio::test]
async fn a_token_undoes_the_commits_that_it_names_and_no_others() {
    let bench = Bench::filled().await;
    let outcome = bench.write(vec![delete_matching()]).await;
    let whole = deleted(&outcome).deletion.clone().unwrap();
    for (deletion, ids) in [
        // As a caller has it whose delete was cut short after the first commit.
        (
            Deletion {
                last: whole.sequence,
                ..whole.clone()
            },
            numbered(0..3),
        ),
        // Of another history that had the same numbers.
        (
            Deletion {
                at: whole.at + TimeDelta::milliseconds(1),
                ..whole.clone()
            },
            Vec::new(),
        ),
        (whole.clone(), numbered(3..10)),
    ] {
        let outcome = bench.write(vec![undelete(&deletion)]).await;
        assert_eq!(undeleted(&outcome).restored, ids);
    }
}

#[tokio::test]
async fn a_delete_whose_caller_has_left_is_not_begun() {
    let bench = Bench::filled().await;
    let note = UndoNote::default();
    drop(crate::writer::undo::Undoing(note.clone()));
    let ops = [WriteOp::Delete(DeleteTarget::Matching(of_agent(GONE)), note)];
    let mut guard = bench.access.lock(&bench.project, true).await.unwrap();
    let planned = plan(guard.table().unwrap(), &ops, LIMITS, None).await;
    assert!(matches!(planned.err(), Some(KnowledgeError::DeadlineExceeded { .. })));
}

/// In a group of several such a write would be planned by what fits into memory.
#[tokio::test]
async fn what_may_concern_any_item_is_refused_beside_another_write() {
    let bench = Bench::filled().await;
    let mut guard = bench.access.lock(&bench.project, true).await.unwrap();
    let ops = [delete_matching(), store("new", &["new"])];
    let planned = plan(guard.table().unwrap(), &ops, LIMITS, None).await;
    assert!(matches!(planned.err(), Some(KnowledgeError::Internal { .. })));
}
