//! What readers see: one immutable version of a project's table, and the queries on it.

pub mod changes;
pub mod export;
pub mod filter;
pub mod fusion;
mod gather;
pub(crate) mod held;
mod horizon;
mod identities;
mod indexed_leg;
mod items;
mod keywords_ahead;
mod leg_queries;
mod legs;
mod outlines;
mod places;
mod project_view;
pub mod recent;
pub mod replay;
mod resident;
pub mod search;
mod shown;
mod stats;

pub use horizon::Horizon;
pub(crate) use horizon::config_number;
pub use identities::IdentityRow;
pub use items::{ListPage, ListRequest};
pub use keywords_ahead::KeywordsAhead;
pub use leg_queries::cosine;
pub(crate) use outlines::Outline;
pub use places::PlacedRows;
pub(crate) use places::RowPlaces;
pub(crate) use project_view::row_id;
pub use project_view::{ProjectView, SearchRequest};
