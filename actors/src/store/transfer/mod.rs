//! Whole projects in and out: backup and restore.

pub mod backup;
pub(crate) mod restore;
