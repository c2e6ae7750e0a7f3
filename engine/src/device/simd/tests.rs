//! Every primitive at every level against its definition.

use half::{bf16, f16};
use weights::Dtype;

use super::lanes::Lanes;
use super::{Simd, SimdLevel, portable};
use crate::kernels::testing::{Rng, e4m3_nearest, e4m3_value, levels};

#[inline(always)]
pub(super) fn pairs_of_e4m3<S: Lanes>(s: S, stored: &[u8; 32]) -> [f32; 16] {
    let mut pairs = [0.0; 16];
    s.store(s.pairs_of_e4m3(stored), &mut pairs);
    pairs
}

#[inline(always)]
pub(super) fn two_pairs_of_e4m3<S: Lanes>(s: S, stored: &[[u8; 32]; 2]) -> [[f32; 16]; 2] {
    let (two, mut pairs) = (s.two_pairs_of_e4m3(stored), [[0.0; 16]; 2]);
    s.store(two[0], &mut pairs[0]);
    s.store(two[1], &mut pairs[1]);
    pairs
}

#[inline(always)]
pub(super) fn pairs_of_steps<S: Lanes>(s: S, codes: &[f32; 16]) -> [[f32; 16]; 2] {
    let (steps, mut pairs) = (s.pairs_of_steps(codes), [[0.0; 16]; 2]);
    s.store(steps[0], &mut pairs[0]);
    s.store(steps[1], &mut pairs[1]);
    pairs
}

#[inline(always)]
pub(super) fn sums_every_way<S: Lanes>(s: S, rows: &[[f32; 16]; 16]) -> [[f32; 16]; 3] {
    let mut v = [s.splat(0.0); 16];
    let mut sums = [[0.0; 16]; 3];
    for i in 0..16 {
        v[i] = s.load(&rows[i]);
        sums[0][i] = s.sum(v[i]);
    }
    for i in (0..16).step_by(4) {
        sums[1][i..i + 4].copy_from_slice(&s.sums_of_four([v[i], v[i + 1], v[i + 2], v[i + 3]]));
    }
    s.store(s.sums_of_sixteen(v), &mut sums[2]);
    sums
}

fn simds() -> impl Iterator<Item = Simd> {
    levels().filter_map(Simd::new)
}

fn widened(simd: Simd, dtype: Dtype, stored: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::INFINITY; stored.len() / dtype.n_bytes()];
    super::widen(simd, dtype, stored, &mut out);
    out.iter().map(|x| x * super::widened_factor(dtype)).collect()
}

#[test]
fn this_machine_is_tested_at_its_best_level() {
    assert_eq!(Some(Simd::detect().level()), levels().last());
    assert_eq!(levels().next(), Some(SimdLevel::Portable));
}

#[test]
fn every_e4m3_code_widens_exactly() {
    let codes: Vec<u8> = (0..=255).collect();
    for simd in simds() {
        for (code, x) in widened(simd, Dtype::F8E4m3, &codes).into_iter().enumerate() {
            let expected = e4m3_value(code as u8);
            let is_same = f64::from(x) == expected || (x.is_nan() && expected.is_nan());
            assert!(is_same, "{simd:?}: code {code:#x} is {x}, not {expected}");
            assert_eq!(x.is_sign_negative(), code >= 128, "{simd:?}: code {code:#x}");
        }
    }
}

#[test]
fn every_pair_of_e4m3_codes_is_a_pair_of_bf16() {
    // Every code in either half of a pair.
    let codes: Vec<u8> = (0..=255).flat_map(|code: u8| [code, code.wrapping_add(101)]).collect();
    for simd in simds() {
        let blocks = codes.as_chunks::<32>().0;
        let two = |two| super::two_pairs_of_e4m3(simd, two);
        let in_twos: Vec<[f32; 16]> = blocks.as_chunks().0.iter().flat_map(two).collect();
        for (block, in_two) in blocks.iter().zip(in_twos) {
            let pairs = super::pairs_of_e4m3(simd, block);
            assert_eq!(pairs.map(f32::to_bits), in_two.map(f32::to_bits), "{simd:?}: {block:?}");
            for (pair, [even, odd]) in pairs.iter().zip(block.as_chunks().0) {
                let halves = [(pair.to_bits() as u16, even), ((pair.to_bits() >> 16) as u16, odd)];
                for (half, &code) in halves {
                    let (x, expected) = (bf16::from_bits(half).to_f64() * 256.0, e4m3_value(code));
                    let is_same = x == expected || (x.is_nan() && expected.is_nan());
                    assert!(is_same, "{simd:?}: code {code:#x} is {x}, not {expected}");
                    assert_eq!(x.is_sign_negative(), code >= 128, "{simd:?}: code {code:#x}");
                }
            }
        }
    }
}

