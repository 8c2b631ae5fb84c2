//! What the writer compares a new item with: ids, contents and keys of a view.

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Int64Type, TimestampMillisecondType};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use lancedb::datafusion::logical_expr::Expr;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;
use crate::store::view::{ProjectView, filter};

/// The live item that holds an identity. See [`ProjectView::identities`].
#[derive(Clone, Debug, PartialEq)]
pub struct IdentityRow {
    /// Its id.
    pub id: String,
    /// SHA-256 of its content.
    pub content_hash: String,
    /// The key that it was stored with.
    pub idempotency_key: Option<String>,
    /// The content hash with which the item was first stored, where it is known.
    pub key_hash: Option<String>,
    /// Its revision.
    pub revision: i64,
    /// Its creation.
    pub timestamp: DateTime<Utc>,
    /// Number of its passages.
    pub passages: u32,
    /// The commit that wrote it.
    pub valid_from: i64,
    /// The commit that closed it, if it was; a closed item's id keeps its revision numbers.
    pub valid_to: Option<i64>,
    /// When it was closed.
    pub closed_at: Option<DateTime<Utc>>,
}

/// What the commits of a table's rows go up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LastNumbers {
    /// The newest commit that opened or closed a row.
    pub(crate) sequence: i64,
    /// When the oldest of the closed rows was closed.
    pub(crate) oldest_closed: Option<DateTime<Utc>>,
}

impl ProjectView {
    /// Reads the numbers of the commits, of all rows. Three columns of numbers: what has to be known of a table before
    /// anything can be read of it.
    pub(crate) async fn last_numbers(&self) -> KnowledgeResult<LastNumbers> {
        let mut scanner = self.scanner();
        scanner
            .project(&[column::VALID_FROM, column::VALID_TO, column::CLOSED_AT])
            .map_err(read_error)?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        let mut found = LastNumbers::default();
        let mut oldest_ms = None;
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            for name in [column::VALID_FROM, column::VALID_TO] {
                let last = values::<Int64Type>(&batch, name)?.max();
                found.sequence = last.map_or(found.sequence, |last| last.max(found.sequence));
            }
            let oldest = values::<TimestampMillisecondType>(&batch, column::CLOSED_AT)?.min();
            oldest_ms = oldest_ms.into_iter().chain(oldest).min();
        }
        let time = |ms| {
            DateTime::from_timestamp_millis(ms)
                .ok_or_else(|| KnowledgeError::internal("column closed_at holds an impossible time"))
        };
        found.oldest_closed = oldest_ms.map(time).transpose()?;
        Ok(found)
    }

    /// Calls `visit` with the id, the content hash and the idempotency key of every revision, live or closed.
    pub(crate) async fn for_each_known(&self, mut visit: impl FnMut(&str, &str, Option<&str>)) -> KnowledgeResult<()> {
        let columns = [column::ID, column::CONTENT_HASH, column::IDEMPOTENCY_KEY];
        let scanner = self.scan(&columns, filter::first_passage())?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                visit(
                    rows.required_text(column::ID, row)?,
                    rows.required_text(column::CONTENT_HASH, row)?,
                    rows.text(column::IDEMPOTENCY_KEY, row)?,
                );
            }
        }
        Ok(())
    }

    /// The items, live or closed, that hold any of these ids, content hashes or idempotency keys.
    pub(crate) async fn identities(
        &self,
        ids: &[String],
        hashes: &[String],
        keys: &[String],
    ) -> KnowledgeResult<Vec<IdentityRow>> {
        let any = [
            filter::any_of(column::ID, ids),
            filter::any_of(column::CONTENT_HASH, hashes),
            filter::any_of(column::IDEMPOTENCY_KEY, keys),
        ];
        let Some(any) = any.into_iter().flatten().reduce(Expr::or) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        self.for_each_identity(any.and(filter::first_passage()), |row| found.push(row))
            .await?;
        Ok(found)
    }

    /// Calls `visit` for every item of the table, live or closed.
    pub(crate) async fn for_each_identity(
        &self,
        predicate: Expr,
        mut visit: impl FnMut(IdentityRow),
    ) -> KnowledgeResult<()> {
        let columns = [
            column::ID,
            column::CONTENT_HASH,
            column::IDEMPOTENCY_KEY,
            column::KEY_HASH,
            column::REVISION,
            column::TIMESTAMP,
            column::PASSAGES,
            column::VALID_FROM,
            column::VALID_TO,
            column::CLOSED_AT,
        ];
        let scanner = self.scan(&columns, predicate)?;
        let mut stream = scanner.try_into_stream().await.map_err(read_error)?;
        while let Some(batch) = stream.try_next().await.map_err(read_error)? {
            let rows = RowReader(&batch);
            for row in 0..batch.num_rows() {
                visit(IdentityRow {
                    id: rows.required_text(column::ID, row)?.to_owned(),
                    content_hash: rows.required_text(column::CONTENT_HASH, row)?.to_owned(),
                    idempotency_key: rows.text(column::IDEMPOTENCY_KEY, row)?.map(str::to_owned),
                    key_hash: rows.key_hash(row)?.map(str::to_owned),
                    revision: rows.int(column::REVISION, row)?.unwrap_or(1),
                    timestamp: rows.time(column::TIMESTAMP, row)?,
                    passages: u32::try_from(rows.small_int(column::PASSAGES, row)?).unwrap_or(1),
                    valid_from: rows.int(column::VALID_FROM, row)?.unwrap_or(0),
                    valid_to: rows.int(column::VALID_TO, row)?,
                    closed_at: rows.optional_time(column::CLOSED_AT, row)?,
                });
            }
        }
        Ok(())
    }
}

/// The values of a column that are not null.
fn values<'a, T: ArrowPrimitiveType>(
    batch: &'a RecordBatch,
    name: &str,
) -> KnowledgeResult<impl Iterator<Item = T::Native> + 'a> {
    let array = batch
        .column_by_name(name)
        .and_then(|column| column.as_primitive_opt::<T>());
    let array = array.ok_or_else(|| KnowledgeError::internal(format!("the query returned no numbers {name}")))?;
    Ok(array.iter().flatten())
}
