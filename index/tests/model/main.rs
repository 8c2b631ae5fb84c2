//! Random changes, applied to the index and to a plain list of rows: both must answer the same, and snapshots must
//! stay what they were.

mod answers;
mod rows;

use ccod_index::{Change, Index, Mismatch, Precision, Row};
use ccod_words::Filter;
use proptest::prelude::*;
use proptest::sample::select;

use answers::{same_answers, same_answers_of_many};
use rows::{DIMENSIONS, Model, ModelRow, NewItem, Step, rows_of, step, steps};

const PRECISIONS: [Precision; 2] = [Precision::Exact, Precision::Coarse];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn all_answers_are_those_of_a_plain_list(steps in steps(), seed in 0..300_u32, precision in select(&PRECISIONS)) {
        let mut model = Model::default();
        let mut index = Index::new(DIMENSIONS, precision);
        let mut snapshots = vec![(index.clone(), model.clone())];
        for one in &steps {
            let (added, removed, moved) = step(&mut model, one);
            let rows: Vec<Row<'_>> = added.iter().map(ModelRow::row).collect();
            let change = Change { added: &rows, removed: &removed, moved: &moved };
            index = index.apply(&change).unwrap();
            snapshots.push((index.clone(), model.clone()));
        }
        same_answers(&index, &model, seed);
        // Later changes have not touched the snapshots before.
        for (index, model) in snapshots.iter().step_by(3) {
            same_answers(index, model, seed);
        }
        // All rows gone, and the same index filled again.
        let removed: Vec<u64> = model.rows.iter().map(|row| row.address).collect();
        let rows: Vec<Row<'_>> = model.rows.iter().map(ModelRow::row).collect();
        let empty = index.apply(&Change { removed: &removed, ..Change::default() }).unwrap();
        same_answers(&empty, &Model { rows: Vec::new(), deleted: vec![model.rows.clone()], ..Model::default() }, seed);
        let again = empty.apply(&Change { added: &rows, ..Change::default() }).unwrap();
        same_answers(&again, &model, seed);
    }
}

#[test]
fn many_rows_are_searched_and_listed_like_a_plain_list() {
    // Few times and few vectors, so that ids decide at the ends of pages; in no order.
    let mut model = Model::default();
    let items = (0..3_000_u32).map(|number| {
        let mixed = number.wrapping_mul(0x9e37_79b9) >> 8;
        NewItem {
            passages: 1 + mixed % 3,
            kind: (mixed / 3 % 9) as usize,
            agent: (mixed % 5 < 4).then_some((mixed % 7) as u8),
            session: Some((mixed % 11) as u8),
            time: i64::from(mixed % 37) * 100,
            tags: vec![(mixed % 6) as u8, (mixed / 6 % 6) as u8],
            seed: mixed % 1_000,
        }
    });
    let (added, _, _) = step(&mut model, &Step::Store(items.collect()));
    let rows: Vec<Row<'_>> = added.iter().map(ModelRow::row).collect();
    let change = Change {
        added: &rows,
        ..Change::default()
    };
    for precision in PRECISIONS {
        same_answers_of_many(&Index::new(DIMENSIONS, precision).apply(&change).unwrap(), &model);
    }
}

#[test]
fn a_change_that_does_not_fit_is_refused_and_leaves_the_snapshot() {
    let row = &rows_of(
        &NewItem {
            passages: 1,
            kind: 0,
            agent: None,
            session: None,
            time: 5,
            tags: vec![1],
            seed: 1,
        },
        "a",
        1,
    )[0];
    let row = row.row();
    let add = |index: &Index, row: Row<'_>| {
        index.apply(&Change {
            added: &[row],
            ..Change::default()
        })
    };
    let index = add(&Index::new(DIMENSIONS, Precision::Exact), row).unwrap();
    assert_eq!(
        add(&index, Row { id: "b", ..row }).unwrap_err(),
        Mismatch::AddressTaken(0)
    );
    let short = Row {
        address: 9,
        vector: &[1.0],
        ..row
    };
    let refused = Mismatch::Dimensions {
        expected: DIMENSIONS,
        found: 1,
    };
    assert_eq!(add(&index, short).unwrap_err(), refused);
    for (removed, moved, unknown) in [(&[0, 0][..], &[][..], 0), (&[7], &[], 7), (&[], &[(8, 9)], 8)] {
        let change = Change {
            added: &[],
            removed,
            moved,
        };
        assert_eq!(index.apply(&change).unwrap_err(), Mismatch::UnknownAddress(unknown));
    }
    // Addresses may change places with each other, and one that is removed may be given again.
    let other = Row {
        address: 1,
        id: "b",
        ..row
    };
    let both = add(&index, other).unwrap();
    let change = Change {
        added: &[Row { id: "c", ..row }],
        removed: &[0],
        moved: &[(0, 1), (1, 0)],
    };
    let after = both.apply(&change).unwrap();
    assert_eq!(after.at(0).map(|entry| entry.id), Some("c"));
    assert_eq!(after.at(1).map(|entry| entry.id), Some("a"));
    assert_eq!((index.len(), both.len(), after.len()), (1, 2, 2));
    // The newest is the last row, and goes.
    let newest = Row {
        address: 5,
        id: "d",
        timestamp_ms: 7,
        ..row
    };
    let newer = add(&after, newest).unwrap();
    let change = Change {
        removed: &[5],
        ..Change::default()
    };
    let older = newer.apply(&change).unwrap();
    assert_eq!((newer.counts().newest_ms, older.counts().newest_ms), (Some(7), Some(5)));
}

#[test]
fn what_went_gives_its_memory_back() {
    let items = |count: u32| -> Vec<ModelRow> {
        let mut rows: Vec<ModelRow> = (0..count)
            .flat_map(|number| {
                let item = NewItem {
                    passages: 1,
                    kind: 1,
                    agent: Some(1),
                    session: Some((number % 200) as u8),
                    time: number.into(),
                    tags: vec![(number % 250) as u8],
                    seed: number,
                };
                rows_of(&item, &format!("item {number}"), 1)
            })
            .collect();
        for (address, row) in rows.iter_mut().enumerate() {
            row.address = address as u64;
        }
        rows
    };
    let rows = items(5_000);
    let rows: Vec<Row<'_>> = rows.iter().map(ModelRow::row).collect();
    for precision in PRECISIONS {
        let empty = Index::new(DIMENSIONS, precision);
        let full = empty
            .apply(&Change {
                added: &rows,
                ..Change::default()
            })
            .unwrap();
        let removed: Vec<u64> = (0..4_900).map(|number| number * 31 % 5_000).collect();
        let few = full
            .apply(&Change {
                removed: &removed,
                ..Change::default()
            })
            .unwrap();
        assert!(few.bytes() < full.bytes() / 5, "{} of {}", few.bytes(), full.bytes());
        let rest: Vec<u64> = few.matching(&Filter::default()).addresses().collect();
        let none = few
            .apply(&Change {
                removed: &rest,
                ..Change::default()
            })
            .unwrap();
        assert_eq!((none.len(), none.bytes()), (0, empty.bytes()));
        assert_eq!(none.precision(), precision);
    }
}
