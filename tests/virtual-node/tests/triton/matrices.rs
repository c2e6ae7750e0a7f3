//! Products of matrices, and attention.

use cudarc::driver::sys::{CUtensorMapDataType as DataType, CUtensorMapSwizzle as Swizzle};

use super::Bench;
use super::reference::{Random, assert_near, decode, poison, rounding};
use crate::gpu::{Arg, Tensor};
use crate::isa::formats::Format;

/// A product of matrices by its formats.
pub(super) struct Matmul {
    a: Format,
    b: Format,
    c: Format,
    /// B is `[n, k]` rather than `[k, n]`.
    transposed: bool,
    /// Parts of K that are added to C, which then starts as zero.
    n_splits: u32,
}

const fn plain(a: Format, b: Format, c: Format) -> Matmul {
    Matmul { a, b, c, transposed: false, n_splits: 1 }
}

const fn transposed(a: Format, b: Format, c: Format) -> Matmul {
    Matmul { a, b, c, transposed: true, n_splits: 1 }
}

pub(super) const BF16: Matmul = plain(Format::Bf16, Format::Bf16, Format::Bf16);
pub(super) const F16: Matmul = plain(Format::F16, Format::F16, Format::F32);
pub(super) const E4M3: Matmul = transposed(Format::E4m3, Format::E4m3, Format::Bf16);
pub(super) const MIXED: Matmul = transposed(Format::E4m3, Format::E5m2, Format::Bf16);
pub(super) const INT8: Matmul = transposed(Format::S8, Format::S8, Format::S32);
pub(super) const DESCRIPTOR: Matmul = transposed(Format::Bf16, Format::Bf16, Format::Bf16);
pub(super) const TF32: Matmul =
    Matmul { n_splits: 2, ..plain(Format::Tf32, Format::Tf32, Format::F32) };

/// Single-precision sums in any order are off by no more, relative to the sum of magnitudes.
const SUM_ERROR: f64 = 1e-6;

impl Matmul {
    pub(super) fn check(&self, bench: &Bench, [m, n, k]: [usize; 3], [bm, bn]: [usize; 2]) {
        let mut random = Random(m as u64 * 1000 + n as u64);
        let a = random.values(self.a, m * k);
        let b = random.values(self.b, n * k);
        let gpu = &bench.gpu;
        let n_bytes = m * n * self.c.bytes();
        let c = if self.n_splits > 1 { vec![0; n_bytes] } else { poison(n_bytes) };
        let c = gpu.upload(&c);
        let (a_at, b_at) = (gpu.upload(&a.bytes), gpu.upload(&b.bytes));
        let sizes = [m, n, k].map(|size| Arg::I32(size as i32));
        let args = [[a_at, b_at, c].map(Arg::Pointer), sizes].concat();
        let grid = (m.div_ceil(bm) as u32, n.div_ceil(bn) as u32, self.n_splits);
        bench.launch(grid, &args);
        let expected = self.expected(&a.values, &b.values, [m, n, k]);
        assert_near(&bench.entry.name, &decode(self.c, &gpu.download(c)), &expected);
    }

    /// Values and bounds.
    fn expected(&self, a: &[f64], b: &[f64], [m, n, k]: [usize; 3]) -> Vec<(f64, f64)> {
        let b_at =
            |i: usize, col: usize| if self.transposed { b[col * k + i] } else { b[i * n + col] };
        let element = |at: usize| {
            let (row, col) = (at / n, at % n);
            let products = (0..k).map(|i| a[row * k + i] * b_at(i, col));
            let (sum, magnitude) = products
                .fold((0.0, 0.0), |(sum, magnitude), x: f64| (sum + x, magnitude + x.abs()));
            let exact = self.c == Format::S32;
            let error = if exact { 0.0 } else { SUM_ERROR * magnitude };
            (sum, error + rounding(self.c, sum))
        };
        (0..m * n).map(element).collect()
    }
}

/// A product whose three tensor maps come from the host.
pub(super) fn host_descriptor(bench: &Bench) {
    let [m, n, k] = [128, 64, 192];
    let mut random = Random(7);
    let a = random.values(Format::Bf16, m * k);
    let b = random.values(Format::Bf16, n * k);
    let gpu = &bench.gpu;
    let buffers = [gpu.upload(&a.bytes), gpu.upload(&b.bytes), gpu.upload(&poison(2 * m * n))];
    let mut args = Vec::new();
    for (at, [rows, cols]) in buffers.into_iter().zip([[m, k], [n, k], [m, n]]) {
        let tensor = Tensor {
            data_type: DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            at,
            dims: &[cols as u64, rows as u64],
            strides: &[2 * cols as u64],
            box_dims: &[64, 64],
            swizzle: Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        args.extend([Arg::Map(tensor.map()), Arg::I32(rows as i32), Arg::I32(cols as i32)]);
        args.extend([Arg::I64(cols as i64), Arg::I64(1)]);
    }
    args.push(Arg::I32(k as i32));
    bench.launch((m as u32 / 64, n as u32 / 64, 1), &args);
    let expected = DESCRIPTOR.expected(&a.values, &b.values, [m, n, k]);
    let found = decode(Format::Bf16, &gpu.download(buffers[2]));
    assert_near(&bench.entry.name, &found, &expected);
}

/// Causal attention of three heads over 192 tokens.
pub(super) fn attention(bench: &Bench) {
    let [n_heads, n_tokens, dims] = [3, 192, 64];
    let mut random = Random(11);
    let [q, k, v] = [0; 3].map(|_| random.values(Format::F16, n_heads * n_tokens * dims));
    let gpu = &bench.gpu;
    let out = gpu.upload(&poison(2 * n_heads * n_tokens * dims));
    // The kernel works with powers of two.
    let scale = std::f64::consts::LOG2_E / 8.0;
    let inputs = [&q, &k, &v].map(|tensor| Arg::Pointer(gpu.upload(&tensor.bytes)));
    let rest = [Arg::Pointer(out), Arg::I32(n_tokens as i32), Arg::F32(scale as f32)];
    bench.launch((n_tokens as u32 / 64, n_heads as u32, 1), &[inputs, rest].concat());
    let mut expected = Vec::new();
    for row in 0..n_heads * n_tokens {
        let head = row / n_tokens * n_tokens;
        let at = |tensor: &[f64], token: usize, dim: usize| tensor[token * dims + dim];
        let weight = |key: usize| {
            let dot: f64 = (0..dims).map(|d| at(&q.values, row, d) * at(&k.values, key, d)).sum();
            (dot * scale).exp2()
        };
        let weights: Vec<f64> = (head..=row).map(weight).collect();
        let total: f64 = weights.iter().sum();
        let greatest = weights.iter().copied().fold(0.0, f64::max);
        for dim in 0..dims {
            let pairs = weights.iter().zip(head..);
            let products = pairs.map(|(weight, key)| weight * at(&v.values, key, dim));
            let (sum, magnitude) = products
                .fold((0.0, 0.0), |(sum, magnitude), x: f64| (sum + x, magnitude + x.abs()));
            // Parts of the greatest weight are rounded to halves before the second product, the
            // smallest ones to a step that is absolute; scores and sums have single precision.
            let least = greatest * weights.len() as f64 * 2f64.powi(-25);
            let error = (rounding(Format::F16, magnitude) + least + 1e-5 * magnitude) / total;
            expected.push((sum / total, error + rounding(Format::F16, sum / total)));
        }
    }
    assert_near(&bench.entry.name, &decode(Format::F16, &gpu.download(out)), &expected);
}
