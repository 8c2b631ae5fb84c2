//! The steps of upkeep, each one commit or one deletion of files.

use std::collections::BTreeMap;

use lance::Dataset;
use lance::dataset::cleanup::{CleanupPolicy, RemovalStats};
use lance::dataset::optimize::CompactionOptions;
use lance::index::DatasetIndexExt;
use lance_index::optimize::OptimizeOptions;
use lancedb::table::OptimizeAction;

use crate::clock::believed_now;
use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::{read_error, write_error};
use crate::store::table::durable::sync_directories;
use crate::store::upkeep::debt::{DELETED_PART, Debt, Step, TIERS, fragment_rows, measure, next_thorough_step};
use crate::store::upkeep::step_size::{StepSize, fragments_to_merge, fragments_to_rewrite};
use crate::store::upkeep::vectors::next_segment_of;
use crate::store::write::{TEXT_INDEX, WriteTable, current_dataset};

/// A thorough upkeep, which leaves nothing undone that can be done, a step at a time: others write between its steps.
#[derive(Clone, Debug, Default)]
pub struct Thorough {
    /// Its steps so far, by name.
    pub steps: BTreeMap<String, u64>,
    /// Steps that it may still take; none before the first.
    left: Option<usize>,
    has_forgotten: bool,
    has_indexed: bool,
    has_merged: bool,
}

impl WriteTable {
    /// Measures the debt. Reads the manifest and one directory.
    pub async fn debt(&self) -> KnowledgeResult<Debt> {
        let dataset = current_dataset(self.lancedb()).await?;
        let measured = measure(&dataset, self.oldest_kept_version(&dataset)).await?;
        Ok(Debt {
            expired: self.forgets_at().is_some_and(|at| at <= believed_now()),
            purge_unfinished: self.is_erasing().await?,
            vectors: measured.vectors.of(self.residence(&dataset)),
            ..measured
        })
    }

    /// The oldest version that must stay: the oldest that a reader holds, or the present one.
    fn oldest_kept_version(&self, dataset: &Dataset) -> u64 {
        let current = dataset.version().version;
        self.oldest_held_version().map_or(current, |held| held.min(current))
    }

    /// Runs one step of a thorough upkeep; false where there is none to run. Old versions stay: they can be pruned once
    /// what was done is published.
    pub(crate) async fn maintain_thoroughly(&mut self, upkeep: &mut Thorough) -> KnowledgeResult<bool> {
        // Who asks for it wants the space.
        self.release_pages();
        loop {
            let mut debt = Debt {
                // What has expired goes at once here, together with nothing or not.
                expired: self.holds_closed_before(self.retention_cutoff()) && !upkeep.has_forgotten,
                ..self.debt().await?
            };
            // Each step leaves fewer fragments, or fewer rows in them that are deleted. What comes meanwhile is not
            // waited for.
            let left = upkeep.left.get_or_insert(2 * debt.fragments + 2);
            if upkeep.has_indexed {
                (debt.unindexed_rows, debt.index_segments) = (0, 0);
            }
            if upkeep.has_merged {
                // For the decision whether to merge; rewriting looks at the rows that are deleted.
                debt.fragment_rows.clear();
            }
            let step = next_thorough_step(&debt).filter(|step| *step != Step::Prune && *left > 0);
            let Some(step) = step else { return Ok(false) };
            *left -= 1;
            let changed = self.maintain(step).await?;
            match step {
                // The oldest closed row may have been purged since; the next look knows better.
                Step::Forget => upkeep.has_forgotten = true,
                Step::Index { .. } => upkeep.has_indexed = true,
                // Fragments that Lance does not merge (indexed and unindexed ones) are left after one try.
                Step::Compact { .. } => upkeep.has_merged = !changed,
                _ if !changed => return Ok(false),
                _ => {}
            }
            if changed {
                *upkeep.steps.entry(step.name().to_owned()).or_default() += 1;
                return Ok(true);
            }
        }
    }

    /// Lance's own version, which also counts maintenance.
    pub async fn lance_version(&self) -> KnowledgeResult<u64> {
        Ok(current_dataset(self.lancedb()).await?.version().version)
    }

