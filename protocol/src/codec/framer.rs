//! The framer: bytes in, frames out.

use bytes::{Buf, BytesMut};

use super::grammar::{Grammar, NO_VALUE, Step};
use super::{Frame, SyntaxError};

/// The beginnings of lines that only HTTP clients send.
pub(super) const HTTP_METHODS: &[&[u8]] = &[
    b"GET ",
    b"POST ",
    b"PUT ",
    b"HEAD ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
    b"PRI * HTTP",
];

/// Cuts bytes into frames. See the module's documentation.
#[derive(Debug)]
pub struct Framer {
    max_message_bytes: usize,
    /// What is not yet given out. In a value, the value's first byte is the buffer's.
    buffer: BytesMut,
    /// How much of the buffer the grammar has seen.
    scanned: usize,
    mode: Mode,
    grammar: Grammar,
    /// The line of the next byte to be scanned, from 1.
    line: u64,
    /// In a value: where the current line begins, if the value began on an earlier one.
    line_start: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Between values.
    Between { at_line_start: bool },
    /// In a value.
    Value,
    /// After a syntax error: until a line that begins with a bracket.
    SkipToBracketLine { at_line_start: bool },
    /// After a value over a limit: until the next newline.
    SkipLine,
    /// After HTTP: everything is dropped.
    Closed,
}

impl Framer {
    /// A framer that takes values of up to `max_message_bytes`, nested up to `max_depth` deep.
    #[must_use]
    pub fn new(max_message_bytes: usize, max_depth: usize) -> Self {
        Self {
            max_message_bytes,
            buffer: BytesMut::new(),
            scanned: 0,
            mode: Mode::Between { at_line_start: true },
            grammar: Grammar::new(max_depth),
            line: 1,
            line_start: None,
        }
    }

