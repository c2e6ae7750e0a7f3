//! Sixteen lanes in one register of AVX-512, with or without its products of bf16.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::transmute;

use super::lanes::{Lanes, codes_of_steps};
use super::math;

mod extension;
mod shuffles;

pub(super) use extension::{Extension, Plain, WithAmx, WithBf16};

/// Proof that the processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C, and what `E` adds.
#[derive(Clone, Copy)]
pub(super) struct Avx512<E>(PhantomData<E>);

/// Whether the processor has what [`Avx512`] stands for.
pub(super) fn is_available() -> bool {
    super::avx2::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Whether the processor has what [`Avx512`] stands for with [`WithBf16`].
pub(super) fn is_bf16_available() -> bool {
    is_available()
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512vbmi")
}

macro_rules! proven {
    ($operation:expr) => {{
        // SAFETY: `self` proves the instructions; every pointer among the operands comes from a
        // reference to an array of exactly the bytes that the instruction moves, at any address.
        unsafe { $operation }
    }};
}

impl<E: Extension> Avx512<E> {
    /// # Safety
    /// [`is_available`] holds on this processor, and so does [`is_bf16_available`] for [`WithBf16`]
    /// and [`amx::is_available`](super::amx::is_available) for [`WithAmx`].
    #[inline(always)]
    pub(super) unsafe fn assume() -> Self {
        Avx512(PhantomData)
    }

    /// Rows and lanes exchanged.
    #[inline(always)]
    pub(super) fn transposed(self, v: [__m512; 16]) -> [__m512; 16] {
        proven!(shuffles::transposed(v))
    }
}

impl<E: Extension> Lanes for Avx512<E> {
    type V = __m512;
    type Tiles = E::Tiles;

    const HAS_MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn tiles(self, n_tokens: usize) -> E::Tiles {
        E::tiles(self, n_tokens)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> __m512 {
        proven!(_mm512_loadu_ps(x.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; 16]) {
        proven!(_mm512_storeu_ps(out.as_mut_ptr(), v))
    }

    #[inline(always)]
    fn stream(self, v: __m512, out: &mut [f32; 16]) {
        if out.as_ptr().addr().is_multiple_of(64) {
            return proven!(_mm512_stream_ps(out.as_mut_ptr(), v));
        }
        self.store(v, out);
    }

    #[inline(always)]
    fn finish_streams(self) {
        proven!(_mm_sfence())
    }

    #[inline(always)]
    fn prefetch_at(self, at: *const u8) {
        // No address is wrong: the instruction never faults.
        proven!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }

    #[inline(always)]
    fn prefetch_outer(self, at: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T2>(at.cast()))
    }

    #[inline(always)]
    fn widen_f32(self, stored: &[u8; 64]) -> __m512 {
        proven!(_mm512_loadu_ps(stored.as_ptr().cast()))
    }

    #[inline(always)]
    fn widen_f16(self, stored: &[u8; 32]) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(stored.as_ptr().cast())))
    }

    #[inline(always)]
    fn widen_bf16(self, stored: &[u8; 32]) -> __m512 {
        proven!({
            let codes = _mm512_cvtepu16_epi32(_mm256_loadu_si256(stored.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(codes))
        })
    }

    #[inline(always)]
    fn widen_e4m3(self, stored: &[u8; 16]) -> __m512 {
        proven!({
            let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(stored.as_ptr().cast()));
            _mm512_cvtph_ps(super::avx2::e4m3_as_f16(codes))
        })
    }

    #[inline(always)]
    fn pairs_of_e4m3(self, stored: &[u8; 32]) -> __m512 {
        if E::HAS_BF16 {
            return proven!(shuffles::looked_up_pairs(stored));
        }
        proven!({
            let [even, odd] = super::avx2::even_and_odd_e4m3(stored);
            let even = _mm512_castps_si512(_mm512_cvtph_ps(even));
            let even = _mm512_castsi512_ps(_mm512_srli_epi32::<16>(even));
            _mm512_or_ps(_mm512_cvtph_ps(odd), even)
        })
    }

    #[inline(always)]
    fn two_pairs_of_e4m3(self, stored: &[[u8; 32]; 2]) -> [__m512; 2] {
        if E::HAS_BF16 {
            return proven!(shuffles::looked_up_twice(stored));
        }
        [self.pairs_of_e4m3(&stored[0]), self.pairs_of_e4m3(&stored[1])]
    }

    #[inline(always)]
    fn pairs_of_steps(self, codes: &[f32; 16]) -> [__m512; 2] {
        if E::HAS_TILES {
            return proven!(shuffles::pairs_of_steps(codes));
        }
        let [first, second] = codes_of_steps(codes);
        [self.pairs_of_e4m3(&first), self.pairs_of_e4m3(&second)]
    }

    #[inline(always)]
    fn codes_of_e4m3(self, values: __m512) -> [u8; 16] {
        let mut codes = [0; 16];
        proven!({
            let bits = _mm512_castps_si512(values);
            let rebias = _mm512_set1_ps(math::E4M3_REBIAS);
            let rebiased = _mm512_mul_ps(_mm512_abs_ps(values), rebias);
            let magnitude = _mm512_srli_epi32::<20>(_mm512_castps_si512(rebiased));
            let nan = _mm512_set1_epi32(i32::from(math::E4M3_NAN));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
            let magnitude = _mm512_mask_mov_epi32(magnitude, is_nan, nan);
            // magnitude | (bits >> 24 & sign)
            let (sign, bits) = (_mm512_set1_epi32(0x80), _mm512_srli_epi32::<24>(bits));
            let whole = _mm512_ternarylogic_epi32::<0xEA>(sign, bits, magnitude);
            _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole));
        });
        codes
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn mul_add_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if E::HAS_BF16 {
            // SAFETY: `self` proves the instruction; the types are registers of 64 bytes each.
            return unsafe {
                let (a, b) = (transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b));
                _mm512_dpbf16_ps(c, a, b)
            };
        }
        let c = self.mul_add(self.and(a, 0xFFFF_0000), self.and(b, 0xFFFF_0000), c);
        self.mul_add(self.shift_left::<16>(a), self.shift_left::<16>(b), c)
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m512, bits: u32) -> __m512 {
        proven!(_mm512_and_ps(a, _mm512_set1_ps(f32::from_bits(bits))))
    }

    #[inline(always)]
    fn or(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_or_ps(a, b))
    }

    #[inline(always)]
    fn add_bits(self, a: __m512, bits: u32) -> __m512 {
        proven!({
            let bits = _mm512_set1_epi32(bits.cast_signed());
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), bits))
        })
    }

    #[inline(always)]
    fn max_bits(self, a: __m512, bits: i32) -> __m512 {
        proven!({
            let bits = _mm512_set1_epi32(bits);
            _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), bits))
        })
    }

    #[inline(always)]
    fn shift_left<const N_BITS: i32>(self, a: __m512) -> __m512 {
        // The register form takes the count at run time, so it needs no second constant type.
        proven!({
            let count = _mm_cvtsi32_si128(N_BITS);
            _mm512_castsi512_ps(_mm512_sll_epi32(_mm512_castps_si512(a), count))
        })
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        proven!({
            let high = _mm512_extractf32x8_ps::<1>(v);
            super::avx2::sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(v), high))
        })
    }

    #[inline(always)]
    fn sums_of_four(self, [a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        proven!({
            // Four lanes of each; then two; then one.
            let four = shuffles::quarters_added([a, b, c, d]);
            let two = _mm512_add_ps(four, _mm512_permute_ps::<0b01_00_11_10>(four));
            let one = _mm512_add_ps(two, _mm512_permute_ps::<0b10_11_00_01>(two));
            let firsts = _mm512_maskz_compress_ps(0x1111, one);
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(firsts));
        });
        sums
    }

    #[inline(always)]
    fn sums_of_sixteen(self, v: [__m512; 16]) -> __m512 {
        /// Where lane i comes from: of every four, the first four have the first.
        static FIRSTS_LAST: [i32; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
        proven!({
            // Four lanes of each in turn; then two, of two vectors; then one, of all four.
            let a = shuffles::quarters_added([v[0], v[1], v[2], v[3]]);
            let b = shuffles::quarters_added([v[4], v[5], v[6], v[7]]);
            let c = shuffles::quarters_added([v[8], v[9], v[10], v[11]]);
            let d = shuffles::quarters_added([v[12], v[13], v[14], v[15]]);
            let (ab, cd) = (shuffles::pairs_added(a, b), shuffles::pairs_added(c, d));
            let low = _mm512_shuffle_ps::<0b10_00_10_00>(ab, cd);
            let sums = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_01_11_01>(ab, cd));
            let places = _mm512_loadu_si512(FIRSTS_LAST.as_ptr().cast());
            _mm512_permutexvar_ps(places, sums)
        })
    }

    #[inline(always)]
    fn greatest(self, v: __m512) -> f32 {
        proven!({
            let high = _mm512_extractf32x8_ps::<1>(v);
            super::avx2::greatest_of_eight(_mm256_max_ps(_mm512_castps512_ps256(v), high))
        })
    }
}
