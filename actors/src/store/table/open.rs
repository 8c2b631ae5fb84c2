//! How a table is found and opened.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lance::Dataset;
use lance::dataset::ReadParams;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::file_read_error;
use crate::store::table::schema::{TABLE_NAME, TableShape, table_shape};

/// What to do about a link that leads nowhere: an unmounted disk, mostly.
pub(crate) const MEND_LINK: &str = "mount the disk that it leads to, mend the link, or remove it";

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

/// Whether a project's directory holds a table. What is there and cannot be looked at is an error, not an absence.
pub(crate) fn holds_table(project_directory: &Path) -> KnowledgeResult<bool> {
    let table = table_directory(project_directory);
    match fs::metadata(&table) {
        Ok(found) if found.is_dir() => Ok(true),
        Ok(_) => Err(file_read_error(&table, ErrorKind::NotADirectory.into())),
        Err(error) if error.kind() == ErrorKind::NotFound && is_link(project_directory) => {
            Err(leads_nowhere(project_directory))
        }
        Err(error) if error.kind() == ErrorKind::NotFound && is_link(&table) => Err(leads_nowhere(&table)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(file_read_error(&table, error)),
    }
}

/// What a link is that leads to a directory without a table.
pub(crate) const EMPTY_LINK: &str = "a link to a directory that holds nothing of a project";
/// What to do about it.
pub(crate) const MOUNT: &str = "mount the disk that belongs there, or remove the link; a project that is to lie elsewhere \
                                is moved there first, then linked";

/// Whether there is a link at `path`, wherever it leads.
pub(crate) fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|entry| entry.is_symlink())
}

fn leads_nowhere(link: &Path) -> KnowledgeError {
    let (what, fix) = match link.is_dir() {
        true => (EMPTY_LINK, MOUNT),
        false => ("a link to nothing", MEND_LINK),
    };
    KnowledgeError::OutOfReach {
        message: format!("{} is {what}", link.display()),
        fix,
    }
}
