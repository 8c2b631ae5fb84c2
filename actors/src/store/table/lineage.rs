//! Which history the commit numbers of a project belong to.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::KnowledgeResult;
use crate::store::disk;

/// File of a project's directory that holds its [`Lineage`].
pub(crate) const LINEAGE_FILE: &str = "restored.json";

/// Where the commit numbers of a project come from: the last restore, or the last time that it began again because
/// nothing of it could be read, if there was one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Names the history: the time at which it began, in milliseconds since 1970; 0 for the first one.
    pub epoch: i64,
    /// The number that the restore itself took; every later commit has a higher one.
    pub sequence: i64,
}

impl Lineage {
    /// The lineage of the project in this directory.
    ///
    /// # Errors
    /// [`KnowledgeError::Unreadable`] where it cannot be read: numbers might be given twice.
    pub(crate) fn read(directory: &Path) -> KnowledgeResult<Self> {
        let place = directory.join(LINEAGE_FILE);
        let remedy = format!(
            "it holds where commit numbers go on: {}",
            disk::begin_another_history(&place)
        );
        Ok(disk::read(&place, &remedy)?.unwrap_or_default())
    }

    /// Puts it in place of the one before.
    pub(crate) fn replace(self, directory: &Path) -> KnowledgeResult<()> {
        disk::write(&directory.join(LINEAGE_FILE), &self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineages_survive_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Lineage::read(directory.path()).unwrap(), Lineage::default());
        let lineage = Lineage {
            epoch: 1_795_362_864_593,
            sequence: 42,
        };
        lineage.replace(directory.path()).unwrap();
        assert_eq!(Lineage::read(directory.path()).unwrap(), lineage);
        // None is assumed where it is damaged.
        std::fs::write(directory.path().join(LINEAGE_FILE), "").unwrap();
        let error = Lineage::read(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("restored.json is damaged") && error.contains("\"epoch\":"),
            "{error}"
        );
    }
}
