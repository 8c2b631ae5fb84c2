//! The table as it lies on disk, read with Lance alone: every row, live and closed, with its vector. What the
//! socket shows is derived from it, so half-written items, doubled rows and wrong vectors show up here first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use ccod_actors::lance::Dataset;
use ccod_actors::store::table::rows::RowReader;
use ccod_actors::store::table::schema::{TABLE_NAME, column};
use ccod_actors::store::view::cosine;
use futures::TryStreamExt;
use serde_json::Value;

use super::journal::{Expectation, Found, State};
use crate::support::Connection;

/// Least cosine between a passage's vector and the embedding of its text. Not 1: a text that is embedded in a
/// batch with others is rounded differently.
const SAME_VECTOR: f32 = 0.999;
/// Texts that are embedded by one call.
const EMBED_BATCH: usize = 64;

/// One row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// `<id>/<revision>/<passage>`.
    pub(crate) row_key: String,
    /// The item's id.
    pub(crate) id: String,
    /// Its revision, from 1.
    pub(crate) revision: i64,
    /// Which passage, from 0.
    pub(crate) passage: i32,
    /// How many passages the revision says it has.
    pub(crate) passages: i32,
    /// Where the passage begins in the text, in characters.
    pub(crate) start: i64,
    /// Where it ends.
    pub(crate) end: i64,
    /// The passage's text.
    pub(crate) passage_text: String,
    /// The whole text; in passage 0.
    pub(crate) text: Option<String>,
    /// The item's number, from its metadata.
    pub(crate) item: u64,
    /// The number of the write, from its metadata.
    pub(crate) write: u64,
    /// The commit that wrote it.
    pub(crate) valid_from: i64,
    /// The commit that closed it.
    pub(crate) valid_to: Option<i64>,
    /// The passage's vector.
    pub(crate) vector: Vec<f32>,
}

/// Where a project's table lies below a home.
pub(crate) fn table_path(home: &Path, project: &str) -> PathBuf {
    home.join("knowledge").join(project).join(format!("{TABLE_NAME}.lance"))
}

/// All rows of a project's table at its newest version; none where there is no table.
pub(crate) async fn read(home: &Path, project: &str) -> Result<Vec<Row>, String> {
    let path = table_path(home, project);
    let versions = std::fs::read_dir(path.join("_versions"))
        .into_iter()
        .flatten()
        .flatten();
    if !versions
        .into_iter()
        .any(|entry| entry.path().extension().is_some_and(|end| end == "manifest"))
    {
        return Ok(Vec::new()); // No table yet, or the beginning of one.
    }
    let uri = path.to_str().ok_or("a path that is not UTF-8")?;
    let dataset = Dataset::open(uri).await.map_err(|error| format!("{uri}: {error}"))?;
    let stream = dataset
        .scan()
        .try_into_stream()
        .await
        .map_err(|error| format!("{uri} cannot be scanned: {error}"))?;
    let batches: Vec<_> = stream
        .try_collect()
        .await
        .map_err(|error| format!("{uri} cannot be read: {error}"))?;
    let mut rows = Vec::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            rows.extend(decode(&RowReader(batch), row).map_err(|error| format!("{uri}: {error}"))?);
        }
    }
    Ok(rows)
}

/// One row; none for what a purge leaves in an item's place, which has no passages and no content.
fn decode(reader: &RowReader<'_>, row: usize) -> Result<Option<Row>, String> {
    let text = |name: &str| {
        reader
            .required_text(name, row)
            .map(str::to_owned)
            .map_err(|error| error.to_string())
    };
    let number = |name: &str| {
        let value = reader.int(name, row).map_err(|error| error.to_string())?;
        value.ok_or_else(|| format!("{name} is null"))
    };
    let small = |name: &str| reader.small_int(name, row).map_err(|error| error.to_string());
    let passages = small(column::PASSAGES)?;
    if passages == 0 {
        return Ok(None);
    }
    let metadata: Value = serde_json::from_str(&text(column::METADATA)?).map_err(|error| error.to_string())?;
    let tag = |name: &str| {
        metadata[name]
            .as_u64()
            .ok_or_else(|| format!("metadata without {name}: {metadata}"))
    };
    Ok(Some(Row {
        row_key: text(column::ROW_KEY)?,
        id: text(column::ID)?,
        revision: number(column::REVISION)?,
        passage: small(column::PASSAGE)?,
        passages,
        start: number(column::START)?,
        end: number(column::END)?,
        passage_text: text(column::PASSAGE_TEXT)?,
        text: reader
            .text(column::TEXT, row)
            .map_err(|error| error.to_string())?
            .map(str::to_owned),
        item: tag("item")?,
        write: tag("write")?,
        valid_from: number(column::VALID_FROM)?,
        valid_to: reader.int(column::VALID_TO, row).map_err(|error| error.to_string())?,
        vector: reader.vector(row).map_err(|error| error.to_string())?,
    }))
}

