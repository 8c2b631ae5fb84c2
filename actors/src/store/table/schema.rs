//! The table: one row for each passage of each revision of each item.
//!
//! Model identity and schema version stand in the schema's metadata, so that vectors of different models are
//! never mixed and a table of another shape is known before it is touched.
//!
//! The schema grows by columns that may be null, each with a minor version ([`super::columns`]). A table of another
//! minor version is read and written like any other: a column that it lacks reads as null, and is added with the
//! next write (`write/growth.rs`); one that only a newer ccod knows keeps its values, and is null in new rows. A
//! table of another major version, or with columns that this one cannot write, is shown and left alone.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::store::table::columns::{COLUMNS, Column};

/// The model whose vectors the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Name and hash, such as `all-MiniLM-L6-v2@0123456789ab`.
    pub name: String,
    /// Components of each vector.
    pub dimensions: usize,
}

/// Name of the table inside a project's database (the old tool's name: copying its data in is the migration).
pub const TABLE_NAME: &str = "orchestra_knowledge";
/// Version of this schema. A table has its own in its metadata, under [`SCHEMA_VERSION_KEY`].
pub const SCHEMA_VERSION: SchemaVersion = SchemaVersion { major: 1, minor: 1 };
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
    /// Where the passage begins in the text, in Unicode scalar values (an answer says it in bytes).
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
    /// The content hash with which the item, and so its `idempotency_key`, was first stored; null where it is not
    /// known.
    pub const KEY_HASH: &str = "key_hash";
    /// Since when the revision counts; null where it is not known.
    pub const OPENED_AT: &str = "opened_at";
}

/// Version of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SchemaVersion {
    /// Tables of another one are not read.
    pub major: u32,
    /// Counts the additions.
    pub minor: u32,
}

impl fmt::Display for SchemaVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for SchemaVersion {
    type Err = std::num::ParseIntError;

    /// Reads `major.minor`; the first version was written as `1`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Ok(Self {
            major: major.parse()?,
            minor: minor.parse()?,
        })
    }
}

/// The timestamps' type: milliseconds, UTC.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// The schema of a table whose vectors have `dimensions` components and come from `model`.
pub fn table_schema(dimensions: usize, model: &str) -> SchemaRef {
    let dimensions = i32::try_from(dimensions).unwrap_or(i32::MAX);
    let fields: Vec<Field> = COLUMNS.iter().map(|column| column.field(dimensions)).collect();
    let metadata = HashMap::from([
        (SCHEMA_VERSION_KEY.to_owned(), SCHEMA_VERSION.to_string()),
        (MODEL_KEY.to_owned(), model.to_owned()),
    ]);
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

/// The components of a table's vectors; none where it has no vectors.
pub(crate) fn vector_dimensions(schema: &Schema) -> Option<i32> {
    match schema.field_with_name(column::VECTOR).ok()?.data_type() {
        DataType::FixedSizeList(_, dimensions) => Some(*dimensions),
        _ => None,
    }
}

/// The columns of ours that a table with this schema lacks.
pub(crate) fn missing_columns(schema: &Schema) -> Vec<&'static Column> {
    let lacks = |column: &&Column| schema.field_with_name(column.name).is_err();
    COLUMNS.iter().filter(lacks).collect()
}

/// Whether a table may be without this column: then it reads as null.
pub(crate) fn may_be_missing(name: &str) -> bool {
    Column::find(name).is_some_and(|column| column.since > 0)
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
    match our_model(schema) {
        Ok(model) => TableShape::Current { model },
        Err(detail) => TableShape::Foreign { detail },
    }
}

