//! Forgets closed rows that are older than they are kept.

use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::believed_now;
use crate::error::KnowledgeResult;
use crate::store::error::write_error;
use crate::store::table::schema::column;
use crate::store::view::{Horizon, filter};
use crate::store::write::WriteTable;
use crate::store::write::table::SEQUENCE_KEY;
use lancedb::expr::col;

/// Rows that expire within this part of the retention of one another are forgotten together: each forgetting reads the
/// closed rows and makes two versions.
const FORGOTTEN_TOGETHER_PART: i32 = 64;
/// The longest that a row is kept beyond the retention for that.
const FORGOTTEN_TOGETHER: TimeDelta = TimeDelta::hours(1);

/// When rows of which the oldest was closed at `oldest_closed` are forgotten without being asked to. Pure.
pub(crate) fn forgotten_at(oldest_closed: DateTime<Utc>, retention: TimeDelta) -> DateTime<Utc> {
    let slack = FORGOTTEN_TOGETHER.min(retention / FORGOTTEN_TOGETHER_PART);
    let kept = retention.checked_add(&slack).unwrap_or(TimeDelta::MAX);
    oldest_closed
        .checked_add_signed(kept)
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

impl WriteTable {
    /// When rows are next to be forgotten; none as long as none is closed.
    pub(crate) fn forgets_at(&self) -> Option<DateTime<Utc>> {
        self.oldest_closed.map(|oldest| forgotten_at(oldest, self.retention))
    }

    /// Rows that were closed before this are to be forgotten.
    pub(crate) fn retention_cutoff(&self) -> DateTime<Utc> {
        believed_now() - self.retention
    }

    /// Whether rows that were closed before `cutoff` are kept.
    pub(crate) fn holds_closed_before(&self, cutoff: DateTime<Utc>) -> bool {
        self.oldest_closed.is_some_and(|oldest| oldest < cutoff)
    }

    /// Forgets the rows that were closed before `cutoff`. What is known of them afterwards is where the history
    /// begins, and that the commit numbers go on.
    pub(crate) async fn forget_before(&mut self, cutoff: DateTime<Utc>) -> KnowledgeResult<()> {
        let expired = col(column::CLOSED_AT).lt(filter::time_literal(cutoff));
        let view = self.snapshot().await?;
        let mut horizon: Option<Horizon> = view.horizon()?;
        let mut oldest_kept = None;
        let mut found = false;
        let closed = filter::first_passage().and(col(column::VALID_TO).is_not_null());
        view.for_each_identity(closed, |row| {
            let (Some(sequence), Some(at)) = (row.valid_to, row.closed_at) else {
                return;
            };
            if at < cutoff {
                found = true;
                horizon = Some(match horizon {
                    None => Horizon { sequence, at },
                    Some(before) => Horizon {
                        sequence: before.sequence.max(sequence),
                        at: before.at.max(at),
                    },
                });
            } else {
                oldest_kept = Some(oldest_kept.map_or(at, |oldest: DateTime<Utc>| oldest.min(at)));
            }
        })
        .await?;
        drop(view);
        if let (true, Some(horizon)) = (found, horizon) {
            let entries = horizon
                .entries()
                .into_iter()
                .chain([(SEQUENCE_KEY.to_owned(), self.last_sequence.to_string())]);
            // First the note, then the rows: a crash between the two forgets nothing that is not noted.
            self.native()?.update_config(entries).await.map_err(write_error)?;
            self.table.delete(&expired).await.map_err(write_error)?;
        }
        self.oldest_closed = oldest_kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_expire_soon_after_one_another_are_forgotten_together() {
        let closed = DateTime::<Utc>::UNIX_EPOCH;
        let after = |retention: TimeDelta| forgotten_at(closed, retention) - closed;
        assert_eq!(after(TimeDelta::zero()), TimeDelta::zero());
        assert_eq!(after(TimeDelta::seconds(64)), TimeDelta::seconds(65));
        assert_eq!(after(TimeDelta::days(7)), TimeDelta::days(7) + TimeDelta::hours(1));
        // Longer than there is time.
        assert_eq!(forgotten_at(closed, TimeDelta::MAX), DateTime::<Utc>::MAX_UTC);
    }
}
