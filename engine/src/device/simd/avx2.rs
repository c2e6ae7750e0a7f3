//! Sixteen lanes in two registers of AVX2.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use super::tiles::VectorTiles;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Whether the processor has what [`Avx2`] stands for.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

impl Avx2 {
    /// # Safety
    /// [`is_available`] holds on this processor.
    #[inline(always)]
    pub(super) unsafe fn assume() -> Avx2 {
        Avx2(())
    }
}

macro_rules! proven {
    ($operation:expr) => {{
        // SAFETY: `self` proves the instructions; every pointer among the operands comes from a
        // reference to an array of at least the bytes that the instruction moves, at any address.
        unsafe { $operation }
    }};
}

/// Sixteen codes, each with its sign extended to 16 bits, to the f16 of value times 2^-8.
///
/// `S EEEE FFF` moved up to bit 14 is `S S EEEE FFF 0…`; without the second sign it is an f16 whose
/// exponent, biased by 15 instead of 7, reads 2^-8 too little. One unit more carries through the
/// exponent of the one NaN magnitude, all ones, and of no other: so bit 14 of that sum is the
/// second sign, flipped for a NaN, and what the exclusive or leaves of it makes an f16 NaN.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn e4m3_as_f16(codes: __m256i) -> __m256i {
    // SAFETY: the caller's.
    unsafe {
        let moved = _mm256_slli_epi16::<7>(codes);
        let carried = _mm256_add_epi16(moved, _mm256_set1_epi16(0x0080));
        _mm256_xor_si256(moved, _mm256_and_si256(carried, _mm256_set1_epi16(0x4000)))
    }
}

/// Codes of 16 neighbouring pairs to f16, as [`e4m3_as_f16`] says.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn even_and_odd_e4m3(stored: &[u8; 32]) -> [__m256i; 2] {
    // SAFETY: the caller's; the pointer is that of 32 bytes.
    unsafe {
        let codes = _mm256_loadu_si256(stored.as_ptr().cast());
        let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(codes));
        [e4m3_as_f16(even), e4m3_as_f16(_mm256_srai_epi16::<8>(codes))]
    }
}

/// Lanes i and i + 4, then i + 2, then i + 1.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn sum_of_eight(v: __m256) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// The same tree over maxima.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
pub(super) unsafe fn greatest_of_eight(v: __m256) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// `f` on lanes 0 to 7 and on lanes 8 to 15.
macro_rules! on_halves {
    (|$($v:ident),+| $operation:expr) => {
        [
            { $(let $v = $v[0];)+ proven!($operation) },
            { $(let $v = $v[1];)+ proven!($operation) },
        ]
    };
}

impl Lanes for Avx2 {
    type V = [__m256; 2];
    type Tiles = VectorTiles<Avx2>;

    const HAS_MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn tiles(self, n_tokens: usize) -> VectorTiles<Avx2> {
        VectorTiles::new(self, n_tokens)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        [proven!(_mm256_set1_ps(x)); 2]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [__m256; 2] {
        let x = [x[..8].as_ptr(), x[8..].as_ptr()];
        on_halves!(|x| _mm256_loadu_ps(x))
    }

    #[inline(always)]
    fn store(self, v: [__m256; 2], out: &mut [f32; 16]) {
        let (low, high) = out.split_at_mut(8);
        proven!(_mm256_storeu_ps(low.as_mut_ptr(), v[0]));
        proven!(_mm256_storeu_ps(high.as_mut_ptr(), v[1]));
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
    fn widen_f32(self, stored: &[u8; 64]) -> [__m256; 2] {
        let stored = [stored[..32].as_ptr(), stored[32..].as_ptr()];
        on_halves!(|stored| _mm256_loadu_ps(stored.cast()))
    }

    #[inline(always)]
    fn widen_f16(self, stored: &[u8; 32]) -> [__m256; 2] {
        let stored = [stored[..16].as_ptr(), stored[16..].as_ptr()];
        on_halves!(|stored| _mm256_cvtph_ps(_mm_loadu_si128(stored.cast())))
    }

    #[inline(always)]
    fn widen_bf16(self, stored: &[u8; 32]) -> [__m256; 2] {
        let stored = [stored[..16].as_ptr(), stored[16..].as_ptr()];
        on_halves!(|stored| {
            let codes = _mm256_cvtepu16_epi32(_mm_loadu_si128(stored.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(codes))
        })
    }

    #[inline(always)]
    fn widen_e4m3(self, stored: &[u8; 16]) -> [__m256; 2] {
        let halves = proven!({
            let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(stored.as_ptr().cast()));
            let wide = e4m3_as_f16(codes);
            [_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide)]
        });
        on_halves!(|halves| _mm256_cvtph_ps(halves))
    }

    #[inline(always)]
    fn pairs_of_e4m3(self, stored: &[u8; 32]) -> [__m256; 2] {
        let (even, odd) = proven!({
            let [even, odd] = even_and_odd_e4m3(stored);
            (
                [_mm256_castsi256_si128(even), _mm256_extracti128_si256::<1>(even)],
                [_mm256_castsi256_si128(odd), _mm256_extracti128_si256::<1>(odd)],
            )
        });
        on_halves!(|even, odd| {
            let even = _mm256_castps_si256(_mm256_cvtph_ps(even));
            let even = _mm256_castsi256_ps(_mm256_srli_epi32::<16>(even));
            _mm256_or_ps(_mm256_cvtph_ps(odd), even)
        })
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a, b| _mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a, b| _mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a, b| _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a, b| _mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a, b, c| _mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a, b| _mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a, b| _mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn and(self, a: [__m256; 2], bits: u32) -> [__m256; 2] {
        on_halves!(|a| _mm256_and_ps(a, _mm256_set1_ps(f32::from_bits(bits))))
    }

    #[inline(always)]
    fn or(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a, b| _mm256_or_ps(a, b))
    }

    #[inline(always)]
    fn add_bits(self, a: [__m256; 2], bits: u32) -> [__m256; 2] {
        on_halves!(|a| {
            let bits = _mm256_set1_epi32(bits.cast_signed());
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), bits))
        })
    }

    #[inline(always)]
    fn max_bits(self, a: [__m256; 2], bits: i32) -> [__m256; 2] {
        on_halves!(|a| {
            let bits = _mm256_set1_epi32(bits);
            _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), bits))
        })
    }

    #[inline(always)]
    fn shift_left<const N_BITS: i32>(self, a: [__m256; 2]) -> [__m256; 2] {
        on_halves!(|a| _mm256_castsi256_ps(_mm256_slli_epi32::<N_BITS>(_mm256_castps_si256(a))))
    }

    #[inline(always)]
    fn sum(self, v: [__m256; 2]) -> f32 {
        proven!(sum_of_eight(_mm256_add_ps(v[0], v[1])))
    }

    #[inline(always)]
    fn greatest(self, v: [__m256; 2]) -> f32 {
        proven!(greatest_of_eight(_mm256_max_ps(v[0], v[1])))
    }
}
