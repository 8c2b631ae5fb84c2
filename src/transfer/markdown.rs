//! Markdown with front matter: each item is a block of fields between two lines of `---`, and its text up to the
//! next item.
//!
//! ```text
//! ---
//! id: "decision-1795362864593-3ddc93ff"
//! type: decision
//! timestamp: 2026-11-22T15:54:24.593Z
//! ---
//!
//! Tokens of the login service expire after 15 minutes
//!
//! ---
//! id: ...
//! ```
//!
//! A line of a text that would read as `---` is written with a backslash before it, which Markdown shows in the same
//! way; a line that begins so already gets one more. The blank line after the fields, the newline after the
//! text and the blank line before the next item are not part of the text, nor are further blank lines at the end of
//! the file, where editors leave some; everything else is. A text that ends in a newline itself is written as JSON in
//! the field `text`. Values are JSON, which is YAML too; a plain word needs no quotes when it is written by hand.
//!
//! Editors and version control change line endings, so the text itself never holds one that matters. A text whose
//! lines all end in CRLF is written with LF and `newline: crlf`; one with other carriage returns as JSON in the
//! field `text`. Where a line around the texts (`---`, a field) has come to end in CRLF, the file was converted, and
//! the CRLF of its texts are LF. In a file without any such line a CRLF belongs to its text: files from before `newline`
//! have it so.

use std::borrow::Cow;
use std::io::{self, BufRead, Write};

use ccod_protocol::api::{Item, Record, UniqueKeys, format_time, rounded_integer};
use serde_json::{Map, Value};

use super::format::Entry;
use super::lines::{BYTE_ORDER_MARK, Line, Lines, shortened};

/// The field that says how the lines of the text end: `lf` or `crlf`.
const NEWLINE: &str = "newline";
/// The field that has the text itself, in place of what stands below the fields.
const TEXT: &str = "text";

/// Fields whose values are texts; quotes are optional.
const TEXT_FIELDS: [&str; 10] = [
    NEWLINE,
    TEXT,
    "id",
    "type",
    "knowledge_type",
    "project_id",
    "session_id",
    "agent",
    "timestamp",
    "updated_at",
];
/// Fields whose values are JSON.
const JSON_FIELDS: [&str; 2] = ["metadata", "passages"];

pub(super) fn write(item: &Item, first: bool, out: &mut Vec<u8>) -> io::Result<()> {
    if !first {
        out.push(b'\n');
    }
    let quoted = |text: &str| Value::from(text).to_string();
    writeln!(out, "---")?;
    writeln!(out, "id: {}", quoted(&item.id))?;
    writeln!(out, "type: {}", item.knowledge_type)?;
    writeln!(out, "project_id: {}", quoted(&item.project_id))?;
    for (name, value) in [("session_id", &item.session_id), ("agent", &item.agent)] {
        if let Some(value) = value {
            writeln!(out, "{name}: {}", quoted(value))?;
        }
    }
    writeln!(out, "timestamp: {}", format_time(item.timestamp))?;
    writeln!(out, "updated_at: {}", format_time(item.updated_at))?;
    if !item.metadata.is_empty() {
        write!(out, "metadata: ")?;
        serde_json::to_writer(&mut *out, &item.metadata)?;
        writeln!(out)?;
    }
    writeln!(out, "passages: {}", item.passages)?;
    let body = match LineEnds::of(&item.text) {
        _ if item.text.ends_with('\n') => {
            writeln!(out, "{TEXT}: {}", quoted(&item.text))?;
            Cow::Borrowed("")
        }
        LineEnds::Lf => Cow::Borrowed(item.text.as_str()),
        LineEnds::Crlf => {
            writeln!(out, "{NEWLINE}: crlf")?;
            Cow::Owned(item.text.replace("\r\n", "\n"))
        }
        LineEnds::Other => {
            writeln!(out, "{TEXT}: {}", quoted(&item.text))?;
            Cow::Borrowed("")
        }
    };
    writeln!(out, "---\n")?;
    for line in body.split_inclusive('\n') {
        if is_fence(line.trim_start_matches('\\').as_bytes()) {
            out.push(b'\\');
        }
        out.extend_from_slice(line.as_bytes());
    }
    out.push(b'\n');
    Ok(())
}

