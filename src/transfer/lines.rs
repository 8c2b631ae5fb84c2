//! The lines of a file that may hold anything, each read in bounded memory.

use std::io::{self, BufRead};

/// Longest message about an item that cannot be read, in bytes: it may quote the item.
const MAX_MESSAGE_BYTES: usize = 300;

pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The lines of a file, each in bounded memory.
pub(super) struct Lines<R> {
    reader: R,
    read: u64,
    max_bytes: usize,
}

pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    /// With its newline, if it has one. The beginning only where it is too long.
    pub(super) bytes: Vec<u8>,
    pub(super) too_long: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R, max_bytes: usize) -> Self {
        Self {
            reader,
            read: 0,
            max_bytes,
        }
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut line = Line {
            number: self.read + 1,
            bytes: Vec::new(),
            too_long: false,
        };
        let mut any = false;
        loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            any = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.map_or(available.len(), |end| end + 1)];
            let space = self.max_bytes.saturating_sub(line.bytes.len());
            line.too_long |= part.len() > space;
            line.bytes.extend_from_slice(&part[..part.len().min(space)]);
            let length = part.len();
            self.reader.consume(length);
            if end.is_some() {
                break;
            }
        }
        if !any {
            return Ok(None);
        }
        self.read += 1;
        if line.number == 1 && line.bytes.starts_with(BYTE_ORDER_MARK) {
            line.bytes.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(Some(line))
    }
}

/// A message of a size that can be shown.
pub(super) fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or(0));
        message.push_str("...");
    }
    message
}
