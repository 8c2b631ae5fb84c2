//! Reads a connection: what arrives becomes calls, until its end.

use bytes::{Bytes, BytesMut};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use tokio::net::unix::OwnedReadHalf;
use tokio::time::Instant as TokioInstant;

use super::{Connection, Ended, Gone, READ_BYTES, Reading};
use crate::codec::Frame;
use crate::error::WireError;
use crate::limits::add;
use crate::places::{Place, SPARE_PATIENCE};

impl Connection {
    /// Reads until the client, the daemon or a fault ends it, and everything that was read has been started.
    pub(super) async fn run(&mut self, reader: &OwnedReadHalf) -> Result<Ended, Gone> {
        let mut chunk = BytesMut::with_capacity(READ_BYTES);
        let shutdown = self.shared.service.shutdown.clone();
        let gone = self.gone.clone();
        let closing = self.closing.clone();
        let patience = self.shared.service.limits.partial_request_timeout();
        let mut over = None;
        loop {
            while self.calls.try_join_next().is_some() {}
            self.answer_what_was_cancelled().await?;
            self.start_waiting();
            if let Some(ended) = over
                && self.waiting.is_empty()
            {
                return Ok(ended);
            }
            if !self.calls.is_empty() {
                self.quiet_since = TokioInstant::now();
            }
            let reads = over.is_none() && self.waiting.has_space();
            let spare = over.is_none() && self.calls.is_empty() && matches!(self.place, Place::Spare { .. });
            let place = self.place_for_the_next();
            let wanted = self.spare_place_wanted();
            tokio::select! {
                biased;
                () = gone.cancelled() => return Err(Gone),
                () = shutdown.cancelled() => {
                    self.refuse_what_waits().await?;
                    if over.is_none() {
                        self.refuse_the_rest(reader, &mut chunk).await?;
                        // Whoever is in the middle of a request learns that the rest of it is not read.
                        if self.framer.is_partial() {
                            self.say(None, WireError::shutting_down()).await?;
                        }
                    }
                    return Ok(Ended::ByUs);
                }
                () = closing.cancelled(), if over.is_none() => {
                    over = Some(Ended::ByUs);
                    continue;
                }
                _ = self.calls.join_next(), if !self.calls.is_empty() => continue,
                () = place, if !self.waiting.is_empty() => continue,
                () = tokio::time::sleep_until(self.quiet_since + SPARE_PATIENCE), if spare => {
                    if let Some(refusal) = self.grow() {
                        self.say(None, refusal).await?;
                        over = Some(Ended::ByUs);
                    }
                    continue;
                }
                ready = reader.readable(), if reads => if ready.is_err() { return Err(Gone) },
                () = self.hangup.wait(), if !reads => {
                    tracing::debug!(connection = %self.caller.connection, "the client left its calls behind");
                    return Err(Gone);
                }
                () = tokio::time::sleep(patience), if reads && self.framer.is_partial() => {
                    let seconds = patience.as_secs();
                    let error = WireError::parse_error(format!("the request was not completed within {seconds} seconds; send it again"));
                    self.say(None, error).await?;
                    tracing::info!(connection = %self.caller.connection, "an incomplete request was given up");
                    over = Some(Ended::ByUs);
                    continue;
                }
                // Last, so that what has arrived is served before the place goes.
                () = wanted, if spare && self.asked => {
                    if let Some(refusal) = self.leave() {
                        self.say(None, refusal).await?;
                        over = Some(Ended::ByUs);
                    }
                    continue;
                }
            }
            chunk.clear();
            match reader.try_read_buf(&mut chunk) {
                Ok(0) => {
                    if let Some(frame) = self.framer.finish() {
                        self.frame(frame).await?;
                    }
                    over = Some(Ended::ByClient);
                }
                Ok(_) => {
                    if self.take(&chunk).await? == Reading::Over {
                        over = Some(Ended::ByUs);
                    }
                    // An idle connection keeps nothing of what it has read.
                    chunk.fill(0);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Gone),
            }
        }
    }

