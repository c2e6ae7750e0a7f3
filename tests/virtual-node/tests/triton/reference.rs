//! Inputs, and how outputs are held against float64.

use half::{bf16, f16};

use crate::isa::formats::Format;

/// A generator whose numbers are the same everywhere (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From −1 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Values that the format holds exactly, and their bytes.
    pub(super) fn values(&mut self, format: Format, n: usize) -> Values {
        let bits = |random: &mut Random| match format {
            Format::S8 => random.next() as u32 & 0xff,
            _ => nearest(format, random.unit()),
        };
        let bits: Vec<u32> = (0..n).map(|_| bits(self)).collect();
        Values {
            values: bits.iter().map(|bits| format.decode(*bits)).collect(),
            bytes: bits
                .iter()
                .flat_map(|bits| bits.to_le_bytes().into_iter().take(format.bytes()))
                .collect(),
        }
    }
}

/// Numbers, and the same in memory.
pub(super) struct Values {
    pub(super) values: Vec<f64>,
    pub(super) bytes: Vec<u8>,
}

/// The bits of the value of a format that is nearest, ties to even; beyond the greatest, that.
pub(super) fn nearest(format: Format, value: f64) -> u32 {
    match format {
        Format::F16 => u32::from(f16::from_f64(value).to_bits()),
        Format::Bf16 => u32::from(bf16::from_f64(value).to_bits()),
        Format::Tf32 => (value as f32).to_bits() & 0xffff_e000,
        Format::F32 => (value as f32).to_bits(),
        Format::E4m3 => nearest_byte(format, value, 0x7e),
        Format::E5m2 => nearest_byte(format, value, 0x7b),
        Format::S8 | Format::U8 | Format::S32 => format.encode(value.round()),
    }
}

fn nearest_byte(format: Format, value: f64, greatest: u32) -> u32 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let distance = |bits: &u32| (format.decode(*bits) - value.abs()).abs();
    let nearer = |x: &u32, y: &u32| distance(x).total_cmp(&distance(y)).then((x & 1).cmp(&(y & 1)));
    (0..=greatest).min_by(nearer).expect("there is one") | sign
}

/// Reads numbers of a format.
pub(super) fn decode(format: Format, bytes: &[u8]) -> Vec<f64> {
    let value = |bytes: &[u8]| {
        let mut wide = [0; 4];
        wide[..bytes.len()].copy_from_slice(bytes);
        format.decode(u32::from_le_bytes(wide))
    };
    bytes.chunks_exact(format.bytes()).map(value).collect()
}

/// Bytes that are NaN in every floating-point format.
pub(super) fn poison(n_bytes: usize) -> Vec<u8> {
    vec![0xff; n_bytes]
}

/// Each value must lie within its bound; NaN never does.
pub(super) fn assert_near(name: &str, found: &[f64], expected: &[(f64, f64)]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (found, (expected, bound))) in found.iter().zip(expected).enumerate() {
        let is_near = (found - expected).abs() <= *bound;
        assert!(is_near, "{name}: {found} at {i} instead of {expected} ± {bound}");
    }
}

/// Half a step of a format at a value, at most.
pub(super) fn rounding(format: Format, value: f64) -> f64 {
    let relative = match format {
        Format::Bf16 => 2f64.powi(-8),
        Format::F16 => 2f64.powi(-11),
        Format::S32 => 0.0,
        _ => 2f64.powi(-24),
    };
    value.abs() * relative
}
