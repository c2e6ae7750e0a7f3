//! Elementary functions over lanes: the same operations at every level.

use super::lanes::Lanes;

const SIGN: u32 = 0x8000_0000;

/// Greatest finite e4m3.
const E4M3_MAX: f32 = 448.0;

/// The code of NaN, without its sign.
pub(super) const E4M3_NAN: u8 = 0x7F;

/// 2^-120: what is left of f32's bias is then e4m3's, for subnormals as well.
pub(super) const E4M3_REBIAS: f32 = f32::from_bits((127 - 120) << 23);

/// 1.5 * 2^23: adding it rounds a small number to an integer, which then sits in the low bits.
const TO_INTEGER: f32 = 12_582_912.0;

/// `e^x` within 2 units in the last place (1 where the result is subnormal or overflows; with no
/// fused multiply-add, 3); NaN stays NaN, -∞ gives 0, 89 and more give ∞.
///
/// `x = n ln 2 + r`, a polynomial of degree 7 on `r` (Cephes `expf`), and 2^n in two factors, since
/// n may leave the range of a single one at either end.
#[inline(always)]
pub(super) fn exp<S: Lanes>(s: S, x: S::V) -> S::V {
    // NaN must be the right operand to come through.
    let x = s.max(s.splat(-104.0), s.min(s.splat(89.0), x));
    let to_integer = s.splat(TO_INTEGER);
    let n = s.sub(s.mul_add(x, s.splat(std::f32::consts::LOG2_E), to_integer), to_integer);
    // ln 2 in two parts: the first, 355/512, has 9 bits, so its product with n is exact.
    let r = s.mul_add(n, s.splat(-355.0 / 512.0), x);
    let r = s.mul_add(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = s.mul_add(p, r, s.splat(coefficient));
    }
    let p = s.add(s.mul_add(s.mul(r, r), p, r), s.splat(1.0));
    let half_plus = s.mul_add(n, s.splat(0.5), to_integer);
    let half = s.sub(half_plus, to_integer);
    let rest_plus = s.add(s.sub(n, half), to_integer);
    s.mul(s.mul(p, power_of_two(s, half_plus)), power_of_two(s, rest_plus))
}

/// 2^n of an integer n in -126..=127, given as `n + TO_INTEGER`.
#[inline(always)]
fn power_of_two<S: Lanes>(s: S, n_plus: S::V) -> S::V {
    s.add_bits(s.shift_left::<23>(n_plus), 1.0f32.to_bits())
}

/// The e4m3 value nearest to `x` clamped to ±448, ties to even, as f32. NaN stays NaN.
///
/// Adding 1.5 * 2^(e + 20), where 2^e is the binade of `x` but at least 2^-6, leaves three bits of
/// fraction (or, below 2^-6, multiples of 2^-9), rounded as every addition is.
#[inline(always)]
pub(super) fn round_e4m3<S: Lanes>(s: S, x: S::V) -> S::V {
    const EXPONENT: u32 = 0x7F80_0000;
    const LEAST_BINADE: i32 = (127 - 6) << 23;
    const UP_20_BINADES_AND_HALF: u32 = (20 << 23) | 0x0040_0000;
    let x = s.max(s.splat(-E4M3_MAX), s.min(s.splat(E4M3_MAX), x));
    let binade = s.max_bits(s.and(x, EXPONENT), LEAST_BINADE);
    let coarse = s.add_bits(binade, UP_20_BINADES_AND_HALF);
    // The sign is put back for what rounds to zero.
    s.or(s.sub(s.add(x, coarse), coarse), s.and(x, SIGN))
}

/// The code of a value that [`round_e4m3`] gave.
#[inline(always)]
pub(super) fn e4m3_code(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    if value.is_nan() {
        return sign | E4M3_NAN;
    }
    sign | ((value.abs() * E4M3_REBIAS).to_bits() >> 20) as u8
}