/// How the lines of a text end.
enum LineEnds {
    /// Without carriage returns.
    Lf,
    /// Each in CRLF, and no other carriage return.
    Crlf,
    /// Carriage returns of any kind.
    Other,
}

impl LineEnds {
    fn of(text: &str) -> Self {
        let returns = text.matches('\r').count();
        let pairs = text.matches("\r\n").count();
        if returns == 0 {
            Self::Lf
        } else if returns == pairs && pairs == text.matches('\n').count() {
            Self::Crlf
        } else {
            Self::Other
        }
    }
}

/// Whether a line stands between a block of fields and a text. White space after it cannot be seen, so it
/// makes no difference.
fn is_fence(line: &[u8]) -> bool {
    // Files that were joined have a byte order mark inside.
    line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_ascii_end() == b"---"
}

/// The items of a file.
pub(crate) struct Entries<R> {
    lines: Lines<R>,
    max_bytes: usize,
    /// A line that was looked at and belongs to what is read next.
    held: Option<Line>,
    /// The line of the `---` that ended the last text and begins the next item.
    opened: Option<u64>,
    /// Whether a line around the texts was found to end in CRLF.
    converted: bool,
}

/// The fields of an item, or what is wrong with them.
type Fields = Result<Map<String, Value>, String>;

/// The beginning of a file, and its line.
enum First {
    Item(u64),
    Stray(u64),
}

impl<R: BufRead> Entries<R> {
    pub(super) fn new(lines: Lines<R>, max_bytes: usize) -> Self {
        Self {
            lines,
            max_bytes,
            held: None,
            opened: None,
            converted: false,
        }
    }

    /// Whether the part that was read has line endings that were converted to CRLF.
    pub(super) fn converted(&self) -> bool {
        self.converted
    }

    /// Takes it that the line endings of the whole file were converted to CRLF, in places at least.
    pub(super) fn assume_converted(&mut self, converted: bool) {
        self.converted |= converted;
    }

    /// A line around the texts.
    fn note_line_end(&mut self, line: &Line) {
        self.converted |= line.bytes.ends_with(b"\r\n");
    }

    fn read(&mut self) -> io::Result<Option<Entry>> {
        let line = match self.opened.take() {
            Some(line) => line,
            None => match self.find_first()? {
                Some(First::Item(line)) => line,
                Some(First::Stray(line)) => return Ok(Some(not_an_item(line))),
                None => return Ok(None),
            },
        };
        let (fields, closed) = self.fields()?;
        if let (Err(reason), Some(fence)) = (&fields, closed)
            && self.next_is_a_field()?
        {
            // The `---` that was to close these fields is lost: this one begins the next item.
            self.opened = Some(fence);
            let record = Err(reason.clone());
            return Ok(Some(Entry { line, record }));
        }
        let body = self.body()?;
        let ended = self.opened.is_some();
        let record = fields.and_then(|mut fields| {
            let text = text(&mut fields, body?, self.converted, ended)?;
            fields.insert(TEXT.to_owned(), Value::String(text));
            serde_json::from_value::<Record>(Value::Object(fields)).map_err(|error| shortened(error.to_string()))
        });
        Ok(Some(Entry { line, record }))
    }

    fn line(&mut self) -> io::Result<Option<Line>> {
        match self.held.take() {
            Some(line) => Ok(Some(line)),
            None => self.lines.next(),
        }
    }

    /// Whether the next line reads as a field, which no text of ours begins with: a blank line stands before it.
    fn next_is_a_field(&mut self) -> io::Result<bool> {
        self.held = self.line()?;
        let next = self.held.as_ref().filter(|line| !line.too_long);
        Ok(next.is_some_and(|line| matches!(field(&line.bytes), Ok(Some(_)))))
    }

