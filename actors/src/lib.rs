//! The parts of ccod that do the work.
//!
//! ```text
//!                    supervisor  (starts, restarts, publishes Routes; not on the request path)
//!          /              |                \
//!    embedder          readers           writer
//!   batching, one    N of them, each     one lane for each project,
//!   engine thread    one query at a      one commit in flight, one
//!        |           time                version for each group
//!      model              \                /
//!   (candle BERT)          store: one LanceDB for each project; readers get immutable
//!                          views, the writer alone can reach a table
//! ```
//!
//! What a use case needs of several parts is put together in [`knowledge`], which calls them directly
//! ([`routes::Routes`]). Work is bounded before it enters a mailbox ([`admission`]), carries its [`deadline`], and is
//! answered exactly once. This crate knows nothing of the wire; the executable's `rpc` module translates.
#![recursion_limit = "256"]

pub mod admission;
pub mod clock;
pub mod deadline;
pub mod descriptors;
pub mod domain;
pub mod embedder;
pub mod error;
pub mod knowledge;
pub mod memory;
pub mod panics;
pub mod reader;
pub mod restart;
pub mod routes;
pub mod store;
pub mod supervisor;
pub mod writer;

/// For tests that read a table with nothing but Lance.
#[doc(hidden)]
pub use lance;