/// The live items that the rows hold, as the socket should show them.
pub(crate) fn live(project: &str, rows: &[Row]) -> Vec<Found> {
    rows.iter()
        .filter(|row| row.passage == 0 && row.valid_to.is_none())
        .map(|row| Found {
            project: project.to_owned(),
            id: row.id.clone(),
            item: row.item,
            write: row.write,
            text: row.text.clone().unwrap_or_default(),
        })
        .collect()
}

/// What is wrong with the rows of a project in themselves, whatever was stored: half-written items, doubled
/// rows, revisions that overlap, vectors that are not those of their text.
pub(crate) fn check(rows: &[Row], vectors: &Vectors) -> Vec<String> {
    let mut violations = Vec::new();
    let mut keys = BTreeSet::new();
    let mut revisions: BTreeMap<(&str, i64), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        if !keys.insert(&row.row_key) {
            violations.push(format!("row {} is there twice", row.row_key));
        }
        revisions.entry((&row.id, row.revision)).or_default().push(row);
        violations.extend(vectors.check(row));
    }
    for ((id, revision), mut passages) in revisions.clone() {
        passages.sort_by_key(|row| row.passage);
        let complete = passages
            .iter()
            .enumerate()
            .all(|(index, row)| row.passage as usize == index && row.passages as usize == passages.len());
        if !complete {
            let found: Vec<(i32, i32)> = passages.iter().map(|row| (row.passage, row.passages)).collect();
            violations.push(format!(
                "revision {revision} of {id} is half-written: passages {found:?}"
            ));
            continue;
        }
        let Some(text) = &passages[0].text else {
            violations.push(format!("revision {revision} of {id} has no text"));
            continue;
        };
        let characters: Vec<char> = text.chars().collect();
        for row in &passages {
            let range = row.start as usize..row.end as usize;
            let part: Option<String> = characters.get(range).map(|part| part.iter().collect());
            if part.as_deref() != Some(row.passage_text.as_str()) {
                violations.push(format!(
                    "passage {} is not what stands at its place in the text",
                    row.row_key
                ));
            }
            if (row.valid_from, row.valid_to, row.write)
                != (passages[0].valid_from, passages[0].valid_to, passages[0].write)
            {
                violations.push(format!(
                    "the passages of revision {revision} of {id} are of different commits"
                ));
            }
        }
        if passages.last().is_some_and(|row| row.end as usize != characters.len()) {
            violations.push(format!(
                "the passages of revision {revision} of {id} end before its text does"
            ));
        }
    }
    let mut before: Option<(&str, i64, Option<i64>)> = None;
    for ((id, revision), passages) in revisions {
        let (from, to) = (passages[0].valid_from, passages[0].valid_to);
        if to.is_some_and(|to| to <= from) {
            violations.push(format!(
                "revision {revision} of {id} was closed by commit {to:?} and written by {from}"
            ));
        }
        if let Some((last_id, last, last_to)) = before
            && last_id == id
            && last_to.is_none_or(|closed| closed > from)
        {
            violations.push(format!(
                "revision {last} of {id} (until {last_to:?}) and revision {revision} (from {from}) are valid at once"
            ));
        }
        before = Some((id, revision, to));
    }
    violations
}

/// Purged items of which a file of their project still holds rows, in whatever version; and a check that rows
/// would be found, for a check that finds nothing checks nothing.
pub(crate) fn check_purged(home: &Path, project: &str, expectation: &Expectation) -> Vec<String> {
    let items: Vec<(&u64, &State)> = expectation
        .items
        .iter()
        .filter(|(_, expected)| expected.project == project && expected.possible.is_none())
        .map(|(number, expected)| (number, &expected.settled))
        .collect();
    if !items.iter().any(|(_, state)| **state == State::Purged) {
        return Vec::new();
    }
    let there = items_on_disk(home, project);
    items
        .into_iter()
        .filter_map(|(number, state)| match state {
            State::Purged if there.contains(number) => Some(format!("item {number} was purged and is in a file")),
            State::Live(_) if !there.contains(number) => Some(format!("item {number} is live and in no file")),
            _ => None,
        })
        .collect()
}

