//! Differing bits between a query and 64 rows: the compiler vectorises one piece of code for several machines.

use super::ROWS;

/// Rows that are counted side by side.
const LANES: usize = 8;

/// How many bits of each row differ from the query's. `words` has a word of each of the 64 rows, then the next word of
/// each, and so on.
pub(crate) fn distances(words: &[u64], query: &[u64], distances: &mut [u16; ROWS]) {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::wide(words, query, distances) {
            return;
        }
    }
    count(words, query, distances);
}

#[inline(always)]
fn count(words: &[u64], query: &[u64], distances: &mut [u16; ROWS]) {
    for (lanes, distances) in distances.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sums = [0_u64; LANES];
        for (words, query) in words.as_chunks::<ROWS>().0.iter().zip(query) {
            let words = &words.as_chunks::<LANES>().0[lanes];
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum += u64::from((word ^ query).count_ones());
            }
        }
        for (distance, sum) in distances.iter_mut().zip(sums) {
            *distance = sum as u16;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected;

    use super::{ROWS, count};

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512vpopcntdq")]
    fn avx512(words: &[u64], query: &[u64], distances: &mut [u16; ROWS]) {
        count(words, query, distances);
    }

    #[target_feature(enable = "avx2,popcnt")]
    fn avx2(words: &[u64], query: &[u64], distances: &mut [u16; ROWS]) {
        count(words, query, distances);
    }

    /// Whether the machine has what it takes.
    pub(super) fn wide(words: &[u64], query: &[u64], distances: &mut [u16; ROWS]) -> bool {
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vpopcntdq");
        if has_avx512 {
            // SAFETY: the machine has the features that the function is compiled for.
            #[allow(unsafe_code)]
            unsafe {
                avx512(words, query, distances);
            }
            return true;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
            // SAFETY: the machine has the features that the function is compiled for.
            #[allow(unsafe_code)]
            unsafe {
                avx2(words, query, distances);
            }
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn bits_that_differ_are_counted() {
        let mut random = SmallRng::seed_from_u64(2);
        let words: Vec<u64> = (0..6 * ROWS).map(|_| random.random()).collect();
        let query: Vec<u64> = (0..6).map(|_| random.random()).collect();
        let (mut found, mut portable) = ([0; ROWS], [0; ROWS]);
        distances(&words, &query, &mut found);
        count(&words, &query, &mut portable);
        for row in 0..ROWS {
            let differing = (0..6).map(|word| (words[word * ROWS + row] ^ query[word]).count_ones());
            assert_eq!(u32::from(found[row]), differing.sum::<u32>());
        }
        assert_eq!(found, portable);
    }
}