    /// Finds the first `---`; lines before it do not belong to an item.
    fn find_first(&mut self) -> io::Result<Option<First>> {
        let mut stray = None;
        while let Some(line) = self.line()? {
            if is_fence(&line.bytes) {
                self.note_line_end(&line);
                let Some(stray) = stray else {
                    return Ok(Some(First::Item(line.number)));
                };
                self.opened = Some(line.number);
                return Ok(Some(First::Stray(stray)));
            }
            if stray.is_none() && !line.bytes.trim_ascii().is_empty() {
                stray = Some(line.number);
            }
        }
        Ok(stray.map(First::Stray))
    }

    /// Reads the fields up to and including the `---` that closes them, and the line of that. Reading goes on after them
    /// whatever they hold.
    fn fields(&mut self) -> io::Result<(Fields, Option<u64>)> {
        let mut fields = Map::new();
        let mut problem = None;
        while let Some(line) = self.line()? {
            self.note_line_end(&line);
            if is_fence(&line.bytes) {
                return Ok((problem.map_or(Ok(fields), Err), Some(line.number)));
            }
            let field = if line.too_long {
                Err("is too long".to_owned())
            } else {
                field(&line.bytes)
            };
            let added = match field {
                Ok(None) => Ok(()),
                Ok(Some((name, _))) if fields.contains_key(&name) => Err(format!("gives `{name}` a second time")),
                Ok(Some((name, value))) => {
                    fields.insert(name, value);
                    Ok(())
                }
                Err(reason) => Err(reason),
            };
            if let Err(reason) = added
                && problem.is_none()
            {
                problem = Some(shortened(format!("line {} {reason}", line.number)));
            }
        }
        Ok((Err("the fields are not closed by a line of `---`".to_owned()), None))
    }

    /// Reads what stands below the fields, up to the next `---` or the end of the file.
    fn body(&mut self) -> io::Result<Result<Vec<u8>, String>> {
        let mut body = Vec::new();
        let mut too_long = false;
        let mut first = true;
        while let Some(line) = self.line()? {
            if is_fence(&line.bytes) {
                self.note_line_end(&line);
                self.opened = Some(line.number);
                break;
            }
            if std::mem::take(&mut first) && line.bytes == b"\r\n" {
                // The blank line after the fields.
                self.note_line_end(&line);
            }
            too_long |= line.too_long || body.len() + line.bytes.len() > self.max_bytes;
            if too_long {
                body.clear();
                continue;
            }
            let escaped = line.bytes.first() == Some(&b'\\');
            let backslashes = line.bytes.iter().take_while(|byte| **byte == b'\\').count();
            let unescaped = usize::from(escaped && is_fence(&line.bytes[backslashes..]));
            body.extend_from_slice(&line.bytes[unescaped..]);
        }
        Ok(if too_long {
            Err("the text is longer than any item can be".to_owned())
        } else {
            Ok(body)
        })
    }
}

/// The text of an item, from the `body` below its fields or from its fields. `converted` says that line endings were
/// converted to CRLF, `ended` that another item follows. Removes the fields that are about the text alone.
fn text(fields: &mut Map<String, Value>, body: Vec<u8>, converted: bool, ended: bool) -> Result<String, String> {
    let body = String::from_utf8(body).map_err(|_| "the text is not UTF-8".to_owned())?;
    let newline = fields.remove(NEWLINE).unwrap_or_default();
    let newline = match newline.as_str() {
        None if newline.is_null() => None,
        Some(word @ ("lf" | "crlf")) => Some(word),
        _ => return Err(format!("`{NEWLINE}` must be `lf` or `crlf`")),
    };
    match fields.remove(TEXT) {
        None | Some(Value::Null) => {}
        Some(_) if !body.trim().is_empty() => {
            return Err(format!(
                "the text stands both in the field `{TEXT}` and below the fields"
            ));
        }
        Some(Value::String(text)) => return Ok(text),
        Some(_) => return Err(format!("`{TEXT}` must be a text")),
    }
    let body = if converted || newline.is_some() {
        body.replace("\r\n", "\n")
    } else {
        body
    };
    let mut framed = body.as_str();
    framed = framed.strip_prefix('\n').unwrap_or(framed);
    if ended {
        framed = framed.strip_suffix('\n').unwrap_or(framed);
        framed = framed.strip_suffix('\n').unwrap_or(framed);
    } else {
        framed = framed.trim_end_matches('\n');
    }
    Ok(match newline {
        Some("crlf") => framed.replace('\n', "\r\n"),
        _ => framed.to_owned(),
    })
}

