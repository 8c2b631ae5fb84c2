//! The rows that answers have shown lately, of all projects: most are shown again, and to read one from the table takes
//! longer than to find it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ccod_index::{Entry, WipedText};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder as Hasher, OptionsBuilder, Weighter};
use serde_json::{Map, Value};

use crate::domain::{Item, Passage, StoredItem};

/// Bytes of a row that the cache is laid out for; no bound.
const TYPICAL_ROW_BYTES: usize = 1_024;
/// What a row takes besides its texts: its other fields, its key and its place in the cache.
const ROW_OVERHEAD_BYTES: usize = size_of::<CachedRow>() + size_of::<Key>() + 64;

/// A row as answers show it.
#[derive(Clone, Debug)]
pub(crate) struct ShownRow {
    /// The item; its text is there in the row of its first passage alone.
    pub(crate) stored: StoredItem,
    /// The passage, with its place as the table has it.
    pub(crate) passage: Passage,
}

/// Rows that were shown lately. What it drops is overwritten.
pub(super) struct Texts {
    rows: Cache<Key, Arc<CachedRow>, ByBytes>,
    /// Numbers that were given to projects.
    numbers: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// A row of a version of a project that has ever been published: no two have the same, and none ever changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The project's, from [`Texts::number`].
    number: u64,
    id: Box<str>,
    /// The commit that wrote the row: numbers of commits are never given twice.
    valid_from: i64,
    passage: u32,
}

/// A row that is overwritten when it is dropped.
struct CachedRow(ShownRow);

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<CachedRow>> for ByBytes {
    fn weight(&self, key: &Key, row: &Arc<CachedRow>) -> u64 {
        (ROW_OVERHEAD_BYTES + key.id.len() + row.texts_bytes()) as u64
    }
}

impl Texts {
    /// Keeps rows of `capacity` bytes in all; 0 keeps none.
    pub(super) fn new(capacity: u64) -> Self {
        let items = usize::try_from(capacity).unwrap_or(usize::MAX) / TYPICAL_ROW_BYTES;
        // One shard: shards do not lend each other space.
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items.clamp(32, 1 << 20))
            .weight_capacity(capacity)
            .shards(1)
            .build()
            .expect("both capacities are set");
        Self {
            rows: Cache::with_options(options, ByBytes, Hasher::default(), DefaultLifecycle::default()),
            numbers: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// A number for a project, or for what has taken the place of its table.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, number: u64, entry: &Entry<'_>) -> Option<ShownRow> {
        let row = self.rows.get(&Key::of(number, entry));
        let counter = if row.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        row.map(|row| row.0.clone())
    }

    pub(super) fn put(&self, number: u64, entry: &Entry<'_>, row: &ShownRow) {
        self.rows
            .insert(Key::of(number, entry), Arc::new(CachedRow(row.clone())));
    }

    /// Drops all rows of a project.
    pub(super) fn forget(&self, number: u64) {
        self.rows.retain(|key, _| key.number != number);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.rows.weight()
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows.len() as u64
    }

    pub(super) fn capacity(&self) -> u64 {
        self.rows.capacity()
    }

