//! Tensors as rows of values, and work on blocks of rows.

use candle_core::{CpuStorage, Layout, Result};
use rayon::prelude::*;

/// Values below which a pass over a matrix is not worth waking another thread for.
pub(super) const PARALLEL_VALUES: usize = 32 * 1024;

/// Runs `work` on blocks of whole rows, on several threads if there is enough to do.
pub(super) fn for_row_blocks(values: &mut [f32], width: usize, work: impl Fn(&mut [f32]) + Send + Sync) {
    if values.len() < PARALLEL_VALUES {
        return work(values);
    }
    let num_rows = values.len() / width;
    let rows_per_block = num_rows.div_ceil(rayon::current_num_threads()).max(1);
    values.par_chunks_mut(rows_per_block * width).for_each(work);
}

/// The values of a contiguous float32 tensor.
pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a fused kernel needs a contiguous tensor"),
    }
}

pub(super) fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("a fused kernel needs a contiguous float32 tensor"),
    }
}
