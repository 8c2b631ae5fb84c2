//! Upkeep of a table, in steps: finish a purge that was cut short, forget closed rows that are older than they are
//! kept, fold new rows into the keyword index, merge small fragments, rewrite worn ones, index the vectors of what is
//! too large for memory, remove versions that nobody reads. What to do is decided by debt; one step is small, and the
//! writer runs it between commits, so that a store waits for at most one. Debt counts only what a step can take away; a
//! step that changed nothing does not count.

use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_table::format::IndexMetadata;
use lance_table::io::commit::ManifestNamingScheme;
use serde::Serialize;

use crate::error::KnowledgeResult;
use crate::store::disk;
use crate::store::error::read_error;
use crate::store::upkeep::step_size::STEP_ROWS;
use crate::store::upkeep::vectors::VectorDebt;
use crate::store::view::ProjectView;
use crate::store::write::TEXT_INDEX;

/// Rows outside the keyword index from which on they are folded in: each is read and tokenised by every
/// keyword search until then (about 10 microseconds a row).
const UNINDEXED_ROWS: usize = 256;
/// Fragments outside the keyword index from which on they are folded in: Lance merges fragments only if the same
/// segment of the index covers them.
const UNINDEXED_FRAGMENTS: usize = 12;
/// New rows are folded in together with the segments behind them that have at most this many times as many rows,
/// so that segments grow by more than this factor from one to the next: there are few (each search visits all of
/// them), and a row is indexed again a few times for each power of it, not with every step.
const SEGMENT_GROWTH: usize = 3;
/// Segments of the keyword index from which on the last of them are merged, whatever their sizes.
const INDEX_SEGMENTS: usize = 12;
/// Fragments of one size class, and of one segment of the index, from which on they are merged.
const FRAGMENTS_PER_TIER: usize = 12;
/// Size classes of fragments, in rows. A merge of the smallest class that is full makes fragments of the next,
/// so a row is rewritten once for each class, not once for each merge. A fragment of the largest class is as much as
/// one step may write: more would have to be merged in a step that is longer.
pub(super) const TIERS: [usize; 4] = [64, 1_024, 16_384, STEP_ROWS];
/// Versions that nobody reads from which on they are removed, the present one included in the count.
const VERSIONS: usize = 64;
/// Fragments below this many rows are left to the merging of small ones.
pub(super) const REWRITTEN_ROWS: usize = 64;
/// Part of a fragment's rows that may be deleted (closed and moved, or forgotten) before it is rewritten.
pub(super) const DELETED_PART: f32 = 0.1;

/// How much upkeep a table is behind with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Debt {
    /// Rows that the keyword index does not hold yet.
    pub unindexed_rows: usize,
    /// Segments of the keyword index.
    pub index_segments: usize,
    /// Rows of each segment, in the order in which Lance keeps them: it merges from the end.
    #[serde(skip)]
    pub segment_rows: Vec<usize>,
    /// Each fragment, in the table's order.
    #[serde(skip)]
    pub fragment_rows: Vec<FragmentRows>,
    /// Fragments.
    pub fragments: usize,
    /// Rows that are deleted and still in their fragments.
    pub deleted_rows: usize,
    /// Versions on disk.
    pub versions: usize,
    /// Those of them that no reader holds.
    pub removable_versions: usize,
    /// What the vector index is behind with.
    #[serde(skip)]
    pub vectors: VectorDebt,
    /// Whether closed rows are older than they are kept.
    pub expired: bool,
    /// Whether what a purge removed may still be in the files: it was cut short.
    pub purge_unfinished: bool,
}

/// Rows of one fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentRows {
    /// Rows in its files.
    pub physical: usize,
    /// Rows of these that are deleted.
    pub deleted: usize,
    /// The segment of the keyword index that covers it, if one does.
    pub segment: Option<usize>,
    /// What its files take, in bytes, as far as the manifest says.
    pub bytes: u64,
}

impl FragmentRows {
    pub(super) fn is_mostly_kept(self, deleted_part: f32) -> bool {
        self.deleted as f32 <= self.physical as f32 * deleted_part
    }
}

