//! The element types of matrices, widened to single precision and rounded back.

use half::{bf16, f16};

/// What a matrix is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    F16,
    Bf16,
    /// Four exponent bits, three of mantissa, no infinity: ±448 is the largest.
    E4m3,
    /// Five exponent bits, two of mantissa: ±57,344 is the largest finite value.
    E5m2,
}

impl Element {
    /// Bytes of one.
    pub fn n_bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
            Element::E4m3 | Element::E5m2 => 1,
        }
    }

    /// Whether it is one of the two 8-bit types.
    pub fn is_f8(self) -> bool {
        matches!(self, Element::E4m3 | Element::E5m2)
    }

    /// As it is called in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::E4m3 => "e4m3",
            Element::E5m2 => "e5m2",
        }
    }

    /// The value whose bytes begin at `bytes`. Exact.
    pub fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Element::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Element::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Element::Bf16 => bf16_value(u16::from_le_bytes([bytes[0], bytes[1]])),
            Element::E4m3 => e4m3_value(bytes[0]),
            // The upper half of an F16.
            Element::E5m2 => f16::from_le_bytes([0, bytes[0]]).to_f32(),
        }
    }

    /// Rounds to nearest, ties to even; what is too large for FP8 becomes its largest value.
    pub fn write(self, value: f32, bytes: &mut [u8]) {
        match self {
            Element::F32 => bytes[..4].copy_from_slice(&value.to_le_bytes()),
            Element::F16 => bytes[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Element::Bf16 => bytes[..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            Element::E4m3 => bytes[0] = to_f8(value, E4M3),
            Element::E5m2 => bytes[0] = to_f8(value, E5M2),
        }
    }

    /// Widens as many elements as `values` holds, from consecutive bytes.
    #[inline(always)]
    pub(super) fn widen(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Element::Bf16 => {
                for (pair, value) in bytes.chunks_exact(2).zip(values) {
                    *value = bf16_value(u16::from_le_bytes([pair[0], pair[1]]));
                }
            }
            Element::E4m3 => {
                for (byte, value) in bytes.iter().zip(values) {
                    *value = e4m3_value(*byte);
                }
            }
            Element::F32 | Element::F16 | Element::E5m2 => {
                for (one, value) in bytes.chunks_exact(self.n_bytes()).zip(values) {
                    *value = self.read(one);
                }
            }
        }
    }
}

#[inline(always)]
fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Without branches or tables, so that it vectorizes, and without subnormal operands, which
/// processors multiply slowly.
#[inline(always)]
fn e4m3_value(byte: u8) -> f32 {
    let bits = u32::from(byte);
    let exponent = (bits >> 3) & 15;
    let is_normal = u32::from(exponent != 0);
    let mantissa = ((bits & 7) | (is_normal << 3)) as i32 as f32;
    // A mantissa of 8 to 15 eighths times 2^(exponent - 7); subnormal ones have exponent 1.
    let scale_exponent = exponent + (1 - is_normal) + 127 - 7 - 3;
    let sign = (bits & 0x80) << 24;
    let value = mantissa * f32::from_bits(sign | (scale_exponent << 23));
    if bits & 0x7f == 0x7f { f32::NAN } else { value }
}

/// An 8-bit format.
#[derive(Clone, Copy)]
struct Format {
    n_mantissa_bits: i32,
    exponent_bias: i32,
    max: f32,
    max_bits: u8,
    nan_bits: u8,
}

const E4M3: Format =
    Format { n_mantissa_bits: 3, exponent_bias: 7, max: 448.0, max_bits: 0x7e, nan_bits: 0x7f };
const E5M2: Format =
    Format { n_mantissa_bits: 2, exponent_bias: 15, max: 57_344.0, max_bits: 0x7b, nan_bits: 0x7f };

