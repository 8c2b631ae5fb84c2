//! Damage on disk: nothing whole is lost, what is lost is named, and one project's damage costs no other anything.

mod apart;
mod condition;
mod damaged_configuration;
mod degraded;
mod losses;