impl<R: BufRead> Iterator for Entries<R> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

fn not_an_item(line: u64) -> Entry {
    Entry {
        line,
        record: Err("an item begins with a line of `---`, its fields, and another such line".to_owned()),
    }
}

/// Reads one line of the fields; nothing where it is blank or a comment.
fn field(line: &[u8]) -> Result<Option<(String, Value)>, String> {
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())?.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, value) = line
        .split_once(':')
        .map(|(name, value)| (name.trim_end(), value.trim_start()))
        .ok_or_else(|| "is not of the form `name: value`".to_owned())?;
    let json = || match serde_json::from_str(value) {
        Ok(_) if rounded_integer(value).is_some() => Err(format!(
            "has a `{name}` with an integer that needs more than 64 bits; make it a string"
        )),
        Ok(UniqueKeys(value)) => Ok(value),
        Err(error) if error.is_data() => Err(format!("has a `{name}` in which a key stands twice")),
        Err(_) => Err(format!("has a `{name}` that is not JSON")),
    };
    let value = if TEXT_FIELDS.contains(&name) {
        match value {
            "" | "null" | "~" => Value::Null,
            _ if value.starts_with('"') => json()?,
            _ => Value::from(value),
        }
    } else if JSON_FIELDS.contains(&name) {
        if value.is_empty() { Value::Null } else { json()? }
    } else {
        return Err(format!(
            "has an unknown field `{name}`; put it into `metadata`, or use one of {}, {}",
            TEXT_FIELDS.join(", "),
            JSON_FIELDS.join(", ")
        ));
    };
    Ok(Some((name.to_owned(), value)))
}

#[cfg(test)]
mod tests {
    use ccod_protocol::api::parse_time;

    use super::*;

    fn entries(text: &str) -> Vec<Entry> {
        Entries::new(Lines::new(text.as_bytes(), 1_000), 1_000)
            .map(Result::unwrap)
            .collect()
    }

    fn texts(text: &str) -> Vec<String> {
        entries(text)
            .into_iter()
            .map(|entry| entry.record.unwrap().text)
            .collect()
    }

    fn reason(entry: &Entry) -> &str {
        entry.record.as_ref().unwrap_err()
    }

    #[test]
    fn an_item_is_pleasant_to_read() {
        let item = Item {
            id: "decision-1-ab".to_owned(),
            text: "Use tabs\n---\nor not".to_owned(),
            knowledge_type: ccod_protocol::api::KnowledgeType::Decision,
            project_id: "web".to_owned(),
            session_id: None,
            agent: Some("cli".to_owned()),
            timestamp: parse_time("2026-01-31T12:00:00.000Z", "timestamp").unwrap(),
            updated_at: parse_time("2026-01-31T12:00:00.001Z", "updated_at").unwrap(),
            metadata: serde_json::json!({"a": [1, "x"]}).as_object().unwrap().clone(),
            passages: 1,
        };
        let mut out = Vec::new();
        write(&item, true, &mut out).unwrap();
        write(&item, false, &mut out).unwrap();
        let block = "---\nid: \"decision-1-ab\"\ntype: decision\nproject_id: \"web\"\nagent: \"cli\"\n\
                     timestamp: 2026-01-31T12:00:00.000Z\nupdated_at: 2026-01-31T12:00:00.001Z\n\
                     metadata: {\"a\":[1,\"x\"]}\npassages: 1\n---\n\nUse tabs\n\\---\nor not\n";
        assert_eq!(String::from_utf8(out).unwrap(), format!("{block}\n{block}"));
    }