    /// Adds bytes. Take out the frames before adding more: that keeps the buffer within the size limit
    /// plus one chunk.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.mode != Mode::Closed {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Bytes that are held: those of a value that is not complete.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether a value has begun and not ended.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.mode == Mode::Value || !self.buffer.is_empty()
    }

    /// Says what the end of input leaves over: a last value that needed no terminator, or a broken one.
    /// Call it once the iterator has nothing more.
    pub fn finish(&mut self) -> Option<Frame> {
        let mode = std::mem::replace(&mut self.mode, Mode::Closed);
        match mode {
            Mode::Value if self.grammar.may_end() => {
                let value = self.buffer.split().freeze();
                Some(Frame::Value(value))
            }
            Mode::Value => {
                self.buffer.clear();
                Some(Frame::Incomplete)
            }
            // What might have become an HTTP method and did not.
            Mode::Between { .. } if !self.buffer.is_empty() => {
                self.buffer.clear();
                Some(Frame::SyntaxError(SyntaxError {
                    line: self.line,
                    reason: NO_VALUE,
                }))
            }
            _ => None,
        }
    }

    fn drop_bytes(&mut self, count: usize) {
        self.buffer.advance(count);
        self.scanned = 0;
        self.line_start = None;
        if self.buffer.is_empty() {
            // Frees the memory of a large value instead of keeping it for an idle connection.
            self.buffer = BytesMut::new();
        }
    }

    /// Drops everything up to and including the next newline. False if there is none yet.
    fn drop_line(&mut self) -> bool {
        match self.buffer.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                self.line += 1;
                self.drop_bytes(end + 1);
                true
            }
            None => {
                self.drop_bytes(self.buffer.len());
                false
            }
        }
    }

    /// Between values: passes white space and looks at what begins. None: nothing yet.
    fn between(&mut self, mut at_line_start: bool) -> Option<Option<Frame>> {
        let mut blank = 0;
        for byte in &self.buffer {
            match byte {
                b'\n' => {
                    self.line += 1;
                    at_line_start = true;
                }
                b' ' | b'\t' | b'\r' => at_line_start = false,
                _ => break,
            }
            blank += 1;
        }
        self.drop_bytes(blank);
        self.mode = Mode::Between { at_line_start };
        let first = *self.buffer.first()?;
        if at_line_start && first.is_ascii_uppercase() {
            if HTTP_METHODS.iter().any(|method| self.buffer.starts_with(method)) {
                self.mode = Mode::Closed;
                self.drop_bytes(self.buffer.len());
                return Some(Some(Frame::Http));
            }
            if HTTP_METHODS.iter().any(|method| method.starts_with(&self.buffer)) {
                return None;
            }
        }
        self.grammar.restart();
        self.mode = Mode::Value;
        Some(None)
    }

    /// In a value: goes on where the last chunk ended. None: the value is not complete.
    fn value(&mut self) -> Option<Frame> {
        let window = self.buffer.len().min(self.max_message_bytes);
        while self.scanned < window {
            if self.grammar.in_string() {
                let plain = plain_length(&self.buffer[self.scanned..window]);
                self.scanned += plain;
                if self.scanned == window {
                    break;
                }
            }
            let byte = self.buffer[self.scanned];
            match self.grammar.step(byte) {
                Step::Continue => {
                    self.scanned += 1;
                    if byte == b'\n' {
                        self.line += 1;
                        self.line_start = Some(self.scanned);
                    }
                }
                Step::Complete => return Some(self.complete(self.scanned + 1)),
                Step::CompleteBefore => return Some(self.complete(self.scanned)),
                Step::TooDeep => {
                    self.mode = Mode::SkipLine;
                    self.drop_bytes(self.scanned);
                    return Some(Frame::TooDeep);
                }
                Step::Error(reason) => return Some(self.syntax_error(reason)),
            }
        }
        if self.buffer.len() > self.max_message_bytes {
            let next = self.buffer[self.max_message_bytes];
            if matches!(self.grammar.step(next), Step::CompleteBefore) {
                return Some(self.complete(self.max_message_bytes));
            }
            self.mode = Mode::SkipLine;
            self.drop_bytes(self.max_message_bytes);
            return Some(Frame::TooLarge);
        }
        None
    }

    fn complete(&mut self, length: usize) -> Frame {
        let value = self.buffer.split_to(length).freeze();
        self.mode = Mode::Between { at_line_start: false };
        self.drop_bytes(0);
        Frame::Value(value)
    }

    fn syntax_error(&mut self, reason: &'static str) -> Frame {
        let error = SyntaxError {
            line: self.line,
            reason,
        };
        let (keep_from, at_line_start) = match self.line_start {
            Some(start) => (start, true),
            None => (self.scanned, false),
        };
        self.mode = Mode::SkipToBracketLine { at_line_start };
        self.drop_bytes(keep_from);
        Frame::SyntaxError(error)
    }
}

impl Iterator for Framer {
    type Item = Frame;

    /// The next frame; none until more bytes are pushed.
    fn next(&mut self) -> Option<Frame> {
        loop {
            match self.mode {
                Mode::Between { at_line_start } => {
                    if let Some(frame) = self.between(at_line_start)? {
                        return Some(frame);
                    }
                }
                Mode::Value => return self.value(),
                Mode::SkipToBracketLine { at_line_start } => {
                    if at_line_start {
                        let first = *self.buffer.first()?;
                        if matches!(first, b'{' | b'[') {
                            self.mode = Mode::Between { at_line_start: true };
                            continue;
                        }
                    }
                    let ended = self.drop_line();
                    self.mode = Mode::SkipToBracketLine { at_line_start: ended };
                    if !ended {
                        return None;
                    }
                }
                Mode::SkipLine => {
                    if !self.drop_line() {
                        return None;
                    }
                    self.mode = Mode::Between { at_line_start: true };
                }
                Mode::Closed => {
                    self.drop_bytes(self.buffer.len());
                    return None;
                }
            }
        }
    }
}

/// How many bytes at the start of `bytes` can stand in a string as they are.
fn plain_length(bytes: &[u8]) -> usize {
    const PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let mut byte = 0x20;
        while byte < 0x80 {
            plain[byte] = byte != b'"' as usize && byte != b'\\' as usize;
            byte += 1;
        }
        plain
    };
    bytes
        .iter()
        .position(|byte| !PLAIN[usize::from(*byte)])
        .unwrap_or(bytes.len())
}
