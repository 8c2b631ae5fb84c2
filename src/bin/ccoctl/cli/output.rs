//! What a command prints, and where.
//!
//! Data goes to standard output, messages to standard error, so that a pipe gets data only. A terminal gets
//! colour and lines cut to its width; a pipe gets the same text without either, stable enough to grep; `--json`
//! gets the daemon's result, one line of JSON. A reader that closes its end early (`| head`) ends the output quietly;
//! only the result of a change then goes to standard error.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};

use ccod_protocol::api::ProjectError;
use serde::Serialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use ccod::program::exit::{CliError, CliResult, Exit};
pub(crate) use ccod::program::message;

/// Columns of an excerpt where the width of the terminal is not known.
const PLAIN_EXCERPT: usize = 240;

/// Columns that a text gets on the narrowest terminal: less says nothing, and the terminal breaks the line anyway.
const LEAST_COLUMNS: usize = 10;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// `--json`.
    pub(crate) json: bool,
    colour: bool,
    /// Columns of the terminal; none for a pipe.
    width: Option<usize>,
}

/// What a piece of text is, which decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// The thing to read first.
    Strong,
    /// Secondary: ages, places.
    Faint,
    /// Good state.
    Good,
    /// A state to look at.
    Warning,
    /// An id or name to copy.
    Name,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Name => "36",
        }
    }
}

/// Whether the terminal takes no escape sequences: `TERM` says so, or says nothing.
pub(crate) fn is_dumb_terminal() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

impl Output {
    /// Output to this process's standard output.
    pub(crate) fn detect(json: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || is_dumb_terminal();
        let width = is_terminal
            .then(|| terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)))
            .flatten();
        Self {
            json,
            colour: is_terminal && !plain,
            width,
        }
    }

    /// Output as a pipe gets it.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self {
            json: false,
            colour: false,
            width: None,
        }
    }

    /// `text` in the colour of `style`, if colours are on.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("\u{1b}[{}m{text}\u{1b}[0m", style.code())
        } else {
            text.to_owned()
        }
    }

    /// `text` on one line, cut where two lines of the terminal end.
    pub(crate) fn excerpt(&self, text: &str, indent: usize) -> String {
        let lines = if self.width.is_some() { 2 } else { 1 };
        one_line(text, self.columns_beside(indent) * lines)
    }

    /// Columns that are left of one line beside `taken` others.
    fn columns_beside(&self, taken: usize) -> usize {
        self.width
            .map_or(PLAIN_EXCERPT, |width| width.saturating_sub(taken).max(LEAST_COLUMNS))
    }

    /// Prints `value` as one line of JSON.
    pub(crate) fn print_json(&self, value: &impl Serialize) -> CliResult<()> {
        self.print(&json_line(value)?)
    }

    /// Prints `text` and a newline.
    pub(crate) fn print(&self, text: &str) -> CliResult<()> {
        match write_line(text) {
            Ok(()) => Ok(()),
            // The reader has all that it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(CliError::io("write to standard output", &error)),
        }
    }

    /// Answers a question: prints `result` as JSON, or what `text` makes of it (nothing where that is empty) and a
    /// message.
    pub(crate) fn answer(
        &self,
        result: &impl Serialize,
        text: impl FnOnce() -> String,
        message: impl FnOnce() -> String,
    ) -> CliResult<()> {
        if self.json {
            return self.print_json(result);
        }
        let text = text();
        if !text.is_empty() {
            self.print(&text)?;
        }
        let message = message();
        if !message.is_empty() {
            self::message(message);
        }
        Ok(())
    }

    /// Prints the `result` of a change: as JSON, or as `text` (which may be empty) and a message. If standard output
    /// does not take it, the error carries the result.
    pub(crate) fn print_done(&self, result: &impl Serialize, text: &str, message: impl Display) -> CliResult<()> {
        if self.json {
            return self.print_text_done(result, &json_line(result)?);
        }
        let printed = self.print_text_done(result, text);
        // Also if the text could not be printed: the message says how to undo the change.
        let message = message.to_string();
        if !message.is_empty() {
            self::message(message);
        }
        printed
    }

    /// As [`Output::print_done`], without a message, and with the same text for people and programs.
    pub(crate) fn print_text_done(&self, result: &impl Serialize, text: &str) -> CliResult<()> {
        if text.is_empty() {
            return Ok(());
        }
        write_line(text).map_err(|error| CliError::unwritten(&error, result))
    }
}

/// `value` on one line.
pub(crate) fn json_line(value: &impl Serialize) -> CliResult<String> {
    serde_json::to_string(value)
        .map_err(|error| CliError::new(Exit::Failed, format!("cannot print the result: {error}")))
}