    #[test]
    fn blank_lines_at_the_end_of_a_file_are_of_no_text() {
        for end in ["", "\n", "\n\n", "\n\n\n\n"] {
            let found = entries(&format!("---\n---\n\nOne\n\nline\n\n---\n---\n\nTwo{end}"));
            let texts: Vec<&str> = found
                .iter()
                .map(|entry| entry.record.as_ref().unwrap().text.as_str())
                .collect();
            assert_eq!(texts, ["One\n\nline", "Two"], "{end:?}");
        }
    }

    #[test]
    fn metadata_with_a_doubled_key_is_refused() {
        let found = entries("---\nmetadata: {\"a\":1,\"a\":2}\n---\n\nOne\n---\n---\n\nTwo");
        let reason = found[0].record.clone().unwrap_err();
        assert!(reason.contains("`metadata` in which a key stands twice"), "{reason}");
        assert!(found[1].record.is_ok());
    }

    #[test]
    fn metadata_with_an_integer_that_would_be_rounded_is_refused() {
        let found = entries(
            "---\nagent: 18446744073709551616\nmetadata: {\"a\":18446744073709551616}\n---\n\nOne\n---\n---\n\nTwo",
        );
        let reason = found[0].record.clone().unwrap_err();
        assert!(reason.contains("`metadata` with an integer"), "{reason}");
        assert!(found[1].record.is_ok());
    }

    #[test]
    fn what_people_write_by_hand_is_understood() {
        let text = "\n---  \r\ntype: issue\nagent: me and you\nsession_id:\n# a comment\n\nmetadata: {}\n---\nOne\n---\n---\n\nTwo";
        let found = entries(text);
        let first = found[0].record.as_ref().unwrap();
        assert_eq!(
            (first.text.as_str(), first.agent.as_deref()),
            ("One", Some("me and you"))
        );
        assert_eq!((first.session_id.as_deref(), first.id.as_deref()), (None, None));
        assert_eq!(found[0].line, 2);
        assert_eq!(found[1].record.as_ref().unwrap().text, "Two");
    }

    #[test]
    fn a_broken_item_costs_itself_alone() {
        let text = "stray\n---\ntype: bug\n---\na\n---\ncolour: red\n---\nb\n---\nid: 1\nid: 2\n---\nc\n---\nmetadata: {\n---\nd\n---\n---\ne\n---\nopen";
        let found = entries(text);
        let lines: Vec<(u64, bool)> = found.iter().map(|entry| (entry.line, entry.record.is_ok())).collect();
        let expected = [
            (1, false),
            (2, false),
            (6, false),
            (10, false),
            (15, false),
            (19, true),
            (22, false),
        ];
        assert_eq!(lines, expected);
        assert!(reason(&found[2]).contains("line 7") && reason(&found[2]).contains("`colour`"));
        assert!(reason(&found[3]).contains("second time"));
        assert!(reason(&found[4]).contains("`metadata`"));
        assert!(reason(&found[6]).contains("not closed"));
    }

