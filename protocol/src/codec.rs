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

use bytes::{Buf, Bytes, BytesMut};

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

/// The beginnings of lines that only HTTP clients send.
const HTTP_METHODS: &[&[u8]] = &[
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

    /// Leaves everything up to the next newline, that included. False if there is none yet.
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

const NO_VALUE: &str = "expected a JSON value";
const BAD_NUMBER: &str = "malformed number";
const BAD_UTF8: &str = "invalid UTF-8";

/// What a byte means after those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It belongs to the value, which goes on.
    Continue,
    /// It is the value's last.
    Complete,
    /// The value ended before it.
    CompleteBefore,
    /// It opens one level too many.
    TooDeep,
    /// It cannot stand here.
    Error(&'static str),
}

/// The grammar of JSON (RFC 8259) as a machine that takes one byte at a time.
#[derive(Debug)]
struct Grammar {
    max_depth: usize,
    /// The brackets that are open.
    open: Vec<u8>,
    state: State,
    /// Whether the string that is being read is a key.
    key: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    FirstElement,
    FirstKey,
    Key,
    Colon,
    AfterValue,
    String,
    Escape,
    Hex { left: u8 },
    Continuation { left: u8, low: u8, high: u8 },
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    Word { rest: &'static [u8] },
    WordEnd,
}

impl Grammar {
    fn new(max_depth: usize) -> Self {
        Self {
            max_depth,
            open: Vec::new(),
            state: State::Value,
            key: false,
        }
    }

    fn restart(&mut self) {
        self.open.clear();
        self.state = State::Value;
        self.key = false;
    }

    fn in_string(&self) -> bool {
        self.state == State::String
    }

    /// Whether the end of input would end the value: only a number or a word at the top does so.
    fn may_end(&self) -> bool {
        self.open.is_empty()
            && matches!(
                self.state,
                State::Zero | State::Integer | State::Fraction | State::ExponentDigits | State::WordEnd
            )
    }

    fn step(&mut self, byte: u8) -> Step {
        let blank = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match self.state {
            State::Value if blank => Step::Continue,
            State::Value => self.begin(byte),
            State::FirstElement if blank => Step::Continue,
            State::FirstElement if byte == b']' => self.close(b'['),
            State::FirstElement => self.begin(byte),
            State::FirstKey | State::Key | State::Colon | State::AfterValue if blank => Step::Continue,
            State::FirstKey if byte == b'}' => self.close(b'{'),
            State::FirstKey | State::Key if byte == b'"' => {
                self.key = true;
                self.go(State::String)
            }
            State::FirstKey | State::Key => Step::Error("expected a name in quotes"),
            State::Colon if byte == b':' => self.go(State::Value),
            State::Colon => Step::Error("expected `:`"),
            State::AfterValue => match (byte, self.open.last()) {
                (b',', Some(b'{')) => self.go(State::Key),
                (b',', _) => self.go(State::Value),
                (b'}', Some(b'{')) => self.close(b'{'),
                (b']', Some(b'[')) => self.close(b'['),
                (_, Some(b'{')) => Step::Error("expected `,` or `}`"),
                _ => Step::Error("expected `,` or `]`"),
            },
            State::String => match byte {
                b'"' if self.key => {
                    self.key = false;
                    self.go(State::Colon)
                }
                b'"' => self.end(),
                b'\\' => self.go(State::Escape),
                0x00..=0x1F => Step::Error("a control character in a string; write it as an escape"),
                0x20..=0x7F => Step::Continue,
                0xC2..=0xDF => self.go(State::Continuation {
                    left: 1,
                    low: 0x80,
                    high: 0xBF,
                }),
                0xE0 => self.go(State::Continuation {
                    left: 2,
                    low: 0xA0,
                    high: 0xBF,
                }),
                0xED => self.go(State::Continuation {
                    left: 2,
                    low: 0x80,
                    high: 0x9F,
                }),
                0xE1..=0xEF => self.go(State::Continuation {
                    left: 2,
                    low: 0x80,
                    high: 0xBF,
                }),
                0xF0 => self.go(State::Continuation {
                    left: 3,
                    low: 0x90,
                    high: 0xBF,
                }),
                0xF1..=0xF3 => self.go(State::Continuation {
                    left: 3,
                    low: 0x80,
                    high: 0xBF,
                }),
                0xF4 => self.go(State::Continuation {
                    left: 3,
                    low: 0x80,
                    high: 0x8F,
                }),
                _ => Step::Error(BAD_UTF8),
            },
            State::Continuation { left, low, high } => {
                if !(low..=high).contains(&byte) {
                    Step::Error(BAD_UTF8)
                } else if left == 1 {
                    self.go(State::String)
                } else {
                    self.go(State::Continuation {
                        left: left - 1,
                        low: 0x80,
                        high: 0xBF,
                    })
                }
            }
            State::Escape => match byte {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.go(State::String),
                b'u' => self.go(State::Hex { left: 4 }),
                _ => Step::Error("unknown escape in a string"),
            },
            State::Hex { left } if byte.is_ascii_hexdigit() => self.go(if left == 1 {
                State::String
            } else {
                State::Hex { left: left - 1 }
            }),
            State::Hex { .. } => Step::Error("expected four hexadecimal digits after `\\u`"),
            State::Minus => match byte {
                b'0' => self.go(State::Zero),
                b'1'..=b'9' => self.go(State::Integer),
                _ => Step::Error(BAD_NUMBER),
            },
            State::Zero => match byte {
                b'.' => self.go(State::Point),
                b'e' | b'E' => self.go(State::Exponent),
                b'0'..=b'9' => Step::Error(BAD_NUMBER),
                _ => self.after_scalar(byte),
            },
            State::Integer => match byte {
                b'0'..=b'9' => Step::Continue,
                b'.' => self.go(State::Point),
                b'e' | b'E' => self.go(State::Exponent),
                _ => self.after_scalar(byte),
            },
            State::Point => match byte {
                b'0'..=b'9' => self.go(State::Fraction),
                _ => Step::Error(BAD_NUMBER),
            },
            State::Fraction => match byte {
                b'0'..=b'9' => Step::Continue,
                b'e' | b'E' => self.go(State::Exponent),
                _ => self.after_scalar(byte),
            },
            State::Exponent => match byte {
                b'+' | b'-' => self.go(State::ExponentSign),
                b'0'..=b'9' => self.go(State::ExponentDigits),
                _ => Step::Error(BAD_NUMBER),
            },
            State::ExponentSign => match byte {
                b'0'..=b'9' => self.go(State::ExponentDigits),
                _ => Step::Error(BAD_NUMBER),
            },
            State::ExponentDigits => match byte {
                b'0'..=b'9' => Step::Continue,
                _ => self.after_scalar(byte),
            },
            State::Word { rest } => match rest {
                [expected, rest @ ..] if *expected == byte => self.go(if rest.is_empty() {
                    State::WordEnd
                } else {
                    State::Word { rest }
                }),
                _ => Step::Error(NO_VALUE),
            },
            State::WordEnd => self.after_scalar(byte),
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::Continue
    }

    /// The first byte of a value.
    fn begin(&mut self, byte: u8) -> Step {
        match byte {
            b'{' | b'[' => {
                if self.open.len() == self.max_depth {
                    return Step::TooDeep;
                }
                self.open.push(byte);
                self.go(if byte == b'{' {
                    State::FirstKey
                } else {
                    State::FirstElement
                })
            }
            b'"' => self.go(State::String),
            b'-' => self.go(State::Minus),
            b'0' => self.go(State::Zero),
            b'1'..=b'9' => self.go(State::Integer),
            b't' => self.go(State::Word { rest: b"rue" }),
            b'f' => self.go(State::Word { rest: b"alse" }),
            b'n' => self.go(State::Word { rest: b"ull" }),
            _ => Step::Error(NO_VALUE),
        }
    }

    /// The byte after a number or a word, which do not say themselves where they end.
    fn after_scalar(&mut self, byte: u8) -> Step {
        if !self.open.is_empty() {
            self.state = State::AfterValue;
            return self.step(byte);
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | b'"' | b'[' | b']' | b'{' | b'}' | b',' | b':' => Step::CompleteBefore,
            _ => Step::Error(NO_VALUE),
        }
    }

    fn close(&mut self, bracket: u8) -> Step {
        let opened = self.open.pop();
        debug_assert_eq!(opened, Some(bracket));
        self.end()
    }

    /// A value has ended with the byte at hand.
    fn end(&mut self) -> Step {
        if self.open.is_empty() {
            Step::Complete
        } else {
            self.go(State::AfterValue)
        }
    }
}

#[cfg(test)]
mod tests;
