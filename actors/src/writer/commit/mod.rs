//! One group of writes becomes one commit.
//!
//! Every item to store is first compared with what is there (and with the items before it in the group): a retry
//! gets the first answer again, a conflict its error, and what is new goes into one batch. Updates, deletions and
//! undeletions close the rows that they end and open those that begin, in the same commit. Closing a row is
//! writing it again with its end; no row is ever changed otherwise.
//!
//! A write that may concern any number of items is a group of its own, and is cut into parts, each a commit
//! (see [`parts`]).

mod concerned;
mod group;
mod identity;
mod ops;
pub mod parts;
mod plan;
mod planned;
mod revision;

#[cfg(test)]
mod on_a_table;
#[cfg(test)]
mod tests;

pub use group::{GroupOutcome, PlannedGroup};
pub use ops::{
    DeleteTarget, Deleted, ItemOutcome, OpOutcome, PreparedItem, PreparedUpdate, UndeleteTarget, Undeleted, Updated,
    WriteOp,
};
pub use parts::{Begun, PlannedParts};
pub use planned::{Planned, plan};
