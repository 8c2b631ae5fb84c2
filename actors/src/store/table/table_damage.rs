//! What of a table cannot be read, as it was found when the table was opened or read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is wrong with a table that is open, and what of its history is lost. Empty in the ordinary case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableDamage {
    /// Fragments that cannot be read, by id. Reads leave them out.
    pub fragments: BTreeMap<u64, DamagedFragment>,
    /// Why the keyword index cannot be used, if it cannot.
    pub keyword_index: Option<String>,
    /// Why the vector index cannot be used, if there is one and it cannot.
    pub vector_index: Option<String>,
    /// What is wrong with the table's configuration, if something is: then nothing may be written, since numbers of
    /// commits would be given twice.
    pub configuration: Option<String>,
    /// Commit numbers that were lost.
    pub gaps: Vec<Gap>,
}

/// A fragment that cannot be read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DamagedFragment {
    /// Its files, relative to the table.
    pub files: Vec<String>,
    /// Rows in it, as the manifest counts them.
    pub rows: usize,
    /// Whether its files are all there, so that a part of its rows may be read all the same.
    pub salvageable: bool,
    /// What is wrong; names the file.
    pub reason: String,
}

/// Commit numbers that may have been given to what is lost: `after` is the last one that is certainly not, `until`
/// the last one that may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The last commit before it.
    pub after: i64,
    /// The last number in it.
    pub until: i64,
    /// The damaged files that it stands for; empty for versions that were set aside.
    #[serde(default)]
    pub files: Vec<String>,
}

/// A number of rows, for people.
pub(crate) fn rows(number: usize) -> String {
    let noun = if number == 1 { "row" } else { "rows" };
    format!("{number} {noun}")
}

impl TableDamage {
    /// Whether everything can be read.
    pub fn is_sound(&self) -> bool {
        self.fragments.is_empty() && self.keyword_index.is_none() && self.vector_index.is_none()
    }

    /// What cannot be read now, a sentence each.
    pub fn describe(&self) -> Vec<String> {
        let mut found: Vec<String> = self
            .fragments
            .values()
            .map(|fragment| format!("{} cannot be read: {}", rows(fragment.rows), fragment.reason))
            .collect();
        found.extend(
            self.keyword_index
                .iter()
                .map(|reason| format!("the keyword index cannot be used: {reason}")),
        );
        found.extend(
            self.vector_index
                .iter()
                .map(|reason| format!("the vector index cannot be used, and searches read all vectors: {reason}")),
        );
        found.extend(self.configuration.clone());
        found
    }

    /// Whether somebody who has seen everything up to commit `number` may have seen what is lost.
    pub fn lost(&self, number: i64) -> bool {
        self.gaps.iter().any(|gap| number > gap.after && number <= gap.until)
    }

    /// The least number that the newest commit may be given: one after all that were lost.
    pub fn floor(&self) -> i64 {
        self.gaps.iter().map(|gap| gap.until + 1).max().unwrap_or(0)
    }
}
