//! Products of a vector of floats with codes, for the few rows whose cosines are wanted more exactly.

use super::LANES;

/// Sums that are kept side by side. They are fixed, and no instruction multiplies and adds in one step, so all machines
/// get the same number.
const SUMS: usize = 64;

/// The product of `query` with codes from 0 to 255 that mean -128 to 127. Both are equally long, a multiple of 64. Each
/// of 64 sums has every 64th component; floating point makes the result wrong by less than
/// `(len / 64 + 8) * 2^-24 * |query| * |codes|`.
pub(crate) fn dot(codes: &[u8], query: &[f32]) -> f32 {
    debug_assert!(codes.len() == query.len() && query.len().is_multiple_of(LANES));
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(product) = x86::wide(codes, query) {
            return product;
        }
    }
    product(codes, query)
}

#[inline(always)]
fn product(codes: &[u8], query: &[f32]) -> f32 {
    let mut sums = [0.0; SUMS];
    for (codes, query) in codes.as_chunks::<SUMS>().0.iter().zip(query.as_chunks::<SUMS>().0) {
        for ((sum, code), query) in sums.iter_mut().zip(codes).zip(query) {
            *sum += f32::from((code ^ 0x80).cast_signed()) * query;
        }
    }
    let mut half = SUMS / 2;
    while half > 0 {
        let (low, high) = sums.split_at_mut(half);
        for (sum, other) in low.iter_mut().zip(high) {
            *sum += *other;
        }
        half /= 2;
    }
    sums[0]
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected;

    use super::product;

    #[target_feature(enable = "avx512f,avx512vl,avx512bw")]
    fn avx512(codes: &[u8], query: &[f32]) -> f32 {
        product(codes, query)
    }

    #[target_feature(enable = "avx2")]
    fn avx2(codes: &[u8], query: &[f32]) -> f32 {
        product(codes, query)
    }

    /// Whether the machine has what it takes, and then the product.
    pub(super) fn wide(codes: &[u8], query: &[f32]) -> Option<f32> {
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw");
        if has_avx512 {
            // SAFETY: the machine has the features that the function is compiled for.
            #[allow(unsafe_code)]
            return Some(unsafe { avx512(codes, query) });
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the feature that the function is compiled for.
            #[allow(unsafe_code)]
            return Some(unsafe { avx2(codes, query) });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn all_machines_get_the_same_product() {
        let mut random = SmallRng::seed_from_u64(4);
        for width in [64, 384, 1_024] {
            let codes: Vec<u8> = (0..width).map(|_| random.random()).collect();
            let query: Vec<f32> = (0..width).map(|_| random.random::<f32>() - 0.5).collect();
            let pairs = codes.iter().zip(&query);
            let exact: f64 = pairs
                .map(|(code, query)| (f64::from(*code) - 128.0) * f64::from(*query))
                .sum();
            let found = dot(&codes, &query);
            assert!((f64::from(found) - exact).abs() < 1e-3, "{found} {exact}");
            assert_eq!(found, product(&codes, &query));
        }
    }
}