#[test]
fn codes_of_two_steps_in_turns_are_pairs_of_either() {
    // Every code amid normal numbers, and amid all kinds.
    let amid_normal = (0..=255u8).map(|code| {
        let mut codes = [0; 64];
        for (i, other) in codes.iter_mut().enumerate() {
            let magnitude = 0x10 + (7 * i as u8 + code) % 0x60;
            *other = magnitude | (i as u8) << 7;
        }
        codes[usize::from(code) % 64] = code;
        codes
    });
    let mut rng = Rng::new(25);
    let amid_all = (0..256).map(|_| std::array::from_fn(|_| rng.next_u64() as u8));
    let lines: Vec<[u8; 64]> = amid_normal.chain(amid_all).collect();
    for (simd, line) in simds().flat_map(|simd| lines.iter().map(move |line| (simd, line))) {
        let mut steps = [[0; 32]; 2];
        for (eighth_idx, eighth) in line.chunks(8).enumerate() {
            steps[eighth_idx % 2][eighth_idx / 2 * 8..][..8].copy_from_slice(eighth);
        }
        let mut lanes = [0.0; 16];
        for (lane, codes) in lanes.iter_mut().zip(line.as_chunks().0) {
            *lane = f32::from_le_bytes(*codes);
        }
        let expected = steps.map(|codes| super::pairs_of_e4m3(simd, &codes).map(f32::to_bits));
        let pairs = super::pairs_of_steps(simd, &lanes).map(|pairs| pairs.map(f32::to_bits));
        assert_eq!(pairs, expected, "{simd:?}: {line:?}");
    }
}

#[test]
fn rounded_pairs_are_the_nearest_bf16() {
    let mut rng = Rng::new(24);
    let mut x: Vec<f32> = (0..20_001).map(|_| f32::from_bits(rng.next_u64() as u32)).collect();
    // Every tie of some binades, what lies beside it, and the ends.
    let codes = (0x3F00..0x4080u32).chain(0x7F00..0x7F81).chain(0..0x40);
    let ties = codes.map(|code| f32::from_bits(code << 16 | 0x8000));
    x.extend(ties.flat_map(|x| [x, x.next_up(), x.next_down(), -x]));
    x.extend([f32::NAN, f32::INFINITY, f32::MIN, f32::MAX, f32::from_bits(0x7F80_0001)]);
    for (simd, n) in simds().flat_map(|simd| [x.len(), 33, 1].map(|n| (simd, n))) {
        let mut pairs = vec![f32::NAN; n.div_ceil(32) * 16];
        super::round_to_pairs(simd, &x[..n], &mut pairs);
        let halves = pairs.iter().flat_map(|pair| {
            let bits = pair.to_bits();
            [bf16::from_bits(bits as u16), bf16::from_bits((bits >> 16) as u16)]
        });
        let x = x[..n].iter().copied().chain(std::iter::repeat(0.0));
        for (half, x) in halves.zip(x) {
            let expected = bf16::from_f32(x);
            let is_same =
                half.to_bits() == expected.to_bits() || half.is_nan() && expected.is_nan();
            assert!(is_same, "{simd:?}: {x:e} is {half:e}, not {expected:e}");
        }
    }
}

#[test]
fn trees_of_several_are_those_of_one() {
    let mut rng = Rng::new(23);
    let x = rng.numbers(256);
    let rows = x.as_chunks::<16>().0.as_chunks::<16>().0;
    for simd in simds() {
        let [one, four, sixteen] = super::sums_every_way(simd, &rows[0]);
        assert_eq!(four.map(f32::to_bits), one.map(f32::to_bits), "{simd:?}");
        assert_eq!(sixteen.map(f32::to_bits), one.map(f32::to_bits), "{simd:?}");
    }
}

#[test]
fn every_code_of_two_bytes_widens_exactly() {
    let stored: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for simd in simds() {
        let halves = widened(simd, Dtype::F16, &stored);
        let brains = widened(simd, Dtype::Bf16, &stored);
        for code in 0..=u16::MAX {
            let pairs = [
                (halves[usize::from(code)], f16::from_bits(code).to_f32()),
                (brains[usize::from(code)], bf16::from_bits(code).to_f32()),
            ];
            for (x, expected) in pairs {
                let is_same =
                    x.to_bits() == expected.to_bits() || (x.is_nan() && expected.is_nan());
                assert!(is_same, "{simd:?}: code {code:#x} is {x}, not {expected}");
            }
        }
    }
}

#[test]
fn rows_of_any_length_and_address_widen() {
    let mut rng = Rng::new(20);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4m3] {
        let bytes: Vec<u8> = (0..200).map(|_| rng.next_u64() as u8).collect();
        for (n, offset) in (0..40).flat_map(|n| [(n, 0), (n, 1), (n, 3)]) {
            let stored = &bytes[offset..offset + n * dtype.n_bytes()];
            let plain = widened(simds().next().expect("a level"), dtype, stored);
            for simd in simds() {
                let out = widened(simd, dtype, stored);
                let pairs = out.iter().zip(&plain);
                let is_same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
                assert!(pairs.clone().all(is_same) && out.len() == n, "{simd:?} {dtype:?} {n}");
            }
        }
    }
}

