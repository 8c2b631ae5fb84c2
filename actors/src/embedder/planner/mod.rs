//! Decides which queued texts run together next. Pure: no clock, no channels, no threads.
//!
//! The actor pushes texts as they arrive and asks for a batch whenever the engine is idle, never before: what
//! arrives during a forward pass can still join the next one, so requests coalesce by themselves and an idle
//! engine starts at once. No timer is involved.
//!
//! * **Two lanes.** Interactive texts go first, earliest deadline first. A batch with space left is topped up with
//!   bulk texts, up to the bulk quantum in all.
//! * **Small bulk batches.** A forward pass cannot be interrupted, so a bulk batch is the delay that a query
//!   meets; it is held to a quantum that costs about one idle query, unless nobody has asked anything for a
//!   while.
//! * **No starvation.** After some batches without bulk, or some seconds in which bulk waited unserved, half of
//!   the next batch is bulk's.
//! * **Fair bulk.** Origins (connections) share the bulk lane by deficit round-robin over tokens, so one agent
//!   that re-indexes a repository does not hold up another.
//! * **Cost.** An engine that pads pays `texts x longest`; then bulk is also kept in buckets of similar length,
//!   a batch starts with the oldest text's bucket and extends to shorter ones only, and a top-up is never longer
//!   than what is already there. An engine that packs pays for real tokens, and none of that is needed.
//! * **No wasted work.** Abandoned and expired texts are dropped when they are met, and never run.

mod batch;
mod queue;
mod types;

#[cfg(test)]
mod tests;

pub use queue::Planner;
pub use types::{CostModel, DropReason, FlushCause, Formation, Lane, LaneDepth, PlannedBatch, PlannerConfig, Queued};
