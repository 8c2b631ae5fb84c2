//! Rows of the table as rows of the index.

use std::borrow::Cow;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt64Type};
use arrow_array::{Array, FixedSizeListArray, ListArray, RecordBatch, StringArray};
use ccod_index::{Row, Tokens};

use crate::domain::{KnowledgeType, term_in_order};
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::table::keyword_index::Analyser;
use crate::store::table::rows::RowReader;
use crate::store::table::schema::column;

/// The columns that the index is made of.
pub(super) const COLUMNS: [&str; 13] = [
    column::ID,
    column::PASSAGE,
    column::PASSAGES,
    column::REVISION,
    column::TYPE,
    column::AGENT,
    column::SESSION_ID,
    column::TIMESTAMP,
    column::UPDATED_AT,
    column::VALID_FROM,
    column::VALID_TO,
    column::METADATA_TERMS,
    column::VECTOR,
];

/// As [`COLUMNS`], with the texts that words are made of.
pub(super) fn columns_with_texts() -> Vec<&'static str> {
    let texts = [column::PASSAGE_TEXT];
    COLUMNS.into_iter().chain(texts).collect()
}

/// Lance's column of the row's address, where the table has no stable ids of rows.
const ROW_ID: &str = "_rowid";

/// How far the square of a vector's length may be from 1 and still count as 1.
const UNIT_TOLERANCE: f32 = 1e-5;

/// What an index holds of a row, without borrowing from the batch what has to be converted.
struct Converted<'a> {
    terms: Vec<String>,
    vector: Cow<'a, [f32]>,
    words: Option<Tokens>,
}

/// Calls `take` with every row of `batch` that is live. `address_of` gives the address of a row by its place in the
/// batch; none for a row that is not there any more. With an `analyser`, rows get their words, if the batch has texts.
pub(super) fn for_each_live<E: std::fmt::Display>(
    batch: &RecordBatch,
    mut analyser: Option<&mut Analyser>,
    address_of: impl Fn(usize) -> Option<u64>,
    mut take: impl FnMut(&Row<'_>) -> Result<(), E>,
) -> KnowledgeResult<()> {
    let rows = RowReader(batch);
    let vectors = vectors(batch)?;
    let terms = batch
        .column_by_name(column::METADATA_TERMS)
        .and_then(|column| column.as_list_opt::<i32>());
    let has_texts = batch.column_by_name(column::PASSAGE_TEXT).is_some();
    for place in 0..batch.num_rows() {
        let Some(address) = address_of(place) else { continue };
        if rows.int(column::VALID_TO, place)?.is_some() {
            continue;
        }
        let words = match &mut analyser {
            Some(analyser) if has_texts => Some(analyser.words(rows.required_text(column::PASSAGE_TEXT, place)?)),
            _ => None,
        };
        let converted = Converted {
            words,
            terms: terms.map_or_else(|| Ok(Vec::new()), |terms| texts(terms, place))?,
            vector: unit(vector(vectors, place)?),
        };
        let row = Row {
            address,
            id: rows.required_text(column::ID, place)?,
            passage: number(rows.small_int(column::PASSAGE, place)?)?,
            passages: number(rows.small_int(column::PASSAGES, place)?)?,
            revision: rows.int(column::REVISION, place)?.unwrap_or(1),
            kind: KnowledgeType::of_stored(rows.required_text(column::TYPE, place)?),
            agent: rows.text(column::AGENT, place)?,
            session: rows.text(column::SESSION_ID, place)?,
            timestamp_ms: rows.time(column::TIMESTAMP, place)?.timestamp_millis(),
            updated_ms: rows.time(column::UPDATED_AT, place)?.timestamp_millis(),
            valid_from: rows.int(column::VALID_FROM, place)?.unwrap_or(0),
            metadata_terms: &converted.terms,
            vector: &converted.vector,
            words: converted.words.as_ref(),
        };
        take(&row).map_err(KnowledgeError::internal)?;
    }
    Ok(())
}

/// The addresses of the rows of a batch that was scanned with them.
pub(super) fn scanned_addresses(batch: &RecordBatch) -> KnowledgeResult<&[u64]> {
    batch
        .column_by_name(ROW_ID)
        .and_then(|column| column.as_primitive_opt::<UInt64Type>())
        .map(|column| &column.values()[..])
        .ok_or_else(|| KnowledgeError::internal("the scan returned no addresses of rows"))
}

fn number(value: i32) -> KnowledgeResult<u32> {
    u32::try_from(value).map_err(KnowledgeError::internal)
}

fn vectors(batch: &RecordBatch) -> KnowledgeResult<&FixedSizeListArray> {
    batch
        .column_by_name(column::VECTOR)
        .and_then(|column| column.as_fixed_size_list_opt())
        .ok_or_else(|| KnowledgeError::internal("column vector is not a list"))
}

fn vector(vectors: &FixedSizeListArray, place: usize) -> KnowledgeResult<&[f32]> {
    let length = usize::try_from(vectors.value_length()).map_err(KnowledgeError::internal)?;
    let values = vectors
        .values()
        .as_primitive_opt::<Float32Type>()
        .ok_or_else(|| KnowledgeError::internal("column vector does not hold 32-bit floats"))?;
    let start = usize::try_from(vectors.value_offset(place)).map_err(KnowledgeError::internal)?;
    values
        .values()
        .get(start..start + length)
        .ok_or_else(|| KnowledgeError::internal("column vector is too short"))
}

/// A vector of the same direction and of length 1, of which a product is the cosine. The model's are.
pub(crate) fn unit(vector: &[f32]) -> Cow<'_, [f32]> {
    let square: f32 = vector.iter().map(|component| component * component).sum();
    if (square - 1.0).abs() <= UNIT_TOLERANCE || square <= 0.0 || !square.is_finite() {
        return Cow::Borrowed(vector);
    }
    let length = square.sqrt();
    Cow::Owned(vector.iter().map(|component| component / length).collect())
}

fn texts(lists: &ListArray, place: usize) -> KnowledgeResult<Vec<String>> {
    if lists.is_null(place) {
        return Ok(Vec::new());
    }
    let values = lists.value(place);
    let values: &StringArray = values
        .as_string_opt::<i32>()
        .ok_or_else(|| KnowledgeError::internal("column metadata_terms does not hold texts"))?;
    let terms = values.iter().flatten();
    Ok(terms
        .map(|term| term_in_order(term).unwrap_or_else(|| term.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_get_length_one_and_keep_their_direction() {
        assert!(matches!(unit(&[0.6, 0.8]), Cow::Borrowed(_)));
        assert_eq!(*unit(&[3.0, 4.0]), [0.6, 0.8]);
        // Without a direction there is nothing to keep.
        assert_eq!(*unit(&[0.0, 0.0]), [0.0, 0.0]);
        assert!(unit(&[f32::NAN, 1.0])[0].is_nan());
    }
}
