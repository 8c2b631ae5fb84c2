//! The framer against a decoder that sees all of the input at once, and against serde_json.

use super::framer::HTTP_METHODS;
use super::*;
use proptest::prelude::*;

const MAX: usize = 200;
const DEPTH: usize = 8;

/// Frames as the tests compare them: errors without their words.
#[derive(Debug, PartialEq, Eq, Clone)]
enum Seen {
    Value(Vec<u8>),
    Syntax { line: u64 },
    TooLarge,
    TooDeep,
    Incomplete,
    Http,
}

fn seen(frame: Frame) -> Seen {
    match frame {
        Frame::Value(bytes) => Seen::Value(bytes.to_vec()),
        Frame::SyntaxError(error) => Seen::Syntax { line: error.line },
        Frame::TooLarge => Seen::TooLarge,
        Frame::TooDeep => Seen::TooDeep,
        Frame::Incomplete => Seen::Incomplete,
        Frame::Http => Seen::Http,
    }
}

fn framed<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<Seen> {
    let mut framer = Framer::new(MAX, DEPTH);
    let mut frames = Vec::new();
    for chunk in chunks {
        framer.push(chunk);
        frames.extend(framer.by_ref().map(seen));
        assert!(
            framer.buffered() <= MAX + chunk.len(),
            "{} bytes are held",
            framer.buffered()
        );
    }
    frames.extend(framer.finish().map(seen));
    assert_eq!(framer.finish(), None);
    assert_eq!(framer.next(), None);
    frames
}

/// A decoder that has the whole input, recurses, and keeps no state between values.
struct Reference<'a> {
    input: &'a [u8],
}

#[derive(Debug)]
enum Stop {
    End,
    At(usize),
    TooDeep(usize),
}

