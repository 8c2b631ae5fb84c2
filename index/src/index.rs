//! The snapshot, and how the next one is made of it.

use std::ops::Range;
use std::sync::Arc;

use crate::block::{Block, Cells, ROWS, kind_number, kind_of};
use crate::codes;
use crate::counts::Totals;
use crate::interner::{Interner, NONE};
use crate::kernel::WIDTH_MAX;
use crate::keywords::Keywords;
use crate::pages::Pages;
use crate::row::{Change, Entry, Mismatch, Row};
use crate::trie::{Trie, tag_of_number};

/// The live rows of a project at one version of its table. Immutable; a clone costs one counter.
///
/// The last clone of a large index takes a while to drop, because it overwrites what it frees (some 0.1 s for a million
/// rows): drop it where nobody waits.
#[derive(Clone, Debug)]
pub struct Index(Arc<State>);

/// What an index keeps of a vector, for good. With 384 components and one passage an item, a row takes about 950 bytes
/// of memory in all ([`Self::Exact`]) or about 600 ([`Self::Coarse`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 16 bits of each component. A search answers by itself, with the best items in the exact order, and looks at the
    /// codes of all rows, however many there are: about 2 ms for 100,000.
    ///
    /// A cosine is then off by less than 1e-5: its standard error is 9e-6 times the largest component of the vector,
    /// and of vectors that have a component above 0.2, 24 bits are kept.
    Exact,
    /// 8 bits of each component, for very many rows. A search finds candidates with cosines that are off by some
    /// thousandths, and whoever has the vectors decides between them.
    Coarse,
}

/// Fills an index with the rows of a table, in place.
#[derive(Debug)]
pub struct Builder(State);

/// All parts share what they can with the snapshot before: a clone of this is shallow.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) dimensions: usize,
    pub(crate) precision: Precision,
    /// How many rows there are: places 0 to `len` are taken, 64 in each block.
    pub(crate) len: usize,
    pub(crate) blocks: Pages<Block>,
    /// The addresses of the rows, 64 on a page as in a block. A compaction gives all rows new ones: apart from the
    /// blocks, so that it does not copy those.
    pub(crate) addresses: Pages<[u64; ROWS]>,
    /// Places of rows by address.
    places: Trie,
    /// Places of all passages of an item, by the item's number.
    passages: Trie,
    pub(crate) ids: Interner,
    pub(crate) agents: Interner,
    pub(crate) sessions: Interner,
    pub(crate) terms: Interner,
    pub(crate) keywords: Keywords,
    pub(crate) totals: Totals,
}

impl Index {
    /// An index without rows, for vectors of this length. All that [`Self::apply`] makes of it has the same precision.
    #[must_use]
    pub fn new(dimensions: usize, precision: Precision) -> Self {
        Builder::new(dimensions, precision).finish()
    }

    pub(crate) fn state(&self) -> &State {
        &self.0
    }

    /// The index after a commit. This one stays as it is. Takes O((rows of the change) * log n): the blocks of 64 rows
    /// that change are copied, all others are shared.
    ///
    /// # Errors
    /// [`Mismatch`] where the change does not fit: then this index is not what the table is, and must be built again.
    pub fn apply(&self, change: &Change<'_>) -> Result<Self, Mismatch> {
        self.changed(|state| state.apply(change))
    }

    /// A snapshot that differs from this one in what `change` does.
    pub(crate) fn changed(&self, change: impl FnOnce(&mut State) -> Result<(), Mismatch>) -> Result<Self, Mismatch> {
        let mut state = State::clone(&self.0);
        change(&mut state)?;
        Ok(Self(Arc::new(state)))
    }

