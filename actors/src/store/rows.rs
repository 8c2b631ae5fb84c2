//! Items to rows and back.

use std::sync::Arc;

use arrow_array::builder::{
    FixedSizeListBuilder, Float32Builder, Int32Builder, Int64Builder, ListBuilder, StringBuilder,
    TimestampMillisecondBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, TimestampMillisecondType};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use crate::domain::{MatchedPassage, NewItem, StoredItem, metadata_terms};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::schema::column;

/// One passage of an item with its embedding.
#[derive(Clone, Debug)]
pub struct EmbeddedPassage {
    /// Where it begins, in Unicode scalar values.
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
}

/// The key of a row.
pub fn row_key(id: &str, revision: i64, passage: usize) -> String {
    format!("{id}/{revision}/{passage}")
}

/// Builds the rows of several revisions as one batch: one batch is one fragment is one version.
pub fn build_batch(schema: &SchemaRef, project: &str, revisions: &[NewRevision<'_>]) -> KnowledgeResult<RecordBatch> {
    let dimensions = vector_dimensions(schema)?;
    let mut row_keys = StringBuilder::new();
    let mut ids = StringBuilder::new();
    let mut revision_numbers = Int64Builder::new();
    let mut passage_indices = Int32Builder::new();
    let mut passage_counts = Int32Builder::new();
    let mut starts = Int64Builder::new();
    let mut ends = Int64Builder::new();
    let mut passage_texts = StringBuilder::new();
    let mut texts = StringBuilder::new();
    let mut kinds = StringBuilder::new();
    let mut agents = StringBuilder::new();
    let mut session_ids = StringBuilder::new();
    let mut projects = StringBuilder::new();
    let mut metadata = StringBuilder::new();
    let mut terms = ListBuilder::new(StringBuilder::new());
    let mut timestamps = TimestampMillisecondBuilder::new().with_timezone("UTC");
    let mut updated = TimestampMillisecondBuilder::new().with_timezone("UTC");
    let mut valid_froms = Int64Builder::new();
    let mut valid_tos = Int64Builder::new();
    let mut closed = TimestampMillisecondBuilder::new().with_timezone("UTC");
    let mut hashes = StringBuilder::new();
    let mut keys = StringBuilder::new();
    let mut vectors = FixedSizeListBuilder::new(Float32Builder::new(), dimensions);

    for revision in revisions {
        let item = revision.item;
        let metadata_text = Value::Object(item.metadata.clone()).to_string();
        let item_terms = metadata_terms(&item.metadata);
        for (index, passage) in revision.passages.iter().enumerate() {
            if passage.vector.len() != dimensions as usize {
                return Err(KnowledgeError::internal(format!(
                    "an embedding has {} dimensions, the table {dimensions}",
                    passage.vector.len()
                )));
            }
            row_keys.append_value(row_key(revision.id, revision.revision, index));
            ids.append_value(revision.id);
            revision_numbers.append_value(revision.revision);
            passage_indices.append_value(index as i32);
            passage_counts.append_value(revision.passages.len() as i32);
            starts.append_value(passage.start as i64);
            ends.append_value(passage.end as i64);
            passage_texts.append_value(&passage.text);
            texts.append_option((index == 0).then_some(&item.text));
            kinds.append_value(item.kind.as_str());
            agents.append_option(item.agent.as_deref());
            session_ids.append_option(item.session_id.as_deref());
            projects.append_value(project);
            metadata.append_value(&metadata_text);
            for term in &item_terms {
                terms.values().append_value(term);
            }
            terms.append(true);
            timestamps.append_value(item.timestamp.timestamp_millis());
            updated.append_value(revision.updated_at.timestamp_millis());
            valid_froms.append_value(revision.valid_from);
            valid_tos.append_null();
            closed.append_null();
            hashes.append_value(revision.content_hash);
            keys.append_option(item.idempotency_key.as_deref());
            vectors.values().append_slice(&passage.vector);
            vectors.append(true);
        }
    }

    let columns: Vec<ArrayRef> = vec![
        Arc::new(row_keys.finish()),
        Arc::new(ids.finish()),
        Arc::new(revision_numbers.finish()),
        Arc::new(passage_indices.finish()),
        Arc::new(passage_counts.finish()),
        Arc::new(starts.finish()),
        Arc::new(ends.finish()),
        Arc::new(passage_texts.finish()),
        Arc::new(texts.finish()),
        Arc::new(kinds.finish()),
        Arc::new(agents.finish()),
        Arc::new(session_ids.finish()),
        Arc::new(projects.finish()),
        Arc::new(metadata.finish()),
        Arc::new(terms.finish()),
        Arc::new(timestamps.finish()),
        Arc::new(updated.finish()),
        Arc::new(valid_froms.finish()),
        Arc::new(valid_tos.finish()),
        Arc::new(closed.finish()),
        Arc::new(hashes.finish()),
        Arc::new(keys.finish()),
        Arc::new(vectors.finish()),
    ];
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(KnowledgeError::internal)
}

fn vector_dimensions(schema: &SchemaRef) -> KnowledgeResult<i32> {
    match schema
        .field_with_name(column::VECTOR)
        .map(arrow_schema::Field::data_type)
    {
        Ok(arrow_schema::DataType::FixedSizeList(_, dimensions)) => Ok(*dimensions),
        _ => Err(KnowledgeError::internal("the table has no vector column")),
    }
}

/// Columns that [`read_item`] needs: all but the vector, the terms and the passage's own.
pub const ITEM_COLUMNS: [&str; 18] = [
    column::ID,
    column::REVISION,
    column::PASSAGE,
    column::PASSAGES,
    column::START,
    column::END,
    column::PASSAGE_TEXT,
    column::TEXT,
    column::TYPE,
    column::PROJECT_ID,
    column::AGENT,
    column::SESSION_ID,
    column::METADATA,
    column::TIMESTAMP,
    column::UPDATED_AT,
    column::CONTENT_HASH,
    column::VALID_FROM,
    column::VALID_TO,
];

/// Typed access to the columns of a batch. A column that is missing or of another type is a defect of the
/// query that made the batch, and reported as one.
pub struct RowReader<'a>(pub &'a RecordBatch);

