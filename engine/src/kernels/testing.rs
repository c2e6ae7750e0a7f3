//! What the families' tests share: seeded numbers, stored matrices, and runs on every executor.
//!
//! Expected values are computed in float64 from definitions, never with the code under test.

pub(crate) mod device;
pub(crate) mod ranks;
pub(crate) mod traffic;

use std::sync::LazyLock;

use half::{bf16, f16};
use weights::{Bytes, Dtype, Matrix};

use crate::device::{CpuExec, Exec, Simd, SimdLevel};

/// Half of the distance from 1 to the next f32: what one rounding may lose.
pub(crate) const ROUNDING: f64 = 1.0 / (1 << 24) as f64;

/// Splitmix64: the same numbers for the same seed, wherever a test runs.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// `0..n`
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    /// Between -1 and 1, with magnitudes spread over a few binades.
    pub(crate) fn number(&mut self) -> f32 {
        let bits = self.next_u64();
        let unit = (bits >> 40) as f32 / (1 << 23) as f32 - 1.0;
        unit * [1.0, 1.0, 0.25, 0.01][(bits & 3) as usize]
    }

    pub(crate) fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number()).collect()
    }
}

/// A matrix as a file holds it, and what its elements are worth.
pub(crate) struct StoredMatrix {
    pub(crate) matrix: Matrix,
    /// `[n_rows, n_cols]`
    pub(crate) values: Vec<f64>,
}

impl StoredMatrix {
    /// Rounds `numbers` `[n_rows, n_cols]` to `dtype` and lays them at an odd address, with a gap
    /// of poison after each row.
    pub(crate) fn new(dtype: Dtype, n_cols: usize, numbers: &[f32]) -> StoredMatrix {
        const OFFSET: usize = 3;
        const GAP: usize = 5;
        let row_stride = n_cols * dtype.n_bytes() + GAP;
        let mut bytes = vec![0xFF; OFFSET];
        let mut values = Vec::new();
        for row in numbers.chunks_exact(n_cols) {
            for &x in row {
                let (stored, value) = store(dtype, x);
                bytes.extend(stored);
                values.push(value);
            }
            bytes.extend([0xFF; GAP]);
        }
        let n_rows = numbers.len() / n_cols;
        let bytes = Bytes::Static(bytes.leak());
        let matrix = Matrix { bytes, offset: OFFSET, dtype, n_rows, n_cols, row_stride };
        StoredMatrix { matrix, values }
    }
}

/// `x` rounded to `dtype`: its bytes and its value.
pub(crate) fn store(dtype: Dtype, x: f32) -> (Vec<u8>, f64) {
    match dtype {
        Dtype::F32 => (x.to_le_bytes().to_vec(), f64::from(x)),
        Dtype::F16 => (f16::from_f32(x).to_le_bytes().to_vec(), f16::from_f32(x).to_f64()),
        Dtype::Bf16 => (bf16::from_f32(x).to_le_bytes().to_vec(), bf16::from_f32(x).to_f64()),
        Dtype::F8E4m3 => {
            let code = e4m3_nearest(f64::from(x));
            (vec![code], e4m3_value(code))
        }
    }
}

/// What an e4m3 code is worth, from the format's definition.
pub(crate) fn e4m3_value(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => fraction / 8.0 * 2f64.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
    };
    if code < 128 { magnitude } else { -magnitude }
}

/// The code nearest to `x` clamped to ±448, ties to the even code; sign and NaN are kept.
pub(crate) fn e4m3_nearest(x: f64) -> u8 {
    static MAGNITUDES: LazyLock<Vec<f64>> = LazyLock::new(|| (0..127).map(e4m3_value).collect());
    let sign = if x.is_sign_negative() { 128 } else { 0 };
    if x.is_nan() {
        return sign | 127;
    }
    let x = x.abs().min(448.0);
    let above = MAGNITUDES.partition_point(|value| *value < x);
    if above == 0 {
        return sign;
    }
    let below = above - 1;
    let (up, down) = (MAGNITUDES[above] - x, x - MAGNITUDES[below]);
    let is_up = up < down || (up == down && above % 2 == 0);
    sign | if is_up { above } else { below } as u8
}

/// Levels that this machine can run.
pub(crate) fn levels() -> impl Iterator<Item = SimdLevel> {
    SimdLevel::ALL.into_iter().filter(|&level| Simd::new(level).is_some())
}

/// Runs on a thread of its own: an executor takes its thread for good.
pub(crate) fn on_exec<R: Send>(
    n_threads: usize,
    level: SimdLevel,
    run: impl FnOnce(&mut Exec) -> R + Send,
) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            run(&mut Exec::Cpu(CpuExec::with_simd(n_threads, level).expect("an executor")))
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs at every level and with one, two and three threads, asserts that threads change no bit and
/// that AVX2 and all levels above agree, and gives back what each level yields.
pub(crate) fn everywhere(
    what: &str,
    run: impl Fn(&mut Exec) -> Vec<f32> + Sync,
) -> Vec<(SimdLevel, Vec<f32>)> {
    at_levels(what, SimdLevel::Amx, run)
}

/// The same, of what tiles sum in an order of their own: levels have to agree up to `last_same`.
pub(crate) fn at_levels(
    what: &str,
    last_same: SimdLevel,
    run: impl Fn(&mut Exec) -> Vec<f32> + Sync,
) -> Vec<(SimdLevel, Vec<f32>)> {
    let mut outputs: Vec<(SimdLevel, Vec<f32>)> = Vec::new();
    for level in levels() {
        let out = on_exec(1, level, &run);
        for n_threads in [2, 3] {
            let threaded = on_exec(n_threads, level, &run);
            assert_same_bits(&threaded, &out, &format!("{what}, {level:?}, {n_threads} threads"));
        }
        if let Some((before, narrower)) = outputs.last()
            && (SimdLevel::Avx2..last_same).contains(before)
        {
            assert_same_bits(&out, narrower, &format!("{what}, {level:?} against {before:?}"));
        }
        outputs.push((level, out));
    }
    outputs
}

/// Bit for bit; any NaN equals any other.
#[track_caller]
pub(crate) fn assert_same_bits(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        let is_same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(is_same, "{what}: element {i} is {a:e}, expected {b:e}");
    }
}

/// Each element within `bound` of what is expected, and NaN exactly where NaN is expected.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], expected: &[(f64, f64)], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&got, &(expected, bound))) in got.iter().zip(expected).enumerate() {
        let is_close = match expected.is_nan() {
            true => got.is_nan(),
            false => got as f64 == expected || (f64::from(got) - expected).abs() <= bound,
        };
        assert!(is_close, "{what}: element {i} is {got:e}, expected {expected:e} ± {bound:e}");
    }
}
