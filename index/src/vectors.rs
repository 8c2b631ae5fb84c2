//! What the index itself knows of the vectors of single rows.

use crate::block::ROWS;
use crate::{Index, PreparedQuery};

impl Index {
    /// The cosine between a query and the live row at an address, for vectors of length 1; in general their product. As
    /// exact as [`Index::precision`] has it, and with [`crate::Precision::Exact`] the very number that a search has for
    /// the row. None where there is no such row or the query has another length than the vectors. O(log n).
    #[must_use]
    pub fn cosine(&self, address: u64, query: &PreparedQuery) -> Option<f32> {
        let state = self.state();
        let place = state
            .place_of(address)
            .filter(|_| query.dimensions() == state.dimensions)?;
        Some(state.blocks.get(place / ROWS).product(place % ROWS, query))
    }

    /// The vector of the live row at an address, put together from what the index keeps of it: each component is off by
    /// less than a 64,000th of the largest one with [`crate::Precision::Exact`], else by less than a 250th. O(log n).
    ///
    /// Whoever asks for it has to overwrite it.
    #[must_use]
    pub fn vector(&self, address: u64) -> Option<Vec<f32>> {
        let state = self.state();
        let place = state.place_of(address)?;
        let block = state.blocks.get(place / ROWS);
        let scale = block.scales[place % ROWS];
        let components = block.digits(place % ROWS).components(scale);
        Some(components.take(state.dimensions).collect())
    }
}
