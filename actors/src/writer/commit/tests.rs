use std::collections::HashSet;

use chrono::TimeDelta;

use super::identity::{Decision, Taken};
use super::plan::DeletionTimes;
use super::revision::OwnedRevision;
use super::{PreparedItem, PreparedUpdate};
use crate::domain::{Content, Item, KnowledgeType, NewItem, OnDuplicate, StoredItem, UpdateParams, now_ms};
use crate::error::KnowledgeError;
use crate::store::table::rows::{EmbeddedPassage, StoredRevision};
use crate::store::view::IdentityRow;

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
    let Decision::Write { id, revision } = taken.decide(&prepared("b", Some("one"), None), |_| false).unwrap() else {
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