    /// Whether both are the same snapshot.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The length of the vectors.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.0.dimensions
    }

    /// What is kept of vectors, and so what [`Self::search`] answers.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.0.precision
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Whether an item is live. O(log n).
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        self.0.ids.find(id).is_some()
    }

    /// The live passages of an item, in order. O(log n).
    #[must_use]
    pub fn get(&self, id: &str) -> Vec<Entry<'_>> {
        let Some(item) = self.0.ids.find(id) else {
            return Vec::new();
        };
        let mut entries: Vec<Entry<'_>> = self.0.places_of_item(item).map(|place| self.0.entry(place)).collect();
        entries.sort_unstable_by_key(|entry| (entry.passage, entry.address));
        entries
    }

    /// The live row at an address. O(log n).
    #[must_use]
    pub fn at(&self, address: u64) -> Option<Entry<'_>> {
        self.0.place_of(address).map(|place| self.0.entry(place))
    }

    /// The addresses of the live rows in `range`, ascending. Lance's fragment `f` has the addresses `f << 32` to
    /// `(f + 1) << 32`. O(n): all addresses are looked at, less than a nanosecond each.
    #[must_use]
    pub fn addresses_in(&self, range: Range<u64>) -> Vec<u64> {
        let live = self.0.addresses.iter().flatten().take(self.0.len);
        let mut found: Vec<u64> = live.filter(|address| range.contains(address)).copied().collect();
        found.sort_unstable();
        found
    }

    /// What the index takes in memory, in bytes: all that it reaches, also what it shares with other snapshots, with 16
    /// bytes for the bookkeeping of each allocation. Walks all nodes: O(n / 64).
    #[must_use]
    pub fn bytes(&self) -> usize {
        let State {
            dimensions: _,
            precision: _,
            len: _,
            blocks,
            addresses,
            places,
            passages,
            ids,
            agents,
            sessions,
            terms,
            keywords,
            totals,
        } = &*self.0;
        let texts = [ids, agents, sessions, terms].map(Interner::bytes);
        crate::bytes::shared::<State>()
            + blocks.bytes(Block::bytes)
            + addresses.bytes(|_| 0)
            + places.bytes()
            + passages.bytes()
            + texts.iter().sum::<usize>()
            + keywords.bytes()
            + totals.bytes()
    }
}

impl Builder {
    /// Starts without rows, for vectors of this length.
    #[must_use]
    pub fn new(dimensions: usize, precision: Precision) -> Self {
        Self(State {
            dimensions,
            precision,
            len: 0,
            blocks: Pages::new(),
            addresses: Pages::new(),
            places: Trie::new(),
            passages: Trie::new(),
            ids: Interner::new(),
            agents: Interner::new(),
            sessions: Interner::new(),
            terms: Interner::new(),
            keywords: Keywords::new(),
            totals: Totals::new(),
        })
    }

    /// Starts with the rows of an index, which stays as it is: what changes is copied, as in [`Index::apply`].
    #[must_use]
    pub fn of(index: &Index) -> Self {
        Self(State::clone(&index.0))
    }

    /// Adds a live row. O(log n); of what an index shares, what changes is copied.
    ///
    /// # Errors
    /// [`Mismatch`] where the table has two rows at one address or a vector of another length.
    pub fn add(&mut self, row: &Row<'_>) -> Result<(), Mismatch> {
        self.0.add(row)
    }

    /// The index of the rows that were added.
    #[must_use]
    pub fn finish(self) -> Index {
        Index(Arc::new(self.0))
    }
}

impl State {
    fn apply(&mut self, change: &Change<'_>) -> Result<(), Mismatch> {
        self.move_rows(change.moved)?;
        for address in change.removed {
            self.remove(*address)?;
        }
        if self.len == 0 && !change.removed.is_empty() {
            // Gives back what pages of texts keep for texts to come.
            *self = Builder::new(self.dimensions, self.precision).0;
        }
        for row in change.added {
            self.add(row)?;
        }
        if self.totals.is_stale() {
            self.totals.set_span(self.blocks.iter().filter_map(|block| block.span));
        }
        Ok(())
    }

    pub(crate) fn address(&self, place: usize) -> u64 {
        self.addresses.get(place / ROWS)[place % ROWS]
    }

    pub(crate) fn place_of(&self, address: u64) -> Option<usize> {
        let mut places = self.places.numbers(tag_of_number(address));
        let place = places.find(|place| self.address(*place as usize) == address)?;
        Some(place as usize)
    }

    pub(crate) fn places_of_item(&self, item: u32) -> impl Iterator<Item = usize> {
        let places = self
            .passages
            .numbers(tag_of_number(item.into()))
            .map(|place| place as usize);
        places.filter(move |place| self.blocks.get(place / ROWS).items[place % ROWS] == item)
    }