impl Reference<'_> {
    fn decode(&self) -> Vec<Seen> {
        let input = self.input;
        let mut frames = Vec::new();
        let mut at = 0;
        while at < input.len() {
            let byte = input[at];
            if byte.is_ascii_whitespace() && byte != 0x0C {
                at += 1;
                continue;
            }
            let line_start = at == 0 || input[at - 1] == b'\n';
            if line_start && HTTP_METHODS.iter().any(|method| input[at..].starts_with(method)) {
                frames.push(Seen::Http);
                return frames;
            }
            let limit = input.len().min(at + MAX);
            let result = self.value(at, 0).and_then(|end| {
                let scalar = !matches!(byte, b'{' | b'[' | b'"');
                match input.get(end) {
                    Some(next) if scalar && !b" \t\r\n\"[]{},:".contains(next) => Err(Stop::At(end)),
                    _ => Ok(end),
                }
            });
            // Whatever happens beyond the size limit does not happen: the limit comes first.
            match result {
                Ok(end) if end <= limit => {
                    frames.push(Seen::Value(input[at..end].to_vec()));
                    at = end;
                }
                Err(Stop::At(error)) if error < limit => {
                    frames.push(Seen::Syntax {
                        line: self.line_of(error),
                    });
                    let value_line = self.start_of_line(at);
                    let error_line = self.start_of_line(error);
                    let mut candidate = if error_line > value_line {
                        Some(error_line)
                    } else {
                        self.next_line(error)
                    };
                    while let Some(start) = candidate {
                        if start >= input.len() {
                            return frames;
                        }
                        if matches!(input[start], b'{' | b'[') {
                            break;
                        }
                        candidate = self.next_line(start);
                    }
                    match candidate {
                        Some(start) => at = start,
                        None => return frames,
                    }
                }
                Err(Stop::TooDeep(bracket)) if bracket < limit => {
                    frames.push(Seen::TooDeep);
                    match self.next_line(bracket) {
                        Some(start) => at = start,
                        None => return frames,
                    }
                }
                _ if input.len() - at > MAX => {
                    frames.push(Seen::TooLarge);
                    match self.next_line(at + MAX) {
                        Some(start) => at = start,
                        None => return frames,
                    }
                }
                Err(Stop::End) => {
                    frames.push(if line_start && self.begins_http(at) {
                        Seen::Syntax { line: self.line_of(at) }
                    } else {
                        Seen::Incomplete
                    });
                    return frames;
                }
                other => unreachable!("{other:?}"),
            }
        }
        frames
    }

    fn begins_http(&self, at: usize) -> bool {
        HTTP_METHODS.iter().any(|method| method.starts_with(&self.input[at..]))
    }

    fn line_of(&self, at: usize) -> u64 {
        1 + self.input[..at].iter().filter(|byte| **byte == b'\n').count() as u64
    }

    fn start_of_line(&self, at: usize) -> usize {
        self.input[..at]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |newline| newline + 1)
    }

    fn next_line(&self, at: usize) -> Option<usize> {
        self.input[at..]
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|newline| at + newline + 1)
    }

    fn peek(&self, at: usize) -> Result<u8, Stop> {
        self.input.get(at).copied().ok_or(Stop::End)
    }

    fn blank(&self, mut at: usize) -> usize {
        while self.input.get(at).is_some_and(|byte| b" \t\r\n".contains(byte)) {
            at += 1;
        }
        at
    }

    fn value(&self, at: usize, depth: usize) -> Result<usize, Stop> {
        match self.peek(at)? {
            open @ (b'{' | b'[') => {
                if depth == DEPTH {
                    return Err(Stop::TooDeep(at));
                }
                let close = if open == b'{' { b'}' } else { b']' };
                let mut at = self.blank(at + 1);
                if self.peek(at)? == close {
                    return Ok(at + 1);
                }
                loop {
                    if open == b'{' {
                        if self.peek(at)? != b'"' {
                            return Err(Stop::At(at));
                        }
                        at = self.blank(self.string(at)?);
                        if self.peek(at)? != b':' {
                            return Err(Stop::At(at));
                        }
                        at = self.blank(at + 1);
                    }
                    at = self.blank(self.value(at, depth + 1)?);
                    match self.peek(at)? {
                        byte if byte == close => return Ok(at + 1),
                        b',' => at = self.blank(at + 1),
                        _ => return Err(Stop::At(at)),
                    }
                }
            }
            b'"' => self.string(at),
            b't' => self.word(at, b"true"),
            b'f' => self.word(at, b"false"),
            b'n' => self.word(at, b"null"),
            b'-' | b'0'..=b'9' => self.number(at),
            _ => Err(Stop::At(at)),
        }
    }

    fn word(&self, at: usize, word: &[u8]) -> Result<usize, Stop> {
        for (offset, expected) in word.iter().enumerate() {
            if self.peek(at + offset)? != *expected {
                return Err(Stop::At(at + offset));
            }
        }
        Ok(at + word.len())
    }

    fn digits(&self, mut at: usize) -> Result<usize, Stop> {
        if !self.peek(at)?.is_ascii_digit() {
            return Err(Stop::At(at));
        }
        while self.input.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        Ok(at)
    }

    fn number(&self, mut at: usize) -> Result<usize, Stop> {
        if self.peek(at)? == b'-' {
            at += 1;
        }
        if self.peek(at)? == b'0' {
            at += 1;
            if self.input.get(at).is_some_and(u8::is_ascii_digit) {
                return Err(Stop::At(at));
            }
        } else {
            at = self.digits(at)?;
        }
        if self.input.get(at) == Some(&b'.') {
            at = self.digits(at + 1)?;
        }
        if self.input.get(at).is_some_and(|byte| b"eE".contains(byte)) {
            at += 1;
            if self.input.get(at).is_some_and(|byte| b"+-".contains(byte)) {
                at += 1;
            }
            at = self.digits(at)?;
        }
        Ok(at)
    }

    fn string(&self, at: usize) -> Result<usize, Stop> {
        let mut at = at + 1;
        loop {
            match self.peek(at)? {
                b'"' => return Ok(at + 1),
                b'\\' => {
                    let escape = self.peek(at + 1)?;
                    if escape == b'u' {
                        for offset in 2..6 {
                            if !self.peek(at + offset)?.is_ascii_hexdigit() {
                                return Err(Stop::At(at + offset));
                            }
                        }
                        at += 6;
                    } else if b"\"\\/bfnrt".contains(&escape) {
                        at += 2;
                    } else {
                        return Err(Stop::At(at + 1));
                    }
                }
                0x00..=0x1F => return Err(Stop::At(at)),
                0x20..=0x7F => at += 1,
                _ => {
                    // The longest beginning of a character, by the standard library's decoder.
                    let window = &self.input[at..self.input.len().min(at + 4)];
                    let length = (1..=window.len()).find_map(|length| match std::str::from_utf8(&window[..length]) {
                        Ok(_) => Some(Ok(length)),
                        Err(error) if error.error_len().is_some() => Some(Err(Stop::At(at + length - 1))),
                        Err(_) => None,
                    });
                    at += length.unwrap_or(Err(Stop::End))?;
                }
            }
        }
    }
}

