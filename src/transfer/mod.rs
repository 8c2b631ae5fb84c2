//! Items as text: the formats of `admin.export` and `admin.import`. What is written is read back identically,
//! byte for byte when it is written again.
//!
//! Reading is one item at a time, in bounded memory, and what cannot be read is told with its line and passed
//! over.

mod format;
mod jsonl;
mod lines;
mod markdown;

pub(crate) use format::{Entries, Entry, Format};
