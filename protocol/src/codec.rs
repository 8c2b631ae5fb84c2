//! Cuts a stream of bytes into JSON values.
//!
//! [`Framer`] is pure: bytes go in with [`Framer::push`], frames come out of the iterator, and
//! [`Framer::finish`] says what the end of input left over. It knows nothing of sockets or JSON-RPC.
//!
//! What it accepts: any JSON values, one per line, several on a line, or spread over lines. It checks the
//! grammar and UTF-8 byte by byte, so that an error is seen where it happens and not when brackets
//! happen to balance; that is what makes it possible to go on after one:
//!
//! - After a syntax error it skips to the next line whose first byte is `{` or `[`. The line with the
//!   error is itself a candidate only if the broken value began on an earlier line: then this line may be
//!   the next request, cut into by one that was never closed.
//! - After a value over the size or depth limit it skips to the next newline.
//! - A line that begins like an HTTP request ends the stream: whatever follows is not for us.
//!
//! Each byte is looked at once, and once more if it is on a line that is tried again; a value is buffered
//! once, up to the size limit; skipped bytes are dropped at once. Only the input decides what comes out,
//! never how it was cut into chunks.

mod framer;
mod grammar;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use framer::Framer;

/// What the framer found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A JSON value: well-formed, valid UTF-8, within the limits.
    Value(Bytes),
    /// Something that is not JSON.
    SyntaxError(SyntaxError),
    /// A value over the size limit.
    TooLarge,
    /// A value nested too deep.
    TooDeep,
    /// A value that the end of input cut off.
    Incomplete,
    /// A line that begins like an HTTP request. The last frame: nothing more is read.
    Http,
}

/// Where the input stopped being JSON. It quotes nothing of the input, which may be secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct SyntaxError {
    /// The line of the input, from 1.
    pub line: u64,
    /// What was wrong there.
    pub reason: &'static str,
}