    pub(crate) fn entry(&self, place: usize) -> Entry<'_> {
        let cells = self.blocks.get(place / ROWS).cells(place % ROWS);
        Entry {
            address: self.address(place),
            id: self.ids.text(cells.item).unwrap_or_default(),
            passage: cells.passage,
            passages: cells.passages,
            revision: cells.revision,
            kind: kind_of(cells.kind),
            agent: self.agents.text(cells.agent),
            session: self.sessions.text(cells.session),
            timestamp_ms: cells.timestamp,
            updated_ms: cells.updated,
            valid_from: cells.valid_from,
        }
    }

    fn add(&mut self, row: &Row<'_>) -> Result<(), Mismatch> {
        if row.vector.len() != self.dimensions {
            return Err(Mismatch::Dimensions {
                expected: self.dimensions,
                found: row.vector.len(),
            });
        }
        if self.len >= NONE as usize || codes::width(self.dimensions) > WIDTH_MAX {
            return Err(Mismatch::TooLarge);
        }
        if self.place_of(row.address).is_some() {
            return Err(Mismatch::AddressTaken(row.address));
        }
        let cells = Cells {
            timestamp: row.timestamp_ms,
            updated: row.updated_ms,
            valid_from: row.valid_from,
            revision: row.revision,
            item: self.ids.take(row.id),
            passage: row.passage,
            passages: row.passages,
            agent: row.agent.map_or(NONE, |agent| self.agents.take(agent)),
            session: row.session.map_or(NONE, |session| self.sessions.take(session)),
            kind: kind_number(row.kind),
        };
        let terms: Vec<u32> = row.metadata_terms.iter().map(|term| self.terms.take(term)).collect();
        if self.len.is_multiple_of(ROWS) {
            self.blocks.push(Block::new(self.precision));
            self.addresses.push([0; ROWS]);
        }
        let (words, length) = self.keywords.add(self.len, row.words)?;
        let block = self.blocks.get_mut(self.len / ROWS);
        block.push(&cells, &terms, (&words, length), row.vector);
        self.addresses.get_mut(self.len / ROWS)[self.len % ROWS] = row.address;
        self.places.insert(tag_of_number(row.address), self.len as u32);
        self.passages.insert(tag_of_number(cells.item.into()), self.len as u32);
        self.totals.add(&cells);
        self.len += 1;
        Ok(())
    }

    /// The last row takes the place of the one that goes, so places have no gaps.
    fn remove(&mut self, address: u64) -> Result<(), Mismatch> {
        let place = self.place_of(address).ok_or(Mismatch::UnknownAddress(address))?;
        let block = self.blocks.get(place / ROWS);
        let cells = block.cells(place % ROWS);
        let terms = block.terms.get(place % ROWS).to_vec();
        let words = block.words.get(place % ROWS).to_vec();
        self.keywords.remove(place, &words, block.lengths[place % ROWS]);
        self.totals.remove(&cells);
        self.places.remove(tag_of_number(address), place as u32);
        self.passages.remove(tag_of_number(cells.item.into()), place as u32);
        self.ids.release(cells.item);
        self.agents.release(cells.agent);
        self.sessions.release(cells.session);
        for term in terms {
            self.terms.release(term);
        }

        let last = self.len - 1;
        let taken = self.blocks.get_mut(last / ROWS).pop();
        let address = self.address(last);
        if last.is_multiple_of(ROWS) {
            self.blocks.pop();
            self.addresses.pop();
        }
        if let Some(taken) = taken.filter(|_| place != last) {
            self.blocks.get_mut(place / ROWS).replace(place % ROWS, &taken);
            self.keywords.move_row(&taken.words, last, place);
            let (old, new) = (last as u32, place as u32);
            self.addresses.get_mut(place / ROWS)[place % ROWS] = address;
            self.places.replace(tag_of_number(address), old, new);
            self.passages.replace(tag_of_number(taken.cells.item.into()), old, new);
        }
        self.len = last;
        Ok(())
    }

    fn move_rows(&mut self, moved: &[(u64, u64)]) -> Result<(), Mismatch> {
        let mut places = Vec::with_capacity(moved.len());
        for (old, _) in moved {
            let place = self.place_of(*old).ok_or(Mismatch::UnknownAddress(*old))?;
            self.places.remove(tag_of_number(*old), place as u32);
            places.push(place);
        }
        for ((_, new), place) in moved.iter().zip(places) {
            if self.place_of(*new).is_some() {
                return Err(Mismatch::AddressTaken(*new));
            }
            self.addresses.get_mut(place / ROWS)[place % ROWS] = *new;
            self.places.insert(tag_of_number(*new), place as u32);
        }
        Ok(())
    }
}
