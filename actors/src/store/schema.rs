//! The table: one row for each passage of each revision of each item.
//!
//! Model identity and schema version stand in the schema's metadata, so that vectors of different models are
//! never mixed and a table of another shape is known before it is touched.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// Name of the table inside a project's database (the old tool's name: copying its data in is the migration).
pub const TABLE_NAME: &str = "orchestra_knowledge";
/// Version of this schema, in the table's metadata under [`SCHEMA_VERSION_KEY`].
pub const SCHEMA_VERSION: &str = "1";
/// Key of the schema version in the schema's metadata.
pub const SCHEMA_VERSION_KEY: &str = "ccod.schema_version";
/// Key of the model's identity in the schema's metadata.
pub const MODEL_KEY: &str = "ccod.model";

/// Column names, used by filters and projections alike.
pub mod column {
    /// `<id>/<revision>/<passage>`: the key of a row.
    pub const ROW_KEY: &str = "row_key";
    /// The item.
    pub const ID: &str = "id";
    /// Change counter of the item, from 1.
    pub const REVISION: &str = "revision";
    /// Passage counter of the revision, from 0.
    pub const PASSAGE: &str = "passage";
    /// Number of passages of the revision, in passage 0 and the others alike.
    pub const PASSAGES: &str = "passages";
    /// Where the passage begins in the text, in Unicode scalar values.
    pub const START: &str = "start";
    /// Where it ends (exclusive).
    pub const END: &str = "end";
    /// Its text; full-text indexed.
    pub const PASSAGE_TEXT: &str = "passage_text";
    /// The item's whole text; in passage 0 only.
    pub const TEXT: &str = "text";
    /// Kind of knowledge.
    pub const TYPE: &str = "type";
    /// Who learned it.
    pub const AGENT: &str = "agent";
    /// In which session.
    pub const SESSION_ID: &str = "session_id";
    /// The project.
    pub const PROJECT_ID: &str = "project_id";
    /// Metadata as JSON text.
    pub const METADATA: &str = "metadata";
    /// Metadata as `key=json` terms, for exact filters.
    pub const METADATA_TERMS: &str = "metadata_terms";
    /// Creation.
    pub const TIMESTAMP: &str = "timestamp";
    /// Last change.
    pub const UPDATED_AT: &str = "updated_at";
    /// The commit that wrote the row.
    pub const VALID_FROM: &str = "valid_from";
    /// The commit that closed it; null while it is live.
    pub const VALID_TO: &str = "valid_to";
    /// When it was closed; null while it is live.
    pub const CLOSED_AT: &str = "closed_at";
    /// SHA-256 of type, agent and text.
    pub const CONTENT_HASH: &str = "content_hash";
    /// The caller's key for retries.
    pub const IDEMPOTENCY_KEY: &str = "idempotency_key";
    /// The passage's embedding.
    pub const VECTOR: &str = "vector";
}

/// The timestamps' type: milliseconds, UTC.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// The schema of a table whose vectors have `dimensions` components and come from `model`.
pub fn table_schema(dimensions: usize, model: &str) -> SchemaRef {
    use column::*;
    let dimensions = i32::try_from(dimensions).unwrap_or(i32::MAX);
    let required = |name, data_type| Field::new(name, data_type, false);
    let optional = |name, data_type| Field::new(name, data_type, true);
    let fields = vec![
        required(ROW_KEY, DataType::Utf8),
        required(ID, DataType::Utf8),
        required(REVISION, DataType::Int64),
        required(PASSAGE, DataType::Int32),
        required(PASSAGES, DataType::Int32),
        required(START, DataType::Int64),
        required(END, DataType::Int64),
        required(PASSAGE_TEXT, DataType::Utf8),
        optional(TEXT, DataType::Utf8),
        required(TYPE, DataType::Utf8),
        optional(AGENT, DataType::Utf8),
        optional(SESSION_ID, DataType::Utf8),
        required(PROJECT_ID, DataType::Utf8),
        required(METADATA, DataType::Utf8),
        optional(
            METADATA_TERMS,
            DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
        ),
        required(TIMESTAMP, timestamp_type()),
        required(UPDATED_AT, timestamp_type()),
        required(VALID_FROM, DataType::Int64),
        optional(VALID_TO, DataType::Int64),
        optional(CLOSED_AT, timestamp_type()),
        required(CONTENT_HASH, DataType::Utf8),
        optional(IDEMPOTENCY_KEY, DataType::Utf8),
        required(
            VECTOR,
            DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Float32, true)), dimensions),
        ),
    ];
    let metadata = HashMap::from([
        (SCHEMA_VERSION_KEY.to_owned(), SCHEMA_VERSION.to_owned()),
        (MODEL_KEY.to_owned(), model.to_owned()),
    ]);
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

/// What a table found on disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableShape {
    /// Ours, with the model that embedded it.
    Current {
        /// Identity of the model.
        model: String,
    },
    /// Another schema: shown, never searched or written.
    Foreign {
        /// What was found, for the user.
        detail: String,
    },
}

/// Tells what a table with this schema is.
pub fn table_shape(schema: &Schema) -> TableShape {
    let metadata = schema.metadata();
    match (metadata.get(SCHEMA_VERSION_KEY), metadata.get(MODEL_KEY)) {
        (Some(version), Some(model)) if version == SCHEMA_VERSION => TableShape::Current { model: model.clone() },
        (Some(version), _) => TableShape::Foreign {
            detail: format!("schema version {version}, this daemon knows {SCHEMA_VERSION}"),
        },
        (None, _) => TableShape::Foreign {
            detail: format!("a table of the old tool, with {} columns", schema.fields().len()),
        },
    }
}
