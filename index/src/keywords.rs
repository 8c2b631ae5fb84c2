//! The words of the rows, and the items that hold the words of a query.

use std::fmt;

use crate::best::{Best, Collect, Scored};
use crate::block::{Block, ROWS, bits};
use crate::interner::Interner;
use crate::postings::{PLACES_MAX, Postings};
use crate::wiped::Lists;
use crate::{Index, Matching, Mismatch, Tokens};

/// How fast further occurrences of a word count less. This and [`B`] are what LanceDB and Lucene take.
const K1: f32 = 1.2;
/// How much the length of a passage counts.
const B: f32 = 0.75;

/// The length of a row whose words are not known.
pub(crate) const UNREAD: u32 = u32::MAX;

/// A passage that holds words of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct WordHit {
    /// Where Lance has the row.
    pub address: u64,
    /// The item's id.
    pub id: String,
    /// Which passage of the item it is, from 0.
    pub passage: u32,
    /// Above 0, without an upper limit.
    pub bm25: f32,
}

/// The words of a query, each once. They are overwritten when they are dropped.
#[derive(Clone)]
pub struct PreparedWords {
    words: Lists<u8>,
    /// How often each stands in the query.
    counts: Vec<u32>,
}

impl fmt::Debug for PreparedWords {
    /// Not what they say.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PreparedWords({})", self.counts.len())
    }
}

impl PreparedWords {
    /// Those of a query.
    #[must_use]
    pub fn new(query: &Tokens) -> Self {
        let mut words = Lists::new();
        let mut counts = Vec::new();
        for (word, count) in query.counted() {
            words.push(word);
            counts.push(count);
        }
        Self { words, counts }
    }
}

/// The words of all rows. Words are numbers with as many uses as there are rows that have them.
#[derive(Clone, Debug)]
pub(crate) struct Keywords {
    words: Interner,
    postings: Postings,
    /// Words of all rows together, as far as they are known.
    tokens: u64,
    /// Rows whose words are not known.
    unread: usize,
}

impl Keywords {
    pub(crate) fn new() -> Self {
        Self {
            words: Interner::new(),
            postings: Postings::new(),
            tokens: 0,
            unread: 0,
        }
    }

    /// Notes the words of a row that comes. Answers their numbers and how many words it has in all.
    pub(crate) fn add(&mut self, place: usize, tokens: Option<&Tokens>) -> Result<(Vec<u32>, u32), Mismatch> {
        let Some(tokens) = tokens else {
            self.unread += 1;
            return Ok((Vec::new(), UNREAD));
        };
        if place >= PLACES_MAX {
            return Err(Mismatch::TooLarge);
        }
        let counted = tokens.counted();
        let mut words = Vec::with_capacity(counted.len());
        for (word, count) in counted {
            let word = self.words.take_bytes(word);
            self.postings.insert(word, place as u32, count);
            words.push(word);
        }
        self.tokens += tokens.len() as u64;
        Ok((words, tokens.len() as u32))
    }

    /// A row goes.
    pub(crate) fn remove(&mut self, place: usize, words: &[u32], length: u32) {
        if length == UNREAD {
            self.unread -= 1;
            return;
        }
        for word in words {
            self.postings.remove(*word, place as u32);
            self.words.release(*word);
        }
        self.tokens -= u64::from(length);
    }

    /// A row has another place.
    pub(crate) fn move_row(&mut self, words: &[u32], from: usize, to: usize) {
        for word in words {
            let count = self.postings.remove(*word, from as u32);
            self.postings.insert(*word, to as u32, count);
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.words.bytes() + self.postings.bytes()
    }
}

impl Index {
    /// Rows whose words are not known. While there are any, [`Matching::search_words`] has no answer.
    #[must_use]
    pub fn unread_words(&self) -> usize {
        self.state().keywords.unread
    }

    /// The addresses of rows whose words are not known: `limit` of them at most, ascending in parts.
    #[must_use]
    pub fn addresses_without_words(&self, limit: usize) -> Vec<u64> {
        let state = self.state();
        let places = state.blocks.iter().enumerate().flat_map(|(number, block)| {
            let unread = bits(block.live()).filter(|row| block.lengths[*row] == UNREAD);
            unread.map(move |row| number * ROWS + row)
        });
        places.take(limit).map(|place| state.address(place)).collect()
    }

