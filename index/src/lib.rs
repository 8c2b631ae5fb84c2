//! The resident index of a project: its live rows in memory, in a form that answers searches, gets, lists and counts
//! without a query engine.
//!
//! LanceDB's table is the truth. Whoever writes it feeds this index: one [`Builder`] when the project is opened, then
//! one [`Change`] for each commit. The crate knows no runtime, no storage and no model, and nothing in it waits.
//!
//! ```text
//!   Index             an immutable snapshot; a clone is a counter
//!     blocks          64 rows each, in columns: codes of vectors with residuals or signs,      block, codes,
//!                     times, numbers of texts                                                   residuals, signs
//!     addresses       the rows' addresses in Lance                                              pages
//!     places          address of a row in Lance -> its place                                    trie
//!     passages        number of an item -> the places of its passages                           trie
//!     ids, agents, sessions, terms     texts <-> numbers                                        interner
//!     keywords        words <-> numbers, number of a word -> the places that have it           keywords, postings
//!     totals          counts of items                                                           counts
//! ```
//!
//! **Places.** Rows have the places 0 to n - 1 without gaps, 64 of them in a block. A row that goes is overwritten by
//! the last one. So all rows in a block are live, a mask of 64 bits says which of them pass a filter, and nothing has
//! to be cleaned up.
//!
//! **Snapshots.** Blocks, pages of texts and nodes of the maps are shared by all snapshots that have them (`Arc`) and
//! copied when a change concerns them. A change of one row copies two blocks at most (52 KiB each with 384 components,
//! 31 KiB without residuals) and a few nodes, however many rows there are.
//!
//! **Search.** A filter becomes masks first ([`Matching`]). Then the codes of the rows that pass it are multiplied with
//! the query's ([`PreparedQuery`]), in the widest instructions of the machine (`scan`, `kernel`), and the best items
//! are kept (`best`). Codes have eight bits for each component, a quarter of the vector: memory is what bounds a scan.
//!
//! What follows is a property of the index ([`Precision`]). With `Exact`, each row also has what rounding to codes left
//! over (`residuals`). A bound of it says which rows may be among the best, their cosines are computed from all that
//! there is, and the answer is that of a loop over all rows. With `Coarse`, the answer is candidates with approximate
//! cosines; the caller reads their vectors from Lance and decides with [`best_by_item`]. A row takes two thirds of the
//! memory, and of very many rows the signs are compared first.
//!
//! | with 384 components, one thread | `Exact` | `Coarse` |
//! |---|---|---|
//! | memory of a row | 950 bytes | 600 bytes |
//! | the best 10 of 10,000 items | 0.18 ms | 0.20 ms and 50 vectors to be read |
//! | the best 100 of 10,000 items | 0.26 ms | 0.42 ms and 500 vectors to be read |
//! | 40 words of a row | 420 to 580 bytes | |
//! | the best 100 of 10,000 items by six words | 0.06 ms | |
//!
//! (`benches/scan.rs`, on an Intel Xeon with AVX-512 that others used too. Best of three.)
//!
//! **Words.** Each row may come with the words of its text, or get them later ([`Index::with_words`]); once all rows have
//! them, a search by words needs nothing else ([`Matching::search_words`]). What a word weighs is counted over the live
//! rows alone.
//!
//! **Lists** keep no order: blocks know the time of their oldest and newest item, and those that cannot be on the page
//! are passed over.
//!
//! **Nothing stays.** Codes, residuals and texts are overwritten before their memory is freed, and a row that goes is
//! overwritten at once in the new snapshot; the last snapshot that still has it takes it along. What remains of a row that
//! went are numbers in freed memory: its address and times, and hashes of 32 bits.

mod best;
mod block;
mod bytes;
mod codes;
mod counts;
mod index;
mod interner;
mod kernel;
mod keywords;
mod list;
mod matching;
mod pages;
mod postings;
mod residuals;
mod row;
mod scan;
mod search;
mod signs;
mod text;
mod tokens;
mod trie;
mod vectors;
mod wiped;

pub use ccod_words::metadata_term;
pub use codes::PreparedQuery;
pub use counts::Counts;
pub use index::{Builder, Index, Precision};
pub use keywords::{PreparedWords, WordHit};
pub use list::{Listed, Page};
pub use matching::Matching;
pub use row::{Change, Entry, Mismatch, Row};
pub use search::{Hit, RESCORE, best_by_item};
pub use text::WipedText;
pub use tokens::Tokens;
