//! Reading everything of a project and comparing it with what it says of itself.
//!
//! The table is opened a second time, at the view's version and with caches of its own, so that every byte comes
//! from the disk. Fragments are read one after another, batch by batch; what is remembered across batches are
//! fingerprints, some 30 bytes for each row.

mod rows;
mod verification;

pub use verification::{Flaw, Verified, verify};
pub(super) use verification::{TakenAway, taken_away};
