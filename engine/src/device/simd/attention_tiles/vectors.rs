//! What attention over tiles does with vectors of AVX-512.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::TILE;
use crate::device::simd::avx512::{Avx512, WithAmx};
use crate::device::simd::lanes::Lanes;

/// Of a number of f32, what is also one of bf16.
const HIGH_HALF: i32 = 0xFFFF_0000_u32.cast_signed();

/// `2^r = Σ P[i] r^i` for r from 0 to 1, within 2.5 roundings (Remez's algorithm).
const P: [f32; 6] =
    [0.999_999_94, 0.693_153_1, 0.240_153_61, 0.055_826_318, 0.008_989_34, 0.001_877_576_7];

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(x: &[f32; TILE]) -> __m512 {
    // SAFETY: the reference is to as many bytes as the instruction reads, at any address.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(v: __m512, x: &mut [f32; TILE]) {
    // SAFETY: the reference is to as many bytes as the instruction writes, at any address.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
}

/// 2^x of what is not above zero; 0 of -∞, NaN of NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn exp2(x: __m512) -> __m512 {
    const DOWN_TO_INTEGER: i32 = 0b0000_1001;
    // x - floor(x): 0 of -∞.
    let r = _mm512_reduce_ps::<DOWN_TO_INTEGER>(x);
    let mut p = _mm512_set1_ps(P[5]);
    for i in (0..5).rev() {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(P[i]));
    }
    // p * 2^floor(x)
    _mm512_scalef_ps(p, x)
}

/// Two vectors as pairs of bf16, one of each: what lies in the numbers' high halves.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn paired([even, odd]: [__m512; 2]) -> __m512 {
    let even = _mm512_srli_epi32::<16>(_mm512_castps_si512(even));
    // even | (odd & HIGH_HALF)
    let (odd, high) = (_mm512_castps_si512(odd), _mm512_set1_epi32(HIGH_HALF));
    _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xF8>(even, odd, high))
}

/// What [`paired`] leaves out.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn rests([a, b]: [__m512; 2]) -> [__m512; 2] {
    let high = _mm512_castsi512_ps(_mm512_set1_epi32(HIGH_HALF));
    [_mm512_sub_ps(a, _mm512_and_ps(a, high)), _mm512_sub_ps(b, _mm512_and_ps(b, high))]
}

/// Numbers whose high halves are the nearest bf16, halves away from zero.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn rounded([a, b]: [__m512; 2]) -> [__m512; 2] {
    let half = _mm512_set1_epi32(0x8000);
    let a = _mm512_add_epi32(_mm512_castps_si512(a), half);
    let b = _mm512_add_epi32(_mm512_castps_si512(b), half);
    [_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)]
}

/// The high halves of 32 numbers, neighbours in one lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn neighbours_paired([a, b]: [__m512; 2]) -> __m512 {
    static HIGH_HALVES: [i16; 32] = {
        let mut places = [0; 32];
        let mut i = 0;
        while i < 32 {
            places[i] = 2 * i as i16 + 1;
            i += 1;
        }
        places
    };
    // SAFETY: the static has as many bytes as the instruction reads.
    let places = unsafe { _mm512_loadu_si512(HIGH_HALVES.as_ptr().cast()) };
    let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
    _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, places, b))
}

/// The bf16 nearest to each of 32 numbers, ties to even, neighbours in one lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn nearest_neighbours_paired([a, b]: [__m512; 2]) -> __m512 {
    // SAFETY: both types are registers of 64 bytes.
    unsafe { transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(b, a)) }
}

/// Two rows of pairs (a, b), (c, d) as pairs of one of each, (a, c), (b, d): four elements of every
/// eight, then the other four.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn interleaved(a: __m512, b: __m512) -> [__m512; 2] {
    let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
    let (low, high) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
    [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
}

/// Columns of what [`interleaved`] gave, in their order again.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn in_order([low, high]: [__m512; 2]) -> [__m512; 2] {
    let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    [_mm512_permutex2var_ps(low, first, high), _mm512_permutex2var_ps(low, second, high)]
}

