//! The words of a text, as an analyser found them.

use crate::wiped::Lists;

/// Words in the order of a text, repeated ones too. What they are is for an analyser to decide: here they are compared
/// byte by byte. They are overwritten when they are dropped.
#[derive(Clone, Debug)]
pub struct Tokens(Lists<u8>);

impl Default for Tokens {
    fn default() -> Self {
        Self(Lists::new())
    }
}

impl Tokens {
    /// Appends a word.
    pub fn push(&mut self, word: &str) {
        self.0.push(word.as_bytes());
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The words, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let words = (0..self.len()).map(|word| self.0.get(word));
        words.map(|word| std::str::from_utf8(word).unwrap_or_default())
    }

    /// The different words, each with how often it stands there. In the order of their bytes.
    pub(crate) fn counted(&self) -> Vec<(&[u8], u32)> {
        let mut words: Vec<&[u8]> = (0..self.len()).map(|word| self.0.get(word)).collect();
        words.sort_unstable();
        let same = words.chunk_by(|a, b| a == b);
        same.map(|same| (same[0], same.len() as u32)).collect()
    }
}

impl<'a> FromIterator<&'a str> for Tokens {
    fn from_iter<T: IntoIterator<Item = &'a str>>(words: T) -> Self {
        let mut tokens = Self::default();
        words.into_iter().for_each(|word| tokens.push(word));
        tokens
    }
}
