//! What the last commits have written, while it is still in memory: who keeps a table's rows resident need not read
//! them back from disk.

use arrow_array::RecordBatch;
use lance_table::format::Fragment;

/// Fragments that are kept at most.
const KEPT: usize = 16;
/// Bytes that they may take together: a few commits of the largest size. What is not kept is on disk.
const KEPT_BYTES: usize = 64 << 20;

/// A fragment that a commit has made, with its rows.
#[derive(Clone, Debug)]
pub(crate) struct WrittenFragment {
    /// The path of its first data file, as the manifest has it: no other fragment ever has the same.
    pub(crate) file: String,
    /// Its rows, in the order of the fragment, in the table's schema.
    pub(crate) rows: RecordBatch,
}

impl WrittenFragment {
    /// What `rows` have become. None where they are not exactly one fragment: then the places of its rows do not
    /// follow from theirs.
    pub(crate) fn of(fragments: &[Fragment], rows: RecordBatch) -> Option<Self> {
        let [fragment] = fragments else { return None };
        if fragment.physical_rows != Some(rows.num_rows()) || fragment.deletion_file.is_some() {
            return None;
        }
        let file = fragment.files.first()?.path.clone();
        Some(Self { file, rows })
    }

    /// Whether these are the rows of a fragment, of which none has been deleted since.
    pub(crate) fn is(&self, fragment: &Fragment) -> bool {
        fragment.deletion_file.is_none()
            && fragment.physical_rows == Some(self.rows.num_rows())
            && fragment.files.first().is_some_and(|file| file.path == self.file)
    }

    fn bytes(&self) -> usize {
        self.rows.get_array_memory_size()
    }
}

/// Adds `new` to those that are kept, and drops the oldest of them where it is too much: nobody may ever ask for them.
pub(crate) fn keep_written(kept: &mut Vec<WrittenFragment>, new: WrittenFragment) {
    kept.push(new);
    let mut bytes: usize = kept.iter().map(WrittenFragment::bytes).sum();
    let mut dropped = 0;
    while kept.len() - dropped > KEPT || bytes > KEPT_BYTES {
        bytes -= kept[dropped].bytes();
        dropped += 1;
    }
    kept.drain(..dropped);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::Int64Array;
    use arrow_schema::{DataType, Field, Schema};
    use lance_table::format::DataFile;

    use super::*;

    fn numbers(rows: usize) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![0; rows]))]).unwrap()
    }

    fn kept_of(sizes: &[usize]) -> Vec<String> {
        let mut kept = Vec::new();
        for (number, rows) in sizes.iter().enumerate() {
            let new = WrittenFragment {
                file: number.to_string(),
                rows: numbers(*rows),
            };
            keep_written(&mut kept, new);
        }
        kept.into_iter().map(|fragment| fragment.file).collect()
    }

    #[test]
    fn the_newest_are_kept_and_not_too_many_of_them() {
        assert_eq!(kept_of(&[1; 3]), ["0", "1", "2"]);
        let newest: Vec<String> = (4..KEPT + 4).map(|number| number.to_string()).collect();
        assert_eq!(kept_of(&[1; KEPT + 4]), newest);
        // Two fifths of what may be kept, in numbers of eight bytes.
        let large = KEPT_BYTES / 8 * 2 / 5;
        assert_eq!(kept_of(&[large, large, 1, large]), ["1", "2", "3"]);
        // One that is too large goes with those before it.
        assert_eq!(kept_of(&[1, KEPT_BYTES, 1]), ["2"]);
    }

    #[test]
    fn rows_that_are_not_one_whole_fragment_are_not_taken_for_one() {
        let fragment = |rows| Fragment {
            files: vec![DataFile::new_legacy_from_fields("file.lance", vec![0], None)],
            physical_rows: rows,
            ..Fragment::new(0)
        };
        let of = |fragments: &[Fragment]| WrittenFragment::of(fragments, numbers(2)).map(|written| written.file);
        assert_eq!(of(&[fragment(Some(2))]).as_deref(), Some("file.lance"));
        for other in [
            vec![],
            vec![fragment(Some(1)), fragment(Some(1))],
            vec![fragment(Some(1))],
            vec![fragment(None)],
        ] {
            assert_eq!(of(&other), None);
        }
    }
}
