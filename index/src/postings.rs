//! Which rows have a word: a list of places for each word.

use std::sync::Arc;

use crate::bytes::{allocation, shared};
use crate::pages::Pages;
use crate::wiped::Wiped;

/// Lists on a page: a change copies the page, one counter for each list.
const PAGE: usize = 16;

/// Postings of a chunk before it is divided: 1 KiB, which is what a change of a long list copies besides the array of
/// its chunks.
const CHUNK_MAX: usize = 256;

/// Bits of a posting for its count.
const COUNT_BITS: u32 = 8;

/// Rows that postings can name.
pub(crate) const PLACES_MAX: usize = 1 << (u32::BITS - COUNT_BITS);

/// That a row has a word, and how often: the place in the upper 24 bits, the count in the lower 8, where 255 is 255
/// or more. In the order of places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Posting(u32);

impl Posting {
    fn new(place: u32, count: u32) -> Self {
        Self(place << COUNT_BITS | count.min((1 << COUNT_BITS) - 1))
    }

    pub(crate) fn place(self) -> usize {
        (self.0 >> COUNT_BITS) as usize
    }

    pub(crate) fn count(self) -> u32 {
        self.0 & ((1 << COUNT_BITS) - 1)
    }
}

type Chunk = Wiped<Posting>;

/// The postings of one word, in order. Half of all words stand in one row only.
#[derive(Clone, Debug, Default)]
enum List {
    #[default]
    Empty,
    One(Posting),
    Short(Arc<Chunk>),
    Long(Arc<Vec<Arc<Chunk>>>),
}

/// The lists of all words, by the words' numbers. A clone shares everything.
#[derive(Clone, Debug)]
pub(crate) struct Postings(Pages<[List; PAGE]>);

impl Postings {
    pub(crate) const fn new() -> Self {
        Self(Pages::new())
    }

    /// The postings of a word, in the order of places.
    pub(crate) fn of(&self, word: u32) -> impl Iterator<Item = &[Posting]> {
        let word = word as usize;
        let list = (word / PAGE < self.0.len()).then(|| &self.0.get(word / PAGE)[word % PAGE]);
        let (one, many): (&[Posting], &[Arc<Chunk>]) = match list {
            None | Some(List::Empty) => (&[], &[]),
            Some(List::One(posting)) => (std::slice::from_ref(posting), &[]),
            Some(List::Short(chunk)) => (chunk, &[]),
            Some(List::Long(chunks)) => (&[], chunks),
        };
        std::iter::once(one).chain(many.iter().map(|chunk| &chunk[..]))
    }

    fn list_mut(&mut self, word: u32) -> &mut List {
        let word = word as usize;
        while self.0.len() <= word / PAGE {
            self.0.push(std::array::from_fn(|_| List::Empty));
        }
        &mut self.0.get_mut(word / PAGE)[word % PAGE]
    }

    /// The row at `place` has a word that it did not have.
    pub(crate) fn insert(&mut self, word: u32, place: u32, count: u32) {
        self.list_mut(word).insert(Posting::new(place, count));
    }

    /// The row at `place` has the word no more. Answers how often it had it.
    pub(crate) fn remove(&mut self, word: u32, place: u32) -> u32 {
        self.list_mut(word).remove(place).map_or(0, Posting::count)
    }

    /// What the lists take.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes(|page| page.iter().map(List::bytes).sum())
    }
}

impl List {
    fn insert(&mut self, posting: Posting) {
        match self {
            Self::Empty => *self = Self::One(posting),
            Self::One(other) => {
                let mut chunk = Chunk::new();
                chunk.push_all(&[posting.min(*other), posting.max(*other)]);
                *self = Self::Short(Arc::new(chunk));
            }
            Self::Short(chunk) => {
                if let Some(second) = insert_into(Arc::make_mut(chunk), posting) {
                    let chunks = vec![Arc::clone(chunk), Arc::new(second)];
                    *self = Self::Long(Arc::new(chunks));
                }
            }
            Self::Long(chunks) => {
                let chunks = Arc::make_mut(chunks);
                let number = chunk_of(chunks, posting);
                if let Some(second) = insert_into(Arc::make_mut(&mut chunks[number]), posting) {
                    chunks.insert(number + 1, Arc::new(second));
                }
            }
        }
    }

