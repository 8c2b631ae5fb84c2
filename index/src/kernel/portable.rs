//! Code that the compiler vectorises with what it may use.

use super::{ROWS, for_rows};

pub(super) fn products(codes: &[u8], query: &[i8], mask: u64, sums: &mut [i32; ROWS]) {
    for_rows(codes, query.len(), mask, sums, |row| product(row, query));
}

#[inline(always)]
fn product(row: &[u8], query: &[i8]) -> i32 {
    let pairs = row.iter().zip(query);
    pairs.map(|(code, query)| i32::from(*code) * i32::from(*query)).sum()
}

/// As [`products`], for AArch64 machines with `SDOT`: four signed products in one instruction.
#[cfg(target_arch = "aarch64")]
pub(super) fn dot_product(codes: &[u8], query: &[i8], mask: u64, sums: &mut [i32; ROWS]) {
    #[target_feature(enable = "dotprod")]
    fn with_feature(codes: &[u8], query: &[i8], mask: u64, sums: &mut [i32; ROWS]) {
        // SDOT wants both sides signed, so 128 is taken from each code and given back as 128 times the query's sum.
        let offset = 128 * query.iter().map(|query| i32::from(*query)).sum::<i32>();
        for_rows(codes, query.len(), mask, sums, |row| {
            let pairs = row.iter().zip(query);
            let signed = pairs.map(|(code, query)| i32::from((code ^ 0x80) as i8) * i32::from(*query));
            signed.sum::<i32>() + offset
        });
    }

    if std::arch::is_aarch64_feature_detected!("dotprod") {
        // SAFETY: the machine has the feature that the function is compiled for.
        #[allow(unsafe_code)]
        unsafe {
            with_feature(codes, query, mask, sums);
        }
    } else {
        products(codes, query, mask, sums);
    }
}
