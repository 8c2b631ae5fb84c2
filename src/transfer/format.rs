//! The formats, and how one is recognised.

use std::io::{self, BufRead};
use std::path::Path;

use ccod_protocol::api::{Item, Record};

use super::lines::{BYTE_ORDER_MARK, Lines};
use super::{jsonl, markdown};

/// A format of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object a line.
    Jsonl,
    /// Texts, each behind its front matter.
    Markdown,
}

impl Format {
    /// The name on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Markdown => "markdown",
        }
    }

    /// The format of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Jsonl, Self::Markdown]
            .into_iter()
            .find(|format| format.as_str() == name)
    }

    /// The format that a file's name stands for, if it does.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "md" | "markdown" => Some(Self::Markdown),
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            _ => None,
        }
    }

    /// The format that the beginning of a file shows, if it does.
    pub(crate) fn of_content(beginning: &[u8]) -> Option<Self> {
        let beginning = beginning.strip_prefix(BYTE_ORDER_MARK).unwrap_or(beginning);
        let beginning = beginning.trim_ascii_start();
        if beginning.starts_with(b"{") {
            Some(Self::Jsonl)
        } else if beginning.starts_with(b"---") {
            Some(Self::Markdown)
        } else {
            None
        }
    }

    /// Appends an item to what is written; `first` for the first of a file.
    pub(crate) fn write(self, item: &Item, first: bool, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Jsonl => jsonl::write(item, out),
            Self::Markdown => markdown::write(item, first, out),
        }
    }

    /// Reads items; one that takes more than `max_bytes` counts as unreadable.
    pub(crate) fn read<R: BufRead>(self, reader: R, max_bytes: usize) -> Entries<R> {
        let lines = Lines::new(reader, max_bytes);
        match self {
            Self::Jsonl => Entries::Jsonl(jsonl::Entries::new(lines)),
            Self::Markdown => Entries::Markdown(markdown::Entries::new(lines, max_bytes)),
        }
    }
}

/// One item of a file, or the reason why it cannot be read.
#[derive(Debug, PartialEq)]
pub(crate) struct Entry {
    /// Where it begins, in lines from 1.
    pub(crate) line: u64,
    pub(crate) record: Result<Record, String>,
}

/// The items of a file.
pub(crate) enum Entries<R> {
    Jsonl(jsonl::Entries<R>),
    Markdown(markdown::Entries<R>),
}

impl<R: BufRead> Entries<R> {
    /// Whether the part that was read has line endings that an editor or version control has made CRLF.
    pub(crate) fn converted(&self) -> bool {
        match self {
            // Its texts have their newlines in escapes.
            Self::Jsonl(_) => false,
            Self::Markdown(entries) => entries.converted(),
        }
    }

    /// Reads with the answer of [`Entries::converted`] at the end of the whole file.
    pub(crate) fn assume_converted(mut self, converted: bool) -> Self {
        if let Self::Markdown(entries) = &mut self {
            entries.assume_converted(converted);
        }
        self
    }
}

