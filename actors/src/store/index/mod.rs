//! The resident index of each open project: what is asked all the time is answered from memory (`ccod-index`), without
//! a query engine.
//!
//! `snapshot` is the index of one version of a table: read from it, or made from that of another version by what
//! differs between the two. `rows` turns rows of the table into those of the index. `keeper` has the newest snapshot of
//! a project, `words` adds the words of texts to it, and `budget` decides which projects have one. `texts` keeps the
//! rows that were shown lately.
//!
//! The table is the truth, and an index can always be read from it again. So whatever goes wrong here costs time and
//! nothing else.

mod budget;
mod keeper;
mod rows;
mod snapshot;
mod texts;
mod words;

pub(crate) use budget::Budget;
pub use budget::{Residence, ResidentStats, TextStats};
pub(crate) use keeper::{Keeper, ViewIndex};
pub(crate) use rows::unit;
pub(crate) use snapshot::{dimensions, rows_of};
pub(crate) use texts::ShownRow;
