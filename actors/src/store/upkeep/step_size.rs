//! How much one step of upkeep reads and writes. While a step runs, nobody writes to the project, so it must not take
//! longer than somebody waits who stores something: what is due beyond that is due for the next step. Pure.

use std::ops::Range;

use crate::store::upkeep::debt::FragmentRows;

/// Rows that one step rewrites at most: some 350 MB of items of a few hundred characters, a second or two.
pub(super) const STEP_ROWS: usize = 131_072;
/// Bytes of files that it rewrites at most, for items that are larger.
const STEP_BYTES: u64 = 512 << 20;

/// Bounds of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepSize {
    rows: usize,
    bytes: u64,
}

impl Default for StepSize {
    fn default() -> Self {
        Self {
            rows: STEP_ROWS,
            bytes: STEP_BYTES,
        }
    }
}

impl StepSize {
    pub(super) const UNBOUNDED: Self = Self {
        rows: usize::MAX,
        bytes: u64::MAX,
    };

    fn holds(self, rows: usize, bytes: u64) -> bool {
        rows <= self.rows && bytes <= self.bytes
    }
}

fn live(fragment: &FragmentRows) -> usize {
    fragment.physical.saturating_sub(fragment.deleted)
}

/// Which fragments a merge of those below `target_rows` takes, by their places in the table: neighbours that one
/// segment of the keyword index covers, or none. As many as fit, since a row is rewritten least often that way, and the
/// first such; where no two fit together, the two that are smallest. None where there is nothing to merge.
pub(super) fn fragments_to_merge(fragments: &[FragmentRows], target_rows: usize, size: StepSize) -> Range<usize> {
    let is_small = |fragment: &FragmentRows| fragment.physical < target_rows;
    let mut most = 0..0;
    let mut smallest_pair: Option<(usize, usize)> = None;
    let (mut begin, mut rows, mut bytes) = (0, 0, 0);
    for (number, fragment) in fragments.iter().enumerate() {
        let goes_on =
            number > begin && is_small(&fragments[number - 1]) && fragments[number - 1].segment == fragment.segment;
        if !is_small(fragment) || !goes_on {
            (begin, rows, bytes) = (number, 0, 0);
        }
        if !is_small(fragment) {
            continue;
        }
        if goes_on {
            let pair = live(&fragments[number - 1]) + live(fragment);
            if smallest_pair.is_none_or(|(_, least)| pair < least) {
                smallest_pair = Some((number - 1, pair));
            }
        }
        rows += live(fragment);
        bytes += fragment.bytes;
        while !size.holds(rows, bytes) && begin < number {
            rows -= live(&fragments[begin]);
            bytes -= fragments[begin].bytes;
            begin += 1;
        }
        if number + 1 - begin > most.len() {
            most = begin..number + 1;
        }
    }
    match (most.len(), smallest_pair) {
        (0 | 1, Some((first, _))) => first..first + 2,
        (0 | 1, None) => 0..0,
        _ => most,
    }
}

/// Which fragments are rewritten of which more than `deleted_part` is deleted, by their places in the table: the first,
/// as many as fit, and at least one.
pub(super) fn fragments_to_rewrite(fragments: &[FragmentRows], deleted_part: f32, size: StepSize) -> Vec<usize> {
    let mut chosen = Vec::new();
    let (mut rows, mut bytes) = (0, 0);
    for (number, fragment) in fragments.iter().enumerate() {
        if fragment.is_mostly_kept(deleted_part) {
            continue;
        }
        rows += live(fragment);
        bytes += fragment.bytes;
        if !chosen.is_empty() && !size.holds(rows, bytes) {
            break;
        }
        chosen.push(number);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: StepSize = StepSize {
        rows: 100,
        bytes: 1_000,
    };

    fn fragment(physical: usize, deleted: usize, bytes: u64, segment: Option<usize>) -> FragmentRows {
        FragmentRows {
            physical,
            deleted,
            segment,
            bytes,
        }
    }

    fn of(rows: &[usize]) -> Vec<FragmentRows> {
        rows.iter().map(|rows| fragment(*rows, 0, 1, Some(0))).collect()
    }

    #[test]
    fn a_merge_takes_as_many_neighbours_as_fit() {
        let merged = |rows: &[usize]| fragments_to_merge(&of(rows), 100, SIZE);
        assert_eq!(merged(&[]), 0..0);
        assert_eq!(merged(&[1]), 0..0);
        assert_eq!(merged(&[10; 12]), 0..10);
        // Not those that are merged already, as long as there are smaller ones.
        assert_eq!(merged(&[90, 10, 10, 10]), 1..4);
        assert_eq!(merged(&[90, 10, 100, 1, 1, 1]), 3..6);
        // Where no two fit, the smallest two.
        assert_eq!(merged(&[90, 80, 60, 99]), 1..3);
        assert_eq!(merged(&[100, 99, 100, 99]), 0..0);
        // Of one segment.
        let mut apart = of(&[10; 6]);
        apart[2..].iter_mut().for_each(|rows| rows.segment = Some(1));
        assert_eq!(fragments_to_merge(&apart, 100, SIZE), 2..6);
        // By their bytes.
        let large: Vec<FragmentRows> = (0..6).map(|_| fragment(1, 0, 300, None)).collect();
        assert_eq!(fragments_to_merge(&large, 100, SIZE), 0..3);
    }

    #[test]
    fn worn_fragments_are_rewritten_as_far_as_a_step_goes() {
        let rows = [
            fragment(100, 60, 1, None),
            fragment(100, 5, 1, None),
            fragment(100, 50, 1, None),
            fragment(100, 50, 1, None),
        ];
        assert_eq!(fragments_to_rewrite(&rows, 0.1, SIZE), [0, 2]);
        assert_eq!(fragments_to_rewrite(&rows, 0.1, StepSize::UNBOUNDED), [0, 2, 3]);
        assert_eq!(fragments_to_rewrite(&rows, 0.0, StepSize::UNBOUNDED), [0, 1, 2, 3]);
        assert_eq!(fragments_to_rewrite(&[fragment(1_000, 200, 1, None)], 0.1, SIZE), [0]);
        assert!(fragments_to_rewrite(&rows[1..2], 0.1, SIZE).is_empty());
    }

    proptest! {
        #[test]
        fn merging_ends_and_no_step_is_too_large(
            rows in prop::collection::vec((1usize..120, 0usize..3), 0..40),
        ) {
            let mut fragments: Vec<FragmentRows> = rows
                .iter()
                .map(|(rows, segment)| fragment(*rows, 0, *rows as u64, Some(*segment)))
                .collect();
            for _ in 0..=rows.len() {
                let merged = fragments_to_merge(&fragments, 100, SIZE);
                if merged.is_empty() {
                    break;
                }
                let of = &fragments[merged.clone()];
                prop_assert!(of.len() >= 2 && of.iter().all(|one| one.physical < 100 && one.segment == of[0].segment));
                let sum: usize = of.iter().map(live).sum();
                prop_assert!(sum <= 100 || of.len() == 2);
                let whole = fragment(sum, 0, sum as u64, of[0].segment);
                fragments.splice(merged, [whole]);
            }
            prop_assert!(fragments_to_merge(&fragments, 100, SIZE).is_empty());
        }
    }
}
