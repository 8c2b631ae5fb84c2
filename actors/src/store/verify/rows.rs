//! What rows say, compared with what they must say.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, RecordBatch};
use serde_json::{Map, Value};

use super::verification::{FIX_ROW, Flaws, PROBED_ROWS};
use crate::domain::{KnowledgeType, content_hash, metadata_terms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::table::rows::{RowReader, row_key};
use crate::store::table::schema::{TableShape, column};
use crate::store::view::ProjectView;

/// How far the length of a vector may be from 1.
const UNIT_TOLERANCE: f64 = 1e-3;

/// What is remembered of the rows.
pub(super) struct Rows {
    project: String,
    ours: bool,
    pub(super) read: u64,
    /// One of so many rows is looked up in the keyword index.
    sample_every: u64,
    pub(super) samples: Vec<(String, String)>,
    keys: HashSet<u64>,
    /// Items that have a live revision.
    live: HashSet<u64>,
    /// Revisions of which not all passages have come yet; most come together, so there are few.
    open: HashMap<(u64, i64), OpenRevision>,
}

struct OpenRevision {
    id: String,
    passages: i32,
    seen: i32,
    /// Fingerprint of what its passages have in common.
    common: u64,
}

fn fingerprint(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Rows {
    pub(super) fn new(view: &ProjectView, total: u64) -> Self {
        Self {
            project: view.project().to_string(),
            ours: matches!(view.shape(), TableShape::Current { .. }),
            read: 0,
            sample_every: (total / PROBED_ROWS).max(1),
            samples: Vec::new(),
            keys: HashSet::new(),
            live: HashSet::new(),
            open: HashMap::new(),
        }
    }

    pub(super) fn check(&mut self, batch: &RecordBatch, flaws: &mut Flaws) {
        for row in 0..batch.num_rows() {
            if self.ours {
                let mut problems = Vec::new();
                if let Err(error) = self.check_row(batch, row, &mut problems) {
                    problems.push(error.to_string());
                }
                let rows = RowReader(batch);
                let key = rows
                    .text(column::ROW_KEY, row)
                    .ok()
                    .flatten()
                    .unwrap_or("without a key");
                for problem in problems {
                    flaws.add(format!("row {key}: {problem}"), FIX_ROW);
                }
            }
            self.read += 1;
        }
    }

    /// Adds what is wrong with a row to `problems`. An error is a column that cannot be read as what it should be.
    fn check_row(&mut self, batch: &RecordBatch, row: usize, problems: &mut Vec<String>) -> KnowledgeResult<()> {
        let rows = RowReader(batch);
        let id = rows.required_text(column::ID, row)?;
        let revision = rows.int(column::REVISION, row)?.unwrap_or(0);
        let passage = rows.small_int(column::PASSAGE, row)?;
        let passages = rows.small_int(column::PASSAGES, row)?;
        let key = rows.required_text(column::ROW_KEY, row)?;
        if key != row_key(id, revision, usize::try_from(passage).unwrap_or(usize::MAX)) {
            problems.push(format!(
                "its key does not fit its id, revision {revision} and passage {passage}"
            ));
        }
        if !self.keys.insert(fingerprint(key)) {
            problems.push("its key occurs twice".to_owned());
        }
        // What a purge leaves: an id, without content.
        let tombstone = passages == 0 && passage == 0;
        if revision < 1 || passage < 0 || (passage >= passages && !tombstone) {
            problems.push(format!(
                "revision {revision}, passage {passage} of {passages} cannot be"
            ));
        }

        let valid_from = rows.int(column::VALID_FROM, row)?.unwrap_or(0);
        let valid_to = rows.int(column::VALID_TO, row)?;
        if valid_from < 1 || valid_to.is_some_and(|valid_to| valid_to < valid_from) {
            problems.push(format!("it cannot be valid from commit {valid_from} to {valid_to:?}"));
        }
        let project = rows.required_text(column::PROJECT_ID, row)?;
        if project != self.project {
            problems.push(format!("it says that it belongs to project {project}"));
        }
        rows.time(column::TIMESTAMP, row)?;
        rows.time(column::UPDATED_AT, row)?;
        if tombstone {
            if valid_to.is_none() {
                problems.push("it was purged and is live".to_owned());
            }
            return Ok(());
        }
        check_metadata(&rows, row, problems)?;
        check_text(&rows, row, passage, problems)?;
        check_vector(batch, row, problems)?;

        if passage == 0 && valid_to.is_none() && !self.live.insert(fingerprint(id)) {
            problems.push("the item has another live revision".to_owned());
        }
        let hash = rows.required_text(column::CONTENT_HASH, row)?;
        let first = rows.text(column::KEY_HASH, row)?;
        if first.is_some_and(|first| first.len() != hash.len() || (revision == 1 && first != hash)) {
            problems.push("it does not say with which content its item was first stored".to_owned());
        }
        self.count_passage(
            id,
            revision,
            passages,
            fingerprint((hash, valid_from, valid_to)),
            problems,
        );
        if self.read.is_multiple_of(self.sample_every) {
            let text = rows.required_text(column::PASSAGE_TEXT, row)?;
            self.samples.push((key.to_owned(), text.to_owned()));
        }
        Ok(())
    }

    fn count_passage(&mut self, id: &str, revision: i64, passages: i32, common: u64, problems: &mut Vec<String>) {
        let place = (fingerprint(id), revision);
        let open = self.open.entry(place).or_insert_with(|| OpenRevision {
            id: id.to_owned(),
            passages,
            seen: 0,
            common,
        });
        if open.common != common || open.passages != passages {
            problems.push("it disagrees with another passage of its revision".to_owned());
        }
        open.seen += 1;
        if open.seen >= open.passages {
            self.open.remove(&place);
        }
    }

    /// What can be said once all rows were read.
    pub(super) fn finish(&self, flaws: &mut Flaws) {
        let mut incomplete: Vec<_> = self.open.iter().collect();
        incomplete.sort_by(|(a, left), (b, right)| (&left.id, a.1).cmp(&(&right.id, b.1)));
        for ((_, revision), open) in incomplete {
            flaws.add(
                format!(
                    "item {}, revision {revision}: {} of {} passages are there",
                    open.id, open.seen, open.passages
                ),
                FIX_ROW,
            );
        }
    }
}

fn check_metadata(rows: &RowReader<'_>, row: usize, problems: &mut Vec<String>) -> KnowledgeResult<()> {
    let text = rows.required_text(column::METADATA, row)?;
    let Ok(metadata) = serde_json::from_str::<Map<String, Value>>(text) else {
        problems.push("its metadata is not a JSON object".to_owned());
        return Ok(());
    };
    let terms = rows
        .0
        .column_by_name(column::METADATA_TERMS)
        .and_then(|array| array.as_list_opt::<i32>())
        .ok_or_else(|| KnowledgeError::internal("column metadata_terms is not a list"))?;
    let stored: Vec<String> = if terms.is_null(row) {
        Vec::new()
    } else {
        let list = terms.value(row);
        list.as_string_opt::<i32>()
            .ok_or_else(|| KnowledgeError::internal("column metadata_terms is not of texts"))?
            .iter()
            .flatten()
            .map(str::to_owned)
            .collect()
    };
    if stored != metadata_terms(&metadata) {
        problems.push("its metadata cannot be filtered by: the terms are those of other metadata".to_owned());
    }
    Ok(())
}

/// The text stands in passage 0; the content's hash can be checked there.
fn check_text(rows: &RowReader<'_>, row: usize, passage: i32, problems: &mut Vec<String>) -> KnowledgeResult<()> {
    let text = rows.text(column::TEXT, row)?;
    let passage_text = rows.required_text(column::PASSAGE_TEXT, row)?;
    let kind = rows.required_text(column::TYPE, row)?;
    let Ok(kind) = kind.parse::<KnowledgeType>() else {
        problems.push(format!("its type `{kind}` is not known"));
        return Ok(());
    };
    if passage != 0 {
        return Ok(());
    }
    let Some(text) = text else {
        problems.push("it has no text".to_owned());
        return Ok(());
    };
    let agent = rows.text(column::AGENT, row)?;
    if content_hash(kind, agent, text) != rows.required_text(column::CONTENT_HASH, row)? {
        problems.push("its text, type and agent are not those that were stored (content hash)".to_owned());
    }
    let start = rows
        .int(column::START, row)?
        .and_then(|start| usize::try_from(start).ok());
    let end = rows.int(column::END, row)?.and_then(|end| usize::try_from(end).ok());
    let cut = start.zip(end).is_some_and(|(start, end)| {
        let length = end.saturating_sub(start);
        text.chars().skip(start).take(length).eq(passage_text.chars())
    });
    if !cut {
        problems.push("its first passage is not a part of its text".to_owned());
    }
    Ok(())
}

fn check_vector(batch: &RecordBatch, row: usize, problems: &mut Vec<String>) -> KnowledgeResult<()> {
    let vectors = batch
        .column_by_name(column::VECTOR)
        .and_then(|array| array.as_fixed_size_list_opt())
        .ok_or_else(|| KnowledgeError::internal("column vector is not a list"))?;
    if vectors.is_null(row) {
        problems.push("it has no vector".to_owned());
        return Ok(());
    }
    let vector = vectors.value(row);
    let values = vector
        .as_primitive_opt::<Float32Type>()
        .ok_or_else(|| KnowledgeError::internal("column vector is not of floats"))?;
    if values.null_count() > 0 || values.values().iter().any(|value| !value.is_finite()) {
        problems.push("its vector holds values that are not numbers".to_owned());
        return Ok(());
    }
    let squares: f64 = values.values().iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = squares.sqrt();
    if (length - 1.0).abs() > UNIT_TOLERANCE {
        problems.push(format!("its vector has length {length:.4}, not 1"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{Content, NewItem, OnDuplicate, now_ms};
    use crate::store::table::rows::{EmbeddedPassage, NewRevision, build_batch};
    use crate::store::table::schema::table_schema;
    use crate::store::verify::verification::MAX_FLAWS;

    fn item(text: &str) -> NewItem {
        NewItem {
            content: Content {
                text: text.to_owned(),
                agent: Some("tester".to_owned()),
                metadata: Map::from_iter([("k".to_owned(), Value::from("v"))]),
                ..Content::default()
            },
            id: None,
            idempotency_key: None,
            on_duplicate: OnDuplicate::Return,
            timestamp: now_ms(),
            updated_at: None,
        }
    }

    fn passage(text: &str, start: usize, vector: [f32; 2]) -> EmbeddedPassage {
        EmbeddedPassage {
            start,
            end: start + text.chars().count(),
            text: text.to_owned(),
            vector: Arc::from(vector),
        }
    }

    /// The problems of rows that `change` has made other than they should be.
    fn problems(project: &str, change: impl Fn(&mut NewRevision<'_>)) -> Vec<String> {
        let item = item("größte of all");
        let hash = item.content_hash();
        let passages = [passage("größte", 0, [0.6, 0.8]), passage("of all", 7, [1.0, 0.0])];
        let mut revision = NewRevision {
            id: "a",
            revision: 1,
            item: &item,
            content_hash: &hash,
            passages: &passages,
            updated_at: now_ms(),
            valid_from: 3,
            key_hash: None,
            opened_at: now_ms(),
        };
        change(&mut revision);
        let batch = build_batch(&table_schema(2, "model"), project, &[revision]).unwrap();
        let mut rows = Rows {
            project: "p".to_owned(),
            ours: true,
            read: 0,
            sample_every: 1,
            samples: Vec::new(),
            keys: HashSet::new(),
            live: HashSet::new(),
            open: HashMap::new(),
        };
        let mut flaws = Flaws::default();
        rows.check(&batch, &mut flaws);
        rows.finish(&mut flaws);
        assert_eq!(rows.read as usize, batch.num_rows());
        flaws.into_list().into_iter().map(|flaw| flaw.problem).collect()
    }

    #[test]
    fn rows_as_they_are_stored_have_no_flaw() {
        assert_eq!(problems("p", |_| {}), Vec::<String>::new());
    }

    #[test]
    fn each_flaw_is_found_and_names_its_row() {
        let first = |project: &str, change: &dyn Fn(&mut NewRevision<'_>), wanted: &str| {
            let found = problems(project, change);
            assert!(
                found
                    .iter()
                    .any(|problem| problem.starts_with("row a/") && problem.contains(wanted)),
                "{wanted}: {found:?}"
            );
        };
        first("other", &|_| {}, "belongs to project other");
        first("p", &|revision| revision.content_hash = "0000", "content hash");
        first("p", &|revision| revision.valid_from = 0, "cannot be valid");
        let off = [passage("größte", 0, [0.6, 0.9]), passage("of all", 7, [1.0, 0.0])];
        let off: &'static [EmbeddedPassage] = Box::leak(Box::new(off));
        first("p", &|revision| revision.passages = off, "has length 1.08");
        let zero: &'static [EmbeddedPassage] = Box::leak(Box::new([passage("größte", 0, [0.0, 0.0])]));
        first("p", &|revision| revision.passages = zero, "has length 0.0000");
        let nan: &'static [EmbeddedPassage] = Box::leak(Box::new([passage("größte", 0, [f32::NAN, 0.0])]));
        first("p", &|revision| revision.passages = nan, "not numbers");
        let elsewhere: &'static [EmbeddedPassage] = Box::leak(Box::new([passage("größte", 1, [0.6, 0.8])]));
        first("p", &|revision| revision.passages = elsewhere, "not a part of its text");
    }

    #[test]
    fn rows_that_belong_together_are_compared() {
        let item = item("one two");
        let hash = item.content_hash();
        let passages = [passage("one", 0, [0.6, 0.8]), passage("two", 4, [1.0, 0.0])];
        let revision = |number: i64, valid_from: i64| NewRevision {
            id: "a",
            revision: number,
            item: &item,
            content_hash: &hash,
            passages: &passages,
            updated_at: now_ms(),
            valid_from,
            key_hash: None,
            opened_at: now_ms(),
        };
        let schema = table_schema(2, "model");
        let batch = build_batch(&schema, "p", &[revision(1, 1), revision(2, 2)]).unwrap();
        let mut rows = Rows {
            project: "p".to_owned(),
            ours: true,
            read: 0,
            sample_every: 1,
            samples: Vec::new(),
            keys: HashSet::new(),
            live: HashSet::new(),
            open: HashMap::new(),
        };
        let mut flaws = Flaws::default();
        // The last passage of the second revision is missing, and the first row comes twice.
        rows.check(&batch.slice(0, 3), &mut flaws);
        rows.check(&batch.slice(0, 1), &mut flaws);
        rows.finish(&mut flaws);
        let found: Vec<String> = flaws.into_list().into_iter().map(|flaw| flaw.problem).collect();
        for wanted in [
            "row a/2/0: the item has another live revision",
            "row a/1/0: its key occurs twice",
            "item a, revision 2: 1 of 2 passages are there",
        ] {
            assert!(found.iter().any(|problem| problem == wanted), "{wanted}: {found:?}");
        }
        assert_eq!(rows.samples.len(), 4);
    }

    #[test]
    fn flaws_are_bounded_and_the_rest_is_counted() {
        let mut flaws = Flaws::default();
        for number in 0..MAX_FLAWS + 7 {
            flaws.add(number.to_string(), FIX_ROW);
        }
        let listed = flaws.into_list();
        assert_eq!(listed.len(), MAX_FLAWS + 1);
        assert_eq!(listed[MAX_FLAWS].problem, "and 7 more like these");
    }
}
