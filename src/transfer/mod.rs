//! Items as text: the formats of `admin.export` and `admin.import`. A written item is read back identically, and is the
//! same byte for byte when it is written again.
//!
//! Items are read one at a time, in bounded memory. One that cannot be read is reported with its line, and skipped.

mod format;
mod jsonl;
mod lines;
mod markdown;

pub(crate) use format::{Entries, Entry, Format};
