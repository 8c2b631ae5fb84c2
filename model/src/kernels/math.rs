//! The functions of single values that the kernels share, and vectors at the end of a row.

use rten_simd::ops::{BitOps, FloatOps, IntOps, NumOps};
use rten_simd::{Isa, Simd};

/// e^x for each lane, by range reduction and the polynomial of Cephes' `expf`.
#[inline(always)]
pub(super) fn exp<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let ops = isa.f32();
    // Outside these bounds the result would leave the normal range.
    let x = ops.max(ops.min(x, ops.splat(88.0)), ops.splat(-87.0));
    let power = ops.round_ties_even(ops.mul(x, ops.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first of which is exact in few bits.
    let r = ops.mul_add(power, ops.splat(-355.0 / 512.0), x);
    let r = ops.mul_add(power, ops.splat(2.121_944_4e-4), r);
    let mut poly = ops.splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        poly = ops.mul_add(poly, r, ops.splat(coefficient));
    }
    let one_plus_r = ops.add(r, ops.splat(1.0));
    let fraction = ops.mul_add(poly, ops.mul(r, r), one_plus_r);
    // Times 2^power: added to the exponent.
    let exponent = isa.i32().shift_left::<23>(ops.to_int_round(power));
    let bits: I::I32 = fraction.reinterpret_cast();
    isa.i32().add(bits, exponent).reinterpret_cast()
}

/// The exact GELU, x/2 (1 + erf(x/sqrt 2)), with erf as the quotient of two polynomials that Eigen uses.
#[inline(always)]
pub(super) fn gelu<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let ops = isa.f32();
    let splat = |value: f32| ops.splat(value);
    // Outside these bounds erf is 1 or -1 in float32.
    let z = ops.mul(x, splat(std::f32::consts::FRAC_1_SQRT_2));
    let z = ops.max(ops.min(z, splat(4.0)), splat(-4.0));
    let square = ops.mul(z, z);
    let mut above = splat(-2.726_142e-10);
    for coefficient in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        above = ops.mul_add(above, square, splat(coefficient));
    }
    let mut below = splat(-1.456_607_2e-5);
    for coefficient in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        below = ops.mul_add(below, square, splat(coefficient));
    }
    let erf = ops.div(ops.mul(z, above), below);
    let half = ops.mul(x, splat(0.5));
    ops.mul_add(half, erf, half)
}

/// The first values of `row`, zeros in the lanes that it does not fill.
#[inline(always)]
pub(super) fn load<I: Isa>(isa: I, row: &[f32]) -> I::F32 {
    let ops = isa.f32();
    if row.len() >= ops.len() {
        ops.load(row)
    } else {
        ops.load_pad(row).0
    }
}

/// The same, with `filler` in the lanes that `row` does not fill.
#[inline(always)]
pub(super) fn load_or<I: Isa>(isa: I, row: &[f32], filler: I::F32) -> I::F32 {
    let ops = isa.f32();
    if row.len() >= ops.len() {
        ops.load(row)
    } else {
        let (values, filled) = ops.load_pad(row);
        ops.select(values, filler, filled)
    }
}

/// Writes as many lanes as `row` has values.
#[inline(always)]
pub(super) fn store<I: Isa>(isa: I, values: I::F32, row: &mut [f32]) {
    let ops = isa.f32();
    if row.len() >= ops.len() {
        ops.store(values, row);
    } else {
        for (slot, value) in row.iter_mut().zip(values.to_array()) {
            *slot = value;
        }
    }
}

/// The largest lane.
#[inline(always)]
pub(super) fn largest<V: Simd<Elem = f32>>(values: V) -> f32 {
    values.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The smallest lane.
#[inline(always)]
pub(super) fn smallest<V: Simd<Elem = f32>>(values: V) -> f32 {
    values.to_array().into_iter().fold(f32::INFINITY, f32::min)
}