fn to_f8(value: f32, format: Format) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | format.nan_bits;
    }
    let magnitude = f64::from(value.abs());
    if magnitude >= f64::from(format.max) {
        return sign | format.max_bits;
    }
    // The exponent of the last mantissa bit that this magnitude keeps.
    let exponent = (value.abs().to_bits() >> 23) as i32 - 127;
    let last = exponent.max(1 - format.exponent_bias) - format.n_mantissa_bits;
    let n_last = (magnitude * 2f64.powi(-last)).round_ties_even() as i32;
    // Carrying into the next exponent is adding one to the bits.
    let base = (last + format.n_mantissa_bits + format.exponent_bias - 1) << format.n_mantissa_bits;
    sign | (base + n_last).min(i32::from(format.max_bits)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By definition, from the bits.
    fn e4m3_oracle(byte: u8) -> f32 {
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let exponent = i32::from(byte >> 3 & 15);
        let mantissa = f32::from(byte & 7);
        match (exponent, byte & 7) {
            (15, 7) => f32::NAN,
            (0, _) => sign * mantissa / 8.0 * 2f32.powi(-6),
            _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
        }
    }

    #[test]
    fn every_e4m3_value_is_right() {
        for byte in 0..=255 {
            let (value, oracle) = (Element::E4m3.read(&[byte]), e4m3_oracle(byte));
            assert!(
                value.to_bits() == oracle.to_bits() || (value.is_nan() && oracle.is_nan()),
                "{byte:#x}: {value} for {oracle}"
            );
        }
        assert_eq!(Element::E4m3.read(&[0x7e]), 448.0);
        assert_eq!(Element::E5m2.read(&[0x7b]), 57_344.0);
    }

    #[test]
    fn every_f8_value_survives_a_round_trip() {
        for element in [Element::E4m3, Element::E5m2] {
            for byte in 0..=255 {
                let value = element.read(&[byte]);
                let mut back = [0];
                element.write(value, &mut back);
                if value.is_nan() {
                    assert!(element.read(&back).is_nan(), "{element:?} {byte:#x}");
                } else if value.is_finite() {
                    assert_eq!(back[0], byte, "{element:?} {value}");
                } else {
                    assert_eq!(element.read(&back).abs(), 57_344.0, "infinity saturates");
                }
            }
        }
    }

    #[test]
    fn f8_rounds_to_the_nearest_and_ties_to_even() {
        for element in [Element::E4m3, Element::E5m2] {
            let finite = (0..0x7f).filter(|&byte| element.read(&[byte]).is_finite());
            let bytes: Vec<u8> = finite.collect();
            for pair in bytes.windows(2) {
                let (low, high) = (element.read(&pair[..1]), element.read(&pair[1..]));
                let middle = (low + high) / 2.0;
                let even = if pair[0] % 2 == 0 { pair[0] } else { pair[1] };
                for (value, expected) in [
                    (middle, even),
                    (f32::from_bits(middle.to_bits() - 1), pair[0]),
                    (f32::from_bits(middle.to_bits() + 1), pair[1]),
                ] {
                    let mut bits = [0];
                    element.write(value, &mut bits);
                    assert_eq!(bits[0], expected, "{element:?} {value} of {low} and {high}");
                    element.write(-value, &mut bits);
                    assert_eq!(bits[0], expected | 0x80, "{element:?} -{value}");
                }
            }
        }
    }

    #[test]
    fn widening_many_is_reading_each() {
        let bytes: Vec<u8> = (0..=255).collect();
        for element in [Element::F32, Element::F16, Element::Bf16, Element::E4m3, Element::E5m2] {
            let mut values = vec![0.0; bytes.len() / element.n_bytes()];
            element.widen(&bytes, &mut values);
            for (idx, value) in values.iter().enumerate() {
                let one = element.read(&bytes[idx * element.n_bytes()..]);
                assert!(value.to_bits() == one.to_bits() || (value.is_nan() && one.is_nan()));
            }
        }
    }
}