/// The greater magnitude of each number of bf16, as bits: above all numbers are ∞ and NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn greater_magnitudes(greatest: __m512i, pairs: __m512) -> __m512i {
    let magnitude = _mm512_set1_epi16(i16::MAX);
    _mm512_max_epu16(greatest, _mm512_and_si512(_mm512_castps_si512(pairs), magnitude))
}

/// Whether a magnitude is none of a number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn has_no_number(magnitudes: __m512i) -> bool {
    _mm512_cmpge_epu16_mask(magnitudes, _mm512_set1_epi16(super::INFINITE.cast_signed())) != 0
}

/// Bytes as they lie.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn bytes(stored: &[u8; 64]) -> __m512 {
    // SAFETY: the reference is to as many bytes as the instruction reads, at any address.
    unsafe { _mm512_loadu_ps(stored.as_ptr().cast()) }
}

/// Pairs of bf16 as they lie, or of 32 codes of e4m3.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
pub(super) fn pairs<const N_BYTES: usize>(stored: &[u8; N_BYTES]) -> __m512 {
    if let Ok(stored) = stored.as_slice().try_into() {
        return bytes(stored);
    }
    let codes = stored.as_slice().try_into().expect("32 codes");
    // SAFETY: this function only runs where its own target features are, and others that a
    // processor with tiles has.
    unsafe { Avx512::<WithAmx>::assume() }.pairs_of_e4m3(codes)
}

/// 64 codes of e4m3 as pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
pub(super) fn two_e4m3_pairs(codes: __m512) -> [__m512; 2] {
    // SAFETY: both types are registers of 64 bytes; as in `pairs`.
    unsafe {
        let codes = transmute::<__m512, [[u8; 32]; 2]>(codes);
        Avx512::<WithAmx>::assume().two_pairs_of_e4m3(&codes)
    }
}

/// The first two bytes of every four, then the other two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn words_parted(codes: __m512) -> __m512 {
    static EVEN_FIRST: [i16; 32] = {
        let mut places = [0; 32];
        let mut i = 0;
        while i < 32 {
            places[i] = 2 * (i as i16 % 16) + i as i16 / 16;
            i += 1;
        }
        places
    };
    // SAFETY: the static has as many bytes as the instruction reads.
    let places = unsafe { _mm512_loadu_si512(EVEN_FIRST.as_ptr().cast()) };
    _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, _mm512_castps_si512(codes)))
}

/// Two rows of 64 codes as pairs of one of each: what [`interleaved`] gives of both halves' numbers
/// is, as codes, the first half of either result, then the second.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn interleaved_codes(a: __m512, b: __m512) -> [__m512; 2] {
    const EVEN_FOURS_FIRST: i32 = 0b11_01_10_00;
    let a = _mm512_shuffle_epi32::<EVEN_FOURS_FIRST>(_mm512_castps_si512(a));
    let b = _mm512_shuffle_epi32::<EVEN_FOURS_FIRST>(_mm512_castps_si512(b));
    let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
    [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
}

/// Sixteen rows of sixteen lanes with rows and lanes exchanged.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed(v: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: as in `pairs`.
    unsafe { Avx512::<WithAmx>::assume() }.transposed(v)
}

/// The greatest of each of sixteen rows that have no NaN.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn greatest_of_each(rows: &[__m512; 16]) -> __m512 {
    let mut quarters = [rows[0]; 4];
    for (quarter, rows) in quarters.iter_mut().zip(rows.as_chunks().0) {
        let [a, b, c, d] = *rows;
        let (a, b) = (greater_halves(a, b), greater_halves(c, d));
        *quarter = _mm512_max_ps(
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
        );
    }
    let (a, b) = (greater_twos(quarters[0], quarters[1]), greater_twos(quarters[2], quarters[3]));
    let greatest = _mm512_max_ps(
        _mm512_shuffle_ps::<0b10_00_10_00>(a, b),
        _mm512_shuffle_ps::<0b11_01_11_01>(a, b),
    );
    // Of every four rows the first come first.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_ps(order, greatest)
}

/// The greater of lanes i and i + 8 of `a`, then of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn greater_halves(a: __m512, b: __m512) -> __m512 {
    let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
    _mm512_max_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
}

/// Of every four lanes, the greater of i and i + 2 of `a`, then of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn greater_twos(a: __m512, b: __m512) -> __m512 {
    let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
    let low = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    _mm512_max_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
}
