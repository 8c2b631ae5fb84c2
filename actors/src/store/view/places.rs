//! Where rows lie in the files of a table: the writer takes them out of it by their places.
//!
//! An update moves no row that it does not concern, and neither does anything that adds to the table; only upkeep and
//! repair do. So places are good for as long as the writer holds the table and does neither, which is checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, RecordBatch, UInt32Array};
use arrow_schema::Schema;
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use lance::dataset::fragment::FileFragment;
use lance_core::ROW_ADDR;
use lance_table::format::Fragment;
use lancedb::datafusion::logical_expr::Expr;

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::read_error;
use crate::store::table::schema::column;
use crate::store::view::{ProjectView, filter, resident};

/// Where some rows of one version of a table lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowPlaces {
    /// Of each row the fragment, in the upper half, and its number in it, those that are deleted counted as well.
    addresses: Vec<u64>,
    /// The fragments of that version.
    fragments: Arc<Vec<Fragment>>,
}

/// Whole rows, in the schema of their version of the table, and where they lie in it.
#[derive(Clone, Debug)]
pub struct PlacedRows {
    pub(crate) rows: RecordBatch,
    pub(crate) places: RowPlaces,
}

impl RowPlaces {
    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// How many rows.
    pub(crate) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// The fragments of `dataset` in which the rows lie, with their numbers in each.
    ///
    /// # Errors
    /// Where the rows no longer lie there, or a row stands here twice: it would be taken out once and written again
    /// twice.
    pub(crate) fn within(&self, dataset: &Arc<Dataset>) -> KnowledgeResult<Vec<(FileFragment, Vec<u32>)>> {
        self.by_fragment()?
            .into_iter()
            .map(|(id, numbers)| {
                let find = |fragments: &[Fragment]| fragments.iter().find(|fragment| fragment.id == id).cloned();
                let now = find(dataset.fragments()).filter(|now| {
                    let before = find(&self.fragments);
                    before.is_some_and(|before| holds_same_rows(&before, now))
                });
                let now = now.ok_or_else(|| {
                    KnowledgeError::internal("rows that are to be changed are no longer where they were read")
                })?;
                Ok((FileFragment::new(Arc::clone(dataset), now), numbers))
            })
            .collect()
    }

    fn by_fragment(&self) -> KnowledgeResult<BTreeMap<u64, Vec<u32>>> {
        let mut sorted = self.addresses.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(KnowledgeError::internal("a row is to be changed twice in one commit"));
        }
        let mut found = BTreeMap::<u64, Vec<u32>>::new();
        for address in sorted {
            // The lower half is the number: no bit of it is lost.
            found.entry(address >> 32).or_default().push(address as u32);
        }
        Ok(found)
    }
}

/// Whether a fragment is as it was, so that a number in it means the same row, and one that is not deleted.
fn holds_same_rows(before: &Fragment, now: &Fragment) -> bool {
    let files = |fragment: &Fragment| -> Vec<String> { fragment.files.iter().map(|file| file.path.clone()).collect() };
    files(before) == files(now) && before.deletion_file == now.deletion_file
}

impl PlacedRows {
    /// The rows with these numbers, in this order.
    pub(crate) fn take(&self, numbers: Vec<u32>) -> KnowledgeResult<Self> {
        let addresses: Option<Vec<u64>> = numbers
            .iter()
            .map(|number| self.places.addresses.get(*number as usize).copied())
            .collect();
        let addresses =
            addresses.ok_or_else(|| KnowledgeError::internal("a row is to be changed that was not read"))?;
        let rows = take_record_batch(&self.rows, &UInt32Array::from(numbers)).map_err(KnowledgeError::internal)?;
        Ok(Self {
            rows,
            places: RowPlaces {
                addresses,
                fragments: Arc::clone(&self.places.fragments),
            },
        })
    }
}

impl ProjectView {
    /// Where the rows lie that pass `predicate`, of all passages and revisions.
    pub(crate) async fn row_places(&self, predicate: Expr) -> KnowledgeResult<RowPlaces> {
        let (_, places) = self.scan_places(&[], predicate).await?;
        Ok(places)
    }

    /// Whole rows, as one batch, and where they lie.
    pub(crate) async fn placed_rows(&self, predicate: Expr) -> KnowledgeResult<PlacedRows> {
        let schema: Schema = self.dataset.schema().into();
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let (batches, places) = self.scan_places(&columns, predicate).await?;
        let rows = concat_batches(&Arc::new(schema), &batches).map_err(KnowledgeError::internal)?;
        Ok(PlacedRows { rows, places })
    }

