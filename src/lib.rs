//! ccod, the knowledge daemon of CCO: everything but the command line.
//!
//! [`daemon`] puts the parts together, `rpc` translates between the wire (`ccod-protocol`) and the actors
//! (`ccod-actors`), [`config`] holds every limit.
#![recursion_limit = "256"]

pub mod config;
pub mod daemon;
pub mod home;
pub mod log_file;
mod ownership;
mod rpc;
mod shutdown;
mod transfer;
