//! The columns of the table, in one list: name, type, nullability, the minor version of the schema that brought
//! each, and what a new row holds in it.
//!
//! To add a column, add it here with the next minor version (see [`super::schema`]). It must be nullable: rows that
//! were written before have null in it, and so have the rows of other tables until these get the column.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{
    FixedSizeListBuilder, Float32Builder, Int32Builder, Int64Builder, ListBuilder, StringBuilder,
    TimestampMillisecondBuilder,
};
use arrow_schema::{DataType, Field};
use chrono::{DateTime, Utc};

use crate::store::table::rows::{EmbeddedPassage, NewRevision, row_key};
use crate::store::table::schema::{column, timestamp_type};

/// One row that is to be written: a passage of a revision.
pub(crate) struct NewRow<'a> {
    pub(crate) project: &'a str,
    pub(crate) revision: &'a NewRevision<'a>,
    /// The revision's metadata as JSON text.
    pub(crate) metadata: &'a str,
    /// Its metadata as terms.
    pub(crate) terms: &'a [String],
    /// Number of the passage.
    pub(crate) index: usize,
    pub(crate) passage: &'a EmbeddedPassage,
}

/// The type of a column, with what a new row holds in it.
#[derive(Clone, Copy)]
pub(crate) enum Values {
    Text(for<'a> fn(&'a NewRow<'a>) -> Option<Cow<'a, str>>),
    Int32(for<'a> fn(&'a NewRow<'a>) -> Option<i32>),
    Int64(for<'a> fn(&'a NewRow<'a>) -> Option<i64>),
    Time(for<'a> fn(&'a NewRow<'a>) -> Option<DateTime<Utc>>),
    Texts(for<'a> fn(&'a NewRow<'a>) -> &'a [String]),
    Vector(for<'a> fn(&'a NewRow<'a>) -> &'a [f32]),
}

/// A column of the table.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether a row may have null in it.
    pub(crate) nullable: bool,
    /// The minor version of the schema that brought it; a table of an older one may be without it.
    pub(crate) since: u32,
    /// Its type and its values.
    pub(crate) values: Values,
}

const fn required(name: &'static str, values: Values) -> Column {
    Column {
        name,
        nullable: false,
        since: 0,
        values,
    }
}

const fn optional(name: &'static str, values: Values) -> Column {
    Column {
        name,
        nullable: true,
        since: 0,
        values,
    }
}

/// A column that came with a later minor version.
const fn since(minor: u32, name: &'static str, values: Values) -> Column {
    Column {
        name,
        nullable: true,
        since: minor,
        values,
    }
}

fn text<'a>(value: &'a (impl AsRef<str> + ?Sized)) -> Option<Cow<'a, str>> {
    Some(Cow::Borrowed(value.as_ref()))
}

