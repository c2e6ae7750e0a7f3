//! Lanes that change places in registers of AVX-512.

use std::arch::x86_64::*;

/// What bf16 codes of e4m3 codes without their signs look like, times 2^-8: their low bytes, then
/// their high ones.
static E4M3_BYTES: [[u8; 128]; 2] = e4m3_bytes();

const fn e4m3_bytes() -> [[u8; 128]; 2] {
    let mut bytes = [[0; 128]; 2];
    let mut code = 0;
    while code < 128 {
        let [_, _, low, high] = super::super::portable::e4m3(code).to_bits().to_le_bytes();
        (bytes[0][code], bytes[1][code]) = (low, high);
        code += 1;
    }
    bytes
}

/// Lanes i and i + 8 of `a`, then of `b`.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn halves_added(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
    }
}

/// Codes to pairs of bf16, byte by byte: every code comes twice, an odd byte of the result is
/// looked up among the high bytes and takes the code's sign, an even one among the low bytes.
///
/// # Safety
/// The processor has AVX-512 F, BW and VBMI.
#[inline(always)]
pub(super) unsafe fn looked_up_pairs(stored: &[u8; 32]) -> __m512 {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    static TWICE: [u8; 64] = {
        let mut places = [0; 64];
        let mut i = 0;
        while i < 64 {
            places[i] = i as u8 / 2;
            i += 1;
        }
        places
    };
    // SAFETY: the caller's; the pointers are those of 32, of 64 and of twice 64 bytes.
    unsafe {
        let [low, high] = [E4M3_BYTES[0].as_ptr(), E4M3_BYTES[1].as_ptr()];
        let (low_a, low_b) =
            (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(low.add(64).cast()));
        let high_b = _mm512_loadu_si512(high.add(64).cast());
        let high_a = _mm512_loadu_si512(high.cast());
        let codes = _mm512_castsi256_si512(_mm256_loadu_si256(stored.as_ptr().cast()));
        let places = _mm512_loadu_si512(TWICE.as_ptr().cast());
        let twice = _mm512_permutexvar_epi8(places, codes);
        let high = _mm512_mask2_permutex2var_epi8(high_a, twice, !EVEN, high_b);
        // high | (twice & sign)
        let sign = _mm512_set1_epi16(i16::MIN);
        let signed = _mm512_ternarylogic_epi64::<0xEA>(sign, twice, high);
        _mm512_castsi512_ps(_mm512_mask2_permutex2var_epi8(low_a, signed, EVEN, low_b))
    }
}

/// The same of 64 codes, as pairs of the first 32 and of the others.
///
/// # Safety
/// The processor has AVX-512 F, BW and VBMI.
#[inline(always)]
pub(super) unsafe fn looked_up_twice(stored: &[[u8; 32]; 2]) -> [__m512; 2] {
    /// Eight codes each: what is laid side by side are halves of every 16 bytes.
    static EIGHTS: [i64; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    // SAFETY: the caller's; the pointers are those of 64 bytes each.
    unsafe {
        let eights = _mm512_loadu_si512(EIGHTS.as_ptr().cast());
        let codes = _mm512_loadu_si512(stored.as_ptr().cast());
        looked_up_in_turns(_mm512_permutexvar_epi64(eights, codes))
    }
}

/// The same of 64 codes of which eight are the first result's and eight the second one's, in
/// turns: each is looked up once among the low and once among the high bytes, which are then laid
/// side by side.
///
/// # Safety
/// The processor has AVX-512 F, BW and VBMI.
#[inline(always)]
unsafe fn looked_up_in_turns(codes: __m512i) -> [__m512; 2] {
    // SAFETY: the caller's; the pointers are those of twice 64 bytes.
    unsafe {
        let [low, high] = [E4M3_BYTES[0].as_ptr(), E4M3_BYTES[1].as_ptr()];
        let (low_a, low_b) =
            (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(low.add(64).cast()));
        let (high_a, high_b) =
            (_mm512_loadu_si512(high.cast()), _mm512_loadu_si512(high.add(64).cast()));
        let low = _mm512_permutex2var_epi8(low_a, codes, low_b);
        let high = _mm512_permutex2var_epi8(high_a, codes, high_b);
        // high | (codes & sign)
        let sign = _mm512_set1_epi8(i8::MIN);
        side_by_side(low, _mm512_ternarylogic_epi64::<0xEA>(sign, codes, high))
    }
}

/// Low and high bytes of bf16, eight of the first result and eight of the second in turns.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[inline(always)]
unsafe fn side_by_side(low: __m512i, high: __m512i) -> [__m512; 2] {
    // SAFETY: the caller's.
    unsafe {
        let pairs = [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)];
        [_mm512_castsi512_ps(pairs[0]), _mm512_castsi512_ps(pairs[1])]
    }
}

