//! Reads what `strace -f -xx` has written. Pure.
//!
//! A call that was interrupted by one of another thread stands in two lines; it is put together again and keeps
//! both places, for what it did happened somewhere between them.

use std::collections::HashMap;

/// One argument of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// A string: a path, or data.
    Bytes(Vec<u8>),
    /// A number, flags, a constant.
    Word(String),
    /// The strings of a list or a structure, one after the other: the data of `writev` and `sendmsg`.
    Inside(Vec<u8>),
}

impl Argument {
    /// The string or the data.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) | Self::Inside(bytes) => Some(bytes),
            Self::Word(_) => None,
        }
    }

    /// The word.
    pub(crate) fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }

    /// The number.
    pub(crate) fn number(&self) -> Option<i64> {
        self.word()?.parse().ok()
    }
}

/// One system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Its name.
    pub(crate) name: String,
    /// Its arguments.
    pub(crate) arguments: Vec<Argument>,
    /// What it returned; none if it did not return, or failed.
    pub(crate) result: Option<i64>,
    /// The line where it began.
    pub(crate) begun: usize,
    /// The line where it ended; the same one unless something came between.
    pub(crate) ended: usize,
}

/// Reads a whole record.
pub(crate) fn parse(record: &str) -> Result<Vec<Call>, String> {
    let mut calls = Vec::new();
    // The beginning of each thread's unfinished call.
    let mut open: HashMap<&str, (usize, &str)> = HashMap::new();
    for (number, line) in record.lines().enumerate() {
        let wrong = |what: &str| format!("line {}: {what}: {}", number + 1, cut(line));
        let Some((thread, text)) = line.split_once(' ') else {
            return Err(wrong("not a line of strace"));
        };
        let text = text.trim_start();
        if text.starts_with("+++") || text.starts_with("---") {
            continue; // The end of a thread, a signal.
        }
        if let Some(beginning) = text.strip_suffix("<unfinished ...>") {
            if open.insert(thread, (number, beginning.trim_end())).is_some() {
                return Err(wrong("a second call of a thread that is in one"));
            }
            continue;
        }
        let resumed;
        let (begun, whole) = match text.strip_prefix("<... ") {
            Some(rest) => {
                let (_, rest) = rest
                    .split_once(" resumed>")
                    .ok_or_else(|| wrong("neither a call nor its rest"))?;
                let (begun, beginning) = open
                    .remove(thread)
                    .ok_or_else(|| wrong("the rest of a call that never began"))?;
                resumed = format!("{beginning}{rest}");
                (begun, resumed.as_str())
            }
            None => (number, text),
        };
        let mut call = parse_call(whole).map_err(|what| wrong(&what))?;
        (call.begun, call.ended) = (begun, number);
        calls.push(call);
    }
    // In the order in which they ended; those that never did are not there.
    Ok(calls)
}

/// The beginning of a line, for a message.
fn cut(line: &str) -> &str {
    line.get(..200).unwrap_or(line)
}

/// `name(argument, ...) = result ...`
fn parse_call(text: &str) -> Result<Call, String> {
    let (name, rest) = text.split_once('(').ok_or("no name")?;
    let mut arguments = Vec::new();
    let mut rest = rest;
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix(')') {
            rest = after;
            break;
        }
        let (argument, after) = parse_argument(rest)?;
        arguments.push(argument);
        rest = after;
    }
    let result = rest.trim_start().strip_prefix('=').ok_or("no result")?.trim_start();
    let result = result.split(' ').next().unwrap_or_default();
    let result = match result {
        "?" => None,
        number => match number.strip_prefix("0x") {
            Some(hexadecimal) => i64::from_str_radix(hexadecimal, 16).ok(),
            None => Some(number.parse::<i64>().map_err(|_| format!("no number: {number}"))?),
        },
    };
    Ok(Call {
        name: name.to_owned(),
        arguments,
        result: result.filter(|number| *number >= 0),
        begun: 0,
        ended: 0,
    })
}

/// The argument at the beginning of `text`, and what comes after it.
fn parse_argument(text: &str) -> Result<(Argument, &str), String> {
    match text.as_bytes().first() {
        Some(b'"') => {
            let (bytes, rest) = parse_string(text)?;
            Ok((Argument::Bytes(bytes), rest))
        }
        Some(b'[' | b'{') => {
            let mut inside = Vec::new();
            let mut depth = 0;
            let mut rest = text;
            loop {
                match rest.as_bytes().first().ok_or("a list without an end")? {
                    b'"' => {
                        let (bytes, after) = parse_string(rest)?;
                        inside.extend(bytes);
                        rest = after;
                        continue;
                    }
                    b'[' | b'{' => depth += 1,
                    b']' | b'}' => depth -= 1,
                    _ => {}
                }
                rest = &rest[1..];
                if depth == 0 {
                    return Ok((Argument::Inside(inside), rest));
                }
            }
        }
        _ => {
            // Flags may come with a comment in brackets: 0x1 (flags FD_CLOEXEC).
            let mut depth = 0;
            let end = text
                .char_indices()
                .find(|(_, character)| match character {
                    '(' => {
                        depth += 1;
                        false
                    }
                    ')' if depth > 0 => {
                        depth -= 1;
                        false
                    }
                    ')' | ',' => depth == 0,
                    _ => false,
                })
                .ok_or("an argument without an end")?
                .0;
            Ok((Argument::Word(text[..end].trim_end().to_owned()), &text[end..]))
        }
    }
}