/// Every column, in the order in which a new table has them.
pub(crate) const COLUMNS: [Column; 25] = [
    required(
        column::ROW_KEY,
        Values::Text(|row| Some(row_key(row.revision.id, row.revision.revision, row.index).into())),
    ),
    required(column::ID, Values::Text(|row| text(row.revision.id))),
    required(column::REVISION, Values::Int64(|row| Some(row.revision.revision))),
    required(column::PASSAGE, Values::Int32(|row| i32::try_from(row.index).ok())),
    required(
        column::PASSAGES,
        Values::Int32(|row| i32::try_from(row.revision.passages.len()).ok()),
    ),
    required(
        column::START,
        Values::Int64(|row| i64::try_from(row.passage.start).ok()),
    ),
    required(column::END, Values::Int64(|row| i64::try_from(row.passage.end).ok())),
    required(column::PASSAGE_TEXT, Values::Text(|row| text(&row.passage.text))),
    optional(
        column::TEXT,
        Values::Text(|row| (row.index == 0).then_some(Cow::Borrowed(row.revision.item.text.as_str()))),
    ),
    required(column::TYPE, Values::Text(|row| text(row.revision.item.kind.as_str()))),
    optional(
        column::AGENT,
        Values::Text(|row| row.revision.item.agent.as_deref().map(Cow::from)),
    ),
    optional(
        column::SESSION_ID,
        Values::Text(|row| row.revision.item.session_id.as_deref().map(Cow::from)),
    ),
    required(column::PROJECT_ID, Values::Text(|row| text(row.project))),
    required(column::METADATA, Values::Text(|row| text(row.metadata))),
    optional(column::METADATA_TERMS, Values::Texts(|row| row.terms)),
    required(column::TIMESTAMP, Values::Time(|row| Some(row.revision.item.timestamp))),
    required(column::UPDATED_AT, Values::Time(|row| Some(row.revision.updated_at))),
    required(column::VALID_FROM, Values::Int64(|row| Some(row.revision.valid_from))),
    optional(column::VALID_TO, Values::Int64(|_| None)),
    optional(column::CLOSED_AT, Values::Time(|_| None)),
    required(
        column::CONTENT_HASH,
        Values::Text(|row| text(row.revision.content_hash)),
    ),
    optional(
        column::IDEMPOTENCY_KEY,
        Values::Text(|row| row.revision.item.idempotency_key.as_deref().map(Cow::from)),
    ),
    required(column::VECTOR, Values::Vector(|row| &row.passage.vector)),
    since(
        1,
        column::KEY_HASH,
        Values::Text(|row| row.revision.key_hash.map(Cow::from)),
    ),
    since(1, column::OPENED_AT, Values::Time(|row| Some(row.revision.opened_at))),
];

impl Column {
    /// The column of this name, if there is one.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        COLUMNS.iter().find(|column| column.name == name)
    }

    /// Its type in a table whose vectors have `dimensions` components.
    pub(crate) fn data_type(&self, dimensions: i32) -> DataType {
        match self.values {
            Values::Text(_) => DataType::Utf8,
            Values::Int32(_) => DataType::Int32,
            Values::Int64(_) => DataType::Int64,
            Values::Time(_) => timestamp_type(),
            Values::Texts(_) => DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
            Values::Vector(_) => {
                DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Float32, true)), dimensions)
            }
        }
    }

    /// The field of a schema.
    pub(crate) fn field(&self, dimensions: i32) -> Field {
        Field::new(self.name, self.data_type(dimensions), self.nullable)
    }

    /// What `rows` hold in it. Their vectors have `dimensions` components.
    pub(crate) fn build(&self, rows: &[NewRow<'_>], dimensions: i32) -> ArrayRef {
        match self.values {
            Values::Text(value) => {
                let mut built = StringBuilder::new();
                rows.iter().for_each(|row| built.append_option(value(row)));
                Arc::new(built.finish())
            }
            Values::Int32(value) => {
                let mut built = Int32Builder::with_capacity(rows.len());
                rows.iter().for_each(|row| built.append_option(value(row)));
                Arc::new(built.finish())
            }
            Values::Int64(value) => {
                let mut built = Int64Builder::with_capacity(rows.len());
                rows.iter().for_each(|row| built.append_option(value(row)));
                Arc::new(built.finish())
            }
            Values::Time(value) => {
                let mut built = TimestampMillisecondBuilder::with_capacity(rows.len()).with_timezone("UTC");
                rows.iter()
                    .for_each(|row| built.append_option(value(row).map(|time| time.timestamp_millis())));
                Arc::new(built.finish())
            }
            Values::Texts(values) => {
                let mut built = ListBuilder::new(StringBuilder::new());
                for row in rows {
                    values(row).iter().for_each(|value| built.values().append_value(value));
                    built.append(true);
                }
                Arc::new(built.finish())
            }
            Values::Vector(values) => {
                let mut built = FixedSizeListBuilder::new(Float32Builder::new(), dimensions);
                for row in rows {
                    built.values().append_slice(values(row));
                    built.append(true);
                }
                Arc::new(built.finish())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_nullable_columns_were_added_and_each_name_is_there_once() {
        assert!(COLUMNS.iter().all(|column| column.nullable || column.since == 0));
        let names: BTreeSet<&str> = COLUMNS.iter().map(|column| column.name).collect();
        assert_eq!(names.len(), COLUMNS.len());
    }
}
