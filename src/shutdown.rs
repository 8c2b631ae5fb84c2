//! When to stop: SIGTERM, SIGINT, or `admin.shutdown`. A second signal ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a second signal: work that was accepted may be lost.
const FORCED_EXIT: i32 = 1;

/// Cancels `token` at the first signal and ends the process at the second.
pub(crate) fn listen(token: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if token.is_cancelled() {
                tracing::error!(signal = name, "second signal, ending at once");
                std::process::exit(FORCED_EXIT);
            }
            tracing::info!(signal = name, "stopping; a second signal ends at once");
            token.cancel();
        }
    });
    Ok(())
}