/// The model of a table that can be read and written; else why it cannot be.
fn our_model(schema: &Schema) -> Result<String, String> {
    let metadata = schema.metadata();
    let Some(version) = metadata.get(SCHEMA_VERSION_KEY) else {
        return Err(format!(
            "a table of the old tool, with {} columns",
            schema.fields().len()
        ));
    };
    let known = match version.parse::<SchemaVersion>() {
        Ok(found) if found.major == SCHEMA_VERSION.major => found,
        Ok(found) if found.major > SCHEMA_VERSION.major => {
            return Err(format!(
                "schema version {found}, this daemon knows {SCHEMA_VERSION}; use a newer ccod"
            ));
        }
        _ => return Err(format!("schema version {version}, this daemon knows {SCHEMA_VERSION}")),
    };
    let model = metadata.get(MODEL_KEY).ok_or("its model is not named")?;
    let dimensions = vector_dimensions(schema).unwrap_or(0);
    for column in &COLUMNS {
        match schema.field_with_name(column.name) {
            Ok(field) if same_type(field.data_type(), &column.data_type(dimensions)) => {}
            Ok(field) => {
                return Err(format!(
                    "its column {} is of the type {}",
                    column.name,
                    field.data_type()
                ));
            }
            Err(_) if column.since == 0 => return Err(format!("it has no column {}", column.name)),
            Err(_) => {}
        }
    }
    let mut unknown = schema
        .fields()
        .iter()
        .filter(|field| Column::find(field.name()).is_none());
    if let Some(field) = unknown.find(|field| !field.is_nullable()) {
        return Err(format!(
            "schema version {known}, this daemon knows {SCHEMA_VERSION} and cannot fill the column {}; use a newer ccod",
            field.name()
        ));
    }
    Ok(model.clone())
}

/// Whether two types hold the same, whatever the fields of lists are called.
fn same_type(a: &DataType, b: &DataType) -> bool {
    match (a, b) {
        (DataType::List(a), DataType::List(b)) => a.data_type() == b.data_type(),
        (DataType::FixedSizeList(a, many), DataType::FixedSizeList(b, as_many)) => {
            many == as_many && a.data_type() == b.data_type()
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schema with another version and other columns.
    fn schema(version: &str, change: impl FnOnce(&mut Vec<Field>)) -> Schema {
        let ours = table_schema(2, "model");
        let mut fields: Vec<Field> = ours.fields().iter().map(|field| field.as_ref().clone()).collect();
        change(&mut fields);
        let mut metadata = ours.metadata().clone();
        metadata.insert(SCHEMA_VERSION_KEY.to_owned(), version.to_owned());
        Schema::new_with_metadata(fields, metadata)
    }

    fn foreign(version: &str, change: impl FnOnce(&mut Vec<Field>)) -> String {
        match table_shape(&schema(version, change)) {
            TableShape::Foreign { detail } => detail,
            TableShape::Current { .. } => panic!("{version} was taken as ours"),
        }
    }

    fn assert_ours(version: &str, change: impl FnOnce(&mut Vec<Field>)) {
        let shape = table_shape(&schema(version, change));
        let model = "model".to_owned();
        assert_eq!(shape, TableShape::Current { model }, "{version}");
    }

    #[test]
    fn every_minor_version_is_ours() {
        assert_ours(&SCHEMA_VERSION.to_string(), |_| {});
        // As the first version had it.
        assert_ours("1", |fields| fields.retain(|field| !may_be_missing(field.name())));
        assert_ours("1.0", |fields| fields.retain(|field| !may_be_missing(field.name())));
        assert_ours("1.27", |fields| fields.push(Field::new("new", DataType::Float64, true)));
        // In whatever order.
        assert_ours("1.1", |fields| fields.reverse());
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        for version in ["2", "2.0", "3.1"] {
            assert!(foreign(version, |_| {}).contains("use a newer ccod"), "{version}");
        }
        for version in ["0", "0.9", "", "one", "1.", "1.x", "-1"] {
            assert!(foreign(version, |_| {}).contains("schema version"), "{version}");
        }
        let unknown = foreign("1.9", |fields| fields.push(Field::new("new", DataType::Utf8, false)));
        assert!(
            unknown.contains("cannot fill the column new") && unknown.contains("1.9"),
            "{unknown}"
        );
        let lost = foreign("1.1", |fields| fields.retain(|field| field.name() != column::ID));
        assert_eq!(lost, "it has no column id");
        let other = foreign("1.1", |fields| {
            fields.retain(|field| field.name() != column::KEY_HASH);
            fields.push(Field::new(column::KEY_HASH, DataType::Int64, true));
        });
        assert!(other.contains("its column key_hash is of the type"), "{other}");
    }
}