    fn remove(&mut self, place: u32) -> Option<Posting> {
        // No count is as low as none.
        let first = Posting::new(place, 0);
        match self {
            Self::Empty => None,
            Self::One(posting) => {
                let posting = Some(*posting).filter(|posting| posting.place() == place as usize)?;
                *self = Self::Empty;
                Some(posting)
            }
            Self::Short(chunk) => {
                let removed = remove_from(Arc::make_mut(chunk), first);
                if let [last] = chunk[..] {
                    *self = Self::One(last);
                }
                removed
            }
            Self::Long(chunks) => {
                let chunks = Arc::make_mut(chunks);
                let number = chunks.partition_point(|chunk| chunk.last().is_some_and(|last| *last < first));
                let removed = remove_from(Arc::make_mut(chunks.get_mut(number)?), first);
                if chunks[number].is_empty() {
                    chunks.remove(number);
                }
                if let [last] = &chunks[..] {
                    *self = Self::Short(Arc::clone(last));
                }
                removed
            }
        }
    }

    fn bytes(&self) -> usize {
        let of = |chunk: &Arc<Chunk>| shared::<Chunk>() + chunk.bytes();
        match self {
            Self::Empty | Self::One(_) => 0,
            Self::Short(chunk) => of(chunk),
            Self::Long(chunks) => {
                let array = shared::<Vec<Arc<Chunk>>>() + allocation(chunks.capacity() * size_of::<usize>());
                array + chunks.iter().map(of).sum::<usize>()
            }
        }
    }
}

/// The chunk that a posting belongs to: the last that begins before it, or the first.
fn chunk_of(chunks: &[Arc<Chunk>], posting: Posting) -> usize {
    let before = chunks.partition_point(|chunk| chunk.first().is_some_and(|first| *first < posting));
    before.saturating_sub(1)
}

/// Inserts a posting. Where the chunk becomes too long, answers its second part, which is cut off: all of it but what
/// has just come where that is the last, since rows mostly come in order.
fn insert_into(chunk: &mut Chunk, posting: Posting) -> Option<Chunk> {
    let at = chunk.partition_point(|other| *other < posting);
    if at == chunk.len() {
        chunk.push_all(&[posting]);
    } else {
        chunk.replace(at, at, &[posting]);
    }
    if chunk.len() <= CHUNK_MAX {
        return None;
    }
    let cut = if at == chunk.len() - 1 { at } else { chunk.len() / 2 };
    let mut second = Chunk::new();
    second.push_all(&chunk[cut..]);
    chunk.truncate(cut);
    Some(second)
}

/// Removes the posting of the place of which `first` is the smallest.
fn remove_from(chunk: &mut Chunk, first: Posting) -> Option<Posting> {
    let at = chunk.partition_point(|other| *other < first);
    let posting = chunk
        .get(at)
        .copied()
        .filter(|posting| posting.place() == first.place())?;
    chunk.replace(at, at + 1, &[]);
    Some(posting)
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    fn list(postings: &Postings, word: u32) -> Vec<(usize, u32)> {
        let chunks = postings.of(word);
        chunks
            .flatten()
            .map(|posting| (posting.place(), posting.count()))
            .collect()
    }

    #[test]
    fn lists_are_in_order_whatever_comes_and_goes() {
        let mut random = SmallRng::seed_from_u64(1);
        for in_order in [true, false] {
            let mut places: Vec<u32> = (0..2_000).map(|place| place * 3).collect();
            if !in_order {
                places.shuffle(&mut random);
            }
            let mut postings = Postings::new();
            for (number, place) in places.iter().enumerate() {
                postings.insert(17, *place, number as u32 % 300);
            }
            let before = postings.clone();
            let expected = |places: &[u32]| {
                let mut expected: Vec<(usize, u32)> = places
                    .iter()
                    .enumerate()
                    .map(|(number, place)| (*place as usize, (number as u32 % 300).min(255)))
                    .collect();
                expected.sort_unstable();
                expected
            };
            assert_eq!(list(&postings, 17), expected(&places));
            let longest = postings.of(17).map(<[Posting]>::len).max();
            assert!(longest <= Some(CHUNK_MAX), "{longest:?}");
            assert_eq!((list(&postings, 16), list(&postings, 1_000)), (vec![], vec![]));

            let mut left = places.clone();
            while left.len() > 1 {
                let number = random.random_range(0..left.len());
                let at = places
                    .iter()
                    .position(|place| *place == left[number])
                    .unwrap_or_default();
                assert_eq!(postings.remove(17, left[number]), (at as u32 % 300).min(255));
                left.swap_remove(number);
                if left.len().is_multiple_of(199) {
                    let found: Vec<usize> = list(&postings, 17).iter().map(|(place, _)| *place).collect();
                    let mut expected: Vec<usize> = left.iter().map(|place| *place as usize).collect();
                    expected.sort_unstable();
                    assert_eq!(found, expected);
                }
            }
            // What is not there cannot go.
            assert_eq!(postings.remove(17, 1), 0);
            postings.remove(17, left[0]);
            assert_eq!(list(&postings, 17), []);
            assert_eq!(list(&before, 17), expected(&places));
        }
    }
}
