//! The types of every method: parameters, results and the one table that names them all.
//!
//! A method is a unit struct ([`Store`], [`Search`], ...) that implements [`Method`]; the table
//! (`table.rs`) is the only place where a name, its parameters, its result, its default deadline and its
//! positional order are brought together. The server decodes with it ([`crate::params::decode`]), the
//! client calls with it ([`crate::client::Client::call`]) and `rpc.discover` is generated from it.
//!
//! Times in results are RFC 3339 in UTC with milliseconds. Fields may be added by later versions, so
//! results tolerate unknown members; parameters do not (see [`crate::params`]).

mod admin;
#[cfg(test)]
mod answers;
mod common;
mod compaction;
mod contract;
mod data;
mod exact;
mod feed;
mod items;
mod life;
mod rpc;
mod search;
mod sql;
mod table;

pub use admin::*;
pub use ccod_words::{
    AsOf, DEFAULT_PROJECT, Durability, FILTER_VALUES_MAX, Filter, Item, KnowledgeType, METADATA_FILTERS_MAX, Metadata,
    MetadataFilter, OnDuplicate, OneOrMany, Order, PROJECT_NAME_MAX, Passage, ProjectName, Record, Revision, SearchHit,
    SearchMode, StoreParams, UniqueKeys, UnknownWord, UpdateParams, format_time, parse_time, unique_metadata,
    unique_metadata_if_any,
};
pub use common::*;
pub use compaction::*;
pub use contract::{Method, MethodInfo, Params, ProjectScope, WRITE_US_PER_BYTE};
pub use data::*;
pub use exact::rounded_integer;
pub use feed::*;
pub use items::*;
pub use life::*;
pub use rpc::*;
pub use search::*;
pub use sql::*;
pub use table::*;
