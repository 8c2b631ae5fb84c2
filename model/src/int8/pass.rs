//! The forward pass.
//!
//! Everything but attention works on single tokens, so the tokens of all texts are divided among the threads, and each
//! thread takes its own through a layer in blocks that stay in its cache: attention, its output, the feed-forward layer,
//! and the queries, keys and values of the next layer. Only these are read by others, and only if a text lies in two
//! parts: then all threads meet after each layer, with two buffers for queries, keys and values in turn. If the parts
//! end where texts end, each thread goes through all layers alone.

use std::ops::Range;

use rten_simd::SimdOp;

use super::matrix::PackedMatrix;
use super::model::{Int8Model, Layer};
use crate::error::EngineError;
use crate::kernels::{
    AddNorm, Attend, AttentionBuffers, BiasGeluQuantize, Quantize, QuantizedRows, Rescale, normalize_rows,
};
use crate::pooling;

/// Rows that go through the products together; their sums fit the second-level cache.
const BLOCK_ROWS: usize = 64;
/// Rows that products compute together; blocks and parts are multiples of it where they can be.
const TILE_ROWS: usize = 8;
/// Tokens for which it pays to wake another thread.
const PART_ROWS: usize = 48;
/// Parts may differ by this share of their rows if they end where texts end.
const UNEVENNESS: f64 = 0.15;

/// What a pass works on. Belongs to one engine and is kept from pass to pass.
#[derive(Default)]
pub(super) struct Buffers {
    lengths: Vec<usize>,
    /// First row of each text, and the end of the last one.
    starts: Vec<usize>,
    /// First row of each part, and the end of the last one.
    bounds: Vec<usize>,
    /// `[tokens, hidden]`.
    state: Vec<f32>,
    /// Queries, keys and values of this layer and of the next, `[tokens, 3 * hidden]`.
    projected: [Vec<f32>; 2],
    scratch: Vec<Scratch>,
}

/// What a thread works on.
#[derive(Default)]
struct Scratch {
    context: Vec<f32>,
    attention: AttentionBuffers,
    /// In turn the input and the output of a step.
    bytes: [QuantizedRows; 2],
    sums: Vec<i32>,
    wide_row: Vec<f32>,
}

/// A thread's part of a pass.
struct Part<'a> {
    rows: Range<usize>,
    state: &'a mut [f32],
    /// Where the next queries, keys and values go; both buffers if nobody else reads them.
    projected: [&'a mut [f32]; 2],
    scratch: &'a mut Scratch,
}

