//! Sixteen lanes as an array: what the compiler makes of it on any target.

use half::f16;

use super::lanes::Lanes;
use super::tiles::VectorTiles;

/// Needs nothing.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// e4m3 codes times 2^-8.
static E4M3: [f32; 256] = e4m3_table();

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; 16] {
    std::array::from_fn(f)
}

impl Lanes for Portable {
    type V = [f32; 16];
    type Tiles = VectorTiles<Portable>;

    const HAS_MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn tiles(self, n_tokens: usize) -> VectorTiles<Portable> {
        VectorTiles::new(self, n_tokens)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }

    #[inline(always)]
    fn store(self, v: [f32; 16], out: &mut [f32; 16]) {
        *out = v;
    }

    #[inline(always)]
    fn prefetch_at(self, _at: *const u8) {}

    #[inline(always)]
    fn prefetch_outer(self, _at: *const u8) {}

    #[inline(always)]
    fn widen_f32(self, stored: &[u8; 64]) -> [f32; 16] {
        let stored = stored.as_chunks().0;
        each(|i| f32::from_le_bytes(stored[i]))
    }

    #[inline(always)]
    fn widen_f16(self, stored: &[u8; 32]) -> [f32; 16] {
        let stored = stored.as_chunks().0;
        each(|i| f16::from_le_bytes(stored[i]).to_f32())
    }

    #[inline(always)]
    fn widen_bf16(self, stored: &[u8; 32]) -> [f32; 16] {
        let stored = stored.as_chunks().0;
        each(|i| f32::from_bits(u32::from(u16::from_le_bytes(stored[i])) << 16))
    }

    #[inline(always)]
    fn widen_e4m3(self, stored: &[u8; 16]) -> [f32; 16] {
        each(|i| E4M3[usize::from(stored[i])])
    }

    #[inline(always)]
    fn pairs_of_e4m3(self, stored: &[u8; 32]) -> [f32; 16] {
        let bits = |code: u8| E4M3[usize::from(code)].to_bits();
        each(|i| f32::from_bits(bits(stored[2 * i + 1]) | bits(stored[2 * i]) >> 16))
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        // Where the target has no such instruction, `mul_add` is a library call a lane.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            each(|i| a[i].mul_add(b[i], c[i]))
        } else {
            each(|i| a[i] * b[i] + c[i])
        }
    }

    #[inline(always)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| greater(a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn and(self, a: [f32; 16], bits: u32) -> [f32; 16] {
        each(|i| f32::from_bits(a[i].to_bits() & bits))
    }

    #[inline(always)]
    fn or(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(|i| f32::from_bits(a[i].to_bits() | b[i].to_bits()))
    }

    #[inline(always)]
    fn add_bits(self, a: [f32; 16], bits: u32) -> [f32; 16] {
        each(|i| f32::from_bits(a[i].to_bits().wrapping_add(bits)))
    }

    #[inline(always)]
    fn max_bits(self, a: [f32; 16], bits: i32) -> [f32; 16] {
        each(|i| f32::from_bits(a[i].to_bits().cast_signed().max(bits).cast_unsigned()))
    }

    #[inline(always)]
    fn shift_left<const N_BITS: i32>(self, a: [f32; 16]) -> [f32; 16] {
        each(|i| f32::from_bits(a[i].to_bits() << N_BITS))
    }

    #[inline(always)]
    fn sum(self, v: [f32; 16]) -> f32 {
        in_a_tree(v, |a, b| a + b)
    }

    #[inline(always)]
    fn greatest(self, v: [f32; 16]) -> f32 {
        in_a_tree(v, greater)
    }
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn in_a_tree(mut v: [f32; 16], join: impl Fn(f32, f32) -> f32) -> f32 {
    for n in [8, 4, 2, 1] {
        for i in 0..n {
            v[i] = join(v[i], v[i + n]);
        }
    }
    v[0]
}

/// Sign, four bits of exponent with bias 7, three of fraction; no infinity, one NaN of each sign.
const fn e4m3_table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = e4m3(code);
        code += 1;
    }
    table
}

/// A code's value times 2^-8. The low half of the f32 is zero: the value is a bf16.
pub(super) const fn e4m3(code: usize) -> f32 {
    let (exponent, fraction) = ((code >> 3) & 15, (code & 7) as f32);
    let magnitude = if code & 127 == 127 {
        f32::NAN
    } else if exponent == 0 {
        fraction / 131_072.0
    } else {
        // (1 + fraction / 8) * 2^(exponent - 7 - 8)
        (8.0 + fraction) * (1u32 << exponent) as f32 / 262_144.0
    };
    if code & 128 == 0 { magnitude } else { -magnitude }
}
