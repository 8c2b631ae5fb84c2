//! What is written to a connection, and how its end is noticed.

use bytes::BytesMut;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::outcome::refusal;
use super::{READ_BYTES, Shared};
use crate::context::{Line, Subscriptions};
use crate::error::WireError;
use crate::limits::{ServerStats, add};

/// Lines up to this size together are written with one call.
const WRITE_BYTES: usize = 64 << 10;
/// How long a client with a feed may read nothing, if that is more than others may.
const SUBSCRIBER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a client that is cut off may take to notice.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// Lets a client that is still sending take note of why it is cut off: closed at once, its next write would
/// fail before it reads. Not if many clients are given that time already: they can still read what they were told.
pub(super) async fn linger(shared: &Shared, stream: &UnixStream) {
    let Ok(_permit) = shared.lingering.try_acquire() else {
        return;
    };
    let mut sink = [0; 4096];
    let until_end = async {
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut sink) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                _ => {}
            }
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(REFUSAL_LINGER, until_end) => {}
        () = shared.service.shutdown.cancelled() => {}
    }
}

/// Tells a client why it may not come in, and closes: at once, unless it `lingers`.
pub(crate) async fn refuse(shared: &Shared, stream: UnixStream, error: WireError, lingers: bool) {
    let line = refusal(&error);
    // The socket's buffer is empty, so this takes no time; if it fails, the client has left. Past tokio, which does not
    // know yet that the socket can be written.
    let told = send(stream.as_raw_fd(), &line, MsgFlags::MSG_DONTWAIT);
    if told == Ok(line.len()) && lingers && shutdown(stream.as_raw_fd(), Shutdown::Write).is_ok() {
        linger(shared, &stream).await;
    }
}

/// Notices that the client has closed its end altogether, which end of input alone does not say.
///
/// The kernel reports it as a hang-up. It is watched on a descriptor of its own, so that clearing that
/// one's readiness does not disturb the writer's, and only while nothing is read: otherwise reading shows it soon
/// enough.
pub(super) struct Hangup {
    pub(super) descriptor: Option<OwnedFd>,
    pub(super) watched: Option<UnixStream>,
}

impl Hangup {
    pub(super) async fn wait(&mut self) {
        if let Some(descriptor) = self.descriptor.take() {
            self.watched = UnixStream::from_std(descriptor.into()).ok();
        }
        let Some(watched) = &self.watched else {
            // Without a descriptor to spare, the write timeout and the deadline still end the calls.
            return std::future::pending().await;
        };
        loop {
            match watched.ready(Interest::WRITABLE).await {
                Ok(ready) if !ready.is_write_closed() => {
                    // Writable, which does not matter here: forget it until something changes.
                    let cleared: io::Result<()> =
                        watched.try_io(Interest::WRITABLE, || Err(io::ErrorKind::WouldBlock.into()));
                    debug_assert!(cleared.is_err());
                }
                _ => return,
            }
        }
    }
}

/// How long a client may read nothing.
pub(super) struct Patience {
    pub(super) usual: Duration,
    pub(super) subscriptions: Subscriptions,
}

impl Patience {
    /// At present: longer while a feed is open. A feed that lags tells its client where to resume, and a client that
    /// is given up before would not learn it.
    fn now(&self) -> Duration {
        match self.subscriptions.is_empty() {
            true => self.usual,
            false => self.usual.max(SUBSCRIBER_PATIENCE),
        }
    }
}

/// Writes lines until the outbox is closed and empty, then closes the socket for writing. If the client
/// does not take anything for `patience`, the connection is given up.
pub(super) async fn write(
    mut socket: OwnedWriteHalf,
    mut lines: mpsc::Receiver<Line>,
    patience: Patience,
    stats: Arc<ServerStats>,
    gone: CancellationToken,
) {
    let mut small = BytesMut::new();
    let mut written = Vec::new();
    while let Some(line) = lines.recv().await {
        let mut next = Some(line);
        let mut result = Ok(());
        while let Some(line) = next.take() {
            let large = line.length() > WRITE_BYTES;
            for part in &line.parts {
                if large && part.len() > READ_BYTES {
                    result = put(&mut socket, &small, &patience).await;
                    small.fill(0);
                    small.clear();
                    if result.is_ok() {
                        result = put(&mut socket, part, &patience).await;
                    }
                    if result.is_err() {
                        break;
                    }
                } else {
                    small.extend_from_slice(part);
                }
            }
            small.extend_from_slice(b"\n");
            add(&stats.bytes_written, line.length() + 1);
            written.push(line);
            if result.is_err() || large || small.len() >= WRITE_BYTES {
                break;
            }
            next = lines.try_recv().ok();
        }
        if result.is_ok() {
            result = put(&mut socket, &small, &patience).await;
        }
        // Only now do the lines give back their places and bytes.
        written.clear();
        // An idle connection keeps nothing of what it has written.
        small.fill(0);
        small.clear();
        if small.capacity() > 2 * WRITE_BYTES {
            small = BytesMut::new();
        }
        if let Err(error) = result {
            tracing::debug!(%error, "the connection was given up while writing");
            gone.cancel();
            return;
        }
    }
}

/// Writes all of `bytes`; fails when nothing is taken for `patience`.
async fn put(socket: &mut OwnedWriteHalf, mut bytes: &[u8], patience: &Patience) -> io::Result<()> {
    while !bytes.is_empty() {
        match tokio::time::timeout(patience.now(), socket.write(bytes)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(count)) => bytes = &bytes[count..],
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
            }
        }
    }
    Ok(())
}