    /// After the daemon began to stop: whatever has arrived by now is refused, and nothing more is read.
    async fn refuse_the_rest(&mut self, reader: &OwnedReadHalf, chunk: &mut BytesMut) -> Result<(), Gone> {
        /// A client that goes on sending does not hold up the end.
        const MOST_BYTES: usize = 1 << 20;
        chunk.resize(READ_BYTES, 0);
        let mut taken = 0;
        while taken < MOST_BYTES {
            // Past tokio, whose idea of readiness may be a turn of its loop old.
            let descriptor = reader.as_ref().as_raw_fd();
            match nix::sys::socket::recv(descriptor, chunk, nix::sys::socket::MsgFlags::MSG_DONTWAIT) {
                Ok(0) => {
                    if let Some(frame) = self.framer.finish() {
                        self.frame(frame).await?;
                    }
                    break;
                }
                Ok(count) => {
                    taken += count;
                    if self.take(&chunk[..count]).await? == Reading::Over {
                        break;
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Bytes that have arrived.
    async fn take(&mut self, bytes: &[u8]) -> Result<Reading, Gone> {
        add(&self.shared.service.stats.bytes_read, bytes.len());
        self.framer.push(bytes);
        while let Some(frame) = self.framer.next() {
            self.uncount();
            if self.frame(frame).await? == Reading::Over {
                return Ok(Reading::Over);
            }
            while self.calls.try_join_next().is_some() {}
        }
        self.account().await
    }

    /// Stops counting what has left the framer: from now on it is counted with its call.
    fn uncount(&mut self) {
        let held = self.framer.buffered();
        if held < self.buffered {
            self.shared
                .service
                .stats
                .bytes_buffered
                .fetch_sub((self.buffered - held) as u64, Ordering::Relaxed);
            self.buffered = held;
        }
    }

    /// Counts what is held of an incomplete request, and gives the connection up if all of them together
    /// hold too much.
    async fn account(&mut self) -> Result<Reading, Gone> {
        let stats = &self.shared.service.stats;
        let held = self.framer.buffered();
        let before = self.buffered;
        self.buffered = held;
        if held <= before {
            stats
                .bytes_buffered
                .fetch_sub((before - held) as u64, Ordering::Relaxed);
            return Ok(Reading::On);
        }
        let total = stats
            .bytes_buffered
            .fetch_add((held - before) as u64, Ordering::Relaxed)
            + (held - before) as u64;
        // Small requests pass: a few large ones must not lock everybody out.
        if total <= self.shared.service.limits.max_buffered_bytes as u64 || held <= READ_BYTES {
            return Ok(Reading::On);
        }
        let retry = self.shared.service.limits.busy_retry_after_ms;
        self.say(
            None,
            WireError::busy("too many large requests are being received", retry),
        )
        .await?;
        Ok(Reading::Over)
    }

    async fn frame(&mut self, frame: Frame) -> Result<Reading, Gone> {
        self.asked = true;
        let limits = &self.shared.service.limits;
        let error = match frame {
            Frame::Value(bytes) => {
                self.value(&bytes).await?;
                return Ok(Reading::On);
            }
            Frame::SyntaxError(error) => WireError::parse_error(format!(
                "the input is not JSON ({error}); what follows is skipped up to a line that begins with a bracket"
            )),
            Frame::Incomplete => WireError::parse_error("the input ended within a request; send it whole"),
            Frame::TooLarge => WireError::request_too_large(limits.max_message_bytes),
            Frame::TooDeep => WireError::invalid_request(format!(
                "the request is nested deeper than {} levels; make it flatter",
                limits.max_depth
            )),
            Frame::Http => {
                let error =
                    WireError::parse_error("this socket speaks JSON-RPC 2.0, one JSON object per request, not HTTP")
                        .with_fix("send {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"rpc.version\"} and a newline");
                self.say(None, error).await?;
                return Ok(Reading::Over);
            }
        };
        self.say(None, error).await?;
        Ok(Reading::On)
    }

    async fn value(&mut self, bytes: &Bytes) -> Result<(), Gone> {
        // The framer lets only UTF-8 pass; the check costs little and spares an `unsafe`.
        let Ok(json) = std::str::from_utf8(bytes) else {
            return self.say(None, WireError::parse_error("the input is not UTF-8")).await;
        };
        if json.starts_with('[') {
            self.batch(json).await
        } else {
            self.single(json).await
        }
    }
}