/// One step of upkeep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Finish a purge that was cut short. What then is old has to be removed once the table is published, see
    /// `WriteTable::finish_erasing`.
    Erase,
    /// Remove closed rows that are older than they are kept.
    Forget,
    /// Make a segment of the keyword index from the rows outside it and the last segments.
    Index {
        /// How many of the last segments.
        merged: usize,
    },
    /// Merge fragments below this many rows.
    Compact {
        /// The class's bound.
        target_rows: usize,
    },
    /// Rewrite fragments without their deleted rows.
    Rewrite {
        /// Every fragment with deleted rows, not only those that are worn.
        thorough: bool,
    },
    /// Make a segment of the vector index.
    IndexVectors,
    /// Drop the vector index: the table fits into memory.
    DropVectors,
    /// Remove versions that nobody reads.
    Prune,
}

/// How soon debt is worth a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Between writes: a step delays the next one, and makes a version.
    Busy,
    /// Nobody has written for a while: what slows searches is mended earlier.
    Quiet,
}

impl Pace {
    fn unindexed_rows(self) -> usize {
        match self {
            Self::Busy => UNINDEXED_ROWS,
            Self::Quiet => UNINDEXED_ROWS / 8,
        }
    }

    fn unindexed_fragments(self) -> usize {
        match self {
            Self::Busy => UNINDEXED_FRAGMENTS,
            Self::Quiet => UNINDEXED_FRAGMENTS / 3,
        }
    }

    /// Fragments of a tier from which on they are merged. A merge may rewrite one that is nearly full for a few
    /// small ones, so it is only done early where that is little.
    fn fragments_per_tier(self, target_rows: usize) -> usize {
        match self {
            Self::Quiet if target_rows <= TIERS[1] => FRAGMENTS_PER_TIER / 3,
            _ => FRAGMENTS_PER_TIER,
        }
    }
}

/// Decides what is worth a step at this pace, the most urgent first: one is run, the next ones only where it turns out
/// that those before change nothing. Pure.
pub fn due_steps(debt: &Debt, pace: Pace) -> Vec<Step> {
    let mut due = Vec::new();
    if debt.purge_unfinished {
        due.push(Step::Erase);
    }
    if debt.expired {
        due.push(Step::Forget);
    }
    let unindexed_fragments = debt.largest_bin(usize::MAX, None);
    if debt.index_segments >= INDEX_SEGMENTS {
        due.push(Step::Index {
            merged: segments_within_a_step(&debt.segment_rows),
        });
    } else if debt.unindexed_rows >= pace.unindexed_rows() || unindexed_fragments >= pace.unindexed_fragments() {
        due.push(Step::Index {
            merged: segments_to_merge(&debt.segment_rows, debt.unindexed_rows),
        });
    }
    let segments = 0..debt.segment_rows.len();
    let crowded = |target: &usize| {
        let largest = segments.clone().map(|segment| debt.largest_bin(*target, Some(segment)));
        largest.max().unwrap_or(0) >= pace.fragments_per_tier(*target)
    };
    due.extend(
        TIERS
            .into_iter()
            .find(crowded)
            .map(|target_rows| Step::Compact { target_rows }),
    );
    let worn = |rows: &FragmentRows| rows.physical >= REWRITTEN_ROWS && !rows.is_mostly_kept(DELETED_PART);
    if debt.fragment_rows.iter().any(worn) {
        due.push(Step::Rewrite { thorough: false });
    }
    // Behind what merges and rewrites fragments, which would change it again.
    due.extend(debt.vectors.step(Some(pace)));
    if debt.removable_versions + 1 >= VERSIONS {
        due.push(Step::Prune);
    }
    due
}

/// How many of the last segments are merged with `new` rows. Pure.
fn segments_to_merge(segment_rows: &[usize], new: usize) -> usize {
    let mut gathered = new;
    let behind = segment_rows.iter().rev().take_while(|rows| {
        let joins = **rows <= gathered * SEGMENT_GROWTH;
        gathered += **rows;
        joins
    });
    behind.count()
}

/// How many of the last segments are merged where there are too many: those that fit into one step, but two at least,
/// as otherwise there would not be fewer. Pure.
fn segments_within_a_step(segment_rows: &[usize]) -> usize {
    let mut rows = 0;
    let fitting = segment_rows.iter().rev().take_while(|segment| {
        rows += **segment;
        rows <= STEP_ROWS
    });
    fitting.count().max(2)
}

