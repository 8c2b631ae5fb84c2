//! The wire of `ccod`, a knowledge daemon: the types of every method, JSON-RPC framing over a Unix socket,
//! the server and a typed client.
//!
//! This crate knows nothing of storage or models, so that a program that only talks to the daemon depends
//! on it alone and compiles in seconds.
//!
//! ```text
//! bytes -> codec::Framer -> envelope -> connection (queue) -> service (admit, deadline) -> a handler -> one line out
//!          endpoint (lock, bind)   peer (who is it)   server (accept, drain)
//! ```
//!
//! To serve: register handlers in a [`methods::Methods`], which decodes their parameters, and make a
//! [`service::Service`] of it. A handler gets the parameters and a [`context::CallContext`], and answers with its
//! method's result or with something that becomes an [`error::WireError`]. Then [`endpoint::prepare_run_dir`],
//! [`endpoint::EndpointLock::acquire`], [`endpoint::bind`] and [`server::Server::over`]. Another transport makes a
//! [`caller::Caller`] of each of its clients and calls [`service::Service::call`]. To call: [`client::Client`].

mod anteroom;
pub mod api;
mod budget;
pub mod caller;
pub mod client;
pub mod codec;
mod connection;
pub mod context;
mod descriptors;
pub mod endpoint;
mod envelope;
pub mod error;
pub mod limits;
pub mod methods;
pub mod openrpc;
mod oversized;
pub mod params;
pub mod peer;
mod places;
mod rate;
pub mod server;
pub mod service;

pub use caller::Caller;
pub use client::Client;
pub use error::{ErrorKind, Executed, WireError};
pub use limits::{Limits, ServerStats};
pub use methods::Methods;
pub use service::Service;
