//! How far back the history of a view reaches.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::view::{ProjectView, filter};

/// Where a project's history begins: rows that were closed up to here have been removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// The commit.
    pub sequence: i64,
    /// Its time.
    pub at: DateTime<Utc>,
}

impl Horizon {
    const SEQUENCE_KEY: &str = "ccod.horizon_sequence";
    const TIME_KEY: &str = "ccod.horizon_ms";

    /// As the table's configuration tells; none where nothing was ever forgotten.
    ///
    /// # Errors
    /// [`KnowledgeError::Unreadable`] where what it says is not a horizon.
    pub(crate) fn of(config: &HashMap<String, String>) -> KnowledgeResult<Option<Self>> {
        let sequence = config_number(config, Self::SEQUENCE_KEY)?;
        let milliseconds = config_number(config, Self::TIME_KEY)?;
        let (Some(sequence), Some(milliseconds)) = (sequence, milliseconds) else {
            return match sequence.or(milliseconds) {
                None => Ok(None),
                Some(_) => Err(damaged_config(
                    Self::SEQUENCE_KEY,
                    "stands there without its time, or the other way",
                )),
            };
        };
        let at = DateTime::from_timestamp_millis(milliseconds)
            .ok_or_else(|| damaged_config(Self::TIME_KEY, "is not a time"))?;
        Ok(Some(Self { sequence, at }))
    }

    /// For the table's configuration.
    pub(crate) fn entries(self) -> [(String, String); 2] {
        [
            (Self::SEQUENCE_KEY.to_owned(), self.sequence.to_string()),
            (Self::TIME_KEY.to_owned(), self.at.timestamp_millis().to_string()),
        ]
    }
}

/// A number in a table's configuration; none where it does not stand there.
///
/// # Errors
/// [`KnowledgeError::Unreadable`] where what stands there is not a number.
pub(crate) fn config_number(config: &HashMap<String, String>, key: &str) -> KnowledgeResult<Option<i64>> {
    match config.get(key).map(|number| number.parse()) {
        None => Ok(None),
        Some(Ok(number)) if number >= 0 => Ok(Some(number)),
        Some(_) => Err(damaged_config(key, "is not a number")),
    }
}

fn damaged_config(key: &str, what: &str) -> KnowledgeError {
    KnowledgeError::Unreadable {
        message: format!(
            "the configuration of the table is damaged: {key} {what}. It says where commit numbers and the history go \
             on, so nothing is written until it is put right: restore the project from a backup"
        ),
    }
}

impl ProjectView {
    /// What was forgotten: the last commit of which closed rows were removed, and when they were closed.
    ///
    /// # Errors
    /// [`KnowledgeError::Unreadable`] where the table's configuration is damaged.
    pub fn horizon(&self) -> KnowledgeResult<Option<Horizon>> {
        Horizon::of(self.dataset.config())
    }

    /// Refuses a point in the history of which rows have been removed since.
    pub(crate) fn check_as_of(&self, at: Option<filter::AsOf>) -> KnowledgeResult<()> {
        let Some(at) = at else { return Ok(()) };
        let Some(horizon) = self.horizon()? else {
            return Ok(());
        };
        let forgotten = match at {
            filter::AsOf::Commit(sequence) => sequence < horizon.sequence,
            filter::AsOf::Time(time) => time < horizon.at,
        };
        if forgotten {
            Err(KnowledgeError::Expired {
                what: format!(
                    "the history of project {} before version {} ({}), which is older than retention_days,",
                    self.project,
                    horizon.sequence,
                    crate::domain::format_time(horizon.at)
                ),
            })
        } else {
            Ok(())
        }
    }
}