fn whole(input: &[u8]) -> Vec<Seen> {
    framed(std::iter::once(input))
}

fn values(input: &str) -> Vec<String> {
    whole(input.as_bytes())
        .into_iter()
        .map(|frame| match frame {
            Seen::Value(bytes) => String::from_utf8(bytes).unwrap(),
            other => format!("{other:?}"),
        })
        .collect()
}

/// Inputs with a history of breaking decoders.
const HOSTILE: &[&[u8]] = &[
    b"",
    b"\n\n \r\n\t",
    b"{}",
    b"{}\n",
    b"{}{}[] 1 \"a\" null\n",
    b"{\n  \"a\": [\n 1,\n 2 ]\n}\n",
    b"{\r\n}\r\n{}\r\n",
    b"hello\nworld\n{\"a\":1}\n",
    b"{\"a\":1}}\n{\"b\":2}\n",
    b"{\"a\":[1,2}\n{\"b\":2}\n",
    b"{\"a\":1\n{\"b\":2}\n{\"c\":3}",
    b"{\"a\":\n{\"b\":1} {\"c\":2}\n{\"d\":4}",
    b"{\"a\":\"unterminated\n{\"b\":2}\n",
    b"{\n\"a\": 1\n\"b\": 2\n}\n{\"c\":3}\n",
    b"[1,2,]\n[3]",
    b"{\"a\":1,}\n[3]",
    b"{,}\n{}",
    b"{\"a\" 1}\n{}",
    b"{1:2}\n{}",
    b"[01]\n[-]\n[1.]\n[.5]\n[1e]\n[+1]\n[0x1]\n[NaN]\n[Infinity]\n[-0.0e-10]\n",
    b"NaN\n{}",
    b"nul\n{}",
    b"nulll\n{}",
    b"truefalse\n{}",
    b"1 2 3\n",
    b"12",
    b"-",
    b"1.",
    b"tru",
    b"true",
    b"\"abc",
    b"{\"a\":\"\\u12\"}\n{}",
    b"{\"a\":\"\\ud800\"}\n{}",
    b"{\"a\":\"\\x\"}\n{}",
    b"{\"a\":\"\x00\"}\n{}",
    b"{\"a\":\"\t\"}\n{}",
    b"{\"a\":\"\xff\"}\n{\"b\":1}\n",
    b"{\"a\":\"\xc3\"}\n{\"b\":1}\n",
    b"{\"a\":\"\xed\xa0\x80\"}\n{\"b\":1}\n",
    b"{\"a\":\"\xf4\x90\x80\x80\"}\n{\"b\":1}\n",
    b"{\"a\":\"\xc0\xaf\"}\n{\"b\":1}\n",
    "{\"a\":\"\u{e9}\u{4e2d}\u{1f600}\"}\n".as_bytes(),
    b"\xef\xbb\xbf{}\n{}\n",
    b"\xff\xfe{\x00}\x00\n\x00{}\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n{}\n",
    b"{}\nPOST /rpc HTTP/1.1\r\n\r\n{}",
    b"{} GET / HTTP/1.1\n{}\n",
    b" GET / HTTP/1.1\n{}\n",
    b"GE",
    b"GET",
    b"GETTER\n{}",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"[[[[[[[[]]]]]]]]\n[[[[[[[[[]]]]]]]]]\n[1]\n",
    b"[[[[[[[[[\n[[[[[[[[[\n[1]\n",
    b"{\"a\":[{\"a\":[{\"a\":[{\"a\":[{\"a\":[\n]}]}]}]}]}\n{}\n",
    b"}\n]\n,\n:\n{}\n",
    b"// comment\n{}\n",
    b"# comment\n{}\n",
    b"{'a':1}\n{}\n",
    b"{\"a\":1} x {\"b\":2}\n  {\"c\":3}\n[4]\n",
    b"Content-Length: 5\r\n\r\n{}\n",
    b"\x0c{}\n{}\n",
];