/// The items of which a file holds rows. Metadata is kept as JSON text, and the small columns of a test are not
/// compressed.
pub(crate) fn items_in(data: &[u8]) -> BTreeSet<u64> {
    const TAG: &[u8] = b"{\"item\":";
    let mut items = BTreeSet::new();
    let mut rest = data;
    while let Some(at) = rest.windows(TAG.len()).position(|window| window == TAG) {
        rest = &rest[at + TAG.len()..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        items.extend(
            std::str::from_utf8(&rest[..digits])
                .ok()
                .and_then(|digits| digits.parse::<u64>().ok()),
        );
    }
    items
}

/// The items of which any file below a project's directory holds rows: old versions and leftovers included.
pub(crate) fn items_on_disk(home: &Path, project: &str) -> BTreeSet<u64> {
    let mut items = BTreeSet::new();
    let mut directories = vec![home.join("knowledge").join(project)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(entry.path());
            } else {
                items.extend(items_in(&std::fs::read(entry.path()).unwrap_or_default()));
            }
        }
    }
    items
}

/// The embeddings of texts, by the daemon's own model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vectors(HashMap<String, Vec<f32>>);

impl Vectors {
    /// Embeds the texts that are not known yet.
    pub(crate) fn learn<'a>(&mut self, connection: &mut Connection, texts: impl IntoIterator<Item = &'a str>) {
        let fresh: BTreeSet<&str> = texts.into_iter().filter(|text| !self.0.contains_key(*text)).collect();
        let fresh: Vec<&str> = fresh.into_iter().collect();
        for batch in fresh.chunks(EMBED_BATCH) {
            let embedded = connection.call("embedding.embed", serde_json::json!({"texts": batch}));
            let embeddings: Vec<Vec<f32>> =
                serde_json::from_value(embedded["embeddings"].clone()).expect("a list of vectors");
            assert_eq!(embeddings.len(), batch.len());
            self.0
                .extend(batch.iter().map(|text| (*text).to_owned()).zip(embeddings));
        }
    }

    /// What is wrong with a row's vector.
    fn check(&self, row: &Row) -> Option<String> {
        let Some(expected) = self.0.get(&row.passage_text) else {
            return Some(format!(
                "row {} has a text that nobody stored: {:?}",
                row.row_key, row.passage_text
            ));
        };
        if row.vector.len() != expected.len() {
            return Some(format!(
                "row {} has a vector of {} components",
                row.row_key,
                row.vector.len()
            ));
        }
        let similarity = cosine(&row.vector, expected);
        (similarity < SAME_VECTOR).then(|| {
            format!(
                "the vector of row {} is not that of its text: cosine {similarity}",
                row.row_key
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, revision: i64, passage: i32, passages: i32, valid: (i64, Option<i64>)) -> Row {
        Row {
            row_key: format!("{id}/{revision}/{passage}"),
            id: id.to_owned(),
            revision,
            passage,
            passages,
            start: i64::from(passage) * 2,
            end: i64::from(passage) * 2 + 2,
            passage_text: "ab".to_owned(),
            text: (passage == 0).then(|| "ab".repeat(passages as usize)),
            item: 1,
            write: 1,
            valid_from: valid.0,
            valid_to: valid.1,
            vector: vec![1.0, 0.0],
        }
    }

    #[test]
    fn whole_items_with_their_own_vectors_are_fine_and_nothing_else_is() {
        let vectors = Vectors(HashMap::from([("ab".to_owned(), vec![1.0, 0.0])]));
        let good = vec![
            row("a", 1, 0, 2, (1, Some(3))),
            row("a", 1, 1, 2, (1, Some(3))),
            row("a", 2, 0, 1, (3, None)),
            row("b", 1, 0, 1, (2, None)),
        ];
        assert_eq!(check(&good, &vectors), Vec::<String>::new());

        let broken = |change: &dyn Fn(&mut Vec<Row>)| {
            let mut rows = good.clone();
            change(&mut rows);
            check(&rows, &vectors)
        };
        assert_eq!(broken(&|rows| drop(rows.remove(1))).len(), 1, "half-written");
        assert!(!broken(&|rows| rows.push(rows[3].clone())).is_empty(), "doubled");
        assert_eq!(
            broken(&|rows| rows[3].vector = vec![0.0, 1.0]).len(),
            1,
            "another vector"
        );
        assert_eq!(broken(&|rows| rows[3].vector = vec![1.0]).len(), 1, "a short vector");
        assert_eq!(broken(&|rows| rows[3].text = None).len(), 1, "no text");
        assert_eq!(broken(&|rows| rows[2].valid_from = 2).len(), 1, "two revisions at once");
        assert!(
            !broken(&|rows| rows[1].valid_to = None).is_empty(),
            "a passage left open"
        );
    }
}
