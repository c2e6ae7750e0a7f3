//! Vector primitives: each algorithm is written once over sixteen lanes, and compiled for every
//! level of instructions.
//!
//! **Order is fixed by the data alone.** A sum over `k` keeps sixteen partial sums, element `k` in
//! lane `k mod 16`, blocks of sixteen in sequence, and ends in one fixed tree. So a row's result
//! does not depend on the batch, the tile, the thread or the address it is computed at. Sums of
//! e4m3 times e4m3 go by pairs, elements 2i and 2i + 1 of every 32 in lane i, the odd one first.
//! AVX-512 with and without BF16 and AVX2 (two registers a vector) agree bit for bit, and so does
//! the portable level where the target itself has fused multiply-add (as aarch64 does); elsewhere
//! it rounds products and is only close, but for products of pairs, which are exact. AMX multiplies
//! pairs by tiles, in an order of its own that is as fixed: see [`tiles`].
//!
//! It knows shapes, element types and scales, but no threads.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
pub(crate) mod attention_tiles;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
mod lanes;
mod math;
mod packed;
mod panels;
mod peak;
mod portable;
mod product;
mod rows;
mod tiles;

use weights::Dtype;

use super::HostView;

pub(crate) use attention::{AttentionScratch, Chunk, N_QUERIES_MAX, Queries};
pub(crate) use element::widened_factor;
pub(crate) use packed::{Packed, Packing, pack_singles, packs, panels_mut};
pub(crate) use panels::{PANEL_ROWS, ProductScratch, n_tile_tokens};
pub(crate) use product::{Product, WeightRows};
pub(crate) use tiles::{
    N_PAIRS_MAX, Rounding, Stored, TILE_TOKENS, TileProduct, TileRows, TileScratch, TileWeights,
    TokenLayout, TokenTiles, pack_pair,
};

/// Instructions that the kernels may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimdLevel {
    /// What the compilation target has.
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL besides.
    Avx512,
    /// AVX-512 BF16 and VBMI besides.
    Avx512Bf16,
    /// AMX's tiles of BF16 besides.
    Amx,
}

/// A level that this processor was seen to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simd {
    level: SimdLevel,
}

impl SimdLevel {
    /// From the plainest up.
    pub const ALL: [SimdLevel; 5] = [
        SimdLevel::Portable,
        SimdLevel::Avx2,
        SimdLevel::Avx512,
        SimdLevel::Avx512Bf16,
        SimdLevel::Amx,
    ];
}

impl Simd {
    /// The best that this processor has.
    pub fn detect() -> Simd {
        let best = SimdLevel::ALL.into_iter().rev().find_map(Simd::new);
        best.expect("every processor has the portable level")
    }

    /// `level`, if this processor has it.
    pub fn new(level: SimdLevel) -> Option<Simd> {
        let is_there = match level {
            SimdLevel::Portable => true,
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => avx512::is_available(),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512Bf16 => avx512::is_bf16_available(),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Amx => amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        };
        is_there.then_some(Simd { level })
    }

    /// Which it is.
    pub fn level(self) -> SimdLevel {
        self.level
    }

    /// Runs multiply-adds out of registers and gives back how many: a thread's peak, for benches.
    pub fn spin(self, n_rounds: usize) -> usize {
        std::hint::black_box(multiply_adds(self, n_rounds));
        n_rounds * peak::MULTIPLY_ADDS_PER_ROUND
    }

    /// Whether products of bf16 go by tiles.
    pub(crate) fn has_tiles(self) -> bool {
        self.level == SimdLevel::Amx
    }

    /// Reads all of `bytes` and gives back a number that depends on them: a thread's peak of
    /// reading, for benches.
    pub fn read(self, bytes: &[u8]) -> f32 {
        greatest_number(self, bytes)
    }

    /// The same of products of bf16, by whatever multiplies those.
    pub fn spin_pairs(self, n_rounds: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.has_tiles() {
            // SAFETY: a `Simd` of this level exists only where the processor has it.
            return unsafe { amx::AmxTiles::assume(tiles::TILE) }.spin(n_rounds / 16);
        }
        std::hint::black_box(multiply_adds_of_pairs(self, n_rounds));
        n_rounds * 2 * peak::MULTIPLY_ADDS_PER_ROUND
    }
}

