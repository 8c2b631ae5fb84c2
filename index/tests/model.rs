//! Random changes, applied to the index and to a plain list of rows: both must answer the same, and snapshots must
//! stay what they were.

use std::collections::{BTreeMap, BTreeSet};

use ccod_index::{Change, Counts, Hit, Index, Mismatch, Row, best_by_item, metadata_term};
use ccod_words::{Filter, KnowledgeType, OneOrMany, Order};
use chrono::DateTime;
use proptest::prelude::*;
use proptest::sample::Index as Pick;
use serde_json::json;

const DIMENSIONS: usize = 12;

#[derive(Clone, Debug, PartialEq)]
struct ModelRow {
    address: u64,
    id: String,
    passage: u32,
    passages: u32,
    revision: i64,
    kind: KnowledgeType,
    agent: Option<String>,
    session: Option<String>,
    timestamp_ms: i64,
    terms: Vec<String>,
    vector: Vec<f32>,
}

impl ModelRow {
    fn row(&self) -> Row<'_> {
        Row {
            address: self.address,
            id: &self.id,
            passage: self.passage,
            passages: self.passages,
            revision: self.revision,
            kind: self.kind,
            agent: self.agent.as_deref(),
            session: self.session.as_deref(),
            timestamp_ms: self.timestamp_ms,
            updated_ms: self.timestamp_ms + 1,
            valid_from: self.revision + 100,
            metadata_terms: &self.terms,
            vector: &self.vector,
        }
    }

    fn passes(&self, filter: &Filter) -> bool {
        let any = |wanted: &[String], value: &Option<String>| {
            wanted.is_empty() || value.as_ref().is_some_and(|value| wanted.contains(value))
        };
        (filter.types().is_empty() || filter.types().contains(&self.kind))
            && any(filter.agents(), &self.agent)
            && any(filter.session_ids(), &self.session)
            && filter
                .since
                .is_none_or(|since| self.timestamp_ms >= since.timestamp_millis())
            && filter
                .until
                .is_none_or(|until| self.timestamp_ms < until.timestamp_millis())
            && filter
                .metadata
                .iter()
                .all(|(key, value)| self.terms.contains(&metadata_term(key, value)))
    }
}

/// The rows as a table would have them, and what becomes of addresses.
#[derive(Clone, Debug, Default)]
struct Model {
    rows: Vec<ModelRow>,
    /// Rows of deletions, to come back.
    deleted: Vec<Vec<ModelRow>>,
    fragments: u64,
    items: usize,
}

impl Model {
    fn ids(&self) -> Vec<String> {
        let ids: BTreeSet<&String> = self.rows.iter().map(|row| &row.id).collect();
        ids.into_iter().cloned().collect()
    }

    fn place(&mut self, rows: &mut [ModelRow]) {
        for (offset, row) in rows.iter_mut().enumerate() {
            row.address = self.fragments << 32 | offset as u64;
        }
        self.fragments += 1;
    }

    fn take(&mut self, id: &str) -> Vec<ModelRow> {
        let (gone, kept) = std::mem::take(&mut self.rows).into_iter().partition(|row| row.id == id);
        self.rows = kept;
        gone
    }
}

#[derive(Clone, Debug)]
struct NewItem {
    passages: u32,
    kind: usize,
    agent: Option<u8>,
    session: Option<u8>,
    time: i64,
    tags: Vec<u8>,
    seed: u32,
}

#[derive(Clone, Debug)]
enum Step {
    Store(Vec<NewItem>),
    Update(Vec<(Pick, NewItem)>),
    Delete(Vec<Pick>),
    Undelete(Pick),
    Compact(Pick, Pick),
}