    /// Runs one step. True if it changed anything: it made a version, or removed some.
    pub async fn maintain(&mut self, step: Step) -> KnowledgeResult<bool> {
        let before = self.lance_version().await?;
        match step {
            Step::Erase => self.erase_removed().await?,
            Step::Forget => self.forget_before(self.retention_cutoff()).await?,
            Step::Rewrite { thorough } => {
                let part = if thorough { 0.0 } else { DELETED_PART };
                self.rewrite(part, StepSize::default()).await?
            }
            // Of no segment is to append one.
            Step::Index { merged } => self.optimize_index(OptimizeOptions::merge(merged)).await?,
            Step::Compact { target_rows } => {
                let dataset = current_dataset(self.lancedb()).await?;
                let segments = dataset.load_indices_by_name(TEXT_INDEX).await.map_err(read_error)?;
                let fragments = fragment_rows(&dataset, &segments);
                let merged = fragments_to_merge(&fragments, target_rows, StepSize::default());
                let options = CompactionOptions {
                    target_rows_per_fragment: target_rows,
                    // A large fragment with deletions would be cut into pieces of the target's size.
                    materialize_deletions: false,
                    excluded_fragment_ids: all_but(&dataset, |number| merged.contains(&number)),
                    num_threads: Some(1),
                    ..CompactionOptions::default()
                };
                self.compact(options).await?;
            }
            Step::IndexVectors => {
                let dataset = current_dataset(self.lancedb()).await?;
                self.index_vectors(&next_segment_of(&dataset).await?).await?;
            }
            Step::DropVectors => self.drop_vector_index().await?,
            Step::Prune => return self.prune().await,
        }
        Ok(self.lance_version().await? > before)
    }

    /// Rewrites all fragments of which more than `deleted_part` is deleted, and no others.
    pub(crate) async fn rewrite_deletions(&self, deleted_part: f32) -> KnowledgeResult<()> {
        self.rewrite(deleted_part, StepSize::UNBOUNDED).await
    }

    /// As [`WriteTable::rewrite_deletions`], the first of them, as many as one step may rewrite.
    async fn rewrite(&self, deleted_part: f32, size: StepSize) -> KnowledgeResult<()> {
        let dataset = current_dataset(self.lancedb()).await?;
        let worn = fragments_to_rewrite(&fragment_rows(&dataset, &[]), deleted_part, size);
        let options = CompactionOptions {
            target_rows_per_fragment: TIERS[TIERS.len() - 1],
            materialize_deletions_threshold: deleted_part,
            excluded_fragment_ids: all_but(&dataset, |number| worn.contains(&number)),
            num_threads: Some(1),
            ..CompactionOptions::default()
        };
        self.compact(options).await
    }

    async fn compact(&self, options: CompactionOptions) -> KnowledgeResult<()> {
        let action = OptimizeAction::Compact {
            options,
            remap_options: None,
        };
        self.lancedb().optimize(action).await.map(drop).map_err(write_error)?;
        // Right after it: then it is seen where the rows have gone, and none has to be read again.
        self.snapshot().await?.follow(&[]).await;
        Ok(())
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
    /// no version names are removed as well: the caller holds the project's lock, so no write is in flight. True if
    /// anything was removed.
    pub(crate) async fn prune(&self) -> KnowledgeResult<bool> {
        let dataset = current_dataset(self.lancedb()).await?;
        let removed = self.prune_before(self.oldest_kept_version(&dataset)).await?;
        Ok(removed.old_versions > 0 || removed.bytes_removed > 0)
    }

    /// Removes every version but the present one, whoever reads it, and for good: no power cut brings them back.
    pub(crate) async fn prune_all(&self) -> KnowledgeResult<()> {
        let current = current_dataset(self.lancedb()).await?.version().version;
        self.prune_before(current).await?;
        let table = std::path::PathBuf::from(self.lancedb().uri().await.map_err(read_error)?);
        tokio::task::spawn_blocking(move || sync_directories(&table))
            .await
            .map_err(KnowledgeError::internal)?
            .map_err(write_error)
    }

    async fn prune_before(&self, version: u64) -> KnowledgeResult<RemovalStats> {
        let dataset = current_dataset(self.lancedb()).await?;
        let policy = CleanupPolicy {
            before_version: Some(version),
            delete_unverified: true,
            error_if_tagged_old_versions: false,
            ..CleanupPolicy::default()
        };
        dataset.cleanup_with_policy(policy).await.map_err(write_error)
    }
}

/// The ids of the fragments whose places in the table are not `wanted`.
fn all_but(dataset: &Dataset, wanted: impl Fn(usize) -> bool) -> Vec<u32> {
    let fragments = dataset.get_fragments().into_iter().enumerate();
    fragments
        .filter(|(number, _)| !wanted(*number))
        .filter_map(|(_, fragment)| u32::try_from(fragment.id()).ok())
        .collect()
}
