//! What a crash, a power cut or a failing disk leaves behind, and how a project is opened all the same.
//!
//! [`recover()`] runs once for each project in a process, before its table is opened and with the project's lock
//! held, so nothing of it is in flight:
//!
//! - staging files of interrupted writes are removed;
//! - a newest version whose manifest cannot be read is set aside and the one before it is opened;
//! - so is one that names a data file which is missing or cut off, if the version before it is whole there and it
//!   was not made with `durability = "full"`, which its manifest tells: that is a commit that a power cut tore;
//! - any other damaged file does not belong to a torn commit. The table is opened as it is, and reads leave out the
//!   fragments that cannot be read ([`TableDamage`](super::table::table_damage::TableDamage)); the writer takes them
//!   out of the table before its next commit (see `repair.rs`), at once where a part of their rows can still be read.
//!
//! Whatever is taken out of a table goes to `<project>/set-aside/<time>/` with a report, and is never deleted here.
//!
//! Commit numbers are never used twice. What was lost may have had numbers that clients have seen, so the numbers
//! that may be gone are kept as a [`Gap`](super::table::table_damage::Gap) in `<project>/lost-commits.json`: the next
//! commit is numbered after it, and a cursor of the change feed that stands in it is told to begin again.

mod files;
mod gaps;
mod glance;
mod keyword_index;
mod manifest;
mod recover;
mod repair;
mod set_aside;
mod staging;
#[cfg(test)]
mod tests;
mod vector_index;

pub(crate) use files::{damaged_fragments, index_damage, inspect, read_fragment, unreadable_fragments};
pub(crate) use gaps::gaps;
pub(crate) use glance::{Glance, glance};
pub(crate) use keyword_index::{keyword_index_damage, look_up, open_again, read_keyword_index, table_path};
pub(crate) use recover::{clear_site, recover, remove_failed_site};
pub(crate) use set_aside::{PUT_BACK, discard_set_aside, losses, set_aside_in, set_aside_so_far};
pub(crate) use vector_index::{read_vector_index, vector_index_damage};
