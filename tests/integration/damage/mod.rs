//! Damage on disk: nothing whole is lost, what is lost is named, and one project's damage costs no other anything.

mod apart;
mod claims;
mod condition;
mod damaged_configuration;
mod degraded;
pub(crate) mod home;
mod losses;
mod lost_files;
mod read_only;
mod torn_versions;
mod unfinished;