    /// How often a row was asked for and there, and how often it was not.
    pub(super) fn hits(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

impl Key {
    fn of(number: u64, entry: &Entry<'_>) -> Self {
        Self {
            number,
            id: entry.id.into(),
            valid_from: entry.valid_from,
            passage: entry.passage,
        }
    }
}

impl CachedRow {
    fn texts_bytes(&self) -> usize {
        let ShownRow { stored, passage } = &self.0;
        let Item {
            id,
            text,
            project_id,
            session_id,
            agent,
            metadata,
            ..
        } = &stored.item;
        let optional = [session_id, agent].into_iter().flatten().map(String::len);
        let own = id.len() + text.len() + project_id.len() + stored.content_hash.len() + passage.text.len();
        own + optional.sum::<usize>() + object_bytes(metadata)
    }
}

impl Drop for CachedRow {
    fn drop(&mut self) {
        let ShownRow { stored, passage } = &mut self.0;
        let item = &mut stored.item;
        wipe(&mut item.text);
        wipe(&mut passage.text);
        wipe(&mut stored.content_hash);
        for text in [&mut item.session_id, &mut item.agent].into_iter().flatten() {
            wipe(text);
        }
        wipe_object(std::mem::take(&mut item.metadata));
    }
}

fn wipe(text: &mut String) {
    drop(WipedText::from(std::mem::take(text)));
}

fn wipe_object(object: Map<String, Value>) {
    for (mut name, value) in object {
        wipe(&mut name);
        wipe_value(value);
    }
}

fn wipe_value(value: Value) {
    match value {
        Value::String(mut text) => wipe(&mut text),
        Value::Array(values) => values.into_iter().for_each(wipe_value),
        Value::Object(object) => wipe_object(object),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// About what an object takes in memory.
fn object_bytes(object: &Map<String, Value>) -> usize {
    let members = object
        .iter()
        .map(|(name, value)| 2 * size_of::<Value>() + name.len() + value_bytes(value));
    members.sum()
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(|value| size_of::<Value>() + value_bytes(value)).sum(),
        Value::Object(object) => object_bytes(object),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::KnowledgeType;

    fn entry(id: &str, valid_from: i64) -> Entry<'_> {
        Entry {
            address: 0,
            id,
            passage: 0,
            passages: 1,
            revision: 1,
            kind: KnowledgeType::General,
            agent: None,
            session: None,
            timestamp_ms: 0,
            updated_ms: 0,
            valid_from,
        }
    }

    fn row(text: &str) -> ShownRow {
        let item = Item {
            text: text.to_owned(),
            metadata: json!({"a": ["b", {"c": null}]}).as_object().unwrap().clone(),
            ..Item::default()
        };
        ShownRow {
            stored: StoredItem {
                item,
                ..StoredItem::default()
            },
            passage: Passage {
                text: String::new(),
                start: 0,
                end: 0,
                index: 0,
            },
        }
    }

    fn text(texts: &Texts, number: u64, entry: &Entry<'_>) -> Option<String> {
        texts.get(number, entry).map(|row| row.stored.item.text)
    }

    #[test]
    fn a_row_is_found_by_who_wrote_it_where_and_forgotten_with_its_project() {
        let texts = Texts::new(1 << 20);
        let (one, other) = (texts.number(), texts.number());
        texts.put(one, &entry("a", 1), &row("first"));
        texts.put(one, &entry("a", 2), &row("second"));
        texts.put(other, &entry("a", 1), &row("of another project"));
        assert_eq!(text(&texts, one, &entry("a", 1)).as_deref(), Some("first"));
        assert_eq!(text(&texts, one, &entry("a", 2)).as_deref(), Some("second"));
        assert_eq!(text(&texts, one, &entry("a", 3)), None);
        texts.forget(one);
        assert_eq!(text(&texts, one, &entry("a", 1)), None);
        assert_eq!(
            text(&texts, other, &entry("a", 1)).as_deref(),
            Some("of another project")
        );
    }

    #[test]
    fn the_cache_keeps_to_its_bound() {
        let bound = 64 * 1024;
        let texts = Texts::new(bound);
        let number = texts.number();
        let long = "x".repeat(1_000);
        for commit in 0..1_000 {
            texts.put(number, &entry("a", commit), &row(&long));
        }
        assert!(texts.bytes() <= bound && texts.rows() > 20, "{}", texts.rows());
        // What is larger than all of it is not kept.
        texts.put(number, &entry("b", 1), &row(&"x".repeat(100_000)));
        assert_eq!(text(&texts, number, &entry("b", 1)), None);
        let none = Texts::new(0);
        none.put(0, &entry("a", 1), &row("text"));
        assert_eq!(none.rows(), 0);
    }
}
