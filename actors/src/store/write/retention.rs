//! Forgetting what was closed longer ago than it is kept.

use chrono::{DateTime, Utc};

use crate::clock::believed_now;
use crate::error::KnowledgeResult;
use crate::store::error::write_error;
use crate::store::upkeep::forgotten_at;
use crate::store::view::{Horizon, filter};
use crate::store::write::WriteTable;

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
