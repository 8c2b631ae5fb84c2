//! Items to rows and back.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMillisecondType};
use arrow_array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray, new_null_array};
use arrow_schema::SchemaRef;
use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::domain::{Content, NewItem, OnDuplicate, Passage, StoredItem, metadata_terms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::table::columns::{Column, NewRow, read_item};
use crate::store::table::schema::{column, may_be_missing, vector_dimensions};

/// One passage of an item with its embedding.
#[derive(Clone, Debug)]
pub struct EmbeddedPassage {
    /// Where it begins, in Unicode scalar values, as the table holds it.
    pub start: usize,
    /// Where it ends (exclusive).
    pub end: usize,
    /// Its text.
    pub text: String,
    /// Its embedding.
    pub vector: Arc<[f32]>,
}

/// Everything that the rows of one revision of an item hold.
#[derive(Clone, Debug)]
pub struct NewRevision<'a> {
    /// The item's id.
    pub id: &'a str,
    /// The revision, from 1.
    pub revision: i64,
    /// The item.
    pub item: &'a NewItem,
    /// SHA-256 of its content.
    pub content_hash: &'a str,
    /// Its passages, at least one.
    pub passages: &'a [EmbeddedPassage],
    /// When it was changed.
    pub updated_at: DateTime<Utc>,
    /// The commit that writes it.
    pub valid_from: i64,
    /// The content hash with which the item was first stored, whatever it was updated to since; none where it is not
    /// known. A retry by key or id is compared with it.
    pub key_hash: Option<&'a str>,
    /// Since when it counts, for who asks how things were at a time.
    pub opened_at: DateTime<Utc>,
}

/// The key of a row.
pub fn row_key(id: &str, revision: i64, passage: usize) -> String {
    format!("{id}/{revision}/{passage}")
}