#[test]
fn e4m3_is_rounded_to_the_nearest_and_ties_to_even() {
    let codes = || 0..=126u8;
    let values = codes().map(|code| e4m3_value(code) as f32);
    let midpoints =
        codes().zip(1..=126u8).map(|(a, b)| (e4m3_value(a) + e4m3_value(b)) as f32 / 2.0);
    let mut x: Vec<f32> = values.chain(midpoints).collect();
    x.extend([448.0, 463.9, 464.0, 480.0, 1e9, f32::MAX, f32::INFINITY, f32::MIN_POSITIVE, 1e-45]);
    x.extend(x.clone().iter().flat_map(|x| [x.next_up(), x.next_down()]));
    let mut rng = Rng::new(21);
    x.extend((0..20_000).map(|_| f32::from_bits(rng.next_u64() as u32)));
    // Quotients next to a tie: multiplying by the scale's inverse would fall on the wrong side.
    let scales = [1.0, 0.0625, 0.1, 3.0, 0.0173];
    for (scale, code) in scales.iter().flat_map(|scale| (0..126).map(move |code| (scale, code))) {
        let tie = (e4m3_value(code) + e4m3_value(code + 1)) / 2.0 * f64::from(*scale);
        x.extend([tie as f32, (tie as f32).next_up(), (tie as f32).next_down()]);
    }
    x.extend(x.clone().iter().map(|x| -x));
    x.push(f32::NAN);
    for simd in simds() {
        for scale in scales {
            let mut rounded = x.clone();
            super::quantize_e4m3(simd, &mut rounded, scale);
            let mut stored = vec![0; x.len()];
            super::encode_e4m3(simd, &x, scale, &mut stored);
            for ((x, y), code) in x.iter().zip(rounded).zip(stored) {
                let expected = e4m3_nearest(f64::from(x / scale));
                if x.is_nan() {
                    assert!(y.is_nan() && e4m3_value(code).is_nan(), "{simd:?}: {x} is {y}");
                    continue;
                }
                assert_eq!(code, expected, "{simd:?}: {x:e} / {scale}");
                assert_eq!(f64::from(y), e4m3_value(expected), "{simd:?}: {x:e} / {scale}");
                assert_eq!(y.is_sign_negative(), x.is_sign_negative(), "{simd:?}: {x:e}");
            }
        }
    }
}

/// `exp` at a level, through a primitive that shows it. Where `exp(-x)` overflows, a last 4e-37 is
/// lost.
#[test]
fn silu_is_within_a_few_units_everywhere() {
    let x: Vec<f32> = (-104_000..104_000).map(|i| i as f32 / 1000.0).collect();
    let ones = vec![1.0; x.len()];
    for simd in simds() {
        let mut out = vec![f32::NAN; x.len()];
        super::silu_times(simd, &x, &ones, &mut out);
        for (&x, y) in x.iter().zip(out) {
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let bound = 5.0 * f64::from(f32::EPSILON) * exact.abs() + 4e-37;
            assert!(
                (f64::from(y) - exact).abs() <= bound,
                "{simd:?}: silu({x}) = {y}, not {exact}"
            );
        }
    }
}

#[test]
fn exponentials_keep_their_bound_and_their_ends() {
    let s = portable::Portable;
    let of = |x: f32| super::math::exp(s, s.splat(x))[0];
    for i in -87_000..88_000 {
        let x = i as f32 / 1000.0;
        let exact = f64::from(x).exp();
        let units = (f64::from(of(x)) / exact - 1.0).abs() / f64::from(f32::EPSILON);
        assert!(units <= 3.0, "exp({x}) is off by {units} units");
    }
    assert_eq!((of(0.0), of(f32::NEG_INFINITY), of(-1000.0)), (1.0, 0.0, 0.0));
    assert_eq!((of(89.0), of(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
    assert!(of(f32::NAN).is_nan() && of(-100.0) > 0.0);
}

#[test]
fn reductions_do_not_depend_on_level_or_address() {
    let mut rng = Rng::new(22);
    let x = rng.numbers(700);
    for (begin, n) in (0..50).map(|i| (i % 7, i * i / 4)) {
        let row = &x[begin..begin + n];
        let exact: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        let greatest = row.iter().fold(0.0, |g: f32, x| g.max(x.abs()));
        let mut moved = vec![0.0; n + 9];
        moved[9..].copy_from_slice(row);
        let mut sums = Vec::new();
        for simd in simds() {
            let sum = super::sum_of_squares(simd, row);
            assert!((f64::from(sum) - exact).abs() <= 1e-5 * exact, "{simd:?} {n}");
            assert_eq!(super::sum_of_squares(simd, &moved[9..]), sum, "{simd:?} {n}");
            assert_eq!(super::max_magnitude(simd, row), greatest, "{simd:?} {n}");
            sums.push(sum);
        }
        assert!(sums[1..].windows(2).all(|pair| pair[0] == pair[1]), "AVX2 and AVX-512: {sums:?}");
    }
    for simd in simds() {
        let mut row = vec![1.0; 50];
        (row[3], row[19], row[35]) = (-5.0, f32::NAN, 2.0);
        assert!(super::sum_of_squares(simd, &row).is_nan());
        assert_eq!(super::max_magnitude(simd, &row), 5.0);
    }
}
