//! How a table is found and opened.

use std::path::{Path, PathBuf};

use lance::Dataset;
use lance::dataset::ReadParams;

use crate::store::table::schema::{TABLE_NAME, TableShape, table_shape};

/// Where LanceDB keeps a project's table.
pub(crate) fn table_directory(project_directory: &Path) -> PathBuf {
    project_directory.join(format!("{TABLE_NAME}.lance"))
}

/// How tables are read: what is decoded is checked (texts are UTF-8, lengths fit), since a damaged file must be an
/// error and not a text that is none.
pub(crate) fn checked_reads() -> ReadParams {
    let mut params = ReadParams::default();
    let mut options = params.file_reader_options.take().unwrap_or_default();
    options.decoder_config.validate_on_decode = true;
    params.file_reader_options = Some(options);
    params
}

/// What a dataset's schema says it is.
pub(crate) fn dataset_shape(dataset: &Dataset) -> TableShape {
    let schema: arrow_schema::Schema = dataset.schema().into();
    table_shape(&schema)
}
