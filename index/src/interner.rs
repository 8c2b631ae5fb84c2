//! Texts as numbers: each text is kept once, for as long as a row has it.

use std::hash::{BuildHasher, RandomState};

use crate::pages::Pages;
use crate::trie::Trie;
use crate::wiped::Lists;

const PAGE: usize = 64;

/// The end of the list of free numbers, and no text at all.
pub(crate) const NONE: u32 = u32::MAX;

/// Texts and their numbers. A clone shares everything; a change copies one page and O(log n) nodes.
#[derive(Clone, Debug)]
pub(crate) struct Interner {
    pages: Pages<Page>,
    numbers: Trie,
    /// The first of the numbers that are free again.
    free: u32,
    hasher: RandomState,
}

#[derive(Clone, Debug)]
struct Page {
    texts: Lists<u8>,
    /// How many rows have the text; of a number that is free, the next free number.
    uses: [u32; PAGE],
}

impl Interner {
    pub(crate) fn new() -> Self {
        Self {
            pages: Pages::new(),
            numbers: Trie::new(),
            free: NONE,
            hasher: RandomState::new(),
        }
    }

    fn tag(&self, text: &[u8]) -> u32 {
        self.hasher.hash_one(text) as u32
    }

    fn find_tagged(&self, tag: u32, text: &[u8]) -> Option<u32> {
        self.numbers
            .numbers(tag)
            .find(|number| self.text_bytes(*number) == text)
    }

    /// The number of a text that some row has.
    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        self.find_bytes(text.as_bytes())
    }

    /// As [`Self::find`].
    pub(crate) fn find_bytes(&self, text: &[u8]) -> Option<u32> {
        self.find_tagged(self.tag(text), text)
    }

    /// How many rows have the text of a number that is not free.
    pub(crate) fn uses(&self, number: u32) -> u32 {
        self.pages.get(number as usize / PAGE).uses[number as usize % PAGE]
    }

    pub(crate) fn text_bytes(&self, number: u32) -> &[u8] {
        let number = number as usize;
        self.pages.get(number / PAGE).texts.get(number % PAGE)
    }

    /// The text of a number; none for [`NONE`].
    pub(crate) fn text(&self, number: u32) -> Option<&str> {
        if number == NONE {
            return None;
        }
        std::str::from_utf8(self.text_bytes(number)).ok()
    }

    /// The number of a text that one more row has.
    pub(crate) fn take(&mut self, text: &str) -> u32 {
        self.take_bytes(text.as_bytes())
    }

    /// As [`Self::take`].
    pub(crate) fn take_bytes(&mut self, text: &[u8]) -> u32 {
        let tag = self.tag(text);
        if let Some(number) = self.find_tagged(tag, text) {
            self.take_again(number);
            return number;
        }
        let number = if self.free == NONE {
            self.push(text)
        } else {
            let number = self.free;
            let page = self.pages.get_mut(number as usize / PAGE);
            let place = number as usize % PAGE;
            self.free = page.uses[place];
            page.texts.set(place, text);
            page.uses[place] = 1;
            number
        };
        self.numbers.insert(tag, number);
        number
    }

    fn take_again(&mut self, number: u32) {
        self.pages.get_mut(number as usize / PAGE).uses[number as usize % PAGE] += 1;
    }

    fn push(&mut self, text: &[u8]) -> u32 {
        let last = match self.pages.len().checked_sub(1) {
            Some(last) if self.pages.get(last).texts.len() < PAGE => last,
            _ => {
                self.pages.push(Page {
                    texts: Lists::new(),
                    uses: [0; PAGE],
                });
                self.pages.len() - 1
            }
        };
        let page = self.pages.get_mut(last);
        let place = page.texts.len();
        page.texts.push(text);
        page.uses[place] = 1;
        (last * PAGE + place) as u32
    }

    /// One row less has the text. The last one takes it along.
    pub(crate) fn release(&mut self, number: u32) {
        if number == NONE {
            return;
        }
        let (page, place) = (number as usize / PAGE, number as usize % PAGE);
        if self.pages.get(page).uses[place] == 1 {
            let tag = self.tag(self.text_bytes(number));
            self.numbers.remove(tag, number);
            let page = self.pages.get_mut(page);
            page.texts.set(place, &[]);
            page.uses[place] = self.free;
            self.free = number;
        } else {
            self.pages.get_mut(page).uses[place] -= 1;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pages.bytes(|page| page.texts.bytes()) + self.numbers.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_as_long_as_a_row_has_it() {
        let mut texts = Interner::new();
        let numbers: Vec<u32> = (0..200).map(|text| texts.take(&format!("text {text}"))).collect();
        assert_eq!(texts.take("text 7"), numbers[7]);
        let before = texts.clone();
        texts.release(numbers[7]);
        assert_eq!(texts.find("text 7"), Some(numbers[7]));
        texts.release(numbers[7]);
        texts.release(numbers[100]);
        assert_eq!((texts.find("text 7"), texts.find("text 100")), (None, None));
        assert_eq!(texts.text_bytes(numbers[7]), b"");
        let new = ["", "x"].map(|text| texts.take(text));
        assert_eq!(new, [numbers[100], numbers[7]]);
        assert_eq!(texts.find(""), Some(numbers[100]));
        assert_eq!(before.text(numbers[7]), Some("text 7"));
        assert_eq!(texts.text(NONE), None);
    }
}
