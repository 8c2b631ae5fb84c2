//! The transport under jsonrpsee: lines over the socket.

use jsonrpsee::core::client::{ReceivedMessage, TransportReceiverT, TransportSenderT};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast;

use super::Notification;
use crate::error::WireError;

/// Why the transport ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the daemon closed the connection")]
    Closed,
    #[error("{0}")]
    Refused(WireError),
    #[error("{0}")]
    Unexpected(&'static str),
}

pub(super) struct Sender {
    pub(super) writer: OwnedWriteHalf,
}

impl TransportSenderT for Sender {
    type Error = TransportError;

    async fn send(&mut self, mut message: String) -> Result<(), TransportError> {
        message.push('\n');
        match self.writer.write_all(message.as_bytes()).await {
            // The daemon has closed the connection. It may have said why, and what it said can still be read, so the
            // end of reading is the end of the connection, and not this.
            Err(error) if is_of_the_end(&error) => Ok(()),
            written => Ok(written?),
        }
    }

    async fn close(&mut self) -> Result<(), TransportError> {
        self.writer.shutdown().await?;
        Ok(())
    }
}

fn is_of_the_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

pub(super) struct Receiver {
    pub(super) reader: BufReader<OwnedReadHalf>,
    /// What has come of a line that is not complete.
    pub(super) line: Vec<u8>,
    pub(super) max_line_bytes: usize,
    pub(super) notifications: broadcast::Sender<Arc<Notification>>,
}

impl Receiver {
    /// The next line without its newline.
    async fn next_line(&mut self) -> Result<Vec<u8>, TransportError> {
        loop {
            let available = self.reader.fill_buf().await?;
            if available.is_empty() {
                return Err(TransportError::Closed);
            }
            let newline = available.iter().position(|byte| *byte == b'\n');
            let used = newline.map_or(available.len(), |end| end + 1);
            self.line.extend_from_slice(&available[..newline.unwrap_or(used)]);
            self.reader.consume(used);
            if newline.is_some() {
                return Ok(std::mem::take(&mut self.line));
            }
            if self.line.len() > self.max_line_bytes {
                return Err(TransportError::Unexpected("a line is longer than this client accepts"));
            }
        }
    }
}

impl TransportReceiverT for Receiver {
    type Error = TransportError;

    async fn receive(&mut self) -> Result<ReceivedMessage, TransportError> {
        #[derive(Deserialize)]
        struct Envelope<'a> {
            #[serde(borrow, default)]
            id: Option<&'a RawValue>,
            #[serde(borrow, default)]
            method: Option<Cow<'a, str>>,
            #[serde(borrow, default)]
            params: Option<&'a RawValue>,
            #[serde(default)]
            error: Option<jsonrpsee_types::ErrorObjectOwned>,
        }
        loop {
            let line = self.next_line().await?;
            // A response to a request of this client, by far the most frequent line: it is passed on unread.
            const RESPONSE: &[u8] = br#"{"jsonrpc":"2.0","id":"#;
            if line
                .strip_prefix(RESPONSE)
                .and_then(<[u8]>::first)
                .is_some_and(u8::is_ascii_digit)
            {
                return Ok(ReceivedMessage::Bytes(line));
            }
            let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(&line) else {
                return Err(TransportError::Unexpected("a line is not JSON-RPC"));
            };
            match envelope {
                Envelope {
                    method: Some(method),
                    params,
                    ..
                } => {
                    let params = params.map_or_else(|| RawValue::NULL.to_owned(), RawValue::to_owned);
                    // Fails only if nobody listens.
                    let _listeners = self.notifications.send(Arc::new(Notification {
                        method: method.into_owned(),
                        params,
                    }));
                }
                Envelope {
                    id: None,
                    error: Some(error),
                    ..
                } => return Err(TransportError::Refused(error.into())),
                _ => return Ok(ReceivedMessage::Bytes(line)),
            }
        }
    }
}
