//! The columns of up to 64 rows.

use ccod_words::KnowledgeType;

use crate::codes::{self, Extent, PreparedQuery};
use crate::index::Precision;
use crate::kernel::ROWS as KERNEL_ROWS;
use crate::keywords::UNREAD;
use crate::residuals::{Digits, Residuals};
use crate::signs::Signs;
use crate::wiped::{Lists, Wiped};

/// Rows of a block: the bits of a mask. With 384 components it has 24 KiB of codes, 24 KiB of residuals or 3 KiB of
/// signs, and 4 KiB of other columns; that is what a change of one row copies.
pub(crate) const ROWS: usize = KERNEL_ROWS;

/// What a row has besides its address, its vector and its metadata, with texts as numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cells {
    pub(crate) timestamp: i64,
    pub(crate) updated: i64,
    pub(crate) valid_from: i64,
    pub(crate) revision: i64,
    pub(crate) item: u32,
    pub(crate) passage: u32,
    pub(crate) passages: u32,
    pub(crate) agent: u32,
    pub(crate) session: u32,
    pub(crate) kind: u8,
}

/// A row on its way from one place to another.
pub(crate) struct Taken {
    pub(crate) cells: Cells,
    terms: Vec<u32>,
    pub(crate) words: Vec<u32>,
    length: u32,
    scale: f32,
    codes: Wiped<u8>,
    residuals: Residuals,
}

/// Bytes at the beginning of a [`Block`] that say what is in it and where the rest is.
pub(crate) const HEAD_BYTES: usize = 192;

/// Rows in columns. The first `len` places are taken, and all of them are live.
///
/// In the order in which they are written here: what every scan reads stands together at the beginning, then what
/// filters read.
#[derive(Clone, Debug)]
#[repr(C)]
pub(crate) struct Block {
    len: u32,
    precision: Precision,
    /// The rows that are an item's first passage.
    pub(crate) firsts: u64,
    /// The earliest and the latest creation among [`Self::firsts`].
    pub(crate) span: Option<(i64, i64)>,
    /// The codes of the vectors, row after row.
    pub(crate) codes: Wiped<u8>,
    /// What no row is larger than; nothing where there are no residuals. Rows that go leave it as it is.
    pub(crate) extent: Extent,
    /// The signs of the vectors; empty where there are residuals.
    pub(crate) signs: Signs,
    /// What the codes leave over, if the index keeps it.
    residuals: Residuals,
    /// The numbers of each row's metadata terms.
    pub(crate) terms: Lists<u32>,
    /// The numbers of each row's words, in no order.
    pub(crate) words: Lists<u32>,
    /// How many words each row has, repeated ones too; [`UNREAD`] where they are not known.
    pub(crate) lengths: [u32; ROWS],
    /// Places in [`KnowledgeType::ALL`].
    pub(crate) kinds: [u8; ROWS],
    pub(crate) agents: [u32; ROWS],
    pub(crate) sessions: [u32; ROWS],
    pub(crate) timestamps: [i64; ROWS],
    /// The scale of each row's codes.
    pub(crate) scales: [f32; ROWS],
    pub(crate) items: [u32; ROWS],
    pub(crate) passages: [u32; ROWS],
    passage_counts: [u32; ROWS],
    updated: [i64; ROWS],
    valid_from: [i64; ROWS],
    revisions: [i64; ROWS],
}

impl Block {
    pub(crate) fn new(precision: Precision) -> Self {
        Self {
            len: 0,
            precision,
            timestamps: [0; ROWS],
            updated: [0; ROWS],
            valid_from: [0; ROWS],
            revisions: [0; ROWS],
            items: [0; ROWS],
            passages: [0; ROWS],
            passage_counts: [0; ROWS],
            agents: [0; ROWS],
            sessions: [0; ROWS],
            kinds: [0; ROWS],
            scales: [0.0; ROWS],
            terms: Lists::new(),
            words: Lists::new(),
            lengths: [UNREAD; ROWS],
            codes: Wiped::new(),
            signs: Signs::new(),
            extent: Extent::default(),
            residuals: Residuals::new(),
            firsts: 0,
            span: None,
        }
    }

    /// A bit for each row.
    pub(crate) fn live(&self) -> u64 {
        match self.len as usize {
            ROWS => u64::MAX,
            len => (1 << len) - 1,
        }
    }

    pub(crate) fn cells(&self, row: usize) -> Cells {
        Cells {
            timestamp: self.timestamps[row],
            updated: self.updated[row],
            valid_from: self.valid_from[row],
            revision: self.revisions[row],
            item: self.items[row],
            passage: self.passages[row],
            passages: self.passage_counts[row],
            agent: self.agents[row],
            session: self.sessions[row],
            kind: self.kinds[row],
        }
    }

    fn set_cells(&mut self, row: usize, cells: &Cells) {
        self.timestamps[row] = cells.timestamp;
        self.updated[row] = cells.updated;
        self.valid_from[row] = cells.valid_from;
        self.revisions[row] = cells.revision;
        self.items[row] = cells.item;
        self.passages[row] = cells.passage;
        self.passage_counts[row] = cells.passages;
        self.agents[row] = cells.agent;
        self.sessions[row] = cells.session;
        self.kinds[row] = cells.kind;
        self.firsts = self.firsts & !(1 << row) | u64::from(cells.passage == 0) << row;
    }

