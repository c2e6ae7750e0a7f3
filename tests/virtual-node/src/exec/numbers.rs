//! Number formats and rounding, as the PTX ISA defines them.

/// How a result that does not fit is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    NearestEven,
    Zero,
    Down,
    Up,
}

/// A binary floating-point format below f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Format {
    /// Bits after the leading one.
    pub n_mantissa_bits: i32,
    /// Exponent of the smallest normal number.
    pub exponent_min: i32,
    pub max: f64,
    /// Whether values beyond `max` become infinity where rounding says so.
    pub has_infinity: bool,
}

pub const F32: Format =
    Format { n_mantissa_bits: 23, exponent_min: -126, max: f32::MAX as f64, has_infinity: true };
pub const TF32: Format = Format {
    n_mantissa_bits: 10,
    exponent_min: -126,
    max: 3.401_162_134_214_653e38,
    has_infinity: true,
};
pub const BF16: Format = Format {
    n_mantissa_bits: 7,
    exponent_min: -126,
    max: 3.389_531_389_251_535_5e38,
    has_infinity: true,
};
pub const F16: Format =
    Format { n_mantissa_bits: 10, exponent_min: -14, max: 65504.0, has_infinity: true };
pub const E5M2: Format =
    Format { n_mantissa_bits: 2, exponent_min: -14, max: 57344.0, has_infinity: true };
pub const E4M3: Format =
    Format { n_mantissa_bits: 3, exponent_min: -6, max: 448.0, has_infinity: false };

impl Format {
    /// The value of the format that `value` is rounded to, exactly.
    ///
    /// `value` may stand for a number that f64 cannot hold, if it was rounded to odd.
    pub fn round(&self, value: f64, rounding: Rounding) -> f64 {
        if value == 0.0 || !value.is_finite() {
            return value;
        }
        let exponent = exponent(value).max(self.exponent_min);
        let quantum_exponent = exponent - self.n_mantissa_bits;
        // Two steps, because the reciprocal of the smallest quantum is beyond f64.
        let units = scale(value, -quantum_exponent);
        let units = match rounding {
            Rounding::NearestEven => units.round_ties_even(),
            Rounding::Zero => units.trunc(),
            Rounding::Down => units.floor(),
            Rounding::Up => units.ceil(),
        };
        let rounded = scale(units, quantum_exponent).copysign(value);
        if rounded.abs() <= self.max {
            return rounded;
        }
        let stays = match rounding {
            Rounding::NearestEven => false,
            Rounding::Zero => true,
            Rounding::Down => value > 0.0,
            Rounding::Up => value < 0.0,
        };
        if stays || !self.has_infinity {
            self.max.copysign(value)
        } else {
            f64::INFINITY.copysign(value)
        }
    }
}

/// The exponent of a finite, non-zero number; of subnormal ones the smallest.
fn exponent(value: f64) -> i32 {
    let biased = (value.to_bits() >> 52 & 0x7ff) as i32;
    biased.max(1) - 1023
}

fn scale(value: f64, exponent: i32) -> f64 {
    let half = exponent / 2;
    value * power_of_two(half) * power_of_two(exponent - half)
}

fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// `a + b`, rounded to odd: its last bit tells that something was lost, so a second rounding to
/// fewer bits is right in every mode.
pub fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let b_part = sum - a;
    let lost = (a - (sum - b_part)) + (b - b_part);
    to_odd(sum, lost)
}

/// `a * b + c` of numbers whose product f64 holds exactly, rounded to odd.
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// `a / b`, rounded to odd.
pub fn div_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    if !quotient.is_finite() || b.is_infinite() {
        return quotient;
    }
    let rest = (-quotient).mul_add(b, a);
    to_odd(quotient, if b < 0.0 { -rest } else { rest })
}

/// The square root, rounded to odd.
pub fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    if !root.is_finite() { root } else { to_odd(root, (-root).mul_add(root, a)) }
}

/// A number next to which something was lost on one side.
pub fn to_odd(nearest: f64, lost: f64) -> f64 {
    let bits = nearest.to_bits();
    if lost == 0.0 || !nearest.is_finite() || lost.is_nan() || bits & 1 == 1 {
        nearest
    } else if (lost > 0.0) == (nearest > 0.0) {
        f64::from_bits(bits + 1)
    } else {
        f64::from_bits(bits - 1)
    }
}

