//! The store: one LanceDB database for each project under `knowledge/`.
//!
//! [`Store`] opens projects on first use and hands out [`ProjectView`]s, which can only be queried. What
//! writes is [`WriteTable`], and it is reached through [`WriteAccess`] alone, of which [`Store::open`] gives
//! exactly one: the supervisor keeps it for the writer. So exclusive write access holds by type.
//!
//! The rooms, each of which may use those before it and none of those after it:
//!
//! | room | what is in it |
//! |---|---|
//! | [`error`], `disk`, [`lock`] | errors of LanceDB and of files; private files, synced; the lock of the data directory |
//! | [`table`] | what lies on disk: schema, rows, identities, keyword index, durable commits |
//! | [`view`] | what readers see: one immutable version of a table, and all queries on it |
//! | [`write`] | what the writer does to a table: append, change, purge, forget |
//! | [`upkeep`] | debts of a table, and the steps that pay them |
//! | [`damage`] | what cannot be read: found, left out, set aside, repaired, told of |
//! | `project`, `projects`, `access`, `inventory` | one project; all of them; the right to write; in which condition each is |
//! | [`transfer`] | backup and restore |

mod access;
mod caches;
pub mod damage;
mod discover;
mod disk;
pub mod disk_space;
pub mod error;
mod inventory;
pub mod lock;
mod project;
mod projects;
mod survey;
pub mod table;
pub mod transfer;
pub mod upkeep;
pub mod verify;
pub mod view;
pub mod write;

pub use access::{WriteAccess, WriteGuard};
pub use inventory::NotServed;
pub use lock::{StoreLock, StoreLockError};
pub use project::Project;
pub use projects::{ModelIdentity, Store, StoreConfig};
pub use table::durable::Durability;
pub use table::lineage::Lineage;
pub use view::ProjectView;
pub use write::{WriteTable, Written};
