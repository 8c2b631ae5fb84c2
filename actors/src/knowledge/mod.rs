//! What can be done with knowledge: one method for each use case, whoever asks.
//!
//! The parts of the daemon do one thing each; here they are used together. The executable's `rpc` decodes a request,
//! calls one of these methods and encodes what comes back, and every other way in (HTTP, MCP, hooks, migration) does the
//! same. Reads that need no more than the readers ([`Knowledge::routes`]) have no method here.
//!
//! | file | what it decides |
//! |---|---|
//! | [`ingest`] | what every text passes before it is written: limits, passages, vectors |
//! | [`mod@store`], [`update`], [`delete`], [`cleanup`] | what happens before and after a write |
//! | [`search`] | how a search goes on without the embedder |
//! | [`feed`], `cursor` | what a subscriber is told, where it stands, and when it has to begin again |
//! | [`import`], [`export`] | many items in and out |
//! | `probe` | a write, a search and a delete, to see whether all of it works |
//! | `projects` | whether there is such a project |

pub mod cleanup;
mod cursor;
pub mod delete;
pub mod export;
pub mod feed;
pub mod import;
pub mod ingest;
mod probe;
mod projects;
pub mod search;
pub mod store;
pub mod update;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::deadline::Deadline;
use crate::routes::Routes;
use crate::store::Store;

pub use ingest::Limits;

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub struct Knowledge {
    store: Arc<Store>,
    routes: watch::Receiver<Routes>,
    limits: Limits,
}

/// For whom something is done, and how long.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When it must be answered.
    pub deadline: Deadline,
    /// Whose queue the work belongs to: work is shared out fairly among callers.
    pub origin: u64,
    /// Cancelled when nobody waits for it any more.
    pub cancelled: CancellationToken,
}

impl Knowledge {
    /// Over these projects and the actors that `routes` publishes.
    pub fn new(store: Arc<Store>, routes: watch::Receiver<Routes>, limits: Limits) -> Self {
        Self { store, routes, limits }
    }

    /// The present actors. A clone of references, taken once for each call.
    pub fn routes(&self) -> Routes {
        self.routes.borrow().clone()
    }

    /// The projects.
    pub fn projects(&self) -> &Arc<Store> {
        &self.store
    }
}

#[cfg(test)]
mod tests;
