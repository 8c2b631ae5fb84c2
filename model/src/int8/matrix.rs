//! Matrices of 8-bit weights, and products with them.

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::Matrix;

use crate::error::EngineError;
use crate::kernels::{QuantizedRows, Sums};
use crate::weights::Weights;

/// Largest weight. Symmetric, so that a negated channel is the negated channel.
pub(super) const LARGEST_WEIGHT: f32 = 127.0;
/// Largest weight where the instructions sum up pairs of products in 16 bits: 2 * 255 * 64 fits.
pub(super) const LARGEST_WEIGHT_IN_PAIRS: f32 = 64.0;
/// Added to a number of few bits, it leaves the nearest integer in the low bits.
const NEAREST: f32 = 12_582_912.0;

thread_local! {
    /// Products on this thread. They ask the processor what it can do, once; they can't be sent to another thread.
    static GEMM: GemmExecutor<u8, i8, i32> = GemmExecutor::new();
}

/// The instructions that products use on this processor, such as `x86_64-u8i8i32-avx512`.
pub fn instructions() -> String {
    GEMM.with(|gemm| gemm.kernel_name().to_owned())
}

/// The weight that stands for the largest of a channel, with the instructions of this processor.
pub(super) fn largest_weight() -> f32 {
    if GEMM.with(GemmExecutor::may_saturate) {
        LARGEST_WEIGHT_IN_PAIRS
    } else {
        LARGEST_WEIGHT
    }
}

/// The weights of a linear layer, as the product wants them.
pub(super) struct PackedMatrix {
    packed: PackedBMatrix<i8>,
    /// Scale of each output channel.
    scales: Vec<f32>,
    /// Sum of the bytes of each output channel.
    sums: Vec<f32>,
    /// Bias of each output channel.
    pub(super) bias: Vec<f32>,
}

impl PackedMatrix {
    /// One matrix out of those of the linear layers `names`, each of which turns `input` values into `output`; they read
    /// the same input. The largest weight of a channel becomes `largest_weight`.
    pub(super) fn load(
        weights: &Weights,
        names: &[String],
        (input, output): (usize, usize),
        largest_weight: f32,
    ) -> Result<Self, EngineError> {
        let channels = names.len() * output;
        let mut channel_weights = Channels::with_capacity(channels, input);
        let mut bias = Vec::with_capacity(channels);
        let mut row = Vec::with_capacity(input);
        for name in names {
            let matrix = weights.table(&format!("{name}.weight"), output, input)?;
            for channel in 0..output {
                row.clear();
                matrix.append_row(channel, &mut row)?;
                channel_weights.push(&row, largest_weight);
            }
            bias.extend(weights.tensor(&format!("{name}.bias"), &[output])?.to_vec1::<f32>()?);
        }
        Ok(channel_weights.pack(bias))
    }

    /// `rows` times this; the sums go to `sums`.
    pub(super) fn multiply<'a>(
        &'a self,
        rows: &'a QuantizedRows,
        sums: &'a mut Vec<i32>,
    ) -> Result<Sums<'a>, EngineError> {
        let num_rows = rows.scales.len();
        sums.resize(num_rows * self.scales.len(), 0);
        let activations = Matrix::from_data([num_rows, self.packed.rows()], rows.bytes.as_slice());
        let product = GEMM.with(|gemm| {
            gemm.gemm(
                sums,
                GemmInputA::Unpacked(activations),
                GemmInputB::Packed(&self.packed),
                // Not with the zero points of the rows: rten-gemm 0.27 takes those of the first rows of a block for all
                // of its rows. They are taken out where the sums become values.
                GemmOptions::default(),
            )
        });
        product.map_err(|error| EngineError::Compute(error.to_string()))?;
        Ok(Sums {
            sums,
            row_scales: &rows.scales,
            row_zeros: &rows.zeros,
            column_scales: &self.scales,
            column_sums: &self.sums,
        })
    }
}

/// Weights as bytes, channel by channel.
struct Channels {
    bytes: Vec<i8>,
    scales: Vec<f32>,
}

impl Channels {
    fn with_capacity(channels: usize, input: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(channels * input),
            scales: Vec::with_capacity(channels),
        }
    }

    fn push(&mut self, weights: &[f32], largest_weight: f32) {
        let largest = weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
        let scale = if largest > 0.0 { largest / largest_weight } else { 1.0 };
        let factor = 1.0 / scale;
        let bytes = weights.iter().map(|weight| (weight * factor + NEAREST).to_bits() as i8);
        self.bytes.extend(bytes);
        self.scales.push(scale);
    }

    fn pack(self, bias: Vec<f32>) -> PackedMatrix {
        let channels = self.scales.len();
        let by_channel = Matrix::from_data([channels, self.bytes.len() / channels], self.bytes.as_slice());
        PackedMatrix {
            packed: GEMM.with(|gemm| gemm.prepack_b(by_channel.transposed())),
            sums: self
                .bytes
                .chunks_exact(self.bytes.len() / channels)
                .map(|bytes| bytes.iter().map(|byte| f32::from(*byte)).sum())
                .collect(),
            scales: self.scales,
            bias,
        }
    }
}

#[cfg(test)]
mod tests {
    use rten_simd::SimdOp;

    use super::*;
    use crate::kernels::Rescale;

    #[test]
    fn a_channel_keeps_its_largest_weight_and_its_zeros() {
        for largest_weight in [LARGEST_WEIGHT, LARGEST_WEIGHT_IN_PAIRS] {
            let mut channels = Channels::with_capacity(2, 4);
            channels.push(&[0.0, -2.0, 0.9, 0.004], largest_weight);
            channels.push(&[0.0; 4], largest_weight);
            let less = (largest_weight * 0.45).round() as i8;
            assert_eq!(channels.bytes, [0, -(largest_weight as i8), less, 0, 0, 0, 0, 0]);
            assert_eq!(channels.scales, [2.0 / largest_weight, 1.0]);
        }
    }

    #[test]
    fn products_are_those_of_the_values() {
        // More channels than a block, more depth than a block, and rows that fill no tile.
        let (input, output, num_rows) = (1100, 1060, 43);
        let weights: Vec<f32> = (0..input * output)
            .map(|index| ((index * 37 % 255) as f32 - 127.0) / 64.0)
            .collect();
        let mut channels = Channels::with_capacity(output, input);
        for row in weights.chunks_exact(input) {
            channels.push(row, largest_weight());
        }
        let matrix = channels.pack(vec![0.0; output]);
        let mut rows = QuantizedRows::default();
        rows.resize(num_rows, input);
        for (index, byte) in rows.bytes.iter_mut().enumerate() {
            *byte = (index * 53 % 256) as u8;
        }
        rows.scales.fill(1.0);
        for (index, zero) in rows.zeros.iter_mut().enumerate() {
            *zero = (index * 5) as u8;
        }
        let mut sums = Vec::new();
        let mut values = vec![0.0; num_rows * output];
        let sums = matrix.multiply(&rows, &mut sums).unwrap();
        Rescale { sums, out: &mut values }.dispatch();
        for row in 0..num_rows {
            for channel in 0..output {
                let expected: f32 = (0..input)
                    .map(|k| f32::from(rows.bytes[row * input + k]) - f32::from(rows.zeros[row]))
                    .zip(&weights[channel * input..])
                    .map(|(value, weight)| value * weight)
                    .sum();
                let value = values[row * output + channel];
                assert!(
                    (value - expected).abs() < 1.0,
                    "{value} and {expected} at {row}, {channel}"
                );
            }
        }
    }
}
