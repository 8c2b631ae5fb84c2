//! Text for people.

/// At most `max` characters of `text`, with the control characters shown as escapes: for names that the
/// caller made up and that go into a message.
#[must_use]
pub fn shortened(text: &str, max: usize) -> String {
    let mut short: String = text.chars().take(max).flat_map(char::escape_default).collect();
    if text.chars().nth(max).is_some() {
        short.push_str("...");
    }
    short
}