/// A string in hexadecimal escapes, as `-xx` writes all of them.
fn parse_string(text: &str) -> Result<(Vec<u8>, &str), String> {
    let inner = &text[1..];
    let end = inner.find('"').ok_or("a string without an end")?;
    let (inner, rest) = (&inner[..end], &inner[end + 1..]);
    if rest.starts_with("...") {
        return Err("a string that strace has cut off; raise -s".to_owned());
    }
    let mut bytes = Vec::with_capacity(inner.len() / 4);
    for escape in inner.as_bytes().chunks(4) {
        let [b'\\', b'x', high, low] = escape else {
            return Err("a string that is not in hexadecimal; strace needs -xx".to_owned());
        };
        let digit = |byte: &u8| (*byte as char).to_digit(16).ok_or("no hexadecimal digit");
        bytes.push((digit(high)? * 16 + digit(low)?) as u8);
    }
    Ok((bytes, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Argument {
        Argument::Bytes(text.as_bytes().to_vec())
    }

    fn word(text: &str) -> Argument {
        Argument::Word(text.to_owned())
    }

    #[test]
    fn lines_as_strace_writes_them() {
        let record = concat!(
            "4531  mkdir(\"\\x2f\\x74\", 0700) = 0\n",
            "4531  mkdir(\"\\x2f\\x74\", 0700) = -1 EEXIST (File exists)\n",
            "4575  openat(AT_FDCWD, \"\\x2f\\x61\", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0666) = 14\n",
            "4575  fcntl(14, F_GETFD)                = 0x1 (flags FD_CLOEXEC)\n",
            "4566  writev(3, [{iov_base=\"\\x61\\x2c\", iov_len=2}, {iov_base=\"\\x22\", iov_len=1}], 2) = 3\n",
            "4566  close(14)                         = 0\n",
            "4566  +++ exited with 0 +++\n",
            "4567  exit_group(0)                     = ?\n",
        );
        let calls = parse(record).unwrap();
        let told: Vec<(&str, Option<i64>)> = calls.iter().map(|call| (call.name.as_str(), call.result)).collect();
        let expected = [
            ("mkdir", Some(0)),
            ("mkdir", None),
            ("openat", Some(14)),
            ("fcntl", Some(1)),
            ("writev", Some(3)),
            ("close", Some(0)),
            ("exit_group", None),
        ];
        assert_eq!(told, expected);
        assert_eq!(calls[0].arguments, [bytes("/t"), word("0700")]);
        assert_eq!(
            calls[2].arguments,
            [
                word("AT_FDCWD"),
                bytes("/a"),
                word("O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC"),
                word("0666")
            ]
        );
        assert_eq!(
            calls[4].arguments,
            [word("3"), Argument::Inside(b"a,\"".to_vec()), word("2")]
        );
    }

    #[test]
    fn a_call_in_two_lines_is_one_and_keeps_both_places() {
        let record = concat!(
            "7  sendto(12, \"\\x7b\\x7d\", 2, MSG_NOSIGNAL, NULL, 0 <unfinished ...>\n",
            "8  fsync(4 <unfinished ...>\n",
            "7  <... sendto resumed>)             = 2\n",
            "8  <... fsync resumed>)              = 0\n",
        );
        let calls = parse(record).unwrap();
        let told: Vec<(&str, usize, usize, Option<i64>)> = calls
            .iter()
            .map(|call| (call.name.as_str(), call.begun, call.ended, call.result))
            .collect();
        assert_eq!(told, [("sendto", 0, 2, Some(2)), ("fsync", 1, 3, Some(0))]);
        assert_eq!(calls[0].arguments[1], bytes("{}"));
    }

    #[test]
    fn what_is_cut_off_or_garbled_is_refused() {
        for record in [
            "7  write(3, \"\\x61\"..., 5) = 5",
            "7  write(3, \"abc\", 3) = 3",
            "7  <... write resumed>) = 3",
            "7  write(3, \"\\x61",
            "nonsense",
        ] {
            assert!(parse(record).is_err(), "{record}");
        }
    }
}
