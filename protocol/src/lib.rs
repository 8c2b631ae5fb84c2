//! The wire of `ccod`, a knowledge daemon: the types of every method, JSON-RPC framing over a Unix socket,
//! the server and a typed client.
//!
//! This crate knows nothing of storage or models, so that a program that only talks to the daemon depends
//! on it alone and compiles in seconds.
//!
//! ```text
//! bytes -> codec::Framer -> envelope -> dispatch -> a method (jsonrpsee) -> one line out
//!          endpoint (lock, bind)   peer (who is it)   connection (in flight, queue)   server (accept, drain)
//! ```

pub mod api;
pub mod codec;
pub mod error;
pub mod params;