    /// The whole rows of the live items with these ids, and where they lie.
    pub(crate) async fn live_rows(&self, ids: &[String]) -> KnowledgeResult<PlacedRows> {
        match (self.index_at_hand(), filter::any_of(column::ID, ids)) {
            (Some(index), _) => self.rows_at(resident::all_places_of(&index, ids)).await,
            (None, Some(wanted)) => self.placed_rows(wanted.and(filter::live(None))).await,
            (None, None) => self.rows_at(Vec::new()).await,
        }
    }

    /// The whole rows at these addresses, in their order.
    pub(super) async fn rows_at(&self, addresses: Vec<u64>) -> KnowledgeResult<PlacedRows> {
        let schema: Schema = self.dataset.schema().into();
        let fragments = Arc::clone(self.dataset.fragments());
        if addresses.is_empty() {
            return Ok(PlacedRows {
                rows: RecordBatch::new_empty(Arc::new(schema)),
                places: RowPlaces { addresses, fragments },
            });
        }
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let projection = ProjectionRequest::from_columns(columns, self.dataset.schema());
        let rows = self
            .dataset
            .take_rows(&addresses, projection)
            .await
            .map_err(read_error)?;
        if rows.num_rows() != addresses.len() {
            return Err(KnowledgeError::internal(format!(
                "{} rows were asked for and {} came back",
                addresses.len(),
                rows.num_rows()
            )));
        }
        Ok(PlacedRows {
            rows,
            places: RowPlaces { addresses, fragments },
        })
    }

    /// `columns` of the rows that pass `predicate`, and where they lie.
    async fn scan_places(&self, columns: &[&str], predicate: Expr) -> KnowledgeResult<(Vec<RecordBatch>, RowPlaces)> {
        let mut scanner = self.scan(columns, predicate)?;
        scanner.with_row_address();
        let mut batches = Self::collect(&scanner).await?;
        let mut addresses = Vec::new();
        for batch in &mut batches {
            addresses.extend(take_addresses(batch)?);
        }
        let fragments = Arc::clone(self.dataset.fragments());
        Ok((batches, RowPlaces { addresses, fragments }))
    }
}

/// Takes the addresses out of a batch that was scanned with them: it may be written again as it is then.
pub(super) fn take_addresses(batch: &mut RecordBatch) -> KnowledgeResult<Vec<u64>> {
    let column = batch.schema().index_of(ROW_ADDR).map_err(KnowledgeError::internal)?;
    let found = batch.remove_column(column);
    found
        .as_primitive_opt::<UInt64Type>()
        .filter(|found| found.null_count() == 0)
        .map(|found| found.values().to_vec())
        .ok_or_else(|| KnowledgeError::internal("the query returned rows without their places"))
}

#[cfg(test)]
mod tests {
    use lance_table::format::DataFile;

    use super::*;

    fn fragment(id: u64, file: &str) -> Fragment {
        Fragment {
            files: vec![DataFile::new_legacy_from_fields(file, vec![0], None)],
            ..Fragment::new(id)
        }
    }

    #[test]
    fn places_are_told_apart_by_fragment_and_none_counts_twice() {
        let places = |addresses: &[u64]| RowPlaces {
            addresses: addresses.to_vec(),
            ..RowPlaces::default()
        };
        let found = places(&[(7 << 32) | 3, 5, (7 << 32) | 1]).by_fragment().unwrap();
        assert_eq!(found, BTreeMap::from([(0, vec![5]), (7, vec![1, 3])]));
        assert!(places(&[]).by_fragment().unwrap().is_empty());
        assert!(places(&[5, 6, 5]).by_fragment().is_err());
    }

    #[test]
    fn a_fragment_with_other_files_holds_other_rows() {
        use lance_table::format::{DeletionFile, DeletionFileType};
        let before = fragment(1, "a");
        assert!(holds_same_rows(&before, &before));
        assert!(!holds_same_rows(&before, &fragment(1, "b")));
        let deleted = Fragment {
            deletion_file: Some(DeletionFile {
                read_version: 1,
                id: 1,
                file_type: DeletionFileType::Array,
                num_deleted_rows: Some(1),
                base_id: None,
            }),
            ..before.clone()
        };
        assert!(!holds_same_rows(&before, &deleted));
    }
}
