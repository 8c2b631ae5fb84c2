//! What the writer does to a table.

mod direct;
mod growth;
mod purge;
mod retention;
mod table;
mod vector_index;

pub(crate) use purge::ERASING_MARK;
pub(crate) use retention::forgotten_at;
pub(crate) use table::{TEXT_INDEX, configuration_damage, current_dataset};
pub use table::{WriteTable, Written};
