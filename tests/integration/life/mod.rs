//! `knowledge.update`, `history`, `delete`, `undelete`, `purge` and `cleanup`: an item changes as asked, and its past is
//! kept or gone as promised.

mod changes;
mod commands;
mod removal;
