//! What goes into an index and what comes out: rows, changes, entries.

use ccod_words::KnowledgeType;

use crate::Tokens;
use crate::kernel::WIDTH_MAX;

/// A live row of a project's table: one passage of an item.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Where Lance has the row: fragment << 32 | offset.
    pub address: u64,
    /// The item's id.
    pub id: &'a str,
    /// Which passage of the item it is, from 0.
    pub passage: u32,
    /// How many passages the item has.
    pub passages: u32,
    /// The item's revision, from 1.
    pub revision: i64,
    /// The item's type.
    pub kind: KnowledgeType,
    /// Who wrote the item.
    pub agent: Option<&'a str>,
    /// In which session.
    pub session: Option<&'a str>,
    /// When the item was created, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// When the item was changed last, in milliseconds since 1970.
    pub updated_ms: i64,
    /// The commit since which the row counts.
    pub valid_from: i64,
    /// What a condition on metadata is compared with, as [`metadata_term`](crate::metadata_term) writes it.
    pub metadata_terms: &'a [String],
    /// Of length 1, with as many components as all vectors of the index.
    pub vector: &'a [f32],
    /// The words of the text, if they are known already.
    pub words: Option<&'a Tokens>,
}

/// What a commit does to the live rows. Rows move first, then some go, then others come: so an address that is
/// removed may be given to an added row, and `removed` names rows by their addresses after the move.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    /// Rows that are live from now on.
    pub added: &'a [Row<'a>],
    /// Addresses of rows that are not live any more.
    pub removed: &'a [u64],
    /// Old and new addresses of rows that a compaction has moved; they all move at once.
    pub moved: &'a [(u64, u64)],
}

/// A live row as the index has it, without its vector and its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where Lance has the row.
    pub address: u64,
    /// The item's id.
    pub id: &'a str,
    /// Which passage of the item it is, from 0.
    pub passage: u32,
    /// How many passages the item has.
    pub passages: u32,
    /// The item's revision.
    pub revision: i64,
    /// The item's type.
    pub kind: KnowledgeType,
    /// Who wrote the item.
    pub agent: Option<&'a str>,
    /// In which session.
    pub session: Option<&'a str>,
    /// When the item was created, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// When the item was changed last, in milliseconds since 1970.
    pub updated_ms: i64,
    /// The commit since which the row counts.
    pub valid_from: i64,
}

/// A change does not fit the rows that the index has: the index is not what the table is. It must be built again from
/// the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A vector has another length than those of the index.
    #[error("a vector has {found} components, those of the index have {expected}")]
    Dimensions {
        /// The length of all vectors of the index.
        expected: usize,
        /// The length of this one.
        found: usize,
    },
    /// A row that should go or move is not there.
    #[error("there is not a live row at address {0:#x}")]
    UnknownAddress(u64),
    /// A row that should come has the address of another.
    #[error("there is a live row at address {0:#x} already")]
    AddressTaken(u64),
    /// More rows than an index numbers, or longer vectors than it multiplies.
    #[error("an index has at most {} rows, of at most {WIDTH_MAX} components", u32::MAX)]
    TooLarge,
}
