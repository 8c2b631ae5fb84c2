//! Products of codes: a query of signed bytes with rows of unsigned bytes, summed in 32 bits.
//!
//! All kernels give the same integers. The one with the widest instructions that the machine has is chosen when the
//! first query comes: AVX-512 VNNI, AVX-VNNI, AVX2 (`x86.rs`), dot products of NEON, and code that any compiler
//! vectorises (`portable.rs`; NEON is always there on AArch64, so the portable code uses it).

mod agreement;
mod dot;
mod portable;
mod prefetch;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::LazyLock;

pub(crate) use agreement::{Planes, agreements};
pub(crate) use dot::dot;
pub(crate) use prefetch::{prefetch, prefetch_start};

/// Rows that a call gets at most; a bit of a mask for each.
pub(crate) const ROWS: usize = 64;

/// Bytes of a row are a multiple of this.
pub(crate) const LANES: usize = 64;

/// The longest row whose sum cannot leave 32 bits: 255 * 127 * 65,536 < 2^31.
pub(crate) const WIDTH_MAX: usize = 1 << 16;

/// Which instructions are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    DotProduct,
    Portable,
}

impl Kernel {
    /// The fastest one of this machine.
    pub(crate) fn best() -> Self {
        static BEST: LazyLock<Kernel> = LazyLock::new(|| Kernel::available().next().unwrap_or(Kernel::Portable));
        *BEST
    }

    /// Those that this machine can run, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let special = [
            (Self::Avx512Vnni, x86::has_avx512_vnni()),
            (Self::AvxVnni, x86::has_avx_vnni()),
            (Self::Avx2, x86::has_avx2()),
        ];
        #[cfg(target_arch = "aarch64")]
        let special = [(Self::DotProduct, std::arch::is_aarch64_feature_detected!("dotprod"))];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let special = [];
        let all = special.into_iter().chain([(Self::Portable, true)]);
        all.filter(|(_, available)| *available).map(|(kernel, _)| kernel)
    }

    /// The products of `query` with those of the rows in `codes` whose bits are set in `mask`, into their places in
    /// `sums`. A row is as long as the query.
    pub(crate) fn products(self, codes: &[u8], query: &[i8], mask: u64, sums: &mut [i32; ROWS]) {
        debug_assert!(query.len().is_multiple_of(LANES) && query.len() <= WIDTH_MAX);
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => x86::avx512_vnni(codes, query, mask, sums),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => x86::avx_vnni(codes, query, mask, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::avx2(codes, query, mask, sums),
            #[cfg(target_arch = "aarch64")]
            Self::DotProduct => portable::dot_product(codes, query, mask, sums),
            Self::Portable => portable::products(codes, query, mask, sums),
        }
    }
}

/// Calls `product` with each row of `codes` whose bit is set.
#[inline(always)]
fn for_rows(codes: &[u8], width: usize, mut mask: u64, sums: &mut [i32; ROWS], product: impl Fn(&[u8]) -> i32) {
    while mask != 0 {
        let row = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        if let Some(codes) = codes.get(row * width..(row + 1) * width) {
            sums[row] = product(codes);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn all_kernels_give_the_same_sums() {
        let mut random = SmallRng::seed_from_u64(1);
        for width in [64, 128, 384, 1_024] {
            for extreme in [false, true] {
                let mut byte = |extreme_value: u8| if extreme { extreme_value } else { random.random() };
                let codes: Vec<u8> = (0..ROWS * width).map(|_| byte(255)).collect();
                let query: Vec<i8> = (0..width).map(|_| (byte(0x81) as i8).max(-127)).collect();
                let mask = 0xf0f0_0000_1234_8001;
                let mut expected = [-1; ROWS];
                for row in (0..ROWS).filter(|row| mask >> row & 1 == 1) {
                    let codes = &codes[row * width..(row + 1) * width];
                    expected[row] = codes
                        .iter()
                        .zip(&query)
                        .map(|(a, b)| i32::from(*a) * i32::from(*b))
                        .sum();
                }
                for kernel in Kernel::available() {
                    let mut sums = [-1; ROWS];
                    kernel.products(&codes, &query, mask, &mut sums);
                    assert_eq!(sums, expected, "{kernel:?}, {width} wide");
                }
            }
        }
        println!("kernels: {:?}", Kernel::available().collect::<Vec<_>>());
    }
}
