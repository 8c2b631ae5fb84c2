//! JSON Lines: on each line an item as `knowledge.get` shows it.

use std::io::{self, BufRead};

use ccod_protocol::api::{Item, Record, rounded_integer};
use serde_json::error::Category;

use super::format::Entry;
use super::lines::{Line, Lines, shortened};

pub(super) fn write(item: &Item, out: &mut Vec<u8>) -> io::Result<()> {
    // A newline in a text is written as an escape.
    serde_json::to_writer(&mut *out, item)?;
    out.push(b'\n');
    Ok(())
}

/// The items of a file. Blank lines are skipped.
pub(crate) struct Entries<R> {
    lines: Lines<R>,
}

impl<R> Entries<R> {
    pub(super) fn new(lines: Lines<R>) -> Self {
        Self { lines }
    }
}

impl<R: BufRead> Iterator for Entries<R> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.lines.next() {
                Ok(None) => return None,
                Ok(Some(line)) if !line.too_long && line.bytes.trim_ascii().is_empty() => {}
                Ok(Some(line)) => {
                    return Some(Ok(Entry {
                        line: line.number,
                        record: record(&line),
                    }));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn record(line: &Line) -> Result<Record, String> {
    if line.too_long {
        return Err("the line is longer than any item can be".to_owned());
    }
    if let Some(place) = std::str::from_utf8(&line.bytes).ok().and_then(rounded_integer) {
        return Err(format!(
            "`{place}` is an integer that needs more than 64 bits; make it a string"
        ));
    }
    serde_json::from_slice(line.bytes.trim_ascii_end()).map_err(|error| match error.classify() {
        Category::Data => {
            // Its own line number is always 1.
            let message = error.to_string();
            let what = message
                .rsplit_once(" at line ")
                .map_or(message.as_str(), |(what, _)| what);
            shortened(what.to_owned())
        }
        _ => format!("this is not JSON, from column {} on", error.column()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &[u8]) -> Vec<Entry> {
        Entries::new(Lines::new(text, 100)).map(Result::unwrap).collect()
    }

    #[test]
    fn a_broken_line_costs_itself_alone() {
        let text = b"{\"text\":\"a\"}\n\n{\"text\":\n{\"text\":\"b\",\"colour\":1}\n\xff\n  \r\n{\"text\":\"c\"}";
        let found = entries(text);
        let lines: Vec<(u64, bool)> = found.iter().map(|entry| (entry.line, entry.record.is_ok())).collect();
        assert_eq!(lines, [(1, true), (3, false), (4, false), (5, false), (7, true)]);
        let reason = |index: usize| found[index].record.clone().unwrap_err();
        assert!(reason(1).starts_with("this is not JSON"), "{}", reason(1));
        assert!(
            reason(2).contains("`colour`") && !reason(2).contains("line"),
            "{}",
            reason(2)
        );
        assert_eq!(found[4].record.as_ref().unwrap().text, "c");
    }

    #[test]
    fn metadata_with_a_doubled_key_is_refused() {
        let found = entries(b"{\"text\":\"a\",\"metadata\":{\"k\":1,\"k\":2}}\n{\"text\":\"b\",\"metadata\":null}\n");
        assert!(
            found[0]
                .record
                .clone()
                .unwrap_err()
                .contains("the key `k` is given twice")
        );
        assert!(found[1].record.is_ok());
    }

    #[test]
    fn metadata_with_an_integer_that_would_be_rounded_is_refused() {
        let found = entries(b"{\"text\":\"a\",\"metadata\":{\"k\":18446744073709551616}}\n{\"text\":\"b\"}\n");
        let reason = found[0].record.clone().unwrap_err();
        assert!(reason.contains("`metadata.k`"), "{reason}");
        assert!(found[1].record.is_ok());
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut text = vec![b'x'; 1_000];
        text.extend_from_slice(b"\n{\"text\":\"a\"}\n");
        let found = entries(&text);
        assert_eq!(found.len(), 2);
        assert!(found[0].record.clone().unwrap_err().contains("longer"));
        assert!(found[1].record.is_ok());
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        assert!(entries(b"\xEF\xBB\xBF{\"text\":\"a\"}")[0].record.is_ok());
    }
}