    /// Appends a row.
    pub(crate) fn push(&mut self, cells: &Cells, terms: &[u32], (words, length): (&[u32], u32), vector: &[f32]) {
        let row = self.len as usize;
        self.len += 1;
        self.set_cells(row, cells);
        self.terms.push(terms);
        self.words.push(words);
        self.lengths[row] = length;
        let places = self.len.next_power_of_two() as usize;
        self.codes.reserve_total(places * codes::width(vector.len()));
        let start = self.codes.len();
        self.scales[row] = codes::push_codes(&mut self.codes, vector);
        match self.precision {
            Precision::Exact => {
                let (codes, scale) = (&self.codes[start..], self.scales[row]);
                self.residuals.push(vector, codes, scale, places);
                self.extend(row);
            }
            Precision::Coarse => self.signs.set(row, &self.codes[start..]),
        }
        if cells.passage == 0 {
            let time = cells.timestamp;
            self.span = Some(
                self.span
                    .map_or((time, time), |(from, to)| (from.min(time), to.max(time))),
            );
        }
    }

    /// Takes the last row out and overwrites its place.
    pub(crate) fn pop(&mut self) -> Option<Taken> {
        let last = self.len.checked_sub(1)? as usize;
        let start = self.codes.len() / (last + 1) * last;
        let mut codes = Wiped::new();
        codes.push_all(&self.codes[start..]);
        let taken = Taken {
            cells: self.cells(last),
            terms: self.terms.get(last).to_vec(),
            words: self.words.get(last).to_vec(),
            length: self.lengths[last],
            scale: self.scales[last],
            codes,
            residuals: self.residuals.pop(),
        };
        self.codes.truncate(start);
        self.signs.clear(last);
        self.terms.pop();
        self.words.pop();
        self.lengths[last] = UNREAD;
        let nothing = Cells {
            passage: 1,
            ..Cells::default()
        };
        self.set_cells(last, &nothing);
        self.scales[last] = 0.0;
        self.len = last as u32;
        self.find_span();
        Some(taken)
    }

    /// Puts a row in the place of another, which is overwritten.
    pub(crate) fn replace(&mut self, row: usize, taken: &Taken) {
        self.set_cells(row, &taken.cells);
        self.terms.set(row, &taken.terms);
        self.set_words(row, &taken.words, taken.length);
        self.scales[row] = taken.scale;
        let start = row * taken.codes.len();
        self.codes[start..start + taken.codes.len()].copy_from_slice(&taken.codes);
        match self.precision {
            Precision::Exact => {
                self.residuals.replace(row, &taken.residuals);
                self.extend(row);
            }
            Precision::Coarse => self.signs.set(row, &taken.codes),
        }
        self.find_span();
    }

    /// Sets the words of a row.
    pub(crate) fn set_words(&mut self, row: usize, words: &[u32], length: u32) {
        self.words.set(row, words);
        self.lengths[row] = length;
    }

    fn extend(&mut self, row: usize) {
        let extent = Extent::of(self.digits(row), self.scales[row]);
        self.extent = self.extent.max(extent);
    }

    fn width(&self) -> usize {
        self.codes.len() / self.len as usize
    }

    /// All that is known of a row's vector, in steps of its scale.
    pub(crate) fn digits(&self, row: usize) -> Digits<'_> {
        let width = self.width();
        self.residuals.row(row, &self.codes[row * width..(row + 1) * width])
    }

    /// The product of a row with a query, as exactly as it is to be had here.
    pub(crate) fn product(&self, row: usize, query: &PreparedQuery) -> f32 {
        query.product(self.digits(row), self.scales[row])
    }

    fn find_span(&mut self) {
        let firsts = bits(self.firsts).map(|row| self.timestamps[row]);
        self.span = firsts.fold(None, |span, time| {
            Some(span.map_or((time, time), |(from, to): (i64, i64)| (from.min(time), to.max(time))))
        });
    }

    /// What it takes besides itself.
    pub(crate) fn bytes(&self) -> usize {
        self.terms.bytes() + self.words.bytes() + self.codes.bytes() + self.signs.bytes() + self.residuals.bytes()
    }
}

/// The bits that are set.
pub(crate) fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (mask != 0).then(|| {
            let bit = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            bit
        })
    })
}

/// A bit for each value for which something holds.
#[inline(always)]
pub(crate) fn mask_of<T: Copy>(values: &[T; ROWS], holds: impl Fn(T) -> bool) -> u64 {
    // Eight at a time: compilers make vectors of that.
    let mut bytes = [0; 8];
    for (byte, values) in bytes.iter_mut().zip(values.as_chunks::<8>().0) {
        for (bit, value) in values.iter().enumerate() {
            *byte |= u8::from(holds(*value)) << bit;
        }
    }
    u64::from_le_bytes(bytes)
}

/// The place of a type in [`KnowledgeType::ALL`].
pub(crate) fn kind_number(kind: KnowledgeType) -> u8 {
    KnowledgeType::ALL
        .iter()
        .position(|other| *other == kind)
        .unwrap_or_default() as u8
}

/// The type at a place of [`KnowledgeType::ALL`].
pub(crate) fn kind_of(number: u8) -> KnowledgeType {
    KnowledgeType::ALL.get(number as usize).copied().unwrap_or_default()
}
