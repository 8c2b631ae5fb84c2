//! What the writes of a turn come to, before anything is written.

use chrono::{DateTime, Utc};

use super::group::{GroupOutcome, PlannedGroup, plan_group};
use super::ops::{DeleteTarget, UndeleteTarget, WriteOp};
use super::parts::{Begun, PlannedParts};
use crate::error::KnowledgeResult;
use crate::store::WriteTable;
use crate::writer::lane::GroupLimits;

/// The writes of a turn, decided.
pub enum Planned<'g> {
    /// Several, as one commit.
    Group(Box<PlannedGroup<'g>>),
    /// One that may concern any number of items.
    Parts(PlannedParts),
}

/// Decides what `group` writes to `table`, which stays as it is. The error concerns the whole group. No two writes of
/// the group may concern the same item (see [`crate::writer::lane`]). `limits` are those of groups. `begun` is how an
/// attempt before has begun, which failed and may have committed a part.
pub async fn plan<'g>(
    table: &WriteTable,
    group: &'g [WriteOp],
    limits: GroupLimits,
    begun: Option<&Begun>,
) -> KnowledgeResult<Planned<'g>> {
    Ok(match group {
        [WriteOp::Delete(DeleteTarget::Matching(filter), note)] => {
            Planned::Parts(PlannedParts::delete(table, filter, note, limits, begun).await?)
        }
        [WriteOp::Undelete(UndeleteTarget::Deletion(deletion))] => {
            Planned::Parts(PlannedParts::undelete(table, deletion, limits, begun).await?)
        }
        group => Planned::Group(Box::new(plan_group(table, group).await?)),
    })
}

impl Planned<'_> {
    /// Whether nothing is to be written: all of it is there already, or concerns nothing that is.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Group(group) => group.is_empty(),
            Self::Parts(parts) => parts.is_empty(),
        }
    }

    /// Where it is cut into parts: the time of its commits, and the number of the last.
    pub fn parts(&self) -> Option<(DateTime<Utc>, i64)> {
        match self {
            Self::Group(_) => None,
            Self::Parts(parts) => Some((parts.at(), parts.last())),
        }
    }

    /// Commits it, if it writes anything. On an error nothing of it is known to be stored, and of several parts the
    /// first ones may be.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn commit(self, table: &mut WriteTable) -> KnowledgeResult<GroupOutcome> {
        match self {
            Self::Group(group) => group.commit(table).await,
            Self::Parts(parts) => parts.commit(table).await,
        }
    }
}