fn vector(seed: u32) -> Vec<f32> {
    // Few different vectors, so that many cosines are equal.
    let seed = seed % 300;
    let mut vector: Vec<f32> = (0..DIMENSIONS as u32)
        .map(|at| ((seed * 37 + at * 101) as f32 * 0.71).sin())
        .collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

fn rows_of(item: &NewItem, id: &str, revision: i64) -> Vec<ModelRow> {
    (0..item.passages)
        .map(|passage| ModelRow {
            address: 0,
            id: id.to_owned(),
            passage,
            passages: item.passages,
            revision,
            kind: KnowledgeType::ALL[item.kind],
            agent: item.agent.map(|agent| format!("agent {agent}")),
            session: item.session.map(|session| format!("session {session}")),
            timestamp_ms: item.time,
            terms: item
                .tags
                .iter()
                .map(|tag| metadata_term("tag", &json!(format!("t{tag}"))))
                .collect(),
            vector: vector(item.seed + passage * 7),
        })
        .collect()
}

/// Does the step to the model; what the writer would report of it.
fn step(model: &mut Model, step: &Step) -> (Vec<ModelRow>, Vec<u64>, Vec<(u64, u64)>) {
    let (mut added, mut removed, mut moved) = (Vec::new(), Vec::new(), Vec::new());
    match step {
        Step::Store(items) => {
            for item in items {
                // Ids that do not go up with time.
                let id = format!("{:x}", (model.items as u32).wrapping_mul(0x9e37_79b9));
                model.items += 1;
                added.extend(rows_of(item, &id, 1));
            }
        }
        Step::Update(updates) => {
            for (pick, item) in updates {
                let ids = model.ids();
                if ids.is_empty() {
                    continue;
                }
                let id = &ids[pick.index(ids.len())];
                let gone = model.take(id);
                let mut item = item.clone();
                item.time = gone[0].timestamp_ms;
                removed.extend(gone.iter().map(|row| row.address));
                added.extend(rows_of(&item, id, gone[0].revision + 1));
            }
        }
        Step::Delete(picks) => {
            for pick in picks {
                let ids = model.ids();
                if !ids.is_empty() {
                    let gone = model.take(&ids[pick.index(ids.len())]);
                    removed.extend(gone.iter().map(|row| row.address));
                    model.deleted.push(gone);
                }
            }
        }
        Step::Undelete(pick) => {
            if !model.deleted.is_empty() {
                let place = pick.index(model.deleted.len());
                added = model.deleted.remove(place);
                added.iter_mut().for_each(|row| row.revision += 1);
            }
        }
        Step::Compact(from, to) => {
            let fragments = model.fragments as usize + 1;
            let (from, to) = (from.index(fragments) as u64, to.index(fragments) as u64);
            let (from, to) = (from.min(to), from.max(to));
            let mut offset = 0;
            for row in &mut model.rows {
                if (from..=to).contains(&(row.address >> 32)) {
                    let new = model.fragments << 32 | offset;
                    moved.push((row.address, new));
                    row.address = new;
                    offset += 1;
                }
            }
            model.fragments += 1;
        }
    }
    model.place(&mut added);
    model.rows.extend(added.iter().cloned());
    (added, removed, moved)
}

fn new_item() -> impl Strategy<Value = NewItem> {
    (
        1..5_u32,
        0..KnowledgeType::ALL.len(),
        proptest::option::of(0..3_u8),
        proptest::option::of(0..4_u8),
        -3..20_i64,
        proptest::collection::vec(0..6_u8, 0..4),
        any::<u16>(),
    )
        .prop_map(|(passages, kind, agent, session, time, tags, seed)| NewItem {
            passages,
            kind,
            agent,
            session,
            time: time * 100,
            tags,
            seed: seed.into(),
        })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = |max| proptest::collection::vec(any::<Pick>(), 1..max);
    let one = prop_oneof![
        4 => proptest::collection::vec(new_item(), 1..40).prop_map(Step::Store),
        3 => proptest::collection::vec((any::<Pick>(), new_item()), 1..5).prop_map(Step::Update),
        2 => some(25).prop_map(Step::Delete),
        1 => any::<Pick>().prop_map(Step::Undelete),
        1 => any::<(Pick, Pick)>().prop_map(|(from, to)| Step::Compact(from, to)),
    ];
    proptest::collection::vec(one, 1..14)
}

fn filters() -> Vec<Filter> {
    let time = |ms: i64| DateTime::from_timestamp_micros(ms * 1_000 + 900);
    let agent = |number| format!("agent {number}");
    vec![
        Filter::default(),
        Filter {
            knowledge_type: Some(OneOrMany::Many(vec![KnowledgeType::Decision, KnowledgeType::System])),
            ..Filter::default()
        },
        Filter {
            agent: Some(OneOrMany::One(agent(1))),
            since: time(300),
            ..Filter::default()
        },
        Filter {
            agent: Some(OneOrMany::Many((0..9).map(agent).collect())),
            until: time(700),
            ..Filter::default()
        },
        Filter {
            session_id: Some(OneOrMany::Many(vec![
                "session 2".into(),
                "session 0".into(),
                "?".into(),
            ])),
            metadata: [("tag".to_owned(), json!("t1")), ("tag".to_owned(), json!("t2"))]
                .into_iter()
                .collect(),
            ..Filter::default()
        },
        Filter {
            metadata: [("tag".to_owned(), json!("t5"))].into_iter().collect(),
            ..Filter::default()
        },
        Filter {
            session_id: Some(OneOrMany::One("nobody".into())),
            ..Filter::default()
        },
    ]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn same_gets(index: &Index, model: &Model) {
    for id in model.ids() {
        let mut expected: Vec<&ModelRow> = model.rows.iter().filter(|row| row.id == id).collect();
        expected.sort_by_key(|row| row.passage);
        let found = index.get(&id);
        assert_eq!(found.len(), expected.len());
        for (entry, row) in found.iter().zip(expected) {
            let row = row.row();
            assert_eq!(
                (entry.address, entry.id, entry.passage),
                (row.address, row.id, row.passage)
            );
            assert_eq!((entry.passages, entry.revision), (row.passages, row.revision));
            assert_eq!(
                (entry.kind, entry.agent, entry.session),
                (row.kind, row.agent, row.session)
            );
            let times = (row.timestamp_ms, row.updated_ms, row.valid_from);
            assert_eq!((entry.timestamp_ms, entry.updated_ms, entry.valid_from), times);
            assert_eq!(index.at(row.address).as_ref(), Some(entry));
        }
        assert!(index.contains(&id));
    }
    for gone in model.deleted.iter().flatten() {
        let is_back = model.rows.iter().any(|row| row.id == gone.id);
        assert_eq!(index.contains(&gone.id), is_back);
        assert_eq!(index.get(&gone.id).is_empty(), !is_back);
        let has_address = model.rows.iter().any(|row| row.address == gone.address);
        assert_eq!(index.at(gone.address).is_some(), has_address);
    }
    assert_eq!(index.len(), model.rows.len());
}

fn same_counts(index: &Index, model: &Model) {
    let firsts = || model.rows.iter().filter(|row| row.passage == 0);
    let (mut by_kind, mut by_agent) = (BTreeMap::new(), BTreeMap::new());
    for row in firsts() {
        *by_kind.entry(row.kind).or_default() += 1;
        *by_agent.entry(row.agent.clone().unwrap_or_default()).or_default() += 1;
    }
    let expected = Counts {
        items: firsts().count() as u64,
        passages: model.rows.len() as u64,
        by_kind,
        by_agent,
        oldest_ms: firsts().map(|row| row.timestamp_ms).min(),
        newest_ms: firsts().map(|row| row.timestamp_ms).max(),
    };
    assert_eq!(index.counts(), expected);
}

fn same_lists(index: &Index, model: &Model, filter: &Filter, limit: usize) {
    for order in [Order::Newest, Order::Oldest] {
        let firsts = model.rows.iter().filter(|row| row.passage == 0 && row.passes(filter));
        let mut expected: Vec<&ModelRow> = firsts.collect();
        expected.sort_by(|a, b| {
            let by_time = a.timestamp_ms.cmp(&b.timestamp_ms);
            let by_time = if order == Order::Newest {
                by_time.reverse()
            } else {
                by_time
            };
            by_time.then_with(|| a.id.cmp(&b.id))
        });
        assert_eq!(index.count(filter), expected.len() as u64);
        let mut after: Option<(i64, String)> = None;
        let mut pages = expected.chunks(limit);
        loop {
            let page = index.list(
                filter,
                order,
                after.as_ref().map(|(time, id)| (*time, id.as_str())),
                limit,
            );
            let wanted = pages.next().unwrap_or_default();
            let found: Vec<_> = page.items.iter().map(|item| (item.address, item.id.as_str())).collect();
            assert_eq!(
                found,
                wanted
                    .iter()
                    .map(|row| (row.address, row.id.as_str()))
                    .collect::<Vec<_>>()
            );
            assert_eq!((page.total, page.more), (expected.len() as u64, pages.len() > 0));
            match page.items.last() {
                Some(last) if page.more => after = Some((last.timestamp_ms, last.id.clone())),
                _ => break,
            }
        }
    }
}

fn same_matching(index: &Index, model: &Model, filter: &Filter) {
    let matching = index.matching(filter);
    let mut found: Vec<u64> = matching.addresses().collect();
    found.sort_unstable();
    let passing = model.rows.iter().filter(|row| row.passes(filter));
    let mut expected: Vec<u64> = passing.map(|row| row.address).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(matching.rows(), expected.len() as u64);
    for row in model.rows.iter().chain(model.deleted.iter().flatten()) {
        let expected = expected.binary_search(&row.address).is_ok();
        assert_eq!(matching.is_live_and_matches(row.address), expected);
    }
}

fn same_search(index: &Index, model: &Model, filter: &Filter, query: &[f32]) {
    let passing: Vec<&ModelRow> = model.rows.iter().filter(|row| row.passes(filter)).collect();
    let all = passing.iter().map(|row| Hit {
        address: row.address,
        id: row.id.clone(),
        passage: row.passage,
        cosine: dot(&row.vector, query),
    });
    let expected = best_by_item(all.collect(), usize::MAX);
    let of_address: BTreeMap<u64, &ModelRow> = passing.iter().map(|row| (row.address, *row)).collect();
    // All items are candidates: the exact answer at any depth.
    for k in [1, 3, 10, 1_000] {
        let mut candidates = index.search(query, filter, k.max(expected.len()));
        let order = best_by_item(candidates.clone(), usize::MAX);
        let firsts = candidates.iter().map(|hit| &hit.id).collect::<Vec<_>>();
        let mut firsts_once = firsts.clone();
        firsts_once.dedup();
        assert_eq!(firsts_once, order.iter().map(|hit| &hit.id).collect::<Vec<_>>());
        for hit in &mut candidates {
            let exact = dot(&of_address[&hit.address].vector, query);
            assert!((exact - hit.cosine).abs() < 0.03, "{exact} {hit:?}");
            hit.cosine = exact;
        }
        let wanted = &expected[..k.min(expected.len())];
        assert_eq!(best_by_item(candidates, k), wanted);
        // Fewer candidates are the beginning of more, item by item.
        let few = best_by_item(index.search(query, filter, k), usize::MAX);
        assert_eq!(few, order[..few.len()]);
        assert_eq!(few.len(), order.len().min(k * ccod_index::RESCORE));
    }
    assert_eq!(index.search(query, filter, 0), []);
}

fn same_answers(index: &Index, model: &Model, seed: u32) {
    same_gets(index, model);
    same_counts(index, model);
    for (number, filter) in filters().iter().enumerate() {
        same_matching(index, model, filter);
        same_lists(index, model, filter, 1 + (seed as usize + number * 5) % 23);
        same_search(index, model, filter, &vector(seed + number as u32));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn all_answers_are_those_of_a_plain_list(steps in steps(), seed in 0..300_u32) {
        let mut model = Model::default();
        let mut index = Index::new(DIMENSIONS);
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
    let index = add(&Index::new(DIMENSIONS), row).unwrap();
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
    let empty = Index::new(DIMENSIONS);
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
}
