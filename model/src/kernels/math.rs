//! The functions of single values that the kernels share.

use pulp::Simd;

/// e^x for each lane, by range reduction and the polynomial of Cephes' `expf`.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding this leaves the nearest integer in the low bits of the mantissa.
    let magic = simd.splat_f32s(12_582_912.0);
    // Outside these bounds the result would leave the normal range.
    let x = simd.max_f32s(simd.min_f32s(x, simd.splat_f32s(88.0)), simd.splat_f32s(-87.0));
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), magic);
    let power = simd.sub_f32s(shifted, magic);
    // ln 2 in two parts, the first of which is exact in few bits.
    let r = simd.mul_add_e_f32s(power, simd.splat_f32s(-355.0 / 512.0), x);
    let r = simd.mul_add_e_f32s(power, simd.splat_f32s(2.121_944_4e-4), r);
    let mut poly = simd.splat_f32s(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        poly = simd.mul_add_e_f32s(poly, r, simd.splat_f32s(coefficient));
    }
    let one_plus_r = simd.add_f32s(r, simd.splat_f32s(1.0));
    let fraction = simd.mul_add_e_f32s(poly, simd.mul_f32s(r, r), one_plus_r);
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(fraction), exponent))
}

/// The exact GELU, x/2 (1 + erf(x/sqrt 2)), with erf by Abramowitz and Stegun 7.1.26.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    let zero = splat(0.0);
    let magnitude = simd.max_f32s(x, simd.sub_f32s(zero, x));
    let z = simd.mul_f32s(magnitude, splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = simd.div_f32s(splat(1.0), simd.mul_add_e_f32s(z, splat(0.327_591_1), splat(1.0)));
    let mut poly = splat(1.061_405_4);
    for coefficient in [-1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        poly = simd.mul_add_e_f32s(poly, t, splat(coefficient));
    }
    // 1 - erf(z)
    let tail = simd.mul_f32s(
        simd.mul_f32s(poly, t),
        exp(simd, simd.mul_f32s(simd.sub_f32s(zero, z), z)),
    );
    // x/2 (2 - tail) for positive x and x/2 tail for negative x, in one expression.
    let half = simd.mul_f32s(magnitude, splat(-0.5));
    simd.mul_add_e_f32s(half, tail, simd.max_f32s(x, zero))
}
