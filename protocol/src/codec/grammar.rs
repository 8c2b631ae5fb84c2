//! The grammar of JSON, byte by byte.

pub(super) const NO_VALUE: &str = "expected a JSON value";
const BAD_NUMBER: &str = "malformed number";
const BAD_UTF8: &str = "invalid UTF-8";

/// What a byte means after those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
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
pub(super) struct Grammar {
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
    pub(super) fn new(max_depth: usize) -> Self {
        Self {
            max_depth,
            open: Vec::new(),
            state: State::Value,
            key: false,
        }
    }

    pub(super) fn restart(&mut self) {
        self.open.clear();
        self.state = State::Value;
        self.key = false;
    }

    pub(super) fn in_string(&self) -> bool {
        self.state == State::String
    }

    /// Whether the end of input would end the value: only a number or a word at the top does so.
    pub(super) fn may_end(&self) -> bool {
        self.open.is_empty()
            && matches!(
                self.state,
                State::Zero | State::Integer | State::Fraction | State::ExponentDigits | State::WordEnd
            )
    }

    pub(super) fn step(&mut self, byte: u8) -> Step {
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
