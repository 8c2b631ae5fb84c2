//! The answers of an index beside those of plain loops over the rows.

use std::collections::BTreeMap;

use ccod_index::{Counts, Hit, Index, Precision, PreparedQuery, PreparedWords, Tokens, WordHit, best_by_item};
use ccod_words::{Filter, KnowledgeType, OneOrMany, Order};
use chrono::DateTime;
use serde_json::json;

use crate::rows::{Model, ModelRow, vector, words};

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

/// What the index knows of vectors is nearly what they are, and its searches follow from that and nothing else.
fn same_exact_search(index: &Index, model: &Model, filter: &Filter, query: &[f32]) {
    let prepared = PreparedQuery::new(query);
    let passing = model.rows.iter().filter(|row| row.passes(filter));
    let all = passing.map(|row| {
        let cosine = index.cosine(row.address, &prepared).unwrap();
        let exact = dot(&row.vector, query);
        assert!((exact - cosine).abs() < 1e-6, "{exact} {cosine}");
        let vector = index.vector(row.address).unwrap();
        for (found, component) in vector.iter().zip(&row.vector) {
            assert!((found - component).abs() < 1e-6, "{vector:?} {:?}", row.vector);
        }
        Hit {
            address: row.address,
            id: row.id.clone(),
            passage: row.passage,
            cosine,
        }
    });
    let expected = best_by_item(all.collect(), usize::MAX);
    let matching = index.matching(filter);
    for k in [0, 1, 3, 10, 1_000, usize::MAX] {
        let wanted = &expected[..k.min(expected.len())];
        assert_eq!(matching.search(&prepared, k), wanted);
    }
    assert_eq!(index.search(query, filter, 5), expected[..expected.len().min(5)]);
    for gone in model.deleted.iter().flatten() {
        if index.at(gone.address).is_none() {
            assert_eq!(index.cosine(gone.address, &prepared), None);
            assert_eq!(index.vector(gone.address), None);
        }
    }
}

fn same_fragments(index: &Index, model: &Model) {
    for fragment in 0..model.fragments + 1 {
        let range = fragment << 32..(fragment + 1) << 32;
        let live = model.rows.iter().map(|row| row.address);
        let mut expected: Vec<u64> = live.filter(|address| range.contains(address)).collect();
        expected.sort_unstable();
        assert_eq!(index.addresses_in(range), expected);
    }
}

fn same_search(index: &Index, model: &Model, filter: &Filter, query: &[f32]) {
    if index.precision() == Precision::Exact {
        same_exact_search(index, model, filter, query);
        return;
    }
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

/// BM25 by its formula, over all rows.
fn bm25(model: &Model, row: &ModelRow, query: &Tokens) -> f64 {
    let count = |row: &ModelRow, word: &str| row.words.iter().filter(|other| *other == word).count() as f64;
    let rows = model.rows.len() as f64;
    let tokens: usize = model.rows.iter().map(|row| row.words.len()).sum();
    let norm = 1.2 * (0.25 + 0.75 * row.words.len() as f64 / (tokens as f64 / rows));
    let scores = query.iter().filter(|word| count(row, word) > 0.0).map(|word| {
        let holders = model.rows.iter().filter(|row| count(row, word) > 0.0).count() as f64;
        let rarity = (1.0 + (rows - holders + 0.5) / (holders + 0.5)).ln();
        rarity * 2.2 * count(row, word) / (count(row, word) + norm)
    });
    scores.sum()
}

fn same_words(index: &Index, model: &Model, filter: &Filter, query: &Tokens) {
    let prepared = PreparedWords::new(query);
    let matching = index.matching(filter);
    let mut best: BTreeMap<&str, (f64, u32)> = BTreeMap::new();
    for row in model.rows.iter().filter(|row| row.passes(filter)) {
        let score = bm25(model, row, query);
        let known = best.entry(&row.id).or_insert((0.0, 0));
        if score > known.0 + 1e-9 || (score > known.0 - 1e-9 && row.passage < known.1) {
            *known = (score, row.passage);
        }
    }
    best.retain(|_, (score, _)| *score > 0.0);
    let found = matching
        .search_words(&prepared, usize::MAX)
        .expect("all words are known");
    assert_eq!(found.len(), best.len());
    for hit in &found {
        let (score, _) = best[hit.id.as_str()];
        assert!((score - f64::from(hit.bm25)).abs() < 1e-4, "{hit:?} {score}");
        let row = model.rows.iter().find(|row| row.address == hit.address).expect("live");
        assert_eq!((&row.id, row.passage), (&hit.id, hit.passage));
        assert!((bm25(model, row, query) - score).abs() < 1e-4);
    }
    let in_order =
        |pair: &[WordHit]| pair[0].bm25 > pair[1].bm25 || (pair[0].bm25 == pair[1].bm25 && pair[0].id < pair[1].id);
    assert!(found.windows(2).all(in_order), "{found:?}");
    for k in [0, 1, 3, 10] {
        let few = matching.search_words(&prepared, k).expect("all words are known");
        assert_eq!(few, found[..k.min(found.len())]);
    }
}

/// Words that are missing come later, and then everything is as if they had come with their rows.
fn same_word_search(index: &Index, model: &Model, seed: u32) {
    let unread = index.unread_words();
    assert_eq!(index.addresses_without_words(usize::MAX).len(), unread);
    assert_eq!(
        unread,
        model
            .rows
            .iter()
            .filter(|row| index.words(row.address).is_none())
            .count()
    );
    let all = index.matching(&Filter::default());
    assert_eq!(
        all.search_words(&PreparedWords::new(&words(7)), 10).is_none(),
        unread > 0
    );
    let of = |address: &u64| {
        model
            .rows
            .iter()
            .find(|row| row.address == *address)
            .map(|row| (*address, &row.words))
    };
    let mut whole = index.clone();
    while whole.unread_words() > 0 {
        let some = whole.addresses_without_words(3);
        let gone = (u64::MAX, &model.rows[0].words);
        whole = whole.with_words(some.iter().filter_map(of).chain([gone])).unwrap();
    }
    assert_eq!(index.unread_words(), unread);
    for row in &model.rows {
        let mut expected: Vec<&str> = row.words.iter().collect();
        expected.sort_unstable();
        let length = expected.len() as u32;
        expected.dedup();
        assert_eq!(whole.words(row.address), Some((expected, length)));
    }
    for (number, filter) in filters().iter().enumerate() {
        same_words(&whole, model, filter, &words(seed + number as u32));
    }
    let odd: Tokens = ["w0", "w3", "unheard", "w3"].into_iter().collect();
    same_words(&whole, model, &Filter::default(), &odd);
    same_words(&whole, model, &Filter::default(), &Tokens::default());
}

/// [`same_answers`] for so many rows that not all pages and not all items can be compared.
pub(crate) fn same_answers_of_many(index: &Index, model: &Model) {
    same_counts(index, model);
    same_fragments(index, model);
    for (number, filter) in filters().iter().enumerate() {
        same_matching(index, model, filter);
        same_lists(index, model, filter, 199 + number);
        same_search(index, model, filter, &vector(number as u32));
    }
}

pub(crate) fn same_answers(index: &Index, model: &Model, seed: u32) {
    same_word_search(index, model, seed);
    same_gets(index, model);
    same_counts(index, model);
    same_fragments(index, model);
    for (number, filter) in filters().iter().enumerate() {
        same_matching(index, model, filter);
        same_lists(index, model, filter, 1 + (seed as usize + number * 5) % 23);
        same_search(index, model, filter, &vector(seed + number as u32));
    }
}