impl RowReader<'_> {
    fn column(&self, name: &str) -> KnowledgeResult<&ArrayRef> {
        self.0
            .column_by_name(name)
            .ok_or_else(|| KnowledgeError::internal(format!("the query returned no column {name}")))
    }

    /// A text, or nothing where it is null.
    pub fn text(&self, name: &str, row: usize) -> KnowledgeResult<Option<&str>> {
        let array = self
            .column(name)?
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
        let array = self
            .column(name)?
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

    /// A time.
    pub fn time(&self, name: &str, row: usize) -> KnowledgeResult<DateTime<Utc>> {
        let milliseconds = self
            .column(name)?
            .as_primitive_opt::<TimestampMillisecondType>()
            .map(|array| array.value(row))
            .ok_or_else(|| KnowledgeError::internal(format!("column {name} is not a timestamp")))?;
        DateTime::from_timestamp_millis(milliseconds)
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

    /// The passage of a row.
    pub fn passage(&self, row: usize) -> KnowledgeResult<MatchedPassage> {
        Ok(MatchedPassage {
            text: self.required_text(column::PASSAGE_TEXT, row)?.to_owned(),
            start: self.int(column::START, row)?.unwrap_or(0),
            end: self.int(column::END, row)?.unwrap_or(0),
            index: self.small_int(column::PASSAGE, row)?,
        })
    }

    /// The item of a row of passage 0 (the other passages do not hold the whole text).
    pub fn item(&self, row: usize) -> KnowledgeResult<StoredItem> {
        let metadata_text = self.required_text(column::METADATA, row)?;
        let metadata: Map<String, Value> = serde_json::from_str(metadata_text)
            .map_err(|error| KnowledgeError::internal(format!("the metadata of a stored item is not JSON: {error}")))?;
        Ok(StoredItem {
            id: self.required_text(column::ID, row)?.to_owned(),
            revision: self.int(column::REVISION, row)?.unwrap_or(1),
            text: self.text(column::TEXT, row)?.unwrap_or_default().to_owned(),
            passages: u32::try_from(self.small_int(column::PASSAGES, row)?).unwrap_or(1),
            kind: self.required_text(column::TYPE, row)?.to_owned(),
            project: self.required_text(column::PROJECT_ID, row)?.to_owned(),
            agent: self.text(column::AGENT, row)?.map(str::to_owned),
            session_id: self.text(column::SESSION_ID, row)?.map(str::to_owned),
            metadata,
            timestamp: self.time(column::TIMESTAMP, row)?,
            updated_at: self.time(column::UPDATED_AT, row)?,
            content_hash: self.required_text(column::CONTENT_HASH, row)?.to_owned(),
            valid_from: self.int(column::VALID_FROM, row)?.unwrap_or(0),
            valid_to: self.int(column::VALID_TO, row)?,
        })
    }
}
