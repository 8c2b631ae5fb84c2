//! A query on its way to a reader.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::pool::Lease;
use crate::admission::Permit;
use crate::deadline::Deadline;
use crate::error::{Executed, KnowledgeError, KnowledgeResult};
use crate::store::Store;

/// A query with its deadline, its place in the queue and the way back, boxed, so that readers need not know the
/// queries: a new one is a function in `queries` and a method of the pool.
pub struct ReadJob {
    name: &'static str,
    run: Box<dyn FnOnce(Arc<Store>) -> BoxFuture<'static, ()> + Send>,
}

impl ReadJob {
    /// A job that runs `query` under its deadline, and only for as long as somebody waits for the answer.
    pub(super) fn new<R, Q, F>(
        name: &'static str,
        query: Q,
        deadline: Deadline,
        lease: Lease,
        permit: Permit,
    ) -> (Self, oneshot::Receiver<KnowledgeResult<R>>)
    where
        R: Send + 'static,
        Q: FnOnce(Arc<Store>) -> F + Send + 'static,
        F: Future<Output = KnowledgeResult<R>> + Send + 'static,
    {
        let (mut reply, answer) = oneshot::channel();
        let run = move |store: Arc<Store>| {
            async move {
                let late = KnowledgeError::DeadlineExceeded { executed: Executed::No };
                let result = if deadline.expired() {
                    Some(Err(late))
                } else {
                    tokio::select! {
                        biased;
                        () = reply.closed() => None,
                        result = tokio::time::timeout(deadline.remaining(), query(store)) => {
                            Some(result.unwrap_or(Err(late)))
                        }
                    }
                };
                // Before the answer: the caller that asks again with it in hand finds this reader idle.
                lease.finish();
                if let Some(result) = result {
                    // A failed send only means that the caller has left.
                    reply.send(result).ok();
                }
                // Held until here: a pool is drained once everything is answered.
                drop(permit);
            }
            .boxed()
        };
        let run = Box::new(run);
        (Self { name, run }, answer)
    }

    /// Runs it and answers.
    pub(super) async fn run(self, store: Arc<Store>) {
        (self.run)(store).await;
    }
}

impl fmt::Debug for ReadJob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("ReadJob").field(&self.name).finish()
    }
}