/// The next step of a thorough upkeep, which leaves nothing undone that can be done. Pure.
pub fn next_thorough_step(debt: &Debt) -> Option<Step> {
    let largest = TIERS[TIERS.len() - 1];
    if debt.expired {
        Some(Step::Forget)
    } else if debt.unindexed_rows > 0 || debt.index_segments > 1 {
        Some(Step::Index {
            merged: debt.index_segments,
        })
    } else if debt.small_fragments(largest) > 1 {
        Some(Step::Compact { target_rows: largest })
    } else if debt.deleted_rows > 0 {
        Some(Step::Rewrite { thorough: true })
    } else if let Some(step) = debt.vectors.step(None) {
        Some(step)
    } else {
        (debt.removable_versions > 0).then_some(Step::Prune)
    }
}

impl Step {
    /// Its name, for `status` and the answer of `admin.optimize`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erase => "erase",
            Self::Forget => "forget",
            Self::Index { .. } => "index",
            Self::Compact { .. } => "compact",
            Self::Rewrite { .. } => "rewrite",
            Self::IndexVectors => "index_vectors",
            Self::DropVectors => "drop_vectors",
            Self::Prune => "prune",
        }
    }
}

impl Debt {
    fn small_fragments(&self, target: usize) -> usize {
        self.fragment_rows.iter().filter(|rows| rows.physical < target).count()
    }

    /// Most fragments below `target` rows that stand side by side and are covered by `segment` (or by none): what
    /// Lance would merge.
    fn largest_bin(&self, target: usize, segment: Option<usize>) -> usize {
        let mergeable = |rows: &FragmentRows| rows.physical < target && rows.segment == segment;
        let bins = self.fragment_rows.chunk_by(|a, b| mergeable(a) == mergeable(b));
        bins.filter(|bin| bin.first().is_some_and(mergeable))
            .map(<[FragmentRows]>::len)
            .max()
            .unwrap_or(0)
    }
}

impl ProjectView {
    /// Measures the debt of this version, but for what only the writer knows: whether closed rows have expired, whether
    /// a purge is unfinished, and which versions nobody reads. Reads the manifest and one directory.
    pub async fn debt(&self) -> KnowledgeResult<Debt> {
        measure(self.dataset(), 0).await
    }
}

/// Measures the debt of a version. Readers hold none of the versions before `oldest_held`.
pub(crate) async fn measure(dataset: &Dataset, oldest_held: u64) -> KnowledgeResult<Debt> {
    let segments = dataset.load_indices_by_name(TEXT_INDEX).await.map_err(read_error)?;
    let fragment_rows = fragment_rows(dataset, &segments);
    let mut segment_rows = vec![0; segments.len()];
    let mut unindexed_rows = 0;
    for rows in &fragment_rows {
        let live = rows.physical - rows.deleted;
        match rows.segment {
            Some(segment) => segment_rows[segment] += live,
            None => unindexed_rows += live,
        }
    }
    let versions = versions_on_disk(dataset)?;
    Ok(Debt {
        unindexed_rows,
        index_segments: segments.len(),
        segment_rows,
        fragments: fragment_rows.len(),
        deleted_rows: fragment_rows.iter().map(|rows| rows.deleted).sum(),
        fragment_rows,
        removable_versions: versions.iter().filter(|version| **version < oldest_held).count(),
        versions: versions.len(),
        vectors: VectorDebt::measure(dataset).await?,
        expired: false,
        purge_unfinished: false,
    })
}

fn versions_on_disk(dataset: &Dataset) -> KnowledgeResult<Vec<u64>> {
    let entries = disk::entries(&std::path::Path::new(dataset.uri()).join("_versions"))?;
    let versions = entries.iter().filter_map(|entry| {
        let name = entry.file_name()?.to_str()?;
        ManifestNamingScheme::detect_scheme(name)?.parse_version(name)
    });
    Ok(versions.collect())
}

