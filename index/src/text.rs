//! A text for whoever caches texts of items.

use std::fmt;
use std::ops::Deref;

use crate::wiped::wipe;

/// A text that overwrites its bytes when it is dropped, as the index does with what it keeps. It is taken over from a
/// `String` in its place, spare memory included; what that string left elsewhere when it grew is not known here.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct WipedText(String);

impl From<String> for WipedText {
    /// Copies nothing.
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for WipedText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Deref for WipedText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for WipedText {
    /// How long it is: what it says has no place in a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "WipedText({} bytes)", self.0.len())
    }
}

impl Drop for WipedText {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        // Behind the end may be what the string was before it was cut.
        bytes.resize(bytes.capacity(), 0);
        wipe(&mut bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_but_not_shown() {
        let text = WipedText::from("secret".to_owned());
        assert_eq!((&*text, format!("{text:?}").as_str()), ("secret", "WipedText(6 bytes)"));
        assert_eq!(text.clone(), WipedText::from("secret"));
    }
}