    /// Bytes that a disk or an editor has lost may have held a `---`.
    #[test]
    fn a_lost_fence_costs_no_item_after_the_next() {
        let item = |number: usize| format!("---\nid: i{number}\ntype: issue\n---\n\ntext {number}\n\n");
        let whole: String = (0..6).map(item).collect();
        let (from, to) = (whole.find("id: i2").unwrap(), whole.find("text 2").unwrap());
        let in_fields = format!(
            "{}{}{}",
            &whole[..from + 3],
            "\0".repeat(to - from - 6),
            &whole[to - 3..]
        );
        let from = whole.find("text 2").unwrap();
        let around = format!("{}{}{}", &whole[..from + 4], "\0".repeat(14), &whole[from + 18..]);
        for (damaged, lost) in [(in_fields, vec![2]), (around, vec![3])] {
            let ids: Vec<String> = entries(&damaged)
                .into_iter()
                .filter_map(|entry| entry.record.ok()?.id)
                .collect();
            let expected: Vec<String> = (0..6)
                .filter(|number| !lost.contains(number))
                .map(|number| format!("i{number}"))
                .collect();
            assert_eq!(ids, expected, "{damaged:?}");
        }
        // A text by hand that begins like a field, below fields that are whole.
        assert_eq!(
            texts("---\ntype: issue\n---\nid: not a field\n---\ntype: issue\n---\nb\n").len(),
            2
        );
    }

    #[test]
    fn texts_keep_their_own_newlines() {
        assert_eq!(texts("---\n---\n\na\n"), ["a"]);
        assert_eq!(texts("---\n---\n\na"), ["a"]);
        // Blank lines at the end of the file are of no text.
        assert_eq!(texts("---\n---\n\na\n\n\n"), ["a"]);
        assert_eq!(texts("---\n---\n\n\na\n\n---\n---\n\n\\\\---\r\n"), ["\na", "\\---\r"]);
    }

    #[test]
    fn line_endings_that_an_editor_changed_are_not_those_of_the_text() {
        let lf = "---\nid: a\n---\n\none\n\ntwo\n\\---\n\n---\nid: b\n---\n\nthree\n";
        let expected = ["one\n\ntwo\n---", "three"];
        assert_eq!(texts(lf), expected);
        assert_eq!(texts(&lf.replace('\n', "\r\n")), expected);
        assert_eq!(texts(&format!("\u{feff}{}", lf.replace('\n', "\r\n"))), expected);
        // Written by hand, without the blank lines and the last newline.
        assert_eq!(texts("---\r\n---\r\none\r\ntwo"), ["one\r\ntwo".replace('\r', "")]);
        // Only what was appended, or only the beginning.
        let (first, second) = lf.split_at(lf.find("---\nid: b").unwrap());
        assert_eq!(texts(&format!("{first}{}", second.replace('\n', "\r\n"))), expected);
        assert_eq!(texts(&format!("{}{second}", first.replace('\n', "\r\n"))), expected);
    }

    #[test]
    fn a_text_with_carriage_returns_of_its_own_says_so() {
        for (fields, body, text) in [
            ("newline: crlf", "a\nb\n", "a\r\nb"),
            ("newline: lf", "a\r\nb\n", "a\nb"),
            ("newline:", "a\nb\n", "a\nb"),
            ("text: \"a\\r\\r\\nb\"", "", "a\r\r\nb"),
            ("text: plain words", "\r\n\n", "plain words"),
        ] {
            assert_eq!(texts(&format!("---\n{fields}\n---\n\n{body}")), [text], "{fields}");
        }
        let wrong = "---\nnewline: cr\n---\na\n---\ntext: \"a\"\n---\nb\n---\nnewline: \"x\"\n---\nc";
        let found = entries(wrong);
        assert!(reason(&found[0]).contains("`lf` or `crlf`"));
        assert!(reason(&found[1]).contains("both"));
        assert!(reason(&found[2]).contains("`lf` or `crlf`"));
    }

    #[test]
    fn files_that_were_joined_keep_all_their_items() {
        assert_eq!(
            texts("\u{feff}---\n---\na\n\u{feff}---\n---\nb\n\\\u{feff}---\n"),
            ["a", "b\n\u{feff}---"]
        );
    }

    #[test]
    fn a_text_without_end_takes_no_memory() {
        let text = format!("---\n---\n{}---\n---\nb", "a\n".repeat(1_000));
        let found = entries(&text);
        assert!(reason(&found[0]).contains("longer"));
        assert_eq!(found[1].record.as_ref().unwrap().text, "b");
    }
}
