//! Upkeep of a table, in steps: fold new rows into the keyword index, merge small fragments, remove versions
//! that nobody reads. What to do is decided by debt, not by a clock; one step is small, and the writer runs it
//! between commits, so that a store waits for at most one.

use lance::dataset::cleanup::CleanupPolicy;
use lance::dataset::optimize::CompactionOptions;
use lance_index::optimize::OptimizeOptions;
use lancedb::table::OptimizeAction;
use serde::Serialize;

use crate::error::KnowledgeResult;
use crate::store::error::{read_error, write_error};
use crate::store::write::{TEXT_INDEX, WriteTable, current_dataset};

/// Rows outside the keyword index from which on they are folded in: each is read and tokenised by every
/// keyword search until then (about 10 microseconds a row).
const UNINDEXED_ROWS: usize = 256;
/// Segments of the keyword index from which on they are merged into one: each search visits all of them.
const INDEX_SEGMENTS: usize = 8;
/// Fragments of one size class from which on they are merged.
const FRAGMENTS_PER_TIER: usize = 16;
/// Size classes of fragments, in rows. A merge of the smallest class that is full makes fragments of the next,
/// so a row is rewritten once for each class, not once for each merge.
const TIERS: [usize; 4] = [64, 1_024, 16_384, 262_144];
/// Versions on disk from which on the unread ones are removed.
const VERSIONS: usize = 64;

/// How much upkeep a table is behind with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Debt {
    /// Rows that the keyword index does not hold yet.
    pub unindexed_rows: usize,
    /// Segments of the keyword index.
    pub index_segments: usize,
    /// Rows of each fragment, in the table's order.
    #[serde(skip)]
    pub fragment_rows: Vec<usize>,
    /// Fragments.
    pub fragments: usize,
    /// Versions on disk.
    pub versions: usize,
}

/// One step of upkeep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a segment of the keyword index from the rows outside it.
    AppendIndex,
    /// Merge the segments of the keyword index.
    MergeIndex,
    /// Merge fragments below this many rows.
    Compact {
        /// The class's bound.
        target_rows: usize,
    },
    /// Remove versions that nobody reads.
    Prune,
}

/// Decides the next step; none when there is no debt worth one. Pure.
pub fn next_step(debt: &Debt) -> Option<Step> {
    if debt.unindexed_rows >= UNINDEXED_ROWS {
        return Some(Step::AppendIndex);
    }
    if debt.index_segments >= INDEX_SEGMENTS {
        return Some(Step::MergeIndex);
    }
    let crowded = TIERS
        .into_iter()
        .find(|target| debt.fragment_rows.iter().filter(|rows| **rows < *target).count() >= FRAGMENTS_PER_TIER);
    if let Some(target_rows) = crowded {
        // Lance never merges indexed with unindexed fragments: what is small and outside goes in first.
        return Some(if debt.unindexed_rows > 0 {
            Step::AppendIndex
        } else {
            Step::Compact { target_rows }
        });
    }
    (debt.versions >= VERSIONS).then_some(Step::Prune)
}

impl WriteTable {
    /// Measures the debt. Reads the manifest and one directory.
    pub async fn debt(&self) -> KnowledgeResult<Debt> {
        let dataset = current_dataset(self.lancedb()).await?;
        let fragment_rows: Vec<usize> = dataset
            .get_fragments()
            .iter()
            .map(|fragment| fragment.metadata().num_rows().unwrap_or(0))
            .collect();
        let index = self.lancedb().index_stats(TEXT_INDEX).await.map_err(read_error)?;
        let uri = self.lancedb().uri().await.map_err(read_error)?;
        let versions =
            std::fs::read_dir(std::path::Path::new(&uri).join("_versions")).map_or(0, |entries| entries.count());
        Ok(Debt {
            unindexed_rows: index.as_ref().map_or(0, |stats| stats.num_unindexed_rows),
            index_segments: index.and_then(|stats| stats.num_indices).unwrap_or(0) as usize,
            fragments: fragment_rows.len(),
            fragment_rows,
            versions,
        })
    }

    /// Runs one step.
    pub async fn maintain(&mut self, step: Step) -> KnowledgeResult<()> {
        match step {
            Step::AppendIndex => self.optimize_index(OptimizeOptions::append()).await,
            Step::MergeIndex => self.optimize_index(OptimizeOptions::merge(INDEX_SEGMENTS * 2)).await,
            Step::Compact { target_rows } => {
                let options = CompactionOptions {
                    target_rows_per_fragment: target_rows,
                    num_threads: Some(1),
                    ..CompactionOptions::default()
                };
                let action = OptimizeAction::Compact {
                    options,
                    remap_options: None,
                };
                self.lancedb().optimize(action).await.map(drop).map_err(write_error)
            }
            Step::Prune => self.prune().await,
        }
    }

    async fn optimize_index(&self, options: OptimizeOptions) -> KnowledgeResult<()> {
        let options = options.index_names(vec![TEXT_INDEX.to_owned()]);
        self.lancedb()
            .optimize(OptimizeAction::Index(options))
            .await
            .map(drop)
            .map_err(write_error)
    }

    /// Removes every version before the oldest that a reader holds, with the files only they use. Files that
    /// no version names are removed as well: the caller holds the project's lock, so no write is in flight.
    async fn prune(&self) -> KnowledgeResult<()> {
        let dataset = current_dataset(self.lancedb()).await?;
        let current = dataset.version().version;
        let policy = CleanupPolicy {
            before_version: Some(self.oldest_held_version().unwrap_or(current).min(current)),
            delete_unverified: true,
            error_if_tagged_old_versions: false,
            ..CleanupPolicy::default()
        };
        dataset.cleanup_with_policy(policy).await.map(drop).map_err(write_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_to_do_is_no_step() {
        assert_eq!(next_step(&Debt::default()), None);
        let small = Debt {
            unindexed_rows: 255,
            index_segments: 7,
            fragment_rows: vec![1; 15],
            fragments: 15,
            versions: 63,
        };
        assert_eq!(next_step(&small), None);
    }

    #[test]
    fn small_fragments_are_indexed_then_merged_class_by_class() {
        let mut debt = Debt {
            fragment_rows: vec![1; 16],
            unindexed_rows: 16,
            ..Debt::default()
        };
        assert_eq!(next_step(&debt), Some(Step::AppendIndex));
        debt.unindexed_rows = 0;
        assert_eq!(next_step(&debt), Some(Step::Compact { target_rows: 64 }));
        debt.fragment_rows = vec![64; 16];
        assert_eq!(next_step(&debt), Some(Step::Compact { target_rows: 1_024 }));
        debt.fragment_rows = [vec![1_024; 15], vec![64; 15]].concat();
        assert_eq!(next_step(&debt), Some(Step::Compact { target_rows: 16_384 }));
        debt.fragment_rows = vec![20_000; 15];
        assert_eq!(next_step(&debt), None);
    }

    #[test]
    fn versions_are_pruned_last() {
        let debt = Debt {
            versions: 64,
            ..Debt::default()
        };
        assert_eq!(next_step(&debt), Some(Step::Prune));
    }
}
