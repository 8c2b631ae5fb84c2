//! The writer: the only actor that changes tables.
//!
//! Each project has a lane with at most one commit in flight, run as a task that reports back, so that
//! projects do not wait for each other and the actor never blocks. What arrives meanwhile forms the next group
//! (see [`lane`]); one group is one version (see [`commit`]). The reply of a write goes out after its last group
//! is durable and published to the readers. Upkeep runs in the same lane, a step at a time, between commits.
//!
//! A task that panics costs its lane a pause and nobody else anything: its group is answered `OutcomeUnknown`, the
//! table is forgotten and reopened, and the other lanes do not notice (see [`setback`]). Business errors never
//! end anything.

mod actor;
mod agenda;
pub mod commit;
mod handle;
mod incoming;
pub mod lane;
mod message;
mod pending;
mod setback;
mod turn;
mod undo;
mod upkeep;

pub use actor::{Writer, WriterArguments, WriterConfig, WriterState};
pub use commit::{
    DeleteTarget, Deleted, ItemOutcome, PreparedItem, PreparedUpdate, UndeleteTarget, Undeleted, Updated, WriteOp,
};
pub use handle::WriterHandle;
pub use incoming::IncomingStore;
pub use message::{ExclusiveRequest, LaneDone, WriteReply, WriteRequest, WriterMessage, WriterStats};
pub use undo::UndoNote;
