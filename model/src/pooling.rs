//! From token states to the sentence vector: the mean over a text's own tokens, scaled to unit length.

use candle_core::Tensor;

/// Below this length a vector is not scaled up: the direction of nothing is noise. (The value is that of
/// `torch.nn.functional.normalize`, by which the reference vectors were made.)
const SMALLEST_NORM: f32 = 1e-12;

/// Means of the rows of consecutive texts, each scaled to unit length.
///
/// `state` holds `lengths.iter().sum()` rows of `hidden` values. The result has one vector per length.
pub fn mean_of_packed(state: &[f32], lengths: &[usize], hidden: usize) -> Vec<Vec<f32>> {
    let mut rows = state.chunks_exact(hidden);
    lengths
        .iter()
        .map(|length| {
            let mut mean = vec![0f32; hidden];
            for row in rows.by_ref().take(*length) {
                for (sum, value) in mean.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            // The division by the number of tokens is left out: the scaling undoes it.
            normalize(&mut mean);
            mean
        })
        .collect()
}

/// Scales `vector` to unit length.
pub fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    let scale = 1.0 / norm.max(SMALLEST_NORM);
    for value in vector {
        *value *= scale;
    }
}

/// The same for a padded tensor: `state` is `[texts, longest, hidden]`, `present` is `[texts, longest]` with 1
/// for a token and 0 for padding. The result is `[texts, hidden]`, of unit rows.
pub fn masked_mean(state: &Tensor, present: &Tensor) -> candle_core::Result<Tensor> {
    let sum = state.broadcast_mul(&present.unsqueeze(2)?)?.sum(1)?;
    let norm = sum.sqr()?.sum_keepdim(1)?.sqrt()?;
    let floor = norm.ones_like()?.affine(f64::from(SMALLEST_NORM), 0.0)?;
    sum.broadcast_div(&norm.maximum(&floor)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn the_mean_counts_a_texts_own_tokens_only() {
        // Two texts of one and two tokens; the padding of the first holds a value that must not leak.
        let state = [3f32, 4.0, 900.0, 900.0, 1.0, 0.0, 1.0, 0.0];
        let tensor = Tensor::from_slice(&state, (2, 2, 2), &Device::Cpu).unwrap();
        let present = Tensor::from_slice(&[1f32, 0.0, 1.0, 1.0], (2, 2), &Device::Cpu).unwrap();
        let padded: Vec<Vec<f32>> = masked_mean(&tensor, &present).unwrap().to_vec2().unwrap();
        let packed = mean_of_packed(&[3f32, 4.0, 1.0, 0.0, 1.0, 0.0], &[1, 2], 2);
        for vectors in [padded, packed] {
            assert_eq!(vectors, [[0.6, 0.8], [1.0, 0.0]]);
        }
    }

    #[test]
    fn a_zero_vector_stays_finite() {
        let mut vector = [0f32; 3];
        normalize(&mut vector);
        assert_eq!(vector, [0.0; 3]);
    }
}