/// Writes `text` to standard output, with a newline at its end.
fn write_line(text: &str) -> io::Result<()> {
    if no_stdout::at_start() {
        return Err(nix::errno::Errno::EBADF.into());
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()
}

/// Whether the process was started without a standard output (`>&-`). The standard library puts `/dev/null` in its
/// place before `main`, where a result would be lost without an error.
mod no_stdout {
    use std::sync::atomic::{AtomicBool, Ordering};

    static CLOSED: AtomicBool = AtomicBool::new(false);

    pub(super) fn at_start() -> bool {
        CLOSED.load(Ordering::Relaxed)
    }

    extern "C" fn look() {
        // SAFETY: F_GETFD takes no pointer and changes nothing; on a closed descriptor it fails.
        #[allow(unsafe_code)]
        let closed = unsafe { nix::libc::fcntl(1, nix::libc::F_GETFD) } == -1;
        CLOSED.store(closed, Ordering::Relaxed);
    }

    // SAFETY: the section holds functions that the loader calls, on one thread, before the runtime's own start; this
    // one needs nothing of the runtime.
    #[allow(unsafe_code)]
    #[used]
    #[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
    #[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
    static LOOK: extern "C" fn() = look;
}

/// A line for the end of a message: why the answer may lack something that is stored, if it may.
pub(crate) fn degraded(reason: &Option<String>) -> String {
    let reason = reason.as_deref().map(|reason| one_line(reason, 4096));
    reason.map_or_else(String::new, |reason| format!("\nnote: {reason}"))
}

/// A message that names the projects which a result over several could not include, a line each; empty without any.
pub(crate) fn project_errors(errors: &[ProjectError]) -> String {
    let lines: Vec<String> = errors
        .iter()
        .map(|error| {
            let (project, message) = (one_line(&error.project_id, 100), one_line(&error.message, 4096));
            let named = format!("project {project}: ");
            let message = message.strip_prefix(&named).unwrap_or(&message);
            format!("warning: {named}{message}")
        })
        .collect();
    lines.join("\n")
}

/// `text` with runs of white space as one space and control characters removed, at most `limit` columns wide.
///
/// Stored text is data from elsewhere: an escape sequence in it must not reach the terminal.
pub(crate) fn one_line(text: &str, limit: usize) -> String {
    let mut line = String::new();
    let mut columns = 0;
    for word in text.split(|character: char| character.is_whitespace() || is_control(character)) {
        if word.is_empty() {
            continue;
        }
        if columns > 0 {
            line.push(' ');
            columns += 1;
        }
        for character in word.chars() {
            if columns + columns_of(character) > limit.max(1) {
                // The mark takes the place of the last characters.
                while columns >= limit.max(1)
                    && let Some(last) = line.pop()
                {
                    columns -= columns_of(last);
                }
                line.push('…');
                return line;
            }
            line.push(character);
            columns += columns_of(character);
        }
    }
    line
}

/// Columns of a character on a terminal: two for most of East Asia. One that is drawn over the character before it
/// counts as well, so that a line of them ends somewhere.
fn columns_of(character: char) -> usize {
    character.width().unwrap_or(0).max(1)
}

/// Whether a character acts on the terminal instead of being shown: a control character, or one that changes the
/// direction of the text after it, so that a line reads differently from what is stored.
fn is_control(character: char) -> bool {
    character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` as it is, but for control characters that could drive a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\n' | '\t' => character,
            control if is_control(control) => '\u{fffd}',
            other => other,
        })
        .collect()
}

/// Bytes in the largest fitting unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A number with a noun in the right form.
pub(crate) fn counted(count: u64, singular: &str, plural: &str) -> String {
    format!("{count} {}", if count == 1 { singular } else { plural })
}

/// How a column lines up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Aligned columns.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
    cut_last: bool,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            columns: columns
                .iter()
                .map(|(name, align)| ((*name).to_owned(), *align))
                .collect(),
            rows: Vec::new(),
            cut_last: false,
        }
    }

    /// Cuts the last column where the line of the terminal ends. For texts; what somebody may want to copy stays whole.
    #[must_use]
    pub(crate) fn cut_last(mut self) -> Self {
        self.cut_last = true;
        self
    }

    /// Adds a row; each cell is made one line.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| one_line(&cell, usize::MAX - 1)).collect();
        self.rows.push(cells);
    }

    /// The table as text: a header, then the rows, columns two spaces apart.
    pub(crate) fn render(mut self, output: &Output) -> String {
        const GAP: &str = "  ";
        let widest = |index: usize, name: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(index));
            cells.map(|cell| cell.width()).max().unwrap_or(0).max(name.width())
        };
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, (name, _))| widest(index, name))
            .collect();
        if self.cut_last
            && let Some((last, others)) = widths.split_last_mut()
        {
            let limit = output.columns_beside(others.iter().map(|width| width + GAP.len()).sum());
            *last = limit.min(*last);
            for cell in self.rows.iter_mut().filter_map(|row| row.last_mut()) {
                *cell = one_line(cell, limit);
            }
        }
        let mut text = String::new();
        let header: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        for (index, cells) in std::iter::once(&header).chain(&self.rows).enumerate() {
            let mut line = String::new();
            for ((cell, width), (_, align)) in cells.iter().zip(&widths).zip(&self.columns) {
                if !line.is_empty() {
                    line.push_str(GAP);
                }
                let padding = " ".repeat(width.saturating_sub(cell.width()));
                match align {
                    Align::Left => line.extend([cell, padding.as_str()]),
                    Align::Right => line.extend([padding.as_str(), cell]),
                }
            }
            let line = line.trim_end();
            if index == 0 {
                writeln!(text, "{}", output.paint(Style::Faint, line)).unwrap_or_default();
            } else {
                writeln!(text, "{line}").unwrap_or_default();
            }
        }
        text
    }
}

/// Lines of `name  value`, the names padded to one width.
pub(crate) fn fields(output: &Output, fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in fields {
        let label = output.paint(Style::Faint, &format!("{name:<width$}"));
        writeln!(text, "{label}  {value}").unwrap_or_default();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_one_line_and_carry_no_escape_sequences() {
        assert_eq!(one_line("a\n  b\tc", 80), "a b c");
        assert_eq!(one_line("\u{1b}[31mred\u{7}", 80), "[31mred");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(one_line("abcd", 4), "abcd");
        assert_eq!(one_line("abcd e", 4), "abc…");
        assert_eq!(one_line("", 4), "");
    }

    #[test]
    fn a_line_is_cut_by_the_columns_that_it_takes() {
        for (limit, cut) in [
            (14, "日本語テキスト"),
            (13, "日本語テキス…"),
            (5, "日本…"),
            (4, "日…"),
            (1, "…"),
        ] {
            assert_eq!(one_line("日本語テキスト", limit), cut);
        }
        let accents = "e\u{301}".repeat(1_000);
        assert!(one_line(&accents, 80).chars().count() <= 80);
    }

    #[test]
    fn whole_texts_keep_their_lines() {
        assert_eq!(printable("a\n\tb\u{1b}[0m"), "a\n\tb\u{fffd}[0m");
        // A change of direction shows another text than the stored one. Hebrew does not need these characters.
        for character in ['\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}'] {
            assert_eq!(printable(&format!("a{character}b")), "a\u{fffd}b");
            assert_eq!(one_line(&format!("a{character}b"), 10), "a b");
        }
        assert_eq!(printable("שלום \u{200f}!"), "שלום \u{200f}!");
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("project", Align::Left), ("items", Align::Right)]);
        table.row(["statushub".to_owned(), "7".to_owned()]);
        table.row(["web".to_owned(), "1200".to_owned()]);
        assert_eq!(
            table.render(&Output::plain()),
            "project    items\nstatushub      7\nweb         1200\n"
        );
    }

    #[test]
    fn columns_of_wide_characters_line_up() {
        let mut table = Table::new(&[("agent", Align::Left), ("items", Align::Right)]);
        table.row(["計画者".to_owned(), "7".to_owned()]);
        table.row(["planner".to_owned(), "12".to_owned()]);
        assert_eq!(
            table.render(&Output::plain()),
            "agent    items\n計画者       7\nplanner     12\n"
        );
    }

    #[test]
    fn the_last_column_ends_with_the_line_of_the_terminal() {
        let rendered = |width: Option<usize>| {
            let output = Output {
                json: false,
                colour: false,
                width,
            };
            let mut table = Table::new(&[("id", Align::Left), ("text", Align::Left)]).cut_last();
            table.row(["issue-1".to_owned(), "日本語 and ".repeat(40)]);
            table.render(&output)
        };
        for width in [20, 40, 80] {
            let text = rendered(Some(width));
            assert!(text.lines().all(|line| line.width() <= width), "{width}: {text}");
            assert!(
                text.contains("issue-1  日本語") && text.ends_with("…\n"),
                "{width}: {text}"
            );
        }
        // A terminal that is too narrow for any text still gets its beginning.
        assert!(rendered(Some(3)).contains("issue-1  日本語"));
        assert!(rendered(None).lines().all(|line| line.width() <= 9 + PLAIN_EXCERPT));
    }

    #[test]
    fn fields_line_up() {
        let text = fields(&Output::plain(), &[("pid", "7".to_owned()), ("socket", "s".to_owned())]);
        assert_eq!(text, "pid     7\nsocket  s\n");
    }

    #[test]
    fn colour_only_where_asked() {
        assert_eq!(Output::plain().paint(Style::Good, "ok"), "ok");
        let colourful = Output {
            json: false,
            colour: true,
            width: Some(80),
        };
        assert_eq!(colourful.paint(Style::Good, "ok"), "\u{1b}[32mok\u{1b}[0m");
        assert_eq!(colourful.paint(Style::Good, ""), "");
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes(12), "12 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 * 1024 * 1024 * 1024), "3.0 GiB");
        assert_eq!(counted(1, "item", "items"), "1 item");
        assert_eq!(counted(0, "item", "items"), "0 items");
    }
}
