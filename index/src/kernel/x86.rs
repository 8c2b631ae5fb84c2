//! The instructions of x86-64. Each public function runs the portable code where the machine lacks them.

use std::arch::is_x86_feature_detected;
#[allow(clippy::wildcard_imports)]
use std::arch::x86_64::*;

use super::{ROWS, for_rows, portable};

pub(super) fn has_avx512_vnni() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
}

pub(super) fn has_avx_vnni() -> bool {
    has_avx2() && is_x86_feature_detected!("avxvnni")
}

pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
}

macro_rules! dispatched {
    ($name:ident, $has:ident, $features:literal, $product:ident) => {
        pub(super) fn $name(codes: &[u8], query: &[i8], mask: u64, sums: &mut [i32; ROWS]) {
            #[target_feature(enable = $features)]
            fn with_features(codes: &[u8], query: &[i8], mask: u64, sums: &mut [i32; ROWS]) {
                for_rows(
                    codes,
                    query.len(),
                    mask,
                    sums,
                    #[inline(always)]
                    |row| $product(row, query),
                );
            }

            if $has() {
                // SAFETY: the machine has the features that the function is compiled for.
                #[allow(unsafe_code)]
                unsafe {
                    with_features(codes, query, mask, sums);
                }
            } else {
                portable::products(codes, query, mask, sums);
            }
        }
    };
}

dispatched!(avx512_vnni, has_avx512_vnni, "avx512f,avx512vnni", product_512);
dispatched!(avx_vnni, has_avx_vnni, "avx2,avxvnni", product_256_vnni);
dispatched!(avx2, has_avx2, "avx2", product_256);

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn product_512(row: &[u8], query: &[i8]) -> i32 {
    let mut sum = _mm512_setzero_si512();
    for (row, query) in row.as_chunks::<64>().0.iter().zip(query.as_chunks::<64>().0) {
        // SAFETY: both arrays are as long as what is loaded, and the load asks for no alignment.
        #[allow(unsafe_code)]
        let (row, query) = unsafe {
            (
                _mm512_loadu_si512(row.as_ptr().cast()),
                _mm512_loadu_si512(query.as_ptr().cast()),
            )
        };
        sum = _mm512_dpbusd_epi32(sum, row, query);
    }
    _mm512_reduce_add_epi32(sum)
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn product_256_vnni(row: &[u8], query: &[i8]) -> i32 {
    let mut sum = _mm256_setzero_si256();
    for (row, query) in row.as_chunks::<32>().0.iter().zip(query.as_chunks::<32>().0) {
        // SAFETY: both arrays are as long as what is loaded, and the load asks for no alignment.
        #[allow(unsafe_code)]
        let (row, query) = unsafe {
            (
                _mm256_loadu_si256(row.as_ptr().cast()),
                _mm256_loadu_si256(query.as_ptr().cast()),
            )
        };
        sum = _mm256_dpbusd_avx_epi32(sum, row, query);
    }
    sum_of_256(sum)
}

/// In 16 bits first: `VPMADDUBSW` would be shorter, but saturates.
#[inline]
#[target_feature(enable = "avx2")]
fn product_256(row: &[u8], query: &[i8]) -> i32 {
    let mut sum = _mm256_setzero_si256();
    for (row, query) in row.as_chunks::<16>().0.iter().zip(query.as_chunks::<16>().0) {
        // SAFETY: both arrays are as long as what is loaded, and the load asks for no alignment.
        #[allow(unsafe_code)]
        let (row, query) = unsafe {
            (
                _mm_loadu_si128(row.as_ptr().cast()),
                _mm_loadu_si128(query.as_ptr().cast()),
            )
        };
        let products = _mm256_madd_epi16(_mm256_cvtepu8_epi16(row), _mm256_cvtepi8_epi16(query));
        sum = _mm256_add_epi32(sum, products);
    }
    sum_of_256(sum)
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_of_256(sum: __m256i) -> i32 {
    let half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32::<1>(quarter)))
}
