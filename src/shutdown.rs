//! When to stop: SIGTERM, SIGINT, or `admin.shutdown`. A second signal ends the process at once.
//!
//! SIGHUP means two things. A daemon whose log is a terminal ends in order, because the terminal is gone. Any other
//! daemon goes on, and reopens its log if that is a file of its own.

use std::io::IsTerminal;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::log_file::LogFile;

/// Exit code of an end that was asked for and has left something unfinished: what was not answered may be tried
/// again. Service managers must not start the daemon again after it, so it is the code of the units' exception.
pub(crate) const UNFINISHED_EXIT: u8 = 75;

/// Cancels `token` at the first signal and ends the process at the second. After `admin.shutdown`, which cancels the
/// token too, the first signal is still the first.
pub(crate) fn listen(token: CancellationToken, log: Option<LogFile>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let on_terminal = std::io::stderr().is_terminal();
    tokio::spawn(async move {
        let mut signalled = false;
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => {
                    hung_up(&token, log.as_ref(), on_terminal);
                    continue;
                }
            };
            if signalled {
                tracing::error!(signal = name, "second signal, ending at once");
                std::process::exit(UNFINISHED_EXIT.into());
            }
            signalled = true;
            let already = token.is_cancelled();
            tracing::info!(signal = name, already, "stopping; a second signal ends at once");
            token.cancel();
        }
    });
    Ok(())
}

fn hung_up(token: &CancellationToken, log: Option<&LogFile>, on_terminal: bool) {
    if on_terminal {
        // The terminal is gone, and nobody is there to see a second one.
        token.cancel();
        return;
    }
    match log.map(LogFile::follow) {
        Some(Err(error)) => tracing::error!(%error, "the log cannot be reopened; it goes on in the old file"),
        Some(Ok(())) => tracing::info!("SIGHUP: the log goes on here"),
        None => tracing::info!("SIGHUP: going on; the log is not a file of the daemon's own"),
    }
}