#[test]
fn the_hostile_corpus_however_it_is_cut() {
    for input in HOSTILE {
        let expected = Reference { input }.decode();
        assert_eq!(whole(input), expected, "{:?}", String::from_utf8_lossy(input));
        for size in 1..=7 {
            assert_eq!(
                framed(input.chunks(size)),
                expected,
                "by {size}: {:?}",
                String::from_utf8_lossy(input)
            );
        }
        for cut in 0..=input.len() {
            assert_eq!(
                framed([&input[..cut], &input[cut..]].into_iter()),
                expected,
                "at {cut}: {:?}",
                String::from_utf8_lossy(input)
            );
        }
    }
}

#[test]
fn sizes_around_the_limit() {
    for length in MAX - 3..MAX + 4 {
        for end in ["", "\n", "{}", "\n{}\n"] {
            for text in [
                format!("\"{}\"{end}", "x".repeat(length - 2)),
                format!("{{\"a\":\"{}\"}}{end}", "x".repeat(length - 8)),
                format!("{}{end}", "1".repeat(length)),
                format!("[{}]{end}", " ".repeat(length - 2)),
                format!("[{}{end}", "\n".repeat(length - 2)),
                format!("[{}?{end}", " ".repeat(length - 2)),
            ] {
                let input = text.as_bytes();
                let expected = Reference { input }.decode();
                assert_eq!(whole(input), expected, "{length} {text:?}");
                assert_eq!(framed(input.chunks(1)), expected, "{length} {text:?}");
            }
        }
    }
}

#[test]
fn the_rules_of_the_contract() {
    assert_eq!(
        values("{\"a\":1}{\"b\":2} {\"c\":3}\n"),
        ["{\"a\":1}", "{\"b\":2}", "{\"c\":3}"]
    );
    assert_eq!(values("{\n\"a\":\r\n1}\r\n{}"), ["{\n\"a\":\r\n1}", "{}"]);
    // One error for everything up to a line that begins with a bracket.
    assert_eq!(
        values("hello\nworld\n  {}\n{\"a\":1}\n"),
        ["Syntax { line: 1 }", "{\"a\":1}"]
    );
    // The rest of the line is lost with the error, the next line is not.
    assert_eq!(
        values("{\"a\":1} x {\"b\":2}\n{\"c\":3}\n"),
        ["{\"a\":1}", "Syntax { line: 1 }", "{\"c\":3}"]
    );
    // A request that was never closed does not take the next one with it.
    assert_eq!(values("{\"a\":1\n{\"b\":2}\n"), ["Syntax { line: 2 }", "{\"b\":2}"]);
    assert_eq!(values("{\"a\":\"x\n{\"b\":2}\n"), ["Syntax { line: 1 }", "{\"b\":2}"]);
    assert_eq!(values("{\"a\":"), ["Incomplete"]);
    assert_eq!(values("{\"a\":1}\nGET / HTTP/1.1\r\n\r\n{}"), ["{\"a\":1}", "Http"]);
    let large = format!("{{\"a\":\"{}\"}}\n{{\"b\":2}}\n", "x".repeat(MAX));
    assert_eq!(values(&large), ["TooLarge", "{\"b\":2}"]);
    let deep = format!("{}{}\n{{\"b\":2}}\n", "[".repeat(DEPTH + 1), "]".repeat(DEPTH + 1));
    assert_eq!(values(&deep), ["TooDeep", "{\"b\":2}"]);
}

#[test]
fn errors_say_where_and_why_but_not_what() {
    let mut framer = Framer::new(MAX, DEPTH);
    framer.push(b"{}\n{\"password\":\"hunter2\" \"x\"}\n");
    assert!(matches!(framer.next(), Some(Frame::Value(_))));
    let Some(Frame::SyntaxError(error)) = framer.next() else {
        panic!("no error")
    };
    assert_eq!(error.to_string(), "line 2: expected `,` or `}`");
}