/// Any finite or infinite f64 that f32 holds exactly, and NaN.
pub fn exact_f32(value: f64) -> f32 {
    if value.is_nan() { f32::from_bits(0x7fff_ffff) } else { value as f32 }
}

/// The bits of `value` as bf16, to the nearest even. NaN becomes 0x7fff.
#[inline(always)]
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}

/// The value of a bf16.
#[inline(always)]
pub fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bits of `value` as f16, to the nearest even. NaN becomes 0x7fff.
#[inline(always)]
pub fn f16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Adding 0.5 lets the processor round at the last place of f16's subnormals, 2^-24.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000) as u16;
    let normal = magnitude.wrapping_sub(112 << 23);
    let normal = (normal.wrapping_add(0xfff + (normal >> 13 & 1)) >> 13) as u16;
    let finite = if magnitude < 0x3880_0000 { small } else { normal };
    // 65520 rounds to the even neighbour, which is beyond.
    let bounded = if magnitude >= 0x477f_f000 { 0x7c00 } else { finite };
    if magnitude > 0x7f80_0000 { 0x7fff } else { sign | bounded }
}

/// The value of an f16.
#[inline(always)]
pub fn f16_value(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let normal = (magnitude << 13).wrapping_add(112 << 23);
    // As an integer times 2^-24.
    let small = (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits();
    let special = 0x7f80_0000 | magnitude << 13 & 0x7f_ffff;
    let finite = if magnitude < 0x400 { small } else { normal };
    f32::from_bits(sign | if magnitude >= 0x7c00 { special } else { finite })
}

/// The bits of `value` as e4m3, to the nearest even; beyond 448 it stays there. NaN is 0x7f.
#[inline(always)]
pub fn e4m3_bits(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    // At 2^14 the last place of f32 is that of e4m3's subnormals, 2^-9.
    let small = (f32::from_bits(magnitude) + 16384.0).to_bits().wrapping_sub(0x4680_0000);
    let normal = magnitude.wrapping_sub(120 << 23);
    let normal = normal.wrapping_add(0x7_ffff + (normal >> 20 & 1)) >> 20;
    let finite = if magnitude < 0x3c80_0000 { small } else { normal };
    let bounded = if magnitude >= 0x43e0_0000 { 0x7e } else { finite as u8 };
    if magnitude > 0x7f80_0000 { 0x7f } else { sign | bounded }
}

/// The value of an e4m3.
#[inline(always)]
pub fn e4m3_value(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    let magnitude = u32::from(bits & 0x7f);
    let normal = (magnitude << 20).wrapping_add(120 << 23);
    let small = (magnitude as f32 * f32::from_bits(0x3b00_0000)).to_bits();
    let finite = if magnitude < 8 { small } else { normal };
    f32::from_bits(sign | if magnitude == 0x7f { 0x7fff_ffff } else { finite })
}

/// The bits of `value` as e5m2, to the nearest even; beyond 57344 it stays there. NaN is 0x7f.
#[inline(always)]
pub fn e5m2_bits(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = (bits >> 24) as u8 & 0x80;
    let magnitude = bits & 0x7fff_ffff;
    // At 2^7 the last place of f32 is that of e5m2's subnormals, 2^-16.
    let small = (f32::from_bits(magnitude) + 128.0).to_bits().wrapping_sub(0x4300_0000);
    let normal = magnitude.wrapping_sub(112 << 23);
    let normal = normal.wrapping_add(0xf_ffff + (normal >> 21 & 1)) >> 21;
    let finite = if magnitude < 0x3880_0000 { small } else { normal };
    let bounded = if magnitude >= 0x4760_0000 { 0x7b } else { finite as u8 };
    if magnitude > 0x7f80_0000 { 0x7f } else { sign | bounded }
}

/// The value of an e5m2, which is the upper half of an f16.
#[inline(always)]
pub fn e5m2_value(bits: u8) -> f32 {
    f16_value(u16::from(bits) << 8)
}
