//! Long work with files: who may request it, how much of it runs at once, and how it reports its progress.

use std::sync::Arc;

use ccod_actors::admission::{Admission, Permit};
use ccod_actors::deadline::Deadline;
use ccod_actors::error::{KnowledgeError, KnowledgeResult};
use ccod_actors::store::transfer::Watcher;
use ccod_protocol::context::CallContext;
use ccod_protocol::error::{ErrorKind, Executed, WireError};
use parking_lot::Mutex;

use crate::rpc::Failure;

/// Imports that run at once; more wait. They share the bulk lane of the embedder, so that more of them would not be
/// done sooner.
const IMPORTS: u32 = 2;
/// Backups and restores that run at once; more wait. Each holds a thread for as long as it copies, and all file work
/// of the daemon shares a few of those.
const COPIES: u32 = 2;

/// A call that waits for long work.
pub(super) struct CallWatcher {
    context: CallContext,
    /// The progress last reported, in percent: each percent is reported once.
    told: Mutex<Option<(u64, String)>>,
}

impl CallWatcher {
    pub(super) fn new(context: &CallContext) -> Arc<Self> {
        Arc::new(Self {
            context: context.clone(),
            told: Mutex::new(None),
        })
    }
}

impl Watcher for CallWatcher {
    fn progress(&self, done: u64, total: u64, message: &str) {
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        let percent = u64::try_from(percent).unwrap_or(u64::MAX);
        let mut told = self.told.lock();
        if told
            .as_ref()
            .is_some_and(|(before, of)| *before == percent && of == message)
        {
            return;
        }
        *told = Some((percent, message.to_owned()));
        self.context.progress(done, Some(total), message);
    }

    fn check(&self) -> KnowledgeResult<()> {
        if self.context.remaining().is_zero() {
            Err(KnowledgeError::DeadlineExceeded { executed: Executed::No })
        } else if self.context.cancelled.is_cancelled() {
            Err(KnowledgeError::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// Refuses every user but the daemon's own and root, because the daemon's rights are not for lending. Root can open
/// every file anyway.
pub(super) fn check_owner(context: &CallContext) -> Result<(), Failure> {
    let uid = context.peer.uid;
    if uid == nix::unistd::geteuid().as_raw() || uid == 0 {
        return Ok(());
    }
    Err(WireError::new(
        ErrorKind::Forbidden,
        "only the user that the daemon runs as may have it read and write files",
    )
    .into())
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> KnowledgeResult<T> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work)
        .await
        .map_err(KnowledgeError::internal)?;
    Ok(done?)
}

/// Limits how much long work with files runs at once.
#[derive(Debug)]
pub(crate) struct Turns {
    pub(super) imports: Admission,
    pub(super) copies: Admission,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            imports: Admission::new("the queue of imports", IMPORTS, 1_000),
            copies: Admission::new("the queue of backups and restores", COPIES, 1_000),
        }
    }
}

/// Waits for a turn, as long as the caller does.
pub(super) async fn turn(places: &Admission, context: &CallContext, others: &str) -> Result<Permit, Failure> {
    if let Ok(turn) = places.try_acquire(1) {
        return Ok(turn);
    }
    context.progress(0, None, &format!("waiting for other {others}"));
    tokio::select! {
        biased;
        () = context.cancelled.cancelled() => Err(WireError::cancelled(Executed::No).into()),
        turn = places.acquire(1, Deadline::at(context.deadline)) => Ok(turn?),
    }
}

pub(super) fn bad_path(message: impl std::fmt::Display) -> KnowledgeError {
    KnowledgeError::of_path(message)
}
