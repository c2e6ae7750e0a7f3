//! Numbers as they are stored: e4m3 by hand, bfloat16 and half through the `half` crate.
//!
//! It knows formats, not tensors. e4m3 is the OCP 8-bit float of safetensors' `F8_E4M3`: bias 7, no
//! infinities, one NaN per sign, largest value 448.

use std::fmt;

use half::{bf16, f16};

use crate::loaded::Dtype;

/// Largest finite e4m3 value.
pub const E4M3_MAX: f32 = 448.0;

/// The value of an e4m3 byte; `0x7f` and `0xff` are NaN.
pub fn e4m3_to_f32(byte: u8) -> f32 {
    E4M3_VALUES[byte as usize]
}

/// The nearest e4m3 value, ties to even; beyond ±448 saturates, infinities too; NaN stays NaN.
pub fn f32_to_e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= E4M3_MAX {
        return sign | 0x7e;
    }
    if magnitude < MIN_NORMAL {
        // Subnormals are multiples of 2^-9. The scaling is exact, and 8 is the first normal's code.
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    // Keep three bits of the mantissa: add half of what is cut off, a little less at even values,
    // and let the carry run into the exponent.
    let bits = magnitude.to_bits();
    let rounded = bits + ((1 << 19) - 1) + ((bits >> 20) & 1);
    sign | ((rounded >> 20) - ((127 - 7) << 3)) as u8
}

/// The first element that is NaN or infinite, and what it is.
///
/// # Panics
/// If `bytes` is no whole number of elements.
pub(crate) fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f32)> {
    assert!(bytes.len().is_multiple_of(dtype.n_bytes()), "{} bytes of {dtype}", bytes.len());
    let idx = match dtype {
        Dtype::F8E4m3 => first_in(bytes, |code| code & 0x7f == 0x7f),
        Dtype::Bf16 => {
            first_in(bytes.as_chunks::<2>().0, |b| b[1] & 0x7f == 0x7f && b[0] & 0x80 != 0)
        }
        Dtype::F16 => first_in(bytes.as_chunks::<2>().0, |b| b[1] & 0x7c == 0x7c),
        Dtype::F32 => {
            first_in(bytes.as_chunks::<4>().0, |b| b[3] & 0x7f == 0x7f && b[2] & 0x80 != 0)
        }
    }?;
    let mut value = [0.0];
    let n_bytes = dtype.n_bytes();
    decode(dtype, &bytes[idx * n_bytes..(idx + 1) * n_bytes], &mut value);
    Some((idx, value[0]))
}

/// The first that `is_bad`. Whole runs are looked at without a branch, which is fast.
fn first_in<T: Copy>(elements: &[T], is_bad: impl Fn(T) -> bool) -> Option<usize> {
    const N_RUN: usize = 4096;
    let has_bad = |run: &[T]| run.iter().fold(false, |found, &element| found | is_bad(element));
    let run_idx = elements.chunks(N_RUN).position(has_bad)?;
    let run = &elements[run_idx * N_RUN..];
    run.iter().position(|&element| is_bad(element)).map(|idx| run_idx * N_RUN + idx)
}

/// Reads little-endian elements of `dtype` into `out`.
///
/// # Panics
/// If `bytes` does not hold as many elements as `out`.
pub fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.n_bytes(), "bytes of {} {dtype}", out.len());
    match dtype {
        Dtype::F32 => {
            for (value, chunk) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*chunk);
            }
        }
        Dtype::F16 => {
            for (value, chunk) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*chunk).to_f32();
            }
        }
        Dtype::Bf16 => {
            for (value, chunk) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*chunk).to_f32();
            }
        }
        Dtype::F8E4m3 => {
            for (value, byte) in out.iter_mut().zip(bytes) {
                *value = e4m3_to_f32(*byte);
            }
        }
    }
}

/// Appends `value` to `out` as a little-endian element of `dtype`, rounded to nearest even.
pub fn encode(dtype: Dtype, value: f32, out: &mut Vec<u8>) {
    match dtype {
        Dtype::F32 => out.extend(value.to_le_bytes()),
        Dtype::F16 => out.extend(f16::from_f32(value).to_le_bytes()),
        Dtype::Bf16 => out.extend(bf16::from_f32(value).to_le_bytes()),
        Dtype::F8E4m3 => out.push(f32_to_e4m3(value)),
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::F8E4m3 => "F8_E4M3",
        })
    }
}

