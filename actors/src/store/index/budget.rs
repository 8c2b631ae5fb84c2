//! Which projects have an index in memory: those that were used last, as far as the bound allows.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::keeper::Keeper;
use super::texts::Texts;

/// The bound on the indexes of all projects together.
pub(crate) struct Budget {
    limit_bytes: u64,
    state: Mutex<State>,
    pub(super) texts: Texts,
}

#[derive(Debug, Default)]
struct State {
    /// Projects that may have an index, the one that was used last at the end.
    keepers: Vec<Weak<Keeper>>,
    evicted: u64,
}

/// What the indexes of all projects take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResidentStats {
    /// Projects that have one.
    pub projects: u64,
    /// Passages in them.
    pub passages: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that they may take.
    pub limit_bytes: u64,
    /// How often one gave way to others since the start, or was too large by itself.
    pub evicted: u64,
    /// The rows that answers have shown lately.
    pub texts: TextStats,
}

/// The rows that answers have shown lately, of all projects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextStats {
    /// How many are kept.
    pub rows: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that they may take.
    pub limit_bytes: u64,
    /// Rows that were asked for and there.
    pub hits: u64,
    /// Rows that were asked for and read from the table.
    pub misses: u64,
}

/// Whether a table belongs into memory, as far as its size tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// It does, and would if it were twice as large.
    Fits,
    /// Nothing is to be done because of its size.
    #[default]
    NearTheBound,
    /// Its index would be larger than all of them may be together.
    TooLarge,
}

/// Rows from which on an index takes less for each.
const EXACT_ROWS: u64 = super::snapshot::EXACT_BELOW_ROWS;
/// What an index takes for a row besides its vector, about: its item, times, terms and words; and without the words.
const ROW_BYTES: [u64; 2] = [768, 192];

/// What the index of a table of so many rows takes, about.
fn likely_bytes(rows: u64, dimensions: u64) -> u64 {
    let row_bytes = match rows {
        ..EXACT_ROWS => dimensions * 2 + ROW_BYTES[0],
        _ => dimensions * 9 / 8 + ROW_BYTES[1],
    };
    rows.saturating_mul(row_bytes)
}

impl State {
    /// Puts a project last, where those are that were used last.
    fn put_last(&mut self, keeper: &Arc<Keeper>) {
        let own = Arc::downgrade(keeper);
        self.keepers
            .retain(|known| known.strong_count() > 0 && !known.ptr_eq(&own));
        self.keepers.push(own);
    }
}

impl Budget {
    /// Bounds in bytes: of all indexes together, and of the rows that answers have shown lately.
    pub(crate) fn new(limit_bytes: u64, texts_limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            state: Mutex::default(),
            texts: Texts::new(texts_limit_bytes),
        }
    }

    /// Whether an index of so many bytes fits at all.
    pub(super) fn can_hold(&self, bytes: u64) -> bool {
        bytes <= self.limit_bytes
    }

    /// Whether a table of so many rows belongs into memory. `measured` is what its index takes, where there is one.
    pub(crate) fn residence(&self, rows: u64, dimensions: usize, measured: Option<u64>) -> Residence {
        let bytes = measured.unwrap_or_else(|| likely_bytes(rows, dimensions as u64));
        if !self.can_hold(bytes) {
            Residence::TooLarge
        } else if self.can_hold(bytes.saturating_mul(2)) {
            Residence::Fits
        } else {
            Residence::NearTheBound
        }
    }

    /// Notes that a project's index is read.
    pub(super) fn note_use(&self, keeper: &Arc<Keeper>) {
        let mut state = self.state.lock();
        // It mostly is the last already.
        if !state
            .keepers
            .last()
            .is_some_and(|last| last.ptr_eq(&Arc::downgrade(keeper)))
        {
            state.put_last(keeper);
        }
    }

    /// Notes that a project's index is new or has changed. If all of them together are too large now, those go that
    /// were used least recently: the new one last, if it is too large alone.
    pub(super) fn note_change(&self, keeper: &Arc<Keeper>) {
        let mut evicted = Vec::new();
        {
            let mut state = self.state.lock();
            state.put_last(keeper);
            let held: Vec<Arc<Keeper>> = state.keepers.iter().filter_map(Weak::upgrade).collect();
            let mut bytes: u64 = held.iter().map(|keeper| keeper.bytes()).sum();
            for oldest in held {
                if bytes <= self.limit_bytes {
                    break;
                }
                if oldest.bytes() > 0 {
                    bytes -= oldest.bytes();
                    state.evicted += 1;
                    evicted.push(oldest);
                }
            }
        }
        // Outside the lock, for it takes a while.
        for keeper in evicted {
            keeper.evict();
        }
    }

    fn text_stats(&self) -> TextStats {
        let (hits, misses) = self.texts.hits();
        TextStats {
            rows: self.texts.rows(),
            bytes: self.texts.bytes(),
            limit_bytes: self.texts.capacity(),
            hits,
            misses,
        }
    }

    /// What the indexes take now.
    pub(crate) fn stats(&self) -> ResidentStats {
        let state = self.state.lock();
        let mut stats = ResidentStats {
            limit_bytes: self.limit_bytes,
            evicted: state.evicted,
            texts: self.text_stats(),
            ..ResidentStats::default()
        };
        for keeper in state.keepers.iter().filter_map(Weak::upgrade) {
            if let Some(passages) = keeper.passages() {
                stats.projects += 1;
                stats.passages += passages;
                stats.bytes += keeper.bytes();
            }
        }
        stats
    }
}