/// [`Lanes::pairs_of_steps`](super::super::lanes::Lanes::pairs_of_steps). A normal e4m3 number,
/// `s eeee mmm`, is `s 0111eeee mmm0000` of bf16, times 2^-8: bytes whose bits are bits of the code
/// or constant. Lines with a subnormal number, which of a model's are few, or with a NaN are looked
/// up.
///
/// # Safety
/// The processor has AVX-512 F, BW and VBMI, and GFNI.
#[inline(always)]
pub(super) unsafe fn pairs_of_steps(codes: &[f32; 16]) -> [__m512; 2] {
    // Which bits of the code each bit of a byte is the sum of, from bit 7 down.
    const LOW: i64 = i64::from_le_bytes([1 << 3, 1 << 2, 1 << 1, 1 << 0, 0, 0, 0, 0]);
    const HIGH: i64 = i64::from_le_bytes([1 << 7, 0, 0, 0, 0, 1 << 6, 1 << 5, 1 << 4]);
    const HIGH_CONSTANT: i32 = 0b0011_1000;
    // SAFETY: the caller's; the pointer is that of 64 bytes.
    unsafe {
        let codes = _mm512_loadu_si512(codes.as_ptr().cast());
        // One more than a NaN's magnitude is nothing; a subnormal number's, and that of some normal
        // ones, stays below 16.
        let plus_one = _mm512_add_epi8(codes, _mm512_set1_epi8(1));
        if _mm512_testn_epi8_mask(plus_one, _mm512_set1_epi8(0x70)) != 0 {
            return looked_up_in_turns(codes);
        }
        let low = _mm512_gf2p8affine_epi64_epi8::<0>(codes, _mm512_set1_epi64(LOW));
        let high = _mm512_gf2p8affine_epi64_epi8::<HIGH_CONSTANT>(codes, _mm512_set1_epi64(HIGH));
        side_by_side(low, high)
    }
}

/// Of four vectors, their lanes i, i + 4, i + 8 and i + 12 added: four lanes of `a`, then of `b`,
/// of `c` and of `d`.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
pub(super) unsafe fn quarters_added([a, b, c, d]: [__m512; 4]) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let ab = halves_added(a, b);
        let cd = halves_added(c, d);
        let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd))
    }
}

/// Of every four lanes of `a`, the first two, each with the second one after it; then of `b`.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
pub(super) unsafe fn pairs_added(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let first = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        _mm512_add_ps(first, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)))
    }
}

/// Sixteen rows of sixteen lanes with rows and lanes exchanged.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
pub(super) unsafe fn transposed(v: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: the caller's.
    unsafe {
        let (mut a, mut b) = (v, v);
        // Within every four lanes: two rows, then four.
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
        }
        for i in (0..16).step_by(4) {
            let (low, high) = (_mm512_castps_pd(a[i]), _mm512_castps_pd(a[i + 2]));
            b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
            let (low, high) = (_mm512_castps_pd(a[i + 1]), _mm512_castps_pd(a[i + 3]));
            b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
        // The quarters of eight rows, then of sixteen.
        for i in 0..4 {
            a[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[i], b[i + 4]);
            a[i + 4] = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[i], b[i + 4]);
            a[i + 8] = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[i + 8], b[i + 12]);
            a[i + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[i + 8], b[i + 12]);
        }
        for i in 0..8 {
            b[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a[i], a[i + 8]);
            b[i + 8] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a[i], a[i + 8]);
        }
        b
    }
}