/// Builds the rows of several revisions as one batch: one batch is one fragment is one version. Columns of the
/// table that this version does not know are null.
pub fn build_batch(schema: &SchemaRef, project: &str, revisions: &[NewRevision<'_>]) -> KnowledgeResult<RecordBatch> {
    let dimensions = table_dimensions(schema)?;
    let metadata: Vec<(String, Vec<String>)> = revisions
        .iter()
        .map(|revision| {
            let metadata = &revision.item.content.metadata;
            (Value::Object(metadata.clone()).to_string(), metadata_terms(metadata))
        })
        .collect();
    let mut rows = Vec::new();
    for (revision, (metadata, terms)) in revisions.iter().zip(&metadata) {
        for (index, passage) in revision.passages.iter().enumerate() {
            if passage.vector.len() != dimensions as usize {
                return Err(KnowledgeError::internal(format!(
                    "an embedding has {} dimensions, the table {dimensions}",
                    passage.vector.len()
                )));
            }
            rows.push(NewRow {
                project,
                revision,
                metadata,
                terms,
                index,
                passage,
            });
        }
    }
    let columns = schema.fields().iter().map(|field| match Column::find(field.name()) {
        Some(column) => column.build(&rows, dimensions),
        None => new_null_array(field.data_type(), rows.len()),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).map_err(KnowledgeError::internal)
}

/// The same rows in another schema, column by column: one that they lack is null.
pub(crate) fn conform(batch: &RecordBatch, schema: &SchemaRef) -> KnowledgeResult<RecordBatch> {
    let columns = schema.fields().iter().map(|field| {
        batch
            .column_by_name(field.name())
            .cloned()
            .unwrap_or_else(|| new_null_array(field.data_type(), batch.num_rows()))
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).map_err(KnowledgeError::internal)
}

/// What a purge leaves of an item: one closed row with its id, so that a feed can report the purge later. It is
/// valid in no version, and holds none of the item's content.
pub fn tombstone_batch(
    schema: &SchemaRef,
    project: &str,
    ids: &[(String, i64)],
    sequence: i64,
    at: DateTime<Utc>,
) -> KnowledgeResult<RecordBatch> {
    let nothing = NewItem {
        content: Content::default(),
        id: None,
        idempotency_key: None,
        on_duplicate: OnDuplicate::Store,
        timestamp: at,
        updated_at: None,
    };
    let passage = [EmbeddedPassage {
        start: 0,
        end: 0,
        text: String::new(),
        vector: vec![0.0; table_dimensions(schema)? as usize].into(),
    }];
    let revisions: Vec<NewRevision<'_>> = ids
        .iter()
        .map(|(id, revision)| NewRevision {
            id,
            revision: *revision,
            item: &nothing,
            content_hash: "",
            passages: &passage,
            updated_at: at,
            valid_from: sequence,
            key_hash: None,
            opened_at: at,
        })
        .collect();
    let batch = build_batch(schema, project, &revisions)?;
    let none = Arc::new(Int32Array::from(vec![0; batch.num_rows()]));
    let batch = with_column(&batch, column::PASSAGES, none)?;
    let closed_at = vec![at; batch.num_rows()];
    close_rows(&batch, sequence, &closed_at)
}

/// Refuses vectors that hold what is not a number: no search by meaning would ever find their rows.
pub(crate) fn refuse_nan(batch: &RecordBatch) -> KnowledgeResult<()> {
    let rows = RowReader(batch);
    for row in 0..batch.num_rows() {
        if rows.vector(row)?.iter().any(|component| component.is_nan()) {
            return Err(KnowledgeError::internal("an embedding holds what is not a number"));
        }
    }
    Ok(())
}

/// Whether a row of one batch has the key of a row of the other.
pub(crate) fn share_a_key(one: &RecordBatch, other: &RecordBatch) -> bool {
    let keys = |batch: &RecordBatch| -> HashSet<String> {
        let rows = RowReader(batch);
        let keys = (0..batch.num_rows()).filter_map(|row| rows.text(column::ROW_KEY, row).ok().flatten());
        keys.map(str::to_owned).collect()
    };
    !keys(one).is_disjoint(&keys(other))
}

/// The same rows, closed by commit `sequence`, each at its own time.
pub fn close_rows(batch: &RecordBatch, sequence: i64, closed_at: &[DateTime<Utc>]) -> KnowledgeResult<RecordBatch> {
    let valid_to = Arc::new(Int64Array::from(vec![sequence; batch.num_rows()]));
    let closed_at: Vec<i64> = closed_at.iter().map(DateTime::timestamp_millis).collect();
    let closed_at = TimestampMillisecondArray::from(closed_at).with_timezone("UTC");
    let batch = with_column(batch, column::VALID_TO, valid_to)?;
    with_column(&batch, column::CLOSED_AT, Arc::new(closed_at))
}

fn with_column(batch: &RecordBatch, name: &str, values: ArrayRef) -> KnowledgeResult<RecordBatch> {
    let index = batch.schema().index_of(name).map_err(KnowledgeError::internal)?;
    let mut columns = batch.columns().to_vec();
    columns[index] = values;
    RecordBatch::try_new(batch.schema(), columns).map_err(KnowledgeError::internal)
}

/// One revision of an item with all of its passages, as read from its rows.
#[derive(Clone, Debug)]
pub struct StoredRevision {
    /// The item, as in passage 0.
    pub stored: StoredItem,
    /// The key that it was stored with.
    pub idempotency_key: Option<String>,
    /// The content hash with which the item was first stored, where it is known.
    pub key_hash: Option<String>,
    /// Its passages, in order.
    pub passages: Vec<EmbeddedPassage>,
    /// Its rows in the batch that was read. A row that stands in the table twice, which it must not, is there twice: it
    /// is closed with the other, or the item would stay live.
    pub rows: Vec<u32>,
}

/// Gathers the revisions in a batch of whole rows, by id and number.
pub fn revisions(batch: &RecordBatch) -> KnowledgeResult<BTreeMap<(String, i64), StoredRevision>> {
    /// A revision's first row, all of its passages with their rows, and rows of passages that are there twice.
    type Gathered = (Option<StoredRevision>, BTreeMap<u32, (u32, EmbeddedPassage)>, Vec<u32>);
    let reader = RowReader(batch);
    let mut found: BTreeMap<(String, i64), Gathered> = BTreeMap::new();
    for row in 0..batch.num_rows() {
        let id = reader.required_text(column::ID, row)?.to_owned();
        let revision = reader.int(column::REVISION, row)?.unwrap_or(1);
        let entry = found.entry((id, revision)).or_default();
        let passage = reader.passage(row)?;
        if passage.index == 0 {
            entry.0 = Some(StoredRevision {
                stored: reader.item(row)?,
                idempotency_key: reader.text(column::IDEMPOTENCY_KEY, row)?.map(str::to_owned),
                key_hash: reader.key_hash(row)?.map(str::to_owned),
                passages: Vec::new(),
                rows: Vec::new(),
            });
        }
        let embedded = EmbeddedPassage {
            start: usize::try_from(passage.start).unwrap_or(0),
            end: usize::try_from(passage.end).unwrap_or(0),
            text: passage.text,
            vector: reader.vector(row)?.into(),
        };
        let number = u32::try_from(row).map_err(KnowledgeError::internal)?;
        if let Some((again, _)) = entry.1.insert(passage.index, (number, embedded)) {
            entry.2.push(again);
        }
    }
    found
        .into_iter()
        .map(|((id, number), (revision, passages, again))| {
            let mut revision =
                revision.ok_or_else(|| KnowledgeError::internal(format!("item {id} has lost its first passage")))?;
            (revision.rows, revision.passages) = passages.into_values().unzip();
            revision.rows.extend(again);
            Ok(((id, number), revision))
        })
        .collect()
}

fn table_dimensions(schema: &SchemaRef) -> KnowledgeResult<i32> {
    vector_dimensions(schema).ok_or_else(|| KnowledgeError::internal("the table has no vector column"))
}

/// Typed access to the columns of a batch. A column that is missing or of another type is a defect of the
/// query that made the batch, and reported as one, unless the table may be without it: then it is null.
pub struct RowReader<'a>(pub &'a RecordBatch);

impl RowReader<'_> {
    fn column(&self, name: &str) -> KnowledgeResult<&ArrayRef> {
        self.0
            .column_by_name(name)
            .ok_or_else(|| KnowledgeError::internal(format!("the query returned no column {name}")))
    }

    /// As `column`; none where the table is without it.
    fn column_if_present(&self, name: &str) -> KnowledgeResult<Option<&ArrayRef>> {
        if may_be_missing(name) {
            Ok(self.0.column_by_name(name))
        } else {
            self.column(name).map(Some)
        }
    }

    /// A text, or nothing where it is null.
    pub fn text(&self, name: &str, row: usize) -> KnowledgeResult<Option<&str>> {
        let Some(array) = self.column_if_present(name)? else {
            return Ok(None);
        };
        let array = array
            .as_string_opt::<i32>()
            .ok_or_else(|| KnowledgeError::internal(format!("column {name} is not text")))?;
        Ok((!array.is_null(row)).then(|| array.value(row)))
    }

    /// A text that is never null.
    pub fn required_text(&self, name: &str, row: usize) -> KnowledgeResult<&str> {
        self.text(name, row)?
            .ok_or_else(|| KnowledgeError::internal(format!("column {name} is null")))
    }

    /// A 64-bit integer, or nothing where it is null.
    pub fn int(&self, name: &str, row: usize) -> KnowledgeResult<Option<i64>> {
        let Some(array) = self.column_if_present(name)? else {
            return Ok(None);
        };
        let array = array
            .as_primitive_opt::<Int64Type>()
            .ok_or_else(|| KnowledgeError::internal(format!("column {name} is not a 64-bit integer")))?;
        Ok((!array.is_null(row)).then(|| array.value(row)))
    }

    /// A 32-bit integer.
    pub fn small_int(&self, name: &str, row: usize) -> KnowledgeResult<i32> {
        self.column(name)?
            .as_primitive_opt::<Int32Type>()
            .map(|array| array.value(row))
            .ok_or_else(|| KnowledgeError::internal(format!("column {name} is not a 32-bit integer")))
    }

    /// A 32-bit float, or nothing where it is null or the column is absent (scores).
    pub fn float(&self, name: &str, row: usize) -> Option<f32> {
        let array = self
            .0
            .column_by_name(name)?
            .as_primitive_opt::<arrow_array::types::Float32Type>()?;
        (!array.is_null(row)).then(|| array.value(row))
    }

    /// A time that is never null.
    pub fn time(&self, name: &str, row: usize) -> KnowledgeResult<DateTime<Utc>> {
        self.optional_time(name, row)?
            .ok_or_else(|| KnowledgeError::internal(format!("column {name} is null")))
    }

    /// A time, or nothing where it is null.
    pub fn optional_time(&self, name: &str, row: usize) -> KnowledgeResult<Option<DateTime<Utc>>> {
        let Some(array) = self.column_if_present(name)? else {
            return Ok(None);
        };
        let array = array
            .as_primitive_opt::<TimestampMillisecondType>()
            .ok_or_else(|| KnowledgeError::internal(format!("column {name} is not a timestamp")))?;
        if array.is_null(row) {
            return Ok(None);
        }
        DateTime::from_timestamp_millis(array.value(row))
            .map(Some)
            .ok_or_else(|| KnowledgeError::internal(format!("column {name} holds an impossible time")))
    }

    /// A vector.
    pub fn vector(&self, row: usize) -> KnowledgeResult<Vec<f32>> {
        let list = self
            .column(column::VECTOR)?
            .as_fixed_size_list_opt()
            .ok_or_else(|| KnowledgeError::internal("column vector is not a list"))?
            .value(row);
        Ok(list
            .as_primitive_opt::<arrow_array::types::Float32Type>()
            .ok_or_else(|| KnowledgeError::internal("column vector is not of floats"))?
            .values()
            .to_vec())
    }

    /// The content hash with which the row's item was first stored, where it is known. Rows of schema 1.0 have none;
    /// an item's first revision is what it was stored with.
    pub fn key_hash(&self, row: usize) -> KnowledgeResult<Option<&str>> {
        if let Some(known) = self.text(column::KEY_HASH, row)? {
            return Ok(Some(known));
        }
        if self.int(column::REVISION, row)? == Some(1) {
            return self.text(column::CONTENT_HASH, row);
        }
        Ok(None)
    }

    /// The passage of a row, its place in Unicode scalar values.
    pub fn passage(&self, row: usize) -> KnowledgeResult<Passage> {
        let index = u32::try_from(self.small_int(column::PASSAGE, row)?).map_err(KnowledgeError::internal)?;
        self.passage_of(row, index)
    }

    /// As [`RowReader::passage`], of a row whose number among the item's passages is known.
    pub(crate) fn passage_of(&self, row: usize, index: u32) -> KnowledgeResult<Passage> {
        let place = |name| -> KnowledgeResult<u64> {
            let place = self.int(name, row)?.unwrap_or(0);
            Ok(u64::try_from(place).unwrap_or(0))
        };
        Ok(Passage {
            text: self.required_text(column::PASSAGE_TEXT, row)?.to_owned(),
            start: place(column::START)?,
            end: place(column::END)?,
            index,
        })
    }

    /// The item of a row of passage 0 (the other passages do not hold the whole text).
    pub fn item(&self, row: usize) -> KnowledgeResult<StoredItem> {
        read_item(self, row)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::{DataType, Field, Schema};
    use serde_json::Map;

    use super::*;
    use crate::domain::KnowledgeType;
    use crate::store::table::schema::table_schema;

    fn item() -> NewItem {
        NewItem {
            content: Content {
                text: "a text".to_owned(),
                knowledge_type: KnowledgeType::Decision,
                agent: Some("tester".to_owned()),
                session_id: None,
                metadata: Map::from_iter([("k".to_owned(), Value::from(1))]),
            },
            id: None,
            idempotency_key: Some("key".to_owned()),
            on_duplicate: OnDuplicate::Return,
            timestamp: DateTime::UNIX_EPOCH,
            updated_at: None,
        }
    }

    fn batch(schema: &SchemaRef, revision: i64, key_hash: Option<&str>) -> RecordBatch {
        let passage = [EmbeddedPassage {
            start: 0,
            end: 6,
            text: "a text".to_owned(),
            vector: Arc::from([0.6, 0.8]),
        }];
        let revision = NewRevision {
            id: "a",
            revision,
            item: &item(),
            content_hash: "hash",
            passages: &passage,
            updated_at: DateTime::UNIX_EPOCH,
            valid_from: 3,
            key_hash,
            opened_at: DateTime::UNIX_EPOCH,
        };
        build_batch(schema, "p", &[revision]).unwrap()
    }

    /// Our schema as another version of the program has it.
    fn changed(change: impl FnOnce(&mut Vec<Field>)) -> SchemaRef {
        let ours = table_schema(2, "model");
        let mut fields: Vec<Field> = ours.fields().iter().map(|field| field.as_ref().clone()).collect();
        change(&mut fields);
        Arc::new(Schema::new(fields))
    }

    fn assert_read(batch: &RecordBatch, key_hash: Option<&str>) {
        let found = revisions(batch).unwrap().into_values().next().unwrap();
        let StoredItem {
            item,
            valid_from,
            valid_to,
            ..
        } = &found.stored;
        assert_eq!((item.id.as_str(), &item.content()), ("a", &self::item().content));
        assert_eq!((*valid_from, *valid_to), (3, None));
        assert_eq!(found.idempotency_key.as_deref(), Some("key"));
        assert_eq!(found.key_hash.as_deref(), key_hash);
        assert_eq!(found.passages[0].vector.as_ref(), [0.6, 0.8]);
    }

    #[test]
    fn rows_go_by_names_whatever_the_order_of_the_columns() {
        assert_read(&batch(&table_schema(2, "model"), 2, Some("first")), Some("first"));
        assert_read(
            &batch(&changed(|fields| fields.reverse()), 2, Some("first")),
            Some("first"),
        );
    }

    #[test]
    fn a_table_without_a_column_is_written_and_read() {
        let old = changed(|fields| fields.retain(|field| !may_be_missing(field.name())));
        assert_eq!(old.fields().len(), 23);
        assert_read(&batch(&old, 2, Some("first")), None);
        // A first revision is what its key was stored with.
        assert_read(&batch(&old, 1, None), Some("hash"));
        // In the new schema its rows have null there.
        let grown = conform(&batch(&old, 2, None), &table_schema(2, "model")).unwrap();
        assert_eq!(grown.column_by_name(column::OPENED_AT).unwrap().null_count(), 1);
        assert_read(&grown, None);
        assert!(
            conform(&grown.project(&[0, 1]).unwrap(), &old).is_err(),
            "an id is not null"
        );
    }

    #[test]
    fn columns_that_only_a_newer_version_knows_are_null_in_new_rows_and_kept_in_old_ones() {
        let newer = changed(|fields| fields.insert(3, Field::new("future", DataType::Int64, true)));
        let written = batch(&newer, 1, None);
        assert_eq!(written.column_by_name("future").unwrap().null_count(), 1);
        let kept = with_column(&written, "future", Arc::new(Int64Array::from(vec![7]))).unwrap();
        let closed = close_rows(&kept, 9, &[DateTime::UNIX_EPOCH]).unwrap();
        assert_eq!(RowReader(&closed).int("future", 0).unwrap(), Some(7));
        assert_eq!(RowReader(&closed).int(column::VALID_TO, 0).unwrap(), Some(9));
        let made = tombstone_batch(&newer, "p", &[("a".to_owned(), 2)], 4, DateTime::UNIX_EPOCH);
        assert_eq!(made.unwrap().schema(), newer);
    }

    #[test]
    fn a_row_that_stands_in_the_table_twice_is_closed_twice() {
        let once = batch(&table_schema(2, "model"), 2, None);
        let twice = arrow_select::concat::concat_batches(&once.schema(), [&once, &once]).unwrap();
        let found = revisions(&twice).unwrap().into_values().next().unwrap();
        let mut rows = found.rows.clone();
        rows.sort_unstable();
        assert_eq!((rows, found.passages.len()), (vec![0, 1], 1));
    }

    #[test]
    fn vectors_that_are_not_numbers_are_refused() {
        let sound = batch(&table_schema(2, "model"), 1, None);
        assert!(refuse_nan(&sound).is_ok());
        let vector = EmbeddedPassage {
            start: 0,
            end: 6,
            text: "a text".to_owned(),
            vector: Arc::from([0.6, f32::NAN]),
        };
        let revision = NewRevision {
            id: "a",
            revision: 1,
            item: &item(),
            content_hash: "hash",
            passages: &[vector],
            updated_at: DateTime::UNIX_EPOCH,
            valid_from: 3,
            key_hash: None,
            opened_at: DateTime::UNIX_EPOCH,
        };
        let damaged = build_batch(&sound.schema(), "p", &[revision]).unwrap();
        assert!(refuse_nan(&damaged).is_err());
    }

    #[test]
    fn keys_are_of_a_revision() {
        let schema = table_schema(2, "model");
        let (first, second) = (batch(&schema, 1, None), batch(&schema, 2, None));
        assert!(share_a_key(&first, &first) && !share_a_key(&first, &second));
        assert!(!share_a_key(&first, &RecordBatch::new_empty(schema)));
    }
}