#[test]
fn time_is_linear_in_the_input() {
    // A quadratic framer would need minutes for this; there is no clock here, only patience.
    let mut framer = Framer::new(1 << 24, 64);
    let mut input = Vec::from(*b"{\"a\":\"");
    input.resize((1 << 22) + 6, b'x');
    input.extend_from_slice(b"\"}");
    for chunk in input.chunks(16) {
        framer.push(chunk);
        let done = framer.next().is_some();
        assert_eq!(done, chunk.ends_with(b"}"));
    }
    // Lines that are tried again, each broken by the next.
    let mut framer = Framer::new(1 << 24, 64);
    let mut errors = 0;
    for _ in 0..200_000 {
        framer.push(b"{\"a\":1\n");
        errors += framer.by_ref().count();
    }
    assert!(errors > 100_000);
}

fn json_like() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\"a\"",
        "\"a\":",
        "1",
        "-0.5e3",
        "0",
        "true",
        "false",
        "null",
        " ",
        "\n",
        "\r\n",
        "\t",
        "{}",
        "[]",
        "{\"a\":1}",
        "[1,2]",
        "{\"a\":{\"b\":[null]}}",
        "\\",
        "\\u00e9",
        "\\ud83d",
        "é",
        "中",
        "😀",
        "GET ",
        "G",
        "POST / HTTP/1.1\r\n",
        "x",
        "[[[[[[[[[",
        "{\"a\":[",
        "\u{0}",
        "\"long string that fills the message up to its limit\"",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\"}\n",
    ]);
    prop::collection::vec(
        prop_oneof![
            12 => pieces.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..4),
        ],
        0..40,
    )
    .prop_map(|parts| parts.concat())
}

fn chunked<'a>(input: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    let mut rest = input;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = (*sizes.next().unwrap()).min(rest.len());
        let (chunk, left) = rest.split_at(size);
        chunks.push(chunk);
        rest = left;
    }
    chunks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_framer_agrees_with_the_reference(input in json_like(), sizes in prop::collection::vec(1usize..20, 1..8)) {
        let expected = Reference { input: &input }.decode();
        prop_assert_eq!(&whole(&input), &expected);
        prop_assert_eq!(&framed(chunked(&input, &sizes).into_iter()), &expected);
    }

    #[test]
    fn values_are_what_serde_json_takes(input in json_like()) {
        for frame in whole(&input) {
            if let Seen::Value(bytes) = frame {
                let text = std::str::from_utf8(&bytes).unwrap();
                prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "{}", text);
                prop_assert!(bytes.len() <= MAX);
            }
        }
        // A single line that serde_json refuses is never a single value.
        let line: Vec<u8> = input.iter().copied().filter(|byte| *byte != b'\n').collect();
        let one_value = matches!(whole(&line).as_slice(), [Seen::Value(_)]);
        let utf8 = std::str::from_utf8(&line);
        let taken = utf8.is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
        if one_value {
            prop_assert!(taken);
        } else if taken {
            let frames = whole(&line);
            prop_assert!(matches!(frames.as_slice(), [Seen::TooLarge | Seen::TooDeep]), "{:?}", frames);
        }
    }

    #[test]
    fn a_valid_line_after_anything_is_found(garbage in json_like(), sizes in prop::collection::vec(1usize..20, 1..4)) {
        // Two newlines: the first ends a skipped line, and if the garbage left a value open, the line
        // after it is where it breaks.
        let mut input = garbage;
        input.extend_from_slice(b"\n\x01\n{\"probe\":true}\n");
        let frames = framed(chunked(&input, &sizes).into_iter());
        if !frames.contains(&Seen::Http) {
            prop_assert_eq!(frames.last(), Some(&Seen::Value(b"{\"probe\":true}".to_vec())));
        }
    }

    #[test]
    fn any_bytes_at_all(input in prop::collection::vec(any::<u8>(), 0..600), sizes in prop::collection::vec(1usize..64, 1..4)) {
        prop_assert_eq!(framed(chunked(&input, &sizes).into_iter()), Reference { input: &input }.decode());
    }
}