/// Smallest e4m3 value with a leading one: 2^-6.
const MIN_NORMAL: f32 = 0.015_625;

const E4M3_VALUES: [f32; 256] = e4m3_values();

const fn e4m3_values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let exponent = (byte as u32 >> 3) & 0xf;
        let mantissa = byte as u32 & 0x7;
        let magnitude = if exponent == 0 {
            mantissa as f32 / 512.0
        } else if exponent == 0xf && mantissa == 7 {
            f32::NAN
        } else {
            f32::from_bits(((exponent + 127 - 7) << 23) | (mantissa << 20))
        };
        values[byte] = if byte & 0x80 == 0 { magnitude } else { -magnitude };
        byte += 1;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The format's definition in the words of its specification, in f64.
    fn defined(byte: u8) -> f64 {
        let sign = if byte >= 128 { -1.0 } else { 1.0 };
        let exponent = f64::from((byte % 128) / 8);
        let fraction = f64::from(byte % 8) / 8.0;
        match (byte % 128, exponent == 0.0) {
            (0x7f, _) => f64::NAN,
            (_, true) => sign * 2f64.powf(-6.0) * fraction,
            (_, false) => sign * 2f64.powf(exponent - 7.0) * (1.0 + fraction),
        }
    }

    /// The nearest finite e4m3 value by search over all of them; ties go to an even mantissa.
    fn nearest(value: f32) -> u8 {
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        // Saturation comes first: far out, f64 cannot tell the distances apart.
        let magnitude = f64::from(value).abs().min(448.0);
        let distance = |byte: &u8| (defined(*byte) - magnitude).abs();
        let best = (0..=0x7eu8)
            .min_by(|a, b| distance(a).total_cmp(&distance(b)).then_with(|| (a % 2).cmp(&(b % 2))))
            .unwrap();
        sign | best
    }

    #[test]
    fn every_byte_has_its_defined_value_and_comes_back() {
        for byte in 0..=255u8 {
            let value = e4m3_to_f32(byte);
            assert_eq!(value.is_nan(), defined(byte).is_nan(), "{byte:#x}");
            if !value.is_nan() {
                assert_eq!(f64::from(value), defined(byte), "{byte:#x}");
                assert_eq!(value.is_sign_negative(), byte >= 128, "{byte:#x}");
                assert_eq!(f32_to_e4m3(value), byte, "{byte:#x}");
            }
        }
    }

    /// Every f32 whose low 12 bits are zero, ones or a single one: all exponents, all mantissa
    /// prefixes, and both sides of every tie.
    #[test]
    fn rounding_agrees_with_a_search_over_all_values() {
        let mut n_checked = 0;
        for high in 0..=0xf_ffffu32 {
            let exponent = (high >> 11) & 0xff;
            // Outside these exponents the answer is a zero or the largest: every 97th will do.
            if !(110..=140).contains(&exponent) && high % 97 != 0 {
                continue;
            }
            for low in [0, 1, 0xfff] {
                let value = f32::from_bits(high << 12 | low);
                if value.is_nan() {
                    assert_eq!(f32_to_e4m3(value) & 0x7f, 0x7f, "{value}");
                } else if value.is_infinite() {
                    assert_eq!(f32_to_e4m3(value) & 0x7f, 0x7e, "{value}");
                } else {
                    assert_eq!(f32_to_e4m3(value), nearest(value), "{value:e}");
                }
                n_checked += 1;
            }
        }
        assert!(n_checked > 300_000, "{n_checked}");
    }

    #[test]
    fn half_formats_round_trip() {
        for bits in 0..=u16::MAX {
            for dtype in [Dtype::F16, Dtype::Bf16] {
                let mut value = [0.0];
                decode(dtype, &bits.to_le_bytes(), &mut value);
                if !value[0].is_nan() {
                    let mut bytes = Vec::new();
                    encode(dtype, value[0], &mut bytes);
                    assert_eq!(bytes, bits.to_le_bytes(), "{dtype} {bits:#x}");
                }
            }
        }
    }
}
