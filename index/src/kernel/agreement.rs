//! Products of a query in four bits with the signs of 64 rows: the compiler vectorises one piece of code for several
//! machines.

use super::ROWS;

/// Rows that are counted side by side.
const LANES: usize = 8;

/// The bits of 64 components of a query, of four bits each in two's complement: the ones, twos, fours and minus eights.
pub(crate) type Planes = [u64; 4];

/// The sum of the query's components where a row's bits are set, for each row. `words` has a word of each of the 64
/// rows, then the next word of each, and so on; `query` has planes for each word.
pub(crate) fn agreements(words: &[u64], query: &[Planes], agreements: &mut [i32; ROWS]) {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::wide(words, query, agreements) {
            return;
        }
    }
    sum(words, query, agreements);
}

#[inline(always)]
fn sum(words: &[u64], query: &[Planes], agreements: &mut [i32; ROWS]) {
    for (lanes, agreements) in agreements.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sums = [0_i64; LANES];
        for (words, [ones, twos, fours, eights]) in words.as_chunks::<ROWS>().0.iter().zip(query) {
            let words = &words.as_chunks::<LANES>().0[lanes];
            for (sum, word) in sums.iter_mut().zip(words) {
                let count = |plane: &u64| i64::from((word & plane).count_ones());
                *sum += count(ones) + (count(twos) << 1) + (count(fours) << 2) - (count(eights) << 3);
            }
        }
        for (agreement, sum) in agreements.iter_mut().zip(sums) {
            *agreement = sum as i32;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::is_x86_feature_detected;

    use super::{Planes, ROWS, sum};

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512vpopcntdq")]
    fn avx512(words: &[u64], query: &[Planes], agreements: &mut [i32; ROWS]) {
        sum(words, query, agreements);
    }

    #[target_feature(enable = "avx2,popcnt")]
    fn avx2(words: &[u64], query: &[Planes], agreements: &mut [i32; ROWS]) {
        sum(words, query, agreements);
    }

    /// Whether the machine has what it takes.
    pub(super) fn wide(words: &[u64], query: &[Planes], agreements: &mut [i32; ROWS]) -> bool {
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vpopcntdq");
        if has_avx512 {
            // SAFETY: the machine has the features that the function is compiled for.
            #[allow(unsafe_code)]
            unsafe {
                avx512(words, query, agreements);
            }
            return true;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
            // SAFETY: the machine has the features that the function is compiled for.
            #[allow(unsafe_code)]
            unsafe {
                avx2(words, query, agreements);
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
    fn components_are_summed_where_bits_are_set() {
        let mut random = SmallRng::seed_from_u64(2);
        let words: Vec<u64> = (0..6 * ROWS).map(|_| random.random()).collect();
        let query: Vec<i64> = (0..6 * 64).map(|_| random.random_range(-8..8)).collect();
        let plane = |query: &[i64], bit: usize| {
            let bits = query.iter().enumerate();
            bits.fold(0, |plane, (at, component)| plane | (*component as u64 >> bit & 1) << at)
        };
        let planes: Vec<Planes> = query
            .chunks_exact(64)
            .map(|query| [0, 1, 2, 3].map(|bit| plane(query, bit)))
            .collect();
        let (mut found, mut portable) = ([0; ROWS], [0; ROWS]);
        agreements(&words, &planes, &mut found);
        sum(&words, &planes, &mut portable);
        for row in 0..ROWS {
            let set = (0..6 * 64).filter(|at| words[at / 64 * ROWS + row] >> (at % 64) & 1 == 1);
            assert_eq!(i64::from(found[row]), set.map(|at| query[at]).sum::<i64>());
        }
        assert_eq!(found, portable);
    }
}