/// Defines functions that run `$implementation`, generic over [`lanes::Lanes`], compiled for the
/// instructions of the level they are given.
macro_rules! for_every_level {
    ($(
        $(#[$doc:meta])*
        $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $implementation:path;
    )*) => {$(
        $(#[$doc])*
        pub(crate) fn $name(simd: Simd, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[target_feature(enable = "avx512bf16,avx512vbmi,gfni")]
            fn on_amx($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function only runs where tiles and its own target features are.
                let s = unsafe { avx512::Avx512::<avx512::WithAmx>::assume() };
                $implementation(s, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[target_feature(enable = "avx512bf16,avx512vbmi")]
            fn on_avx512_bf16($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function only runs where its own target features are.
                let s = unsafe { avx512::Avx512::<avx512::WithBf16>::assume() };
                $implementation(s, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn on_avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function only runs where its own target features are.
                let s = unsafe { avx512::Avx512::<avx512::Plain>::assume() };
                $implementation(s, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn on_avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: this function only runs where its own target features are.
                $implementation(unsafe { avx2::Avx2::assume() }, $($arg),*)
            }
            match simd.level {
                // SAFETY: a `Simd` of this level exists only where the processor has it.
                #[cfg(target_arch = "x86_64")]
                SimdLevel::Amx => unsafe { on_amx($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                SimdLevel::Avx512Bf16 => unsafe { on_avx512_bf16($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                SimdLevel::Avx512 => unsafe { on_avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                SimdLevel::Avx2 => unsafe { on_avx2($($arg),*) },
                _ => $implementation(portable::Portable, $($arg),*),
            }
        }
    )*};
}

for_every_level! {
    /// Widens stored elements to f32; e4m3 comes out times 2^-8, see [`widened_factor`].
    widen(dtype: Dtype, stored: &[u8], out: &mut [f32]) = element::widen;
    /// Asks for every cache line of what will be read soon.
    prefetch(stored: &[u8]) = element::prefetch;
    /// `Σ x²`.
    sum_of_squares(x: &[f32]) -> f32 = rows::sum_of_squares;
    /// `max |x|` over the elements that are numbers; 0 for none.
    max_magnitude(x: &[f32]) -> f32 = rows::max_magnitude;
    /// `out = (x * factor) * weight`.
    scale_by(x: &[f32], factor: f32, weight: &[f32], out: &mut [f32]) = rows::scale_by;
    /// `x = e4m3(clamp(x / scale, ±448))`, kept as f32. NaN stays NaN.
    quantize_e4m3(x: &mut [f32], scale: f32) = rows::quantize_e4m3;
    /// The same, as codes.
    encode_e4m3(x: &[f32], scale: f32, out: &mut [u8]) = rows::encode_e4m3;
    /// `out = gate / (1 + exp(-gate)) * up`.
    silu_times(gate: &[f32], up: &[f32], out: &mut [f32]) = rows::silu_times;
    /// `out[t][n] = Σ_k x[t][k] · w[n][k]`, scaled; weights are widened as they are read: for few
    /// tokens.
    direct_product(product: Product<'_>) = product::direct;
    /// The same bits, weights widened once for all tokens of the tile: for many.
    panel_product(product: Product<'_>, scratch: &mut ProductScratch) = panels::by_panels;
    /// The product of a tile of tokens with weights, by tiles of sixteen and sixteen: sums in
    /// another order than that of the two above.
    tile_product(product: TileProduct<'_>, scratch: &mut TileScratch) = tiles::by_tiles;
    /// Packs up to sixteen tokens of a few columns for that, as `(rounding, tokens of a group)`;
    /// whether all were bf16 that shall be.
    pack_tokens(x: HostView<'_>, how: (Rounding, usize), out: &mut [f32]) -> bool
        = tiles::pack_tokens;
    /// Packs a row of e4m3 values as pairs of bf16; whether all were such.
    pack_pairs(x: &[f32], out: &mut [f32]) -> bool = packed::pack_pairs;
    /// Packs a row of numbers as pairs of bf16, rounded.
    round_to_pairs(x: &[f32], out: &mut [f32]) = packed::round_to_pairs;
    /// A number that depends on as many rounds of multiply-adds.
    multiply_adds(n_rounds: usize) -> f32 = peak::multiply_adds;
    /// The same of pairs of bf16.
    multiply_adds_of_pairs(n_rounds: usize) -> f32 = peak::multiply_adds_of_pairs;
    /// The greatest of all whole blocks' numbers, for benches.
    greatest_number(bytes: &[u8]) -> f32 = peak::greatest_number;
    /// Takes the positions of one chunk into the running softmax of every query that sees them.
    attend(chunk: Chunk, queries: Queries<'_>, scratch: &mut AttentionScratch) = attention::attend;
}

#[cfg(test)]
for_every_level! {
    /// 32 codes as pairs.
    pairs_of_e4m3(stored: &[u8; 32]) -> [f32; 16] = tests::pairs_of_e4m3;
    /// 64 codes.
    two_pairs_of_e4m3(stored: &[[u8; 32]; 2]) -> [[f32; 16]; 2] = tests::two_pairs_of_e4m3;
    /// 64 codes of two steps in turns.
    pairs_of_steps(codes: &[f32; 16]) -> [[f32; 16]; 2] = tests::pairs_of_steps;
    /// The sums of sixteen vectors, one by one, in fours and at once.
    sums_every_way(rows: &[[f32; 16]; 16]) -> [[f32; 16]; 3] = tests::sums_every_way;
}

#[cfg(test)]
mod tests;
