//! ccod, the knowledge daemon of CCO: what its two programs are made of.
//!
//! `ccoctl` (`src/bin/ccoctl`) is the command line. It uses [`config`] and [`program`] and talks to the daemon through
//! `ccod-protocol`; it knows no engine. `ccod` (`src/bin/ccod`) is the daemon, which needs the feature `engine`:
//! `daemon` puts its parts together, and `rpc` translates between the wire and the actors (`ccod-actors`).
#![recursion_limit = "256"]

pub mod access;
pub mod config;
pub mod home;
pub mod log_file;
pub mod program;

#[cfg(feature = "engine")]
pub mod daemon;
#[cfg(feature = "engine")]
mod housekeeping;
#[cfg(feature = "engine")]
mod ownership;
#[cfg(feature = "engine")]
mod rpc;
#[cfg(feature = "engine")]
mod shutdown;
#[cfg(feature = "engine")]
mod transfer;
