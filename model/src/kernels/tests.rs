use candle_core::{D, Device, Tensor};
use proptest::prelude::*;
use rten_simd::isa::GenericIsa;
use rten_simd::ops::BitOps;
use rten_simd::{Isa, SimdOp};

use super::attention::{Attend, AttentionBuffers, PackedAttention};
use super::gelu::{BiasGelu, add_bias_and_gelu};
use super::math::{exp, load, store};
use super::norm::{NormRows, NormWeights, add_and_normalize_rows, normalize_rows};
use super::quantized::{AddNorm, BiasGeluQuantize, Quantize, QuantizedRows, Rescale, Sums};

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

impl SimdOp for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        for part in self.0.chunks_mut(isa.f32().len()) {
            let values = exp(isa, load(isa, part));
            store(isa, values, part);
        }
    }
}

#[test]
fn the_exponential_is_accurate_over_its_range() {
    let inputs: Vec<f32> = (-8700..=8800).map(|step| step as f32 / 100.0).collect();
    let mut outputs = inputs.clone();
    Exp(&mut outputs).dispatch();
    for (input, output) in inputs.iter().zip(outputs) {
        let expected = f64::from(*input).exp();
        let error = (f64::from(output) / expected - 1.0).abs();
        assert!(error < 3e-7, "e^{input} is off by {error}");
    }
    let mut extremes = [f32::MIN, -1e10, 1e10, f32::MAX];
    Exp(&mut extremes).dispatch();
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
            // The same code with the shortest vectors.
            let mut scalar = vec![0f32; plain.len()];
            let buffers = &mut AttentionBuffers::default();
            let attend = Attend { projected: text, bias: &bias, heads, first_row: 0, buffers, out: &mut scalar };
            attend.eval(GenericIsa::new());
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
        NormRows { rows: &mut scalar, added: Some((&bias, &residual)), norm: &norm }.eval(GenericIsa::new());
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
        BiasGelu { rows: &mut scalar, bias: &bias }.eval(GenericIsa::new());
        // With and without fused products erf differs by up to eight units in its last place, some 5e-7, and it counts
        // half of x times: up to 3.5 times here.
        assert_close(&vectors, &scalar, 4e-6);
    }

    #[test]
    fn bytes_stand_for_their_values(
        rows in 1usize..9,
        width in prop_oneof![1usize..40, Just(64usize), Just(100), Just(384)],
        // Rows of one sign, too.
        shift in prop_oneof![Just(0f32), Just(4.0), Just(-4.0)],
        seed in any::<u64>(),
    ) {
        let mut values = random(rows * width, seed, 3.0);
        for value in &mut values {
            *value += shift;
        }
        // A row of zeros.
        values[..width].fill(0.0);
        let out = quantized(rows, width, |out| Quantize { rows: &values, width, out }.dispatch());
        assert_stands_for(&out, &values, width);
        let shortest = quantized(rows, width, |out| {
            Quantize { rows: &values, width, out }.eval(GenericIsa::new());
        });
        assert_eq!(shortest.zeros, out.zeros);
        assert_eq!(shortest.scales, out.scales);
    }

    #[test]
    fn steps_between_products_agree_with_their_parts(
        rows in 1usize..9,
        width in prop_oneof![1usize..40, Just(64usize), Just(100), Just(384)],
        seed in any::<u64>(),
    ) {
        let integers: Vec<i32> = random(rows * width, seed, 30_000.0).iter().map(|value| *value as i32).collect();
        let row_scales: Vec<f32> = random(rows, seed ^ 1, 0.01).iter().map(|scale| scale.abs() + 1e-3).collect();
        let column_scales: Vec<f32> = random(width, seed ^ 2, 0.02).iter().map(|scale| scale.abs()).collect();
        let row_zeros: Vec<u8> = (0..rows).map(|row| (row * 31) as u8).collect();
        let column_sums: Vec<f32> = random(width, seed ^ 7, 100.0).iter().map(|sum| sum.round()).collect();
        let sums = Sums {
            sums: &integers,
            row_scales: &row_scales,
            row_zeros: &row_zeros,
            column_scales: &column_scales,
            column_sums: &column_sums,
        };
        let values: Vec<f32> = integers
            .iter()
            .enumerate()
            .map(|(index, sum)| {
                let (row, column) = (index / width, index % width);
                let zeros = f32::from(row_zeros[row]) * column_sums[column];
                (*sum as f32 - zeros) * row_scales[row] * column_scales[column]
            })
            .collect();
        let mut rescaled = vec![0.0; values.len()];
        Rescale { sums, out: &mut rescaled }.dispatch();
        assert_close(&rescaled, &values, 1e-5);

        let bias = random(width, seed ^ 3, 1.0);
        let residual = random(rows * width, seed ^ 4, 5.0);
        let norm = NormWeights {
            gamma: random(width, seed ^ 5, 2.0),
            beta: random(width, seed ^ 6, 2.0),
            epsilon: 1e-6,
        };
        let mut expected = values.clone();
        add_and_normalize_rows(&mut expected, &bias, &residual, &norm);
        let mut state = residual.clone();
        let out = quantized(rows, width, |out| {
            AddNorm { sums, bias: &bias, state: &mut state, norm: &norm, out: Some(out) }.dispatch();
        });
        assert_close(&state, &expected, 1e-3);
        assert_stands_for(&out, &state, width);
        let mut alone = residual;
        AddNorm { sums, bias: &bias, state: &mut alone, norm: &norm, out: None }.dispatch();
        assert_eq!(alone, state);

        let mut expected = values;
        add_bias_and_gelu(&mut expected, &bias);
        let mut row = vec![0.0; width];
        let out = quantized(rows, width, |out| {
            BiasGeluQuantize { sums, bias: &bias, row: &mut row, out }.dispatch();
        });
        assert_stands_for(&out, &expected, width);
    }
}

fn quantized(rows: usize, width: usize, fill: impl FnOnce(&mut QuantizedRows)) -> QuantizedRows {
    let mut out = QuantizedRows::default();
    out.resize(rows, width);
    fill(&mut out);
    out
}

/// Each byte is the nearest to its value, and the largest byte is as good as used up. Values that were computed in
/// another order than the bytes were differ by a few units in the last place of their parts, which may be larger.
fn assert_stands_for(rows: &QuantizedRows, values: &[f32], width: usize) {
    for (index, values) in values.chunks_exact(width).enumerate() {
        let (scale, zero) = (rows.scales[index], f32::from(rows.zeros[index]));
        let range = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        assert!(
            range == 0.0 || scale <= (2.0 * range + 1e-5 * (1.0 + range)) / 255.0,
            "a scale of {scale} for {range}"
        );
        for (byte, value) in rows.bytes[index * width..].iter().zip(values) {
            let stands_for = scale * (f32::from(*byte) - zero);
            // At the ends of the range the rounding of the zero point comes on top.
            assert!(
                (stands_for - value).abs() <= scale * 1.02 + 1e-5 * (1.0 + value.abs()),
                "{byte} stands for {stands_for}, not {value}"
            );
        }
    }
}
