//! Formats of matrix elements, from their specifications.

use half::{bf16, f16};

/// A format of up to 32 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Format {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
    S32,
    F32,
}

impl Format {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Format::E4m3 | Format::E5m2 | Format::S8 | Format::U8 => 1,
            Format::F16 | Format::Bf16 => 2,
            Format::Tf32 | Format::S32 | Format::F32 => 4,
        }
    }

    /// The bits of a value that the format holds exactly.
    pub(crate) fn encode(self, value: f64) -> u32 {
        let bits = match self {
            Format::F16 => u32::from(f16::from_f64(value).to_bits()),
            Format::Bf16 => u32::from(bf16::from_f64(value).to_bits()),
            Format::Tf32 | Format::F32 => (value as f32).to_bits(),
            Format::S8 => u32::from(value as i8 as u8),
            Format::U8 => u32::from(value as u8),
            Format::S32 => value as i32 as u32,
            Format::E4m3 | Format::E5m2 => {
                let is_it = |bits: &u32| self.decode(*bits) == value;
                (0..256).find(is_it).expect("a value that the format holds")
            }
        };
        assert_eq!(self.decode(bits), value, "{self:?}");
        bits
    }

    pub(crate) fn decode(self, bits: u32) -> f64 {
        match self {
            Format::F16 => f16::from_bits(bits as u16).to_f64(),
            Format::Bf16 => bf16::from_bits(bits as u16).to_f64(),
            Format::Tf32 | Format::F32 => f64::from(f32::from_bits(bits)),
            Format::S8 => f64::from(bits as u8 as i8),
            Format::U8 => f64::from(bits as u8),
            Format::S32 => f64::from(bits as i32),
            // OCP 8-bit floating point: bias 7 with 3 bits of mantissa, bias 15 with 2.
            // The first has NaN alone in its last place, the second ends as IEEE's formats do.
            Format::E4m3 if bits & 0x7f == 0x7f => f64::NAN,
            Format::E5m2 if bits & 0x7f > 0x7c => f64::NAN,
            Format::E5m2 if bits & 0x7f == 0x7c => eight_bits(bits, 2, 15) * f64::INFINITY,
            Format::E4m3 => eight_bits(bits, 3, 7),
            Format::E5m2 => eight_bits(bits, 2, 15),
        }
    }
}

fn eight_bits(bits: u32, n_mantissa: u32, bias: i32) -> f64 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let mantissa = f64::from(bits & ((1 << n_mantissa) - 1)) / f64::from(1 << n_mantissa);
    match ((bits & 0x7f) >> n_mantissa) as i32 {
        0 => sign * mantissa * 2f64.powi(1 - bias),
        exponent => sign * (1.0 + mantissa) * 2f64.powi(exponent - bias),
    }
}
