//! The readers: a pool of actors that query views.
//!
//! A request takes an idle reader, or waits for one within its deadline, so a slow query holds up one reader
//! and nobody's queue. A reader runs one query at a time, under the request's deadline, and drops it when the
//! caller leaves. It counts as idle again when it is done with the query, not when the caller is: one that is
//! stuck gets no further work. A query that panics ends its reader alone: the caller is told to retry, the
//! supervisor puts a new reader in its place.

mod actor;
mod answers;
mod feed_queries;
mod job;
mod pool;
mod queries;

pub use actor::Reader;
pub use answers::{
    ChangePage, FailedProject, FoundItems, MatchingItems, MatchingSize, ProjectStats, Projects, Seen, StatsReport,
    Within,
};
pub use job::ReadJob;
pub use pool::{ReaderConfig, ReaderPool, ReaderStats};