impl<R: BufRead> Iterator for Entries<R> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Jsonl(entries) => entries.next(),
            Self::Markdown(entries) => entries.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use ccod_protocol::api::{KnowledgeType, parse_time};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const MAX_BYTES: usize = 1 << 20;

    /// Texts with the marks of the formats, and with the traces of editors and other systems.
    fn hostile_text() -> impl Strategy<Value = String> {
        let pieces = prop_oneof![
            Just("---"),
            Just("\\---"),
            Just("\\\\---"),
            Just("--- "),
            Just("---\t\r"),
            Just("----"),
            Just("\n"),
            Just("\r\n"),
            Just("\r"),
            Just("\n\n"),
            Just(" "),
            Just("id: \"x\""),
            Just("# heading"),
            Just("{\"text\":1}"),
            Just("😀"),
            Just("\u{feff}"),
            Just("\u{2028}\u{85}"),
            Just("\0\u{1b}"),
            Just("é"),
            Just("\"\\"),
        ];
        prop_oneof![
            prop::collection::vec(pieces, 1..12).prop_map(|pieces| pieces.concat()),
            any::<String>(),
        ]
    }

    fn json_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            any::<u64>().prop_map(serde_json::Value::from),
            (-1e300_f64..1e300).prop_map(serde_json::Value::from),
            hostile_text().prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::btree_map(hostile_text(), inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    prop_compose! {
        fn an_item()(
            id in hostile_text(),
            text in hostile_text(),
            kind in prop::sample::select(KnowledgeType::ALL),
            agent in prop::option::of(hostile_text()),
            session_id in prop::option::of(hostile_text()),
            metadata in prop::collection::btree_map(hostile_text(), json_value(), 0..3),
            passages in 1..100_u32,
        ) -> Item {
            Item {
                id, text, knowledge_type: kind, project_id: "p".to_owned(), session_id, agent,
                timestamp: parse_time("2026-01-31T12:00:00.000Z", "timestamp").unwrap(),
                updated_at: parse_time("2026-02-01T12:00:00.001Z", "updated_at").unwrap(),
                metadata: metadata.into_iter().collect(),
                passages,
            }
        }
    }

    fn item_of(record: Record, like: &Item) -> Item {
        Item {
            id: record.id.unwrap(),
            text: record.text,
            knowledge_type: record.knowledge_type.unwrap(),
            project_id: like.project_id.clone(),
            session_id: record.session_id,
            agent: record.agent,
            timestamp: parse_time(&record.timestamp.unwrap(), "timestamp").unwrap(),
            updated_at: parse_time(&record.updated_at.unwrap(), "updated_at").unwrap(),
            metadata: record.metadata.unwrap_or_default(),
            passages: like.passages,
        }
    }

    fn written(format: Format, items: &[Item]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, item) in items.iter().enumerate() {
            format.write(item, index == 0, &mut out).unwrap();
        }
        out
    }

    /// `bytes` with CRLF for LF in the lines that are chosen.
    fn converted(bytes: &[u8], chosen: impl Iterator<Item = bool>) -> Vec<u8> {
        let mut out = Vec::new();
        for (line, chosen) in bytes.split_inclusive(|byte| *byte == b'\n').zip(chosen) {
            match line.strip_suffix(b"\n") {
                Some(content) if chosen => {
                    out.extend_from_slice(content);
                    out.extend_from_slice(b"\r\n");
                }
                _ => out.extend_from_slice(line),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_identically(items in prop::collection::vec(an_item(), 0..5)) {
            for format in [Format::Jsonl, Format::Markdown] {
                let bytes = written(format, &items);
                if !items.is_empty() {
                    prop_assert_eq!(Format::of_content(&bytes), Some(format));
                }
                let mut read = Vec::new();
                for (entry, item) in format.read(bytes.as_slice(), MAX_BYTES).zip(&items) {
                    let record = entry.unwrap().record.map_err(TestCaseError::fail)?;
                    read.push(item_of(record, item));
                }
                prop_assert_eq!(&read, &items);
                prop_assert_eq!(format.read(bytes.as_slice(), MAX_BYTES).count(), items.len());
                prop_assert_eq!(written(format, &read), bytes);
            }
        }

        #[test]
        fn converted_line_endings_change_no_text(
            items in prop::collection::vec(an_item(), 1..4),
            lines in prop::collection::vec(any::<bool>(), 1..20),
            mark in any::<bool>(),
        ) {
            let bytes = written(Format::Markdown, &items);
            // All lines, one part of the file, or some of them. A conversion that left every line around the texts
            // alone could not be recognised.
            let some = || lines.iter().cycle().copied();
            let some_framed = std::iter::once(true).chain(some());
            let whole: Vec<u8> = converted(&bytes, std::iter::repeat(true));
            let beginning = converted(&bytes, std::iter::repeat_n(true, lines.len()).chain(std::iter::repeat(false)));
            for mut bytes in [whole, beginning, converted(&bytes, some_framed)] {
                if mark {
                    bytes.splice(0..0, BYTE_ORDER_MARK.iter().copied());
                }
                prop_assert_eq!(Format::of_content(&bytes), Some(Format::Markdown));
                let mut first = Format::Markdown.read(bytes.as_slice(), MAX_BYTES);
                prop_assert_eq!(first.by_ref().count(), items.len());
                let again = Format::Markdown.read(bytes.as_slice(), MAX_BYTES).assume_converted(first.converted());
                for (entry, item) in again.zip(&items) {
                    let record = entry.unwrap().record.map_err(TestCaseError::fail)?;
                    prop_assert_eq!(&item_of(record, item), item);
                }
            }
        }

        #[test]
        fn nothing_that_is_read_ends_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for format in [Format::Jsonl, Format::Markdown] {
                for entry in format.read(bytes.as_slice(), 64) {
                    entry.unwrap();
                }
            }
        }

        #[test]
        fn the_size_of_the_buffer_does_not_matter(items in prop::collection::vec(an_item(), 1..3), size in 1..40_usize) {
            for format in [Format::Jsonl, Format::Markdown] {
                let bytes = written(format, &items);
                let whole: Vec<Entry> = format.read(bytes.as_slice(), MAX_BYTES).map(Result::unwrap).collect();
                let reader = io::BufReader::with_capacity(size, bytes.as_slice());
                let parts: Vec<Entry> = format.read(reader, MAX_BYTES).map(Result::unwrap).collect();
                prop_assert_eq!(whole, parts);
            }
        }
    }

    #[test]
    fn formats_are_known_by_name_and_by_content() {
        assert_eq!(Format::of_path(Path::new("/a/b.MD")), Some(Format::Markdown));
        assert_eq!(Format::of_path(Path::new("/a/b.jsonl")), Some(Format::Jsonl));
        assert_eq!(Format::of_path(Path::new("/a/b")), None);
        assert_eq!(Format::of_content(b"\xEF\xBB\xBF\n {"), Some(Format::Jsonl));
        assert_eq!(Format::of_content(b"---\nid: x"), Some(Format::Markdown));
        assert_eq!(Format::of_content(b"SQLite format 3"), None);
        assert_eq!(Format::named("markdown"), Some(Format::Markdown));
        assert_eq!(Format::named("yaml"), None);
    }

    #[test]
    fn a_record_that_is_not_an_item_is_refused_with_the_reason() {
        let read =
            |value: serde_json::Value| serde_json::from_value::<Record>(value).map_err(|error| error.to_string());
        assert!(read(json!({"text": "a", "project_id": "p", "passages": 3})).is_ok());
        assert!(read(json!({"text": "a", "agent": null})).is_ok());
        assert!(read(json!({"text": "a", "score": 1})).unwrap_err().contains("`score`"));
        assert!(read(json!({"type": "issue"})).unwrap_err().contains("`text`"));
        assert!(read(json!({"text": "a", "type": "bug"})).is_err());
    }
}
