//! Which rows pass a filter: a bit for each.

use ccod_words::{Filter, metadata_term};

use crate::Index;
use crate::block::{Block, HEAD_BYTES, ROWS, bits, kind_number, mask_of};
use crate::index::State;
use crate::interner::Interner;
use crate::kernel::{prefetch, prefetch_start};

/// How many blocks ahead columns are asked for.
const AHEAD: usize = 8;

/// The live rows that pass a filter, with the snapshot that it was asked of.
#[derive(Clone, Debug)]
pub struct Matching {
    index: Index,
    /// A mask for each block.
    masks: Vec<u64>,
}

impl Index {
    /// The live rows that pass a filter; all of them if it has no condition. Each condition that the filter has looks
    /// at every row: O(n), some nanoseconds for each row and condition. Without one, 8 bytes are written for 64 rows.
    #[must_use]
    pub fn matching(&self, filter: &Filter) -> Matching {
        Matching {
            index: self.clone(),
            masks: self.masks(filter),
        }
    }

    pub(crate) fn masks(&self, filter: &Filter) -> Vec<u64> {
        let count = self.state().blocks.len();
        if filter.is_empty() {
            // Nothing has to be read: all blocks but the last are full.
            let mut masks = vec![u64::MAX; count];
            if let (Some(mask), rows @ 1..) = (masks.last_mut(), self.len() % ROWS) {
                *mask = (1 << rows) - 1;
            }
            return masks;
        }
        let Some(conditions) = Conditions::of(filter, self.state()) else {
            return vec![0; count];
        };
        let blocks: Vec<&Block> = self.state().blocks.iter().collect();
        let masks = blocks.iter().enumerate().map(|(number, block)| {
            if let Some(block) = blocks.get(number + AHEAD) {
                conditions.ask_for(block);
            }
            conditions.mask(block)
        });
        masks.collect()
    }
}

impl Matching {
    /// Whether the row at this address is live and passes the filter. O(log n).
    #[must_use]
    pub fn is_live_and_matches(&self, address: u64) -> bool {
        let place = self.index.state().place_of(address);
        place.is_some_and(|place| self.masks[place / ROWS] >> (place % ROWS) & 1 == 1)
    }

    pub(crate) fn masks(&self) -> &[u64] {
        &self.masks
    }

    /// How many rows match.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.masks.iter().map(|mask| u64::from(mask.count_ones())).sum()
    }

    /// The addresses of the rows that match, in no particular order.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        let pages = self.index.state().addresses.iter().zip(&self.masks);
        pages.flat_map(|(addresses, mask)| bits(*mask).map(|row| addresses[row]))
    }

    /// The snapshot.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }
}

/// A filter in the numbers of one snapshot.
struct Conditions {
    /// A bit for each type.
    kinds: Option<u16>,
    agents: Option<Numbers>,
    sessions: Option<Numbers>,
    since: Option<i64>,
    until: Option<i64>,
    terms: Vec<u32>,
}

impl Conditions {
    /// None where no row has what the filter asks for.
    fn of(filter: &Filter, state: &State) -> Option<Self> {
        let kinds = filter.types().iter().map(|kind| 1 << kind_number(*kind));
        let agents = Numbers::any_of(filter.agents(), &state.agents)?;
        let sessions = Numbers::any_of(filter.session_ids(), &state.sessions)?;
        let mut terms = Vec::with_capacity(filter.metadata.len());
        for (key, value) in filter.metadata.iter() {
            terms.push(state.terms.find(&metadata_term(key, value))?);
        }
        Some(Self {
            kinds: kinds.reduce(|all, one| all | one),
            agents,
            sessions,
            // As the columns hold times: in whole milliseconds.
            since: filter.since.map(|time| time.timestamp_millis()),
            until: filter.until.map(|time| time.timestamp_millis()),
            terms,
        })
    }

    /// Asks for what [`Self::mask`] will read.
    fn ask_for(&self, block: &Block) {
        prefetch_start(block, HEAD_BYTES);
        if self.kinds.is_some() {
            prefetch(&block.kinds);
        }
        if self.agents.is_some() {
            prefetch(&block.agents);
        }
        if self.sessions.is_some() {
            prefetch(&block.sessions);
        }
        if self.since.is_some() || self.until.is_some() {
            prefetch(&block.timestamps);
        }
    }

    fn mask(&self, block: &Block) -> u64 {
        let mut mask = block.live();
        if let Some(kinds) = self.kinds {
            mask &= mask_of(&block.kinds, |kind| kinds >> kind & 1 == 1);
        }
        if let Some(since) = self.since {
            mask &= mask_of(&block.timestamps, |time| time >= since);
        }
        if let Some(until) = self.until {
            mask &= mask_of(&block.timestamps, |time| time < until);
        }
        if let Some(agents) = &self.agents {
            mask &= agents.mask(&block.agents);
        }
        if let Some(sessions) = &self.sessions {
            mask &= sessions.mask(&block.sessions);
        }
        for term in &self.terms {
            if mask == 0 {
                break;
            }
            mask &= rows_with_term(block, *term);
        }
        mask
    }
}

fn rows_with_term(block: &Block, term: u32) -> u64 {
    let mut mask = 0;
    // Most blocks have none, and this loop is the faster one.
    if !block.terms.values().contains(&term) {
        return mask;
    }
    for (position, value) in block.terms.values().iter().enumerate() {
        if *value == term {
            mask |= 1 << block.terms.list_of(position);
        }
    }
    mask
}

/// Numbers of texts, any of which will do.
enum Numbers {
    One(u32),
    /// A bit for each number.
    Many(Vec<u64>),
}

impl Numbers {
    /// `Some(None)` where every row will do, `None` where none will.
    #[allow(clippy::option_option)]
    fn any_of(texts: &[String], interner: &Interner) -> Option<Option<Self>> {
        let numbers: Vec<u32> = texts.iter().filter_map(|text| interner.find(text)).collect();
        match numbers[..] {
            [] if texts.is_empty() => Some(None),
            [] => None,
            [one] => Some(Some(Self::One(one))),
            _ => {
                let largest = numbers.iter().max().copied().unwrap_or_default() as usize;
                let mut bits = vec![0; largest / 64 + 1];
                for number in numbers {
                    bits[number as usize / 64] |= 1 << (number % 64);
                }
                Some(Some(Self::Many(bits)))
            }
        }
    }

    fn mask(&self, column: &[u32; ROWS]) -> u64 {
        match self {
            Self::One(wanted) => mask_of(column, |number| number == *wanted),
            // The number of a row without a text is larger than any other.
            Self::Many(bits) => mask_of(column, |number| {
                let word = bits.get(number as usize / 64).copied().unwrap_or(0);
                word >> (number % 64) & 1 == 1
            }),
        }
    }
}
