//! Work on bytes that may be damaged: Lance can panic over them, and in a task of its own that is an error like others.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::{JoinError, JoinHandle};

use crate::error::{KnowledgeError, KnowledgeResult};
use crate::store::error::{damage, is_passing, read_error};

/// Starts work that reads what may be damaged, at once and in a task of its own. It goes on where nobody waits for it.
pub(crate) fn guarded<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Guarded<T> {
    Guarded(tokio::spawn(work))
}

/// The work that [`guarded`] has started; wait for it to know how it ended.
#[derive(Debug)]
pub(crate) struct Guarded<T>(JoinHandle<T>);

impl<T> Future for Guarded<T> {
    type Output = Result<T, Unfinished>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map_err(Unfinished)
    }
}

/// Work that has not come to its end: it has panicked, or the process ends. What it says may quote what a panic has
/// said, as `KnowledgeError::internal` and `unreadable` take it out.
#[derive(Debug)]
pub(crate) struct Unfinished(JoinError);

impl fmt::Display for Unfinished {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

impl StdError for Unfinished {}

/// What a read has shown of the data: an error of the data, or a panic over it, is a finding, the inner error.
///
/// # Errors
/// What says nothing about the data: an error that passes, or of this process.
pub(crate) fn finding<T>(read: Result<lance::Result<T>, Unfinished>) -> KnowledgeResult<Result<T, String>> {
    match read {
        Ok(Ok(value)) => Ok(Ok(value)),
        Ok(Err(error)) if is_passing(&error) => Err(read_error(error)),
        Ok(Err(error)) => Ok(Err(damage(&error)?)),
        Err(unfinished) if unfinished.0.is_panic() => Ok(Err(damage(&unfinished)?)),
        Err(cancelled) => Err(KnowledgeError::internal(cancelled)),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use nix::errno::Errno;

    use super::*;

    #[tokio::test]
    async fn a_panic_over_data_is_a_finding_that_does_not_say_what_it_said() {
        let read = guarded(async { panic!("secret") });
        let found = finding::<()>(read.await).unwrap().unwrap_err();
        assert!(found.contains("panicked") && !found.contains("secret"), "{found}");
        let unreadable = KnowledgeError::unreadable(guarded(async { panic!("secret") }).await.map(|()| 0).unwrap_err());
        assert!(!unreadable.to_string().contains("secret"), "{unreadable}");
    }

    #[tokio::test]
    async fn an_error_of_the_moment_is_not_a_finding() {
        let failed = |errno: Errno| lance::Error::io_source(Box::new(io::Error::from_raw_os_error(errno as i32)));
        assert_eq!(finding(guarded(async { Ok(7) }).await).unwrap(), Ok(7));
        let passing = finding::<()>(guarded(async move { Err(failed(Errno::EMFILE)) }).await);
        assert!(matches!(passing, Err(KnowledgeError::NoDescriptors)));
        let of_the_data = finding::<()>(guarded(async move { Err(failed(Errno::ENOENT)) }).await);
        assert!(of_the_data.unwrap().is_err());
    }

    #[tokio::test]
    async fn work_goes_on_where_nobody_waits_for_it() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        drop(guarded(async move { sender.send(7) }));
        assert_eq!(receiver.await, Ok(7));
    }
}