/// The parts, in order.
struct Parts<'a> {
    bounds: &'a [usize],
    hidden: usize,
    state: &'a mut [f32],
    projected: [&'a mut [f32]; 2],
    scratch: &'a mut [Scratch],
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let [start, end, ..] = *self.bounds else {
            return None;
        };
        self.bounds = &self.bounds[1..];
        let rows = start..end;
        let (scratch, others) = std::mem::take(&mut self.scratch).split_first_mut()?;
        self.scratch = others;
        let state = take_rows(&mut self.state, rows.len(), self.hidden);
        let [even, odd] = &mut self.projected;
        Some(Part {
            state,
            projected: [
                take_rows(even, rows.len(), 3 * self.hidden),
                take_rows(odd, rows.len(), 3 * self.hidden),
            ],
            rows,
            scratch,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.bounds.len().saturating_sub(1);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Parts<'_> {}

/// Takes the first rows off `values`; none of a buffer that is empty, for it is not handed out.
fn take_rows<'a>(values: &mut &'a mut [f32], rows: usize, width: usize) -> &'a mut [f32] {
    let all = std::mem::take(values);
    let (taken, rest) = all.split_at_mut((rows * width).min(all.len()));
    *values = rest;
    taken
}

impl Int8Model {
    /// Unit vectors of `texts`, each given by its token ids.
    pub(super) fn embed<T: AsRef<[u32]>>(
        &self,
        texts: &[T],
        buffers: &mut Buffers,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let hidden = self.config.hidden_size;
        buffers.lengths.clear();
        buffers.starts.clear();
        buffers.state.clear();
        let mut tokens = 0;
        for text in texts {
            let ids = text.as_ref();
            self.embeddings.append(ids, &mut buffers.state)?;
            buffers.starts.push(tokens);
            buffers.lengths.push(ids.len());
            tokens += ids.len();
        }
        buffers.starts.push(tokens);
        for projected in &mut buffers.projected {
            projected.resize(tokens * 3 * hidden, 0.0);
        }
        let at_texts = divide(&buffers.starts, self.team.size(), &mut buffers.bounds);
        buffers.scratch.resize_with(self.team.size(), Scratch::default);
        if at_texts {
            self.run_apart(buffers)?;
        } else {
            self.run_together(buffers)?;
        }
        Ok(pooling::mean_of_packed(&buffers.state, &buffers.lengths, hidden))
    }

    /// No text lies in two parts: a thread goes through all layers with its own.
    fn run_apart(&self, buffers: &mut Buffers) -> Result<(), EngineError> {
        let [even, odd] = &mut buffers.projected;
        let parts = Parts {
            bounds: &buffers.bounds,
            hidden: self.config.hidden_size,
            state: &mut buffers.state,
            projected: [even, odd],
            scratch: &mut buffers.scratch,
        };
        let starts = &buffers.starts;
        self.team.run(parts, &|mut part: Part<'_>| {
            let [mut current, mut next] = part.projected;
            self.start(part.state, current, part.scratch)?;
            let first = part.rows.start;
            for index in 0..self.layers.len() {
                part.projected = [&mut [], &mut []];
                self.attend(index, starts, &part.rows, (first, current), part.scratch);
                let following = self.layers.get(index + 1).map(|layer| (layer, &mut *next));
                self.finish_layer(&self.layers[index], part.state, following, part.scratch)?;
                std::mem::swap(&mut current, &mut next);
            }
            Ok(())
        })
    }

    /// Some text lies in two parts: the threads meet after each layer.
    fn run_together(&self, buffers: &mut Buffers) -> Result<(), EngineError> {
        let hidden = self.config.hidden_size;
        let starts = &buffers.starts;
        let [mut current, mut next] = buffers.projected.each_mut().map(Vec::as_mut_slice);
        self.team.run(
            Parts {
                bounds: &buffers.bounds,
                hidden,
                state: &mut buffers.state,
                projected: [current, &mut []],
                scratch: &mut buffers.scratch,
            },
            &|part: Part<'_>| {
                let [projected, _] = part.projected;
                self.start(part.state, projected, part.scratch)
            },
        )?;
        for (index, layer) in self.layers.iter().enumerate() {
            let parts = Parts {
                bounds: &buffers.bounds,
                hidden,
                state: &mut buffers.state,
                projected: [next, &mut []],
                scratch: &mut buffers.scratch,
            };
            let shared: &[f32] = current;
            self.team.run(parts, &|part: Part<'_>| {
                let [projected, _] = part.projected;
                self.attend(index, starts, &part.rows, (0, shared), part.scratch);
                let following = self.layers.get(index + 1).map(|layer| (layer, projected));
                self.finish_layer(layer, part.state, following, part.scratch)
            })?;
            std::mem::swap(&mut current, &mut next);
        }
        Ok(())
    }

    /// From the sums of embeddings to the first layer's queries, keys and values.
    fn start(&self, state: &mut [f32], projected: &mut [f32], scratch: &mut Scratch) -> Result<(), EngineError> {
        let hidden = self.config.hidden_size;
        normalize_rows(state, &self.embeddings.norm);
        let Some(layer) = self.layers.first() else {
            return Ok(());
        };
        let block = block_rows(state.len() / hidden);
        let blocks = state
            .chunks(block * hidden)
            .zip(projected.chunks_mut(block * 3 * hidden));
        for (state, projected) in blocks {
            let [bytes, _] = &mut scratch.bytes;
            bytes.resize(state.len() / hidden, hidden);
            Quantize {
                rows: state,
                width: hidden,
                out: bytes,
            }
            .dispatch();
            self.project(&layer.query_key_value, bytes, projected, &mut scratch.sums)?;
        }
        Ok(())
    }

    /// Queries, keys and values, without their bias.
    fn project(
        &self,
        matrix: &PackedMatrix,
        bytes: &QuantizedRows,
        projected: &mut [f32],
        sums: &mut Vec<i32>,
    ) -> Result<(), EngineError> {
        let sums = matrix.multiply(bytes, sums)?;
        Rescale { sums, out: projected }.dispatch();
        Ok(())
    }

    /// Attention of `rows` to the texts that they belong to; the result goes to the scratch's context. `projected` are the
    /// queries, keys and values from the given row on.
    fn attend(
        &self,
        layer: usize,
        starts: &[usize],
        rows: &Range<usize>,
        (first, projected): (usize, &[f32]),
        scratch: &mut Scratch,
    ) {
        let hidden = self.config.hidden_size;
        let stride = 3 * hidden;
        scratch.context.resize(rows.len() * hidden, 0.0);
        let mut out = scratch.context.as_mut_slice();
        // The last text that begins at or before the first row.
        let mut text = starts.partition_point(|start| *start <= rows.start) - 1;
        let mut row = rows.start;
        while row < rows.end {
            let (start, end) = (starts[text], starts[text + 1]);
            let own_rows = end.min(rows.end) - row;
            Attend {
                projected: &projected[(start - first) * stride..(end - first) * stride],
                bias: &self.layers[layer].query_key_value.bias,
                heads: self.config.num_attention_heads,
                first_row: row - start,
                buffers: &mut scratch.attention,
                out: take_rows(&mut out, own_rows, hidden),
            }
            .dispatch();
            row += own_rows;
            text += 1;
        }
    }

    /// What follows attention, up to the queries, keys and values of the next layer.
    fn finish_layer(
        &self,
        layer: &Layer,
        state: &mut [f32],
        mut following: Option<(&Layer, &mut [f32])>,
        scratch: &mut Scratch,
    ) -> Result<(), EngineError> {
        let hidden = self.config.hidden_size;
        let intermediate = self.config.intermediate_size;
        scratch.wide_row.resize(intermediate, 0.0);
        let [narrow, wide] = &mut scratch.bytes;
        let block = block_rows(state.len() / hidden);
        let blocks = scratch
            .context
            .chunks(block * hidden)
            .zip(state.chunks_mut(block * hidden));
        for (context, state) in blocks {
            let rows = state.len() / hidden;
            narrow.resize(rows, hidden);
            Quantize {
                rows: context,
                width: hidden,
                out: narrow,
            }
            .dispatch();
            // The bytes of a step must not lie where its input lies: their scales are still needed.
            wide.resize(rows, hidden);
            AddNorm {
                sums: layer.attention_output.multiply(narrow, &mut scratch.sums)?,
                bias: &layer.attention_output.bias,
                state,
                norm: &layer.attention_norm,
                out: Some(wide),
            }
            .dispatch();
            narrow.resize(rows, intermediate);
            BiasGeluQuantize {
                sums: layer.intermediate.multiply(wide, &mut scratch.sums)?,
                bias: &layer.intermediate.bias,
                row: &mut scratch.wide_row,
                out: narrow,
            }
            .dispatch();
            let sums = layer.output.multiply(narrow, &mut scratch.sums)?;
            wide.resize(rows, hidden);
            AddNorm {
                sums,
                bias: &layer.output.bias,
                state,
                norm: &layer.output_norm,
                out: following.is_some().then_some(&mut *wide),
            }
            .dispatch();
            if let Some((next, projected)) = &mut following {
                let projected = take_rows(projected, rows, 3 * hidden);
                self.project(&next.query_key_value, wide, projected, &mut scratch.sums)?;
            }
        }
        Ok(())
    }
}

