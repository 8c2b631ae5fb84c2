//! The vocabulary of ccod: the types that the wire and the store share, and the rules that hold for them on both
//! sides.
//!
//! `ccod-protocol` and `ccod-actors` both use this crate and do not know each other. What is decoded from a request is
//! what the store works with: nothing is translated, checked twice or worded twice. The crate stays light, because
//! every program that talks to the daemon compiles it: no runtime, no JSON-RPC, no storage.

mod filter;
mod invalid;
mod item;
mod key;
mod kind;
pub mod message;
mod metadata_filter;
mod project;
mod text;
mod time;
mod unique;

pub use filter::{FILTER_VALUES_MAX, Filter, METADATA_FILTERS_MAX, OneOrMany};
pub use invalid::{Invalid, UnknownWord};
pub use item::{Content, Item, Passage, Record, Revision, SearchHit, StoreParams, UpdateParams};
pub use key::{KEY_BYTES_MAX, check_key};
pub use kind::{Durability, Executed, KnowledgeType, OnDuplicate, Order, SearchMode};
pub use metadata_filter::{MetadataFilter, metadata_term, term_in_order};
pub use project::{DEFAULT_PROJECT, PROBE_PREFIX, PROJECT_NAME_MAX, ProjectName};
pub use text::shortened;
pub use time::{AsOf, format_time, parse_time};
pub use unique::{UniqueKeys, unique_metadata, unique_metadata_if_any};

/// Free-form facts about an item: a JSON object.
pub type Metadata = serde_json::Map<String, serde_json::Value>;