/// The fragments of a table whose keyword index has these segments.
pub(super) fn fragment_rows(dataset: &Dataset, segments: &[IndexMetadata]) -> Vec<FragmentRows> {
    dataset
        .get_fragments()
        .iter()
        .map(|fragment| {
            let metadata = fragment.metadata();
            let physical = metadata.physical_rows.unwrap_or(0);
            let covers = |segment: &IndexMetadata| {
                let fragments = segment.fragment_bitmap.as_ref();
                fragments.is_some_and(|fragments| fragments.contains(metadata.id as u32))
            };
            FragmentRows {
                physical,
                deleted: physical.saturating_sub(metadata.num_rows().unwrap_or(physical)),
                segment: segments.iter().position(covers),
                bytes: metadata
                    .files
                    .iter()
                    .filter_map(|file| Some(file.file_size_bytes.get()?.get()))
                    .sum(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fragments without deletions, all in the first segment.
    fn whole(rows: &[usize]) -> Vec<FragmentRows> {
        rows.iter()
            .map(|physical| FragmentRows {
                physical: *physical,
                deleted: 0,
                segment: Some(0),
                bytes: 0,
            })
            .collect()
    }

    fn unindexed(count: usize) -> Vec<FragmentRows> {
        let fragment = FragmentRows {
            physical: 1,
            deleted: 0,
            segment: None,
            bytes: 0,
        };
        vec![fragment; count]
    }

    fn busy(debt: &Debt) -> Option<Step> {
        next_step(debt, Pace::Busy)
    }

    fn next_step(debt: &Debt, pace: Pace) -> Option<Step> {
        due_steps(debt, pace).first().copied()
    }

    /// A debt of these fragments, with as many segments as they name.
    fn debt_of(fragment_rows: Vec<FragmentRows>) -> Debt {
        let segments = fragment_rows.iter().filter_map(|rows| rows.segment).max();
        let mut segment_rows = vec![0; segments.map_or(0, |last| last + 1)];
        let mut unindexed_rows = 0;
        for rows in &fragment_rows {
            match rows.segment {
                Some(segment) => segment_rows[segment] += rows.physical - rows.deleted,
                None => unindexed_rows += rows.physical - rows.deleted,
            }
        }
        Debt {
            unindexed_rows,
            index_segments: segment_rows.len(),
            segment_rows,
            fragments: fragment_rows.len(),
            deleted_rows: fragment_rows.iter().map(|rows| rows.deleted).sum(),
            fragment_rows,
            ..Debt::default()
        }
    }

    #[test]
    fn smaller_debts_are_taken_on_when_nobody_writes() {
        for (debt, step) in [
            (debt_of(unindexed(4)), Step::Index { merged: 0 }),
            (debt_of(whole(&[64; 4])), Step::Compact { target_rows: 1_024 }),
        ] {
            assert_eq!(busy(&debt), None);
            assert_eq!(next_step(&debt, Pace::Quiet), Some(step));
        }
        assert_eq!(next_step(&debt_of(unindexed(3)), Pace::Quiet), None);
        assert_eq!(next_step(&debt_of(whole(&[64; 3])), Pace::Quiet), None);
        // A large fragment is not rewritten for three small ones.
        assert_eq!(next_step(&debt_of(whole(&[15_000, 1, 1, 1])), Pace::Quiet), None);
    }

    #[test]
    fn nothing_to_do_is_no_step() {
        assert_eq!(busy(&Debt::default()), None);
        let small = Debt {
            versions: 63,
            removable_versions: 62,
            ..debt_of([whole(&[1; 11]), unindexed(11)].concat())
        };
        assert_eq!(busy(&small), None);
    }

    #[test]
    fn worn_fragments_are_rewritten_small_ones_are_merged() {
        let fragment = |physical, deleted| FragmentRows {
            physical,
            deleted,
            segment: Some(0),
            bytes: 0,
        };
        let debt = |rows: FragmentRows| debt_of(vec![rows]);
        assert_eq!(busy(&debt(fragment(1_000, 100))), None);
        assert_eq!(
            busy(&debt(fragment(1_000, 101))),
            Some(Step::Rewrite { thorough: false })
        );
        assert_eq!(busy(&debt(fragment(63, 62))), None);
        assert_eq!(
            next_thorough_step(&debt(fragment(63, 1))),
            Some(Step::Rewrite { thorough: true })
        );
        assert_eq!(next_thorough_step(&debt(fragment(63, 0))), None);
    }

    #[test]
    fn what_has_expired_is_forgotten_first() {
        let debt = Debt {
            expired: true,
            unindexed_rows: 1_000,
            ..Debt::default()
        };
        assert_eq!(busy(&debt), Some(Step::Forget));
        assert_eq!(next_thorough_step(&debt), Some(Step::Forget));
    }

    #[test]
    fn small_fragments_are_indexed_then_merged_class_by_class() {
        assert_eq!(busy(&debt_of(unindexed(12))), Some(Step::Index { merged: 0 }));
        // A store that comes between two steps does not keep the merge from being done.
        let debt = debt_of([whole(&[1; 12]), unindexed(1)].concat());
        assert_eq!(busy(&debt), Some(Step::Compact { target_rows: 64 }));
        assert_eq!(
            busy(&debt_of(whole(&[64; 12]))),
            Some(Step::Compact { target_rows: 1_024 })
        );
        let debt = debt_of([whole(&[1_024; 11]), whole(&[64; 11])].concat());
        assert_eq!(busy(&debt), Some(Step::Compact { target_rows: 16_384 }));
        assert_eq!(busy(&debt_of(whole(&[20_000; 11]))), None);
        assert_eq!(busy(&debt_of(whole(&[STEP_ROWS; 20]))), None);
        // What is covered by different segments cannot be merged, so it does not count together.
        let mut apart = whole(&[1; 12]);
        apart[6..].iter_mut().for_each(|rows| rows.segment = Some(1));
        assert_eq!(busy(&debt_of(apart)), None);
    }

    #[test]
    fn segments_stay_few_and_rows_are_rarely_indexed_again() {
        let (mut segments, mut indexed, mut most) = (Vec::<usize>::new(), 0, 0);
        const ROWS: usize = 100_000;
        for _ in 0..ROWS / UNINDEXED_FRAGMENTS {
            let merged = segments_to_merge(&segments, UNINDEXED_FRAGMENTS);
            let kept = segments.len() - merged;
            let rows = segments.drain(kept..).sum::<usize>() + UNINDEXED_FRAGMENTS;
            indexed += rows;
            segments.push(rows);
            most = most.max(segments.len());
        }
        assert!(most < INDEX_SEGMENTS, "{most} segments");
        assert!(indexed < ROWS * 20, "each row was indexed {} times", indexed / ROWS);
    }

    #[test]
    fn too_many_segments_are_merged_from_the_end_as_far_as_a_step_goes() {
        let debt = |segment_rows: Vec<usize>| Debt {
            index_segments: segment_rows.len(),
            segment_rows,
            ..Debt::default()
        };
        let merged = |segment_rows: Vec<usize>| match busy(&debt(segment_rows)) {
            Some(Step::Index { merged }) => Some(merged),
            _ => None,
        };
        assert_eq!(merged(vec![1_000; 11]), None);
        assert_eq!(merged(vec![1_000; 12]), Some(12));
        let mut rows = vec![1_000_000; 6];
        rows.extend([10_000; 6]);
        assert_eq!(merged(rows), Some(6));
        assert_eq!(merged(vec![1_000_000; 12]), Some(2));
    }

    #[test]
    fn versions_are_pruned_last() {
        let debt = Debt {
            versions: 64,
            removable_versions: 63,
            ..Debt::default()
        };
        assert_eq!(busy(&debt), Some(Step::Prune));
    }

    #[test]
    fn versions_that_are_read_are_no_debt() {
        let debt = Debt {
            versions: 5_000,
            removable_versions: 0,
            ..Debt::default()
        };
        assert_eq!(busy(&debt), None);
        assert_eq!(next_step(&debt, Pace::Quiet), None);
        assert_eq!(next_thorough_step(&debt), None);
    }

    #[test]
    fn a_step_that_may_change_nothing_is_not_in_the_way_of_the_next() {
        let worn = FragmentRows {
            physical: 1_000,
            deleted: 500,
            segment: Some(0),
            bytes: 0,
        };
        let debt = Debt {
            expired: true,
            versions: 100,
            removable_versions: 99,
            ..debt_of([vec![worn], whole(&[1; 12]), unindexed(12)].concat())
        };
        let due = due_steps(&debt, Pace::Busy);
        let names: Vec<&str> = due.iter().map(|step| step.name()).collect();
        assert_eq!(names, ["forget", "index", "compact", "rewrite", "prune"]);
    }
}