/// Rows of a block, so that `rows` make blocks of about the same size.
fn block_rows(rows: usize) -> usize {
    let blocks = ((rows + BLOCK_ROWS / 2) / BLOCK_ROWS).max(1);
    rows.div_ceil(blocks).next_multiple_of(TILE_ROWS)
}

/// Divides the rows of texts, the first rows of which are `starts`, into parts for at most `threads` threads: at texts if
/// these parts are about equal (then it says true), and else into equal parts.
fn divide(starts: &[usize], threads: usize, bounds: &mut Vec<usize>) -> bool {
    let tokens = starts.last().copied().unwrap_or(0);
    let parts = (tokens / PART_ROWS).clamp(1, threads);
    let tolerance = (tokens as f64 / parts as f64 * UNEVENNESS) as usize;
    bounds.clear();
    bounds.push(0);
    for part in 1..parts {
        let ideal = tokens * part / parts;
        let after = starts.partition_point(|start| *start < ideal);
        let nearest = [after.saturating_sub(1), after]
            .into_iter()
            .map(|text| starts[text])
            .min_by_key(|start| start.abs_diff(ideal));
        bounds.extend(nearest.filter(|start| start.abs_diff(ideal) <= tolerance));
    }
    bounds.push(tokens);
    let at_texts = bounds.len() == parts + 1 && bounds.is_sorted_by(|one, other| one < other);
    if !at_texts {
        let rows = tokens.div_ceil(parts).next_multiple_of(TILE_ROWS);
        bounds.clear();
        bounds.extend((0..tokens).step_by(rows));
        bounds.push(tokens);
    }
    at_texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(lengths: &[usize], threads: usize) -> (bool, Vec<usize>) {
        let mut starts = vec![0];
        for length in lengths {
            starts.push(starts[starts.len() - 1] + length);
        }
        let mut bounds = Vec::new();
        let at_texts = divide(&starts, threads, &mut bounds);
        (at_texts, bounds)
    }

    #[test]
    fn parts_end_with_texts_where_that_is_about_even() {
        assert_eq!(divided(&[12], 4), (true, vec![0, 12]));
        assert_eq!(divided(&[40; 16], 2), (true, vec![0, 320, 640]));
        assert_eq!(divided(&[100, 90], 2), (true, vec![0, 100, 190]));
        assert_eq!(divided(&[80, 30, 55, 75], 3), (true, vec![0, 80, 165, 240]));
        // Three texts for two threads, and one for four.
        assert_eq!(divided(&[187; 3], 2), (false, vec![0, 288, 561]));
        assert_eq!(divided(&[256], 4), (false, vec![0, 64, 128, 192, 256]));
        // Too little for another thread.
        assert_eq!(divided(&[30, 30], 4), (true, vec![0, 60]));
    }

    #[test]
    fn blocks_are_about_equal() {
        assert_eq!([1, 8, 64, 70, 96, 100].map(block_rows), [8, 8, 64, 72, 48, 56]);
        assert_eq!([512, 384].map(block_rows), [64, 64]);
    }
}
