//! kill -9, again and again: what was acknowledged is there after the restart, and nothing else is.
//!
//! [`rounds`] kills under a random load of eight clients, [`directed`] in the middle of what a random moment
//! seldom meets: a project's creation, upkeep, purge, restore. `CCOD_CRASH_SEED=<seed>` runs the load of a
//! printed seed again (the same requests; how they interleave is up to the machine).

#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports)]
mod support;

#[path = "../support/proof/mod.rs"]
#[allow(dead_code)]
mod proof;

mod directed;
mod rounds;
