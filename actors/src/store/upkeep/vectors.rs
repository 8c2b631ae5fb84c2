//! What the vector index of a table is behind with. A table has one where it is too large for the index in memory:
//! then every search by meaning would read all vectors.

use lance::Dataset;
use lance::index::DatasetIndexExt;

use crate::error::KnowledgeResult;
use crate::store::error::read_error;
use crate::store::index::Residence;
use crate::store::table::vector_index::VECTOR_INDEX;
use crate::store::upkeep::debt::{FragmentRows, Pace, Step, fragment_rows};

/// Rows below which a table gets no vector index: to read all vectors takes no longer than to ask it.
const LEAST_ROWS: usize = 16_384;
/// Rows outside the index from which on they are worth a segment, while others write: each search reads their vectors
/// (about a microsecond each).
const TAIL_ROWS: usize = 4_096;
/// Rows of a segment at most, so that no step takes long: half a million take some ten seconds.
const SEGMENT_ROWS: usize = 524_288;
/// New rows join the segments that have at most this many times as many rows, as in the keyword index.
const SEGMENT_GROWTH: usize = 3;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VectorDebt {
    /// Whether the table belongs into memory.
    pub residence: Residence,
    /// Rows of each segment of the vector index.
    pub segment_rows: Vec<usize>,
    /// Rows outside it.
    pub unindexed_rows: usize,
}

impl VectorDebt {
    /// Measures the debt of a version, but for what only the store knows: whether the table is too large for memory.
    pub(super) async fn measure(dataset: &Dataset) -> KnowledgeResult<Self> {
        let fragments = fragments_of(dataset).await?;
        let mut debt = Self::default();
        for (_, rows) in &fragments {
            let live = rows.physical - rows.deleted;
            match rows.segment {
                Some(segment) => {
                    let segments = debt.segment_rows.len().max(segment + 1);
                    debt.segment_rows.resize(segments, 0);
                    debt.segment_rows[segment] += live;
                }
                None => debt.unindexed_rows += live,
            }
        }
        Ok(debt)
    }

    /// The same, of a table that belongs there.
    pub(crate) fn of(self, residence: Residence) -> Self {
        Self { residence, ..self }
    }

    /// The step that is worth it at this pace; at none, whatever can be done. Pure.
    pub(super) fn step(&self, pace: Option<Pace>) -> Option<Step> {
        let tail_rows = match pace {
            Some(Pace::Busy) => TAIL_ROWS,
            Some(Pace::Quiet) => TAIL_ROWS / 4,
            None => 1,
        };
        let has_index = !self.segment_rows.is_empty();
        let least = match (self.residence, has_index) {
            (Residence::Fits, true) => return Some(Step::DropVectors),
            (Residence::Fits | Residence::NearTheBound, false) => return None,
            (Residence::TooLarge, false) => LEAST_ROWS,
            (Residence::TooLarge | Residence::NearTheBound, true) => tail_rows,
        };
        (self.unindexed_rows >= least).then_some(Step::IndexVectors)
    }
}

/// The fragments of a table with their rows, and the segments of the vector index that cover them.
async fn fragments_of(dataset: &Dataset) -> KnowledgeResult<Vec<(u64, FragmentRows)>> {
    let segments = dataset.load_indices_by_name(VECTOR_INDEX).await.map_err(read_error)?;
    let ids = dataset.fragments().iter().map(|fragment| fragment.id);
    Ok(ids.zip(fragment_rows(dataset, &segments)).collect())
}

/// The fragments that the next segment of a table's vector index covers.
pub(super) async fn next_segment_of(dataset: &Dataset) -> KnowledgeResult<Vec<u64>> {
    Ok(next_segment(&fragments_of(dataset).await?, SEGMENT_ROWS))
}

