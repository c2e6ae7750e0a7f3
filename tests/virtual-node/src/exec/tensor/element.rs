//! The element types that tensor cores multiply, and what their bits are worth.

use std::sync::LazyLock;

use half::{bf16, f16};

/// An element of an operand, as the PTX names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// An f32 of which the tensor core sees 10 bits of mantissa.
    Tf32,
    /// 4 bits of exponent, 3 of mantissa, no infinities.
    E4m3,
    /// 5 bits of exponent, 2 of mantissa.
    E5m2,
    /// A signed byte.
    S8,
    /// An unsigned byte.
    U8,
    /// Double precision.
    F64,
}

impl Element {
    /// Reads the PTX's name of a type, without the dot.
    pub fn parse(name: &str) -> Option<Element> {
        Some(match name {
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            "tf32" => Element::Tf32,
            "e4m3" => Element::E4m3,
            "e5m2" => Element::E5m2,
            "s8" => Element::S8,
            "u8" => Element::U8,
            "f64" => Element::F64,
            _ => return None,
        })
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Element::E4m3 | Element::E5m2 | Element::S8 | Element::U8 => 1,
            Element::F16 | Element::Bf16 => 2,
            Element::Tf32 => 4,
            Element::F64 => 8,
        }
    }

    /// Whether products are summed as integers.
    pub fn is_integer(self) -> bool {
        matches!(self, Element::S8 | Element::U8)
    }

    /// The value of an element whose bits are the lowest of `bits`. Each type but F64 fits an f32.
    pub fn value(self, bits: u32) -> f32 {
        match self {
            Element::F16 => f16::from_bits(bits as u16).to_f32(),
            Element::Bf16 => bf16::from_bits(bits as u16).to_f32(),
            Element::Tf32 => f32::from_bits(bits & 0xffff_e000),
            Element::E4m3 => E4M3[(bits & 0xff) as usize],
            Element::E5m2 => E5M2[(bits & 0xff) as usize],
            Element::S8 => f32::from(bits as u8 as i8),
            Element::U8 => f32::from(bits as u8),
            Element::F64 => panic!("an f64 has no value in 32 bits"),
        }
    }

    /// Appends the values of the elements that lie in `bytes`.
    pub fn values(self, bytes: &[u8], values: &mut Vec<f32>) {
        match self.bytes() {
            1 => values.extend(bytes.iter().map(|&byte| self.value(u32::from(byte)))),
            2 => values.extend(
                bytes
                    .chunks_exact(2)
                    .map(|pair| self.value(u32::from(u16::from_le_bytes([pair[0], pair[1]])))),
            ),
            _ => {
                values.extend(bytes.chunks_exact(4).map(|word| {
                    self.value(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
                }))
            }
        }
    }
}

static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|i| e4m3(i as u8)));
static E5M2: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|i| e5m2(i as u8)));

fn e4m3(bits: u8) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa * 2f32.powi(-9),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// An e5m2 is the upper byte of a half.
fn e5m2(bits: u8) -> f32 {
    f16::from_bits(u16::from(bits) << 8).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that the OCP specification of 8-bit floats lists.
    #[test]
    fn eight_bit_floats() {
        let cases: &[(Element, u32, f32)] = &[
            (Element::E4m3, 0x00, 0.0),
            (Element::E4m3, 0x01, 0.001953125),
            (Element::E4m3, 0x07, 0.013671875),
            (Element::E4m3, 0x08, 0.015625),
            (Element::E4m3, 0x38, 1.0),
            (Element::E4m3, 0x7e, 448.0),
            (Element::E4m3, 0xfe, -448.0),
            (Element::E5m2, 0x01, 2f32.powi(-16)),
            (Element::E5m2, 0x04, 2f32.powi(-14)),
            (Element::E5m2, 0x3c, 1.0),
            (Element::E5m2, 0x7b, 57344.0),
            (Element::E5m2, 0x7c, f32::INFINITY),
        ];
        for &(element, bits, value) in cases {
            assert_eq!(element.value(bits), value, "{element:?} {bits:#x}");
        }
        assert!(Element::E4m3.value(0x7f).is_nan());
        assert!(Element::E5m2.value(0x7d).is_nan());
    }

    #[test]
    fn tf32_loses_the_lowest_bits() {
        assert_eq!(Element::Tf32.value(0x3f80_1fff), 1.0);
        assert_eq!(Element::Tf32.value(0x3f80_2000), f32::from_bits(0x3f80_2000));
    }

    #[test]
    fn values_of_bytes() {
        let mut values = Vec::new();
        Element::Bf16.values(&[0x80, 0x3f, 0x00, 0xc0], &mut values);
        Element::S8.values(&[0xff, 2], &mut values);
        Element::Tf32.values(&[0, 0, 0x40, 0x40], &mut values);
        assert_eq!(values, [1.0, -2.0, -1.0, 2.0, 3.0]);
    }
}
