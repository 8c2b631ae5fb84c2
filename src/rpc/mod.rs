//! The methods of the wire, over the actors. The only place that knows both sides: parameters become domain
//! requests, results and errors become what `api.md` promises. One file for each group of methods.

mod admin;
mod app;
mod convert;
mod data;
mod errors;
mod feed;
mod items;
mod life;
mod metrics;
mod page;
mod search;
mod table;

use app::must_exist;
pub(crate) use app::{App, Call};
pub(crate) use data::Turns;
pub(crate) use errors::{Failure, wire_error};
pub(crate) use table::methods;
