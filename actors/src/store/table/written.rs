//! Rows that a commit has just written and that are still in memory.

use arrow_array::RecordBatch;
use lance_table::format::Fragment;

/// A fragment that a commit has made, with its rows at hand: whoever wants them need not read them.
#[derive(Clone, Debug)]
pub(crate) struct WrittenFragment {
    /// Path of the fragment's first data file, as in `Fragment::files`: its name is unique.
    pub(crate) file: String,
    /// All rows of the fragment in their order, in the table's schema.
    pub(crate) rows: RecordBatch,
}

impl WrittenFragment {
    /// Whether these are the rows of a fragment, of which none has been deleted since.
    pub(crate) fn is(&self, fragment: &Fragment) -> bool {
        fragment.deletion_file.is_none()
            && fragment.physical_rows == Some(self.rows.num_rows())
            && fragment.files.first().is_some_and(|file| file.path == self.file)
    }
}
