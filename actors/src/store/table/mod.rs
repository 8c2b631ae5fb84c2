//! What lies on disk: the schema of a table, its rows, its indices, and how a commit is made durable.

pub(crate) mod columns;
pub mod durable;
pub(crate) mod identity;
pub(crate) mod keyword_index;
mod known_durable;
pub mod lineage;
mod open;
pub(crate) mod pending;
mod publish;
pub mod rows;
pub mod schema;
pub mod table_damage;
pub(crate) mod vector_index;
pub(crate) mod written;

pub(crate) use open::{
    EMPTY_LINK, MEND_LINK, MOUNT, checked_reads, dataset_shape, holds_table, is_link, table_directory,
};
