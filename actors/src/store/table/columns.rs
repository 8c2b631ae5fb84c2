//! The columns of the table, in one list: name, type, nullability, the minor version of the schema that brought
//! each, what a new row holds in it, and what is read back from it into an item.
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

use crate::domain::{Content, KnowledgeType, StoredItem};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::table::rows::{EmbeddedPassage, NewRevision, RowReader, row_key};
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
    /// Puts what a row holds into the item that is read, where callers see it.
    read: Option<Read>,
}

type Read = fn(&RowReader<'_>, usize, &mut StoredItem) -> KnowledgeResult<()>;

const fn required(name: &'static str, values: Values) -> Column {
    Column {
        name,
        nullable: false,
        since: 0,
        values,
        read: None,
    }
}

const fn optional(name: &'static str, values: Values) -> Column {
    Column {
        name,
        nullable: true,
        since: 0,
        values,
        read: None,
    }
}

/// A column that came with a later minor version.
const fn since(minor: u32, name: &'static str, values: Values) -> Column {
    Column {
        name,
        nullable: true,
        since: minor,
        values,
        read: None,
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
    required(column::ID, Values::Text(|row| text(row.revision.id))).read(|rows, row, stored| {
        stored.item.id = rows.required_text(column::ID, row)?.to_owned();
        Ok(())
    }),
    required(column::REVISION, Values::Int64(|row| Some(row.revision.revision))).read(|rows, row, stored| {
        stored.revision = rows.int(column::REVISION, row)?.unwrap_or(1);
        Ok(())
    }),
    required(column::PASSAGE, Values::Int32(|row| i32::try_from(row.index).ok())),
    required(
        column::PASSAGES,
        Values::Int32(|row| i32::try_from(row.revision.passages.len()).ok()),
    )
    .read(|rows, row, stored| {
        stored.item.passages = u32::try_from(rows.small_int(column::PASSAGES, row)?).unwrap_or(1);
        Ok(())
    }),
    required(
        column::START,
        Values::Int64(|row| i64::try_from(row.passage.start).ok()),
    ),
    required(column::END, Values::Int64(|row| i64::try_from(row.passage.end).ok())),
    required(column::PASSAGE_TEXT, Values::Text(|row| text(&row.passage.text))),
    optional(
        column::TEXT,
        Values::Text(|row| (row.index == 0).then_some(Cow::Borrowed(row.content().text.as_str()))),
    )
    .read(|rows, row, stored| {
        stored.item.text = rows.text(column::TEXT, row)?.unwrap_or_default().to_owned();
        Ok(())
    }),
    required(
        column::TYPE,
        Values::Text(|row| text(row.content().knowledge_type.as_str())),
    )
    .read(|rows, row, stored| {
        stored.item.knowledge_type = KnowledgeType::of_stored(rows.required_text(column::TYPE, row)?);
        Ok(())
    }),
    optional(
        column::AGENT,
        Values::Text(|row| row.content().agent.as_deref().map(Cow::from)),
    )
    .read(|rows, row, stored| {
        stored.item.agent = rows.text(column::AGENT, row)?.map(str::to_owned);
        Ok(())
    }),
    optional(
        column::SESSION_ID,
        Values::Text(|row| row.content().session_id.as_deref().map(Cow::from)),
    )
    .read(|rows, row, stored| {
        stored.item.session_id = rows.text(column::SESSION_ID, row)?.map(str::to_owned);
        Ok(())
    }),
    required(column::PROJECT_ID, Values::Text(|row| text(row.project))).read(|rows, row, stored| {
        stored.item.project_id = rows.required_text(column::PROJECT_ID, row)?.to_owned();
        Ok(())
    }),
    required(column::METADATA, Values::Text(|row| text(row.metadata))).read(|rows, row, stored| {
        let metadata = rows.required_text(column::METADATA, row)?;
        stored.item.metadata = serde_json::from_str(metadata)
            .map_err(|error| KnowledgeError::internal(format!("the metadata of a stored item is not JSON: {error}")))?;
        Ok(())
    }),
    optional(column::METADATA_TERMS, Values::Texts(|row| row.terms)),
    required(column::TIMESTAMP, Values::Time(|row| Some(row.revision.item.timestamp))).read(|rows, row, stored| {
        stored.item.timestamp = rows.time(column::TIMESTAMP, row)?;
        Ok(())
    }),
    required(column::UPDATED_AT, Values::Time(|row| Some(row.revision.updated_at))).read(|rows, row, stored| {
        stored.item.updated_at = rows.time(column::UPDATED_AT, row)?;
        Ok(())
    }),
    required(column::VALID_FROM, Values::Int64(|row| Some(row.revision.valid_from))).read(|rows, row, stored| {
        stored.valid_from = rows.int(column::VALID_FROM, row)?.unwrap_or(0);
        Ok(())
    }),
    optional(column::VALID_TO, Values::Int64(|_| None)).read(|rows, row, stored| {
        stored.valid_to = rows.int(column::VALID_TO, row)?;
        Ok(())
    }),
    optional(column::CLOSED_AT, Values::Time(|_| None)),
    required(
        column::CONTENT_HASH,
        Values::Text(|row| text(row.revision.content_hash)),
    )
    .read(|rows, row, stored| {
        stored.content_hash = rows.required_text(column::CONTENT_HASH, row)?.to_owned();
        Ok(())
    }),
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

/// The columns that a query for whole items needs: those that are read into the item, and those of the passage.
pub(crate) fn item_columns() -> Vec<&'static str> {
    let of_the_passage = [column::PASSAGE, column::START, column::END, column::PASSAGE_TEXT];
    let of_the_item = COLUMNS.iter().filter(|column| column.read.is_some());
    of_the_item.map(|column| column.name).chain(of_the_passage).collect()
}

/// The item of a row of passage 0 (the other passages do not hold the whole text).
pub(crate) fn read_item(rows: &RowReader<'_>, row: usize) -> KnowledgeResult<StoredItem> {
    let mut stored = StoredItem::default();
    read_item_but(&[], rows, row, &mut stored)?;
    Ok(stored)
}

/// As [`read_item`], but for what is `known` of it: that stays as it is, and its columns need not be there.
pub(crate) fn read_item_but(
    known: &[&str],
    rows: &RowReader<'_>,
    row: usize,
    stored: &mut StoredItem,
) -> KnowledgeResult<()> {
    let wanted = COLUMNS.iter().filter(|column| !known.contains(&column.name));
    for read in wanted.filter_map(|column| column.read) {
        read(rows, row, stored)?;
    }
    Ok(())
}

impl NewRow<'_> {
    /// What the item says.
    fn content(&self) -> &Content {
        &self.revision.item.content
    }
}

impl Column {
    /// With this, the column is one of those that make an item.
    const fn read(mut self, read: Read) -> Self {
        self.read = Some(read);
        self
    }

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
