//! Rows as a table would have them, and the steps that change them.

use std::collections::BTreeSet;

use ccod_index::{Row, Tokens, metadata_term};
use ccod_words::{Filter, KnowledgeType};
use proptest::prelude::*;
use proptest::sample::Index as Pick;
use serde_json::json;

pub(crate) const DIMENSIONS: usize = 12;

#[derive(Clone, Debug)]
pub(crate) struct ModelRow {
    pub(crate) address: u64,
    pub(crate) id: String,
    pub(crate) passage: u32,
    pub(crate) passages: u32,
    pub(crate) revision: i64,
    pub(crate) kind: KnowledgeType,
    pub(crate) agent: Option<String>,
    pub(crate) session: Option<String>,
    pub(crate) timestamp_ms: i64,
    pub(crate) terms: Vec<String>,
    pub(crate) vector: Vec<f32>,
    pub(crate) words: Tokens,
    /// Whether the row comes without its words.
    pub(crate) is_unread: bool,
}

impl ModelRow {
    pub(crate) fn row(&self) -> Row<'_> {
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
            words: (!self.is_unread).then_some(&self.words),
        }
    }

    pub(crate) fn passes(&self, filter: &Filter) -> bool {
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
pub(crate) struct Model {
    pub(crate) rows: Vec<ModelRow>,
    /// Rows of deletions, to come back.
    pub(crate) deleted: Vec<Vec<ModelRow>>,
    pub(crate) fragments: u64,
    pub(crate) items: usize,
}

impl Model {
    pub(crate) fn ids(&self) -> Vec<String> {
        let ids: BTreeSet<&String> = self.rows.iter().map(|row| &row.id).collect();
        ids.into_iter().cloned().collect()
    }

    pub(crate) fn place(&mut self, rows: &mut [ModelRow]) {
        for (offset, row) in rows.iter_mut().enumerate() {
            row.address = self.fragments << 32 | offset as u64;
        }
        self.fragments += 1;
    }

    pub(crate) fn take(&mut self, id: &str) -> Vec<ModelRow> {
        let (gone, kept) = std::mem::take(&mut self.rows).into_iter().partition(|row| row.id == id);
        self.rows = kept;
        gone
    }
}

#[derive(Clone, Debug)]
pub(crate) struct NewItem {
    pub(crate) passages: u32,
    pub(crate) kind: usize,
    pub(crate) agent: Option<u8>,
    pub(crate) session: Option<u8>,
    pub(crate) time: i64,
    pub(crate) tags: Vec<u8>,
    pub(crate) seed: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Store(Vec<NewItem>),
    Update(Vec<(Pick, NewItem)>),
    Delete(Vec<Pick>),
    Undelete(Pick),
    Compact(Pick, Pick),
}

pub(crate) fn vector(seed: u32) -> Vec<f32> {
    // Few different vectors, so that many cosines are equal.
    let seed = seed % 300;
    let mut vector: Vec<f32> = (0..DIMENSIONS as u32)
        .map(|at| ((seed * 37 + at * 101) as f32 * 0.71).sin())
        .collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

/// From none to some dozens, of a vocabulary in which some are frequent.
pub(crate) fn words(seed: u32) -> Tokens {
    let word = |at: u32| {
        let mixed = (seed * 31 + at * 7_919).wrapping_mul(0x9e37_79b9) >> 16;
        format!("w{}", (mixed % 40) * (mixed / 40 % 40) / 40)
    };
    let words: Vec<String> = (0..seed % 40).map(word).collect();
    words.iter().map(String::as_str).collect()
}

pub(crate) fn rows_of(item: &NewItem, id: &str, revision: i64) -> Vec<ModelRow> {
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
            words: words(item.seed + passage * 3),
            is_unread: item.seed % 7 == 3,
        })
        .collect()
}

/// Does the step to the model; what the writer would report of it.
pub(crate) fn step(model: &mut Model, step: &Step) -> (Vec<ModelRow>, Vec<u64>, Vec<(u64, u64)>) {
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
                removed.extend(gone.iter().map(|row| row.address));
                if item.seed % 4 == 0 {
                    // Another item in the same commit, not an update.
                    added.extend(rows_of(item, &format!("instead of {id}"), 1));
                    continue;
                }
                let mut item = item.clone();
                item.time = gone[0].timestamp_ms;
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

pub(crate) fn new_item() -> impl Strategy<Value = NewItem> {
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

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
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