/// The fragments that the next segment covers: those outside the index, and those of the segments that are small beside
/// them, `most` rows together if one fragment alone has not more. Pure.
fn next_segment(fragments: &[(u64, FragmentRows)], most: usize) -> Vec<u64> {
    let live = |rows: &FragmentRows| rows.physical - rows.deleted;
    let (mut chosen, mut gathered) = (Vec::new(), 0);
    let mut is_complete = true;
    for (id, rows) in fragments.iter().filter(|(_, rows)| rows.segment.is_none()) {
        if !chosen.is_empty() && gathered + live(rows) > most {
            is_complete = false;
            break;
        }
        chosen.push(*id);
        gathered += live(rows);
    }
    if chosen.is_empty() || !is_complete {
        return chosen;
    }
    let mut segments: Vec<(usize, usize)> = Vec::new();
    for (_, rows) in fragments {
        let Some(segment) = rows.segment else { continue };
        match segments.iter_mut().find(|(_, known)| *known == segment) {
            Some((sum, _)) => *sum += live(rows),
            None => segments.push((live(rows), segment)),
        }
    }
    segments.sort_unstable();
    for (rows, segment) in segments {
        if rows > gathered * SEGMENT_GROWTH || gathered + rows > most {
            break;
        }
        gathered += rows;
        let own = fragments.iter().filter(|(_, rows)| rows.segment == Some(segment));
        chosen.extend(own.map(|(id, _)| *id));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debt(residence: Residence, segment_rows: &[usize], unindexed_rows: usize) -> VectorDebt {
        VectorDebt {
            residence,
            segment_rows: segment_rows.to_vec(),
            unindexed_rows,
        }
    }

    #[test]
    fn a_table_that_is_too_large_for_memory_gets_an_index_and_one_that_fits_for_good_loses_it() {
        let step = |residence, segments: &[usize], rows| debt(residence, segments, rows).step(Some(Pace::Busy));
        assert_eq!(step(Residence::TooLarge, &[], 1_000_000), Some(Step::IndexVectors));
        assert_eq!(step(Residence::TooLarge, &[], LEAST_ROWS), Some(Step::IndexVectors));
        assert_eq!(step(Residence::TooLarge, &[], LEAST_ROWS - 1), None);
        assert_eq!(step(Residence::Fits, &[], 1_000_000), None);
        assert_eq!(step(Residence::NearTheBound, &[], 1_000_000), None);
        // Near the bound it stays as it is, and is kept up.
        assert_eq!(step(Residence::NearTheBound, &[1_000], 10), None);
        assert_eq!(
            step(Residence::NearTheBound, &[1_000], TAIL_ROWS),
            Some(Step::IndexVectors)
        );
        assert_eq!(step(Residence::Fits, &[1_000], 10), Some(Step::DropVectors));
    }

    #[test]
    fn the_tail_is_indexed_where_it_is_worth_it() {
        let step = |rows, pace| debt(Residence::TooLarge, &[1_000_000], rows).step(pace);
        assert_eq!(step(TAIL_ROWS - 1, Some(Pace::Busy)), None);
        assert_eq!(step(TAIL_ROWS, Some(Pace::Busy)), Some(Step::IndexVectors));
        assert_eq!(step(TAIL_ROWS / 4, Some(Pace::Quiet)), Some(Step::IndexVectors));
        assert_eq!(step(TAIL_ROWS / 4 - 1, Some(Pace::Quiet)), None);
        assert_eq!(step(1, None), Some(Step::IndexVectors));
        assert_eq!(step(0, None), None);
    }

    /// Fragments of so many rows, numbered from 10, each in a segment or in none.
    fn fragments(rows: &[(usize, Option<usize>)]) -> Vec<(u64, FragmentRows)> {
        let fragment = |(number, (physical, segment)): (usize, &(usize, Option<usize>))| {
            let rows = FragmentRows {
                physical: *physical + 7,
                deleted: 7,
                segment: *segment,
                bytes: 0,
            };
            (10 + number as u64, rows)
        };
        rows.iter().enumerate().map(fragment).collect()
    }

    #[test]
    fn a_segment_takes_the_rows_outside_and_the_segments_that_are_small_beside_them() {
        let none: Vec<u64> = Vec::new();
        let next = |rows: &[(usize, Option<usize>)]| next_segment(&fragments(rows), 1_000);
        assert_eq!(next(&[]), none);
        assert_eq!(next(&[(100, Some(0))]), none);
        assert_eq!(next(&[(100, None), (50, None)]), [10, 11]);
        // 30 joins 10; 120 joins these 40; 500 is too large beside 160.
        let grown = [(500, Some(2)), (60, Some(0)), (60, Some(0)), (30, Some(1)), (10, None)];
        assert_eq!(next(&grown), [14, 13, 11, 12]);
        // No more than a step may have.
        assert_eq!(next(&[(700, None), (300, None), (1, None)]), [10, 11]);
        assert_eq!(next(&[(5_000, None), (1, None)]), [10]);
        assert_eq!(next(&[(600, Some(0)), (500, None)]), [11]);
    }

    #[test]
    fn segments_stay_few_and_rows_are_rarely_indexed_again() {
        let (mut segments, mut indexed, mut most) = (Vec::<usize>::new(), 0, 0);
        const ROWS: usize = 4_000_000;
        for _ in 0..ROWS / TAIL_ROWS {
            let mut rows: Vec<(usize, Option<usize>)> = segments
                .iter()
                .enumerate()
                .map(|(number, rows)| (*rows, Some(number)))
                .collect();
            rows.push((TAIL_ROWS, None));
            let fragments = fragments(&rows);
            let chosen = next_segment(&fragments, SEGMENT_ROWS);
            let in_it = |id: &u64| chosen.contains(id);
            let taken = fragments.iter().filter(|(id, _)| in_it(id));
            let sum: usize = taken.map(|(_, rows)| rows.physical - rows.deleted).sum();
            let left = fragments.iter().filter(|(id, _)| !in_it(id));
            segments = left.map(|(_, rows)| rows.physical - rows.deleted).collect();
            segments.push(sum);
            indexed += sum;
            most = most.max(segments.len());
        }
        assert!(segments.iter().all(|rows| *rows <= SEGMENT_ROWS));
        assert!(most < 20, "{most} segments");
        assert!(indexed < ROWS * 20, "each row was indexed {} times", indexed / ROWS);
    }
}
