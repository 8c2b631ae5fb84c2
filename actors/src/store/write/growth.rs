//! Giving a table of an older minor version the columns that came since.
//!
//! A read never does it: a column that is missing reads as null. The first write does, with a version of its own
//! before the one that it makes. That version only names the columns; no file is rewritten, and what was stored
//! before stays null in them.

use std::sync::Arc;

use arrow_schema::{Field, Schema};
use lance::dataset::CommitBuilder;
use lance::dataset::transaction::{Operation, Transaction};

use crate::error::KnowledgeResult;
use crate::store::error::write_error;
use crate::store::table::schema::{
    SCHEMA_VERSION, SCHEMA_VERSION_KEY, SchemaVersion, missing_columns, vector_dimensions,
};
use crate::store::write::{WriteTable, current_dataset};

impl WriteTable {
    /// Adds the columns that the table lacks and notes the schema's version; does nothing where it has them all.
    pub(crate) async fn grow(&mut self) -> KnowledgeResult<()> {
        let missing = missing_columns(self.schema());
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|column| column.name).collect();
        let dimensions = vector_dimensions(self.schema()).unwrap_or(0);
        let added: Vec<Field> = missing.iter().map(|column| column.field(dimensions)).collect();
        let dataset = current_dataset(self.lancedb()).await?;
        // As Lance's `add_columns` of nulls does it, and the version's number in the same commit.
        let mut schema = dataset.schema().merge(&Schema::new(added)).map_err(write_error)?;
        let version = schema
            .metadata
            .get(SCHEMA_VERSION_KEY)
            .and_then(|version| version.parse::<SchemaVersion>().ok())
            .map_or(SCHEMA_VERSION, |version| version.max(SCHEMA_VERSION));
        schema
            .metadata
            .insert(SCHEMA_VERSION_KEY.to_owned(), version.to_string());
        schema
            .try_set_field_id(Some(dataset.manifest().max_field_id()))
            .map_err(write_error)?;
        let operation = Operation::Merge {
            fragments: dataset.fragments().to_vec(),
            schema,
            preserves_nullability: true,
        };
        fail::fail_point!("write::before_growth", |_| Err(crate::error::KnowledgeError::internal(
            "failpoint write::before_growth"
        )));
        let transaction = Transaction::new(dataset.manifest().version, operation, None);
        let committed = CommitBuilder::new(Arc::clone(&dataset))
            .execute(transaction)
            .await
            .map_err(write_error)?;
        tracing::info!(project = %self.project(), columns = ?names, %version, "the table has got new columns");
        self.take_over_commit(committed)
    }
}
