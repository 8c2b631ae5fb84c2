//! Commit numbers that were lost, see [`Gap`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::KnowledgeResult;
use crate::store::disk;
use crate::store::table::lineage::LINEAGE_FILE;
use crate::store::table::table_damage::{DamagedFragment, Gap};

/// File inside a project's directory that keeps its [`Gap`]s.
pub(super) const GAPS_FILE: &str = "lost-commits.json";

/// What [`GAPS_FILE`] holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct GapsFile {
    pub(super) gaps: Vec<Gap>,
    /// Versions that were set aside, each with one commit at most, before it was known which number came last.
    #[serde(default)]
    pub(super) pending: i64,
}

impl GapsFile {
    pub(super) fn read(project_directory: &Path) -> KnowledgeResult<Self> {
        let path = project_directory.join(GAPS_FILE);
        let remedy = format!(
            "it holds the commit numbers that were lost: {}, once the damaged file is removed",
            disk::begin_another_history(&project_directory.join(LINEAGE_FILE))
        );
        Ok(disk::read(&path, &remedy)?.unwrap_or_default())
    }

    pub(super) fn write(&self, project_directory: &Path) -> KnowledgeResult<()> {
        disk::write(&project_directory.join(GAPS_FILE), self)
    }

    /// Gives what is lost its numbers. `last` is the highest number that was read, `damage` what could not be,
    /// `version` the table's, which bounds the commits that there can have been. True if something is new.
    pub(super) fn resolve(&mut self, last: i64, damage: &BTreeMap<u64, DamagedFragment>, version: u64) -> bool {
        let mut last = self.gaps.iter().map(|gap| gap.until + 1).fold(last, i64::max);
        let mut changed = false;
        if self.pending > 0 {
            let until = last.saturating_add(self.pending);
            self.gaps.push(Gap {
                after: last,
                until,
                files: Vec::new(),
            });
            self.pending = 0;
            last = until.saturating_add(1);
            changed = true;
        }
        let known: BTreeSet<&String> = self.gaps.iter().flat_map(|gap| &gap.files).collect();
        let fresh: Vec<String> = damage
            .values()
            .flat_map(|fragment| &fragment.files)
            .filter(|file| !known.contains(*file))
            .cloned()
            .collect();
        if !fresh.is_empty() {
            self.gaps.push(Gap {
                after: last,
                until: last.saturating_add(i64::try_from(version).unwrap_or(i64::MAX)),
                files: fresh,
            });
            changed = true;
        }
        changed
    }
}

/// The gaps in a project's commit numbers, with those that have just come to be. Blocks.
pub(crate) fn gaps(
    project_directory: &Path,
    last: i64,
    damage: &BTreeMap<u64, DamagedFragment>,
    version: u64,
) -> KnowledgeResult<Vec<Gap>> {
    let mut kept = GapsFile::read(project_directory)?;
    if kept.resolve(last, damage, version)
        && let Err(error) = kept.write(project_directory)
    {
        // Nothing can be committed either, so no number is given before this succeeds after a restart.
        tracing::warn!(%error, "lost commit numbers could not be written down");
    }
    Ok(kept.gaps)
}
