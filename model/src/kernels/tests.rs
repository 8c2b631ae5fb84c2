use candle_core::{D, Device, Tensor};
use proptest::prelude::*;
use pulp::{Arch, Scalar, Simd, WithSimd};

use super::attention::{Attend, PackedAttention};
use super::gelu::{BiasGelu, add_bias_and_gelu};
use super::math::exp;
use super::norm::{NormRows, NormWeights, add_and_normalize_rows, normalize_rows};

fn random(count: usize, seed: u64, range: f32) -> Vec<f32> {
    // A linear congruential sequence: reproducible and even enough.
    let mut state = seed.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(3_037_000_493);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * range
        })
        .collect()
}

fn assert_close(left: &[f32], right: &[f32], tolerance: f32) {
    assert_eq!(left.len(), right.len());
    for (index, (a, b)) in left.iter().zip(right).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} and {b} at {index}");
    }
}

fn tensor(values: &[f32], shape: (usize, usize)) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn to_vec(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

struct Exp<'a>(&'a mut [f32]);

impl WithSimd for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for value in self.0 {
            let mut lanes = [0f32; 64];
            simd.partial_store_f32s(&mut lanes[..S::F32_LANES], exp(simd, simd.splat_f32s(*value)));
            *value = lanes[0];
        }
    }
}

#[test]
fn the_exponential_is_accurate_over_its_range() {
    let inputs: Vec<f32> = (-8700..=8800).map(|step| step as f32 / 100.0).collect();
    let mut outputs = inputs.clone();
    Arch::new().dispatch(Exp(&mut outputs));
    for (input, output) in inputs.iter().zip(outputs) {
        let expected = f64::from(*input).exp();
        let error = (f64::from(output) / expected - 1.0).abs();
        assert!(error < 3e-7, "e^{input} is off by {error}");
    }
    let mut extremes = [f32::MIN, -1e10, 1e10, f32::MAX];
    Arch::new().dispatch(Exp(&mut extremes));
    assert!(extremes.iter().all(|value| value.is_finite() && *value >= 0.0));
    assert!(extremes[0] < 1e-37 && extremes[3] > 1e37);
}

#[test]
fn gelu_is_the_exact_one() {
    let inputs: Vec<f32> = (-1200..=1200).map(|step| step as f32 / 100.0).collect();
    let expected = to_vec(&tensor(&inputs, (1, inputs.len())).gelu_erf().unwrap());
    let mut outputs = inputs.clone();
    add_bias_and_gelu(&mut outputs, &vec![0.0; inputs.len()]);
    assert_close(&outputs, &expected, 1e-6);
}

/// Attention by candle's general operations.
fn plain_attention(projected: &[f32], bias: &[f32], heads: usize) -> Vec<f32> {
    let stride = bias.len();
    let (hidden, tokens) = (stride / 3, projected.len() / stride);
    let width = hidden / heads;
    let bias = Tensor::from_slice(bias, stride, &Device::Cpu).unwrap();
    let parts = tensor(projected, (tokens, stride))
        .broadcast_add(&bias)
        .unwrap()
        .reshape((tokens, 3, heads, width))
        .unwrap()
        .permute((1, 2, 0, 3))
        .unwrap()
        .contiguous()
        .unwrap();
    let part = |index: usize| parts.get(index).unwrap();
    let scores = part(0)
        .matmul(&part(1).transpose(D::Minus1, D::Minus2).unwrap())
        .unwrap();
    let scores = (scores * (1.0 / (width as f64).sqrt())).unwrap();
    let shares = candle_nn::ops::softmax_last_dim(&scores).unwrap();
    let context = shares.matmul(&part(2)).unwrap();
    to_vec(&context.transpose(0, 1).unwrap().contiguous().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention_agrees_with_the_general_operations(
        lengths in proptest::collection::vec(1usize..70, 1..5),
        heads in 1usize..4,
        // Widths that are not a multiple of a vector, too.
        width in prop_oneof![Just(5usize), Just(8), Just(16), Just(32), Just(40)],
        seed in any::<u64>(),
    ) {
        let stride = 3 * heads * width;
        let tokens: usize = lengths.iter().sum();
        let projected = random(tokens * stride, seed, 3.0);
        let bias = random(stride, seed ^ 1, 1.0);
        let packed = PackedAttention { lengths: &lengths, heads, bias: &bias }.run(&projected);
        let mut expected = Vec::new();
        let mut start = 0;
        for length in &lengths {
            let text = &projected[start * stride..(start + length) * stride];
            let plain = plain_attention(text, &bias, heads);
            // The same code without vector instructions.
            let mut scalar = vec![0f32; plain.len()];
            Attend { projected: text, bias: &bias, heads, first_row: 0, out: &mut scalar }.with_simd(Scalar);
            assert_close(&scalar, &plain, 1e-5);
            expected.extend(plain);
            start += length;
        }
        assert_close(&packed, &expected, 1e-5);
    }

    #[test]
    fn the_norm_agrees_with_the_general_operation(
        rows in 1usize..40,
        width in prop_oneof![Just(7usize), Just(32), Just(100), Just(384)],
        seed in any::<u64>(),
    ) {
        let values = random(rows * width, seed, 5.0);
        let residual = random(rows * width, seed ^ 1, 5.0);
        let bias = random(width, seed ^ 2, 1.0);
        let norm = NormWeights {
            gamma: random(width, seed ^ 3, 2.0),
            beta: random(width, seed ^ 4, 2.0),
            epsilon: 1e-12,
        };
        let vector = |values: &[f32]| Tensor::from_slice(values, width, &Device::Cpu).unwrap();
        let plain = candle_nn::LayerNorm::new(vector(&norm.gamma), vector(&norm.beta), 1e-12);
        let apply = |input: &Tensor| to_vec(&candle_nn::Module::forward(&plain, input).unwrap());
        let input = tensor(&values, (rows, width));

        let mut alone = values.clone();
        normalize_rows(&mut alone, &norm);
        assert_close(&alone, &apply(&input), 1e-4);

        let sum = (input + tensor(&residual, (rows, width))).unwrap();
        let sum = sum.broadcast_add(&vector(&bias)).unwrap();
        let mut added = values.clone();
        add_and_normalize_rows(&mut added, &bias, &residual, &norm);
        assert_close(&added, &apply(&sum), 1e-4);
        let mut scalar = values;
        NormRows { rows: &mut scalar, added: Some((&bias, &residual)), norm: &norm }.with_simd(Scalar);
        assert_close(&scalar, &added, 1e-4);
    }

    #[test]
    fn rows_that_are_not_a_multiple_of_a_vector_get_the_same_gelu(
        rows in 1usize..5,
        width in 1usize..70,
        seed in any::<u64>(),
    ) {
        let values = random(rows * width, seed, 6.0);
        let bias = random(width, seed ^ 1, 1.0);
        let mut vectors = values.clone();
        add_bias_and_gelu(&mut vectors, &bias);
        let mut scalar = values;
        BiasGelu { rows: &mut scalar, bias: &bias }.with_simd(Scalar);
        assert_close(&vectors, &scalar, 1e-6);
    }
}
