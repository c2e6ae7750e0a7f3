//! Sixteen lanes in one register of AVX-512.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Proof that the processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Whether the processor has what [`Avx512`] stands for.
pub(super) fn is_available() -> bool {
    super::avx2::is_available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

impl Avx512 {
    /// # Safety
    /// [`is_available`] holds on this processor.
    #[inline(always)]
    pub(super) unsafe fn assume() -> Avx512 {
        Avx512(())
    }
}

macro_rules! proven {
    ($operation:expr) => {{
        // SAFETY: `self` proves the instructions; every pointer among the operands comes from a
        // reference to an array of exactly the bytes that the instruction moves, at any address.
        unsafe { $operation }
    }};
}

impl Lanes for Avx512 {
    type V = __m512;

    const HAS_MANY_REGISTERS: bool = true;

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
    fn prefetch<T>(self, at: &T) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()))
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
    fn greatest(self, v: __m512) -> f32 {
        proven!({
            let high = _mm512_extractf32x8_ps::<1>(v);
            super::avx2::greatest_of_eight(_mm256_max_ps(_mm512_castps512_ps256(v), high))
        })
    }
}
