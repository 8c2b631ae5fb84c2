//! Data as a whole: it can be carried away, brought back, checked, and read by other versions, and stays what it was.

mod backup;
mod calls;
mod commands;
mod export_and_import;
mod growth;
mod places;
mod restore;
mod verify;