    /// The index with the words of rows that were not known. Rows that are not there, and those whose words are known,
    /// stay as they are.
    ///
    /// # Errors
    /// [`Mismatch::TooLarge`] for more rows than words can be kept of.
    pub fn with_words<'a>(&self, rows: impl IntoIterator<Item = (u64, &'a Tokens)>) -> Result<Self, Mismatch> {
        self.changed(|state| {
            for (address, tokens) in rows {
                let Some(place) = state.place_of(address) else { continue };
                if state.blocks.get(place / ROWS).lengths[place % ROWS] != UNREAD {
                    continue;
                }
                let (words, length) = state.keywords.add(place, Some(tokens))?;
                state.keywords.unread -= 1;
                state
                    .blocks
                    .get_mut(place / ROWS)
                    .set_words(place % ROWS, &words, length);
            }
            Ok(())
        })
    }

    /// The words of the row at an address, sorted, and how many there are with repetitions; none where they are not
    /// known.
    #[must_use]
    pub fn words(&self, address: u64) -> Option<(Vec<&str>, u32)> {
        let state = self.state();
        let place = state.place_of(address)?;
        let block = state.blocks.get(place / ROWS);
        let length = Some(block.lengths[place % ROWS]).filter(|length| *length != UNREAD)?;
        let numbers = block.words.get(place % ROWS).iter();
        let mut words: Vec<&str> = numbers.filter_map(|word| state.keywords.words.text(*word)).collect();
        words.sort_unstable();
        Some((words, length))
    }
}

impl Matching {
    /// The `k` items among these rows that hold words of the query, those with the highest BM25 first, ids deciding
    /// between equals; fewer if there are not so many. An item counts with its best passage. None while words of rows
    /// are not known ([`Index::unread_words`]).
    ///
    /// BM25 as LanceDB's keyword index computes it (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25
    /// and Beyond", 2009, with the inverse document frequency ln(1 + (N - n + 0.5) / (n + 0.5))), but of the live
    /// rows alone: how many rows there are, how many of them have a word, how long they are. The filter changes nothing
    /// of it. A word that stands in the query twice counts twice.
    ///
    /// O(n / 64) and some nanoseconds for each row that has one of the words.
    #[must_use]
    pub fn search_words(&self, query: &PreparedWords, k: usize) -> Option<Vec<WordHit>> {
        let state = self.index().state();
        let keywords = &state.keywords;
        if keywords.unread > 0 {
            return None;
        }
        if k == 0 || keywords.tokens == 0 {
            return Some(Vec::new());
        }
        let (rows, masks) = (state.len as f32, self.masks());
        let blocks: Vec<&Block> = state.blocks.iter().collect();
        let mean_length = keywords.tokens as f32 / rows;
        let mut scores = vec![0.0_f32; blocks.len() * ROWS];
        let mut touched = vec![0_u64; blocks.len()];
        for (number, count) in query.counts.iter().enumerate() {
            let Some(word) = keywords.words.find_bytes(query.words.get(number)) else {
                continue;
            };
            let holders = keywords.words.uses(word) as f32;
            let weight = *count as f32 * ((rows - holders + 0.5) / (holders + 0.5)).ln_1p() * (K1 + 1.0);
            for posting in keywords.postings.of(word).flatten() {
                let (place, count) = (posting.place(), posting.count() as f32);
                let (number, row) = (place / ROWS, place % ROWS);
                if masks[number] >> row & 1 == 0 {
                    continue;
                }
                let length = blocks[number].lengths[row] as f32;
                scores[place] += weight * count / (count + K1 * (1.0 - B + B * length / mean_length));
                touched[number] |= 1 << row;
            }
        }
        let mut best = Best::new(state, k);
        for (number, mask) in touched.iter().enumerate() {
            for row in bits(*mask) {
                let place = number * ROWS + row;
                if scores[place] >= best.threshold() {
                    best.push(Scored {
                        score: scores[place],
                        bound: 0.0,
                        item: blocks[number].items[row],
                        passage: blocks[number].passages[row],
                        place: place as u32,
                    });
                }
            }
        }
        let hits = best.finish().into_iter().map(|scored| WordHit {
            address: state.address(scored.place as usize),
            id: state.ids.text(scored.item).unwrap_or_default().to_owned(),
            passage: scored.passage,
            bm25: scored.score,
        });
        Some(hits.collect())
    }
}
