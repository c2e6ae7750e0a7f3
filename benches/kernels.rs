//! Kernels against what the machine gives: bytes read against a plain parallel read of as many, and
//! operations against the multiply-adds that its threads can issue.

use std::hint::black_box;

use benches::{Report, median_seconds};
use engine::KvDtype;
use engine::device::{
    Aligned, Array, ArrayMut, CpuExec, Exec, KvRegion, Projection, Simd, View, ViewMut,
};
use engine::kernels::attention::{self, AttentionRow, attention};
use engine::kernels::linear::{self, linear};
use scheduler::PageId;
use weights::{AttentionSpec, Bytes, Dtype, InputScale, LinearWeights, Matrix, WeightScale};

/// Outputs and inputs of the projection measured.
const N_OUTPUTS: usize = 8192;
const N_INPUTS: usize = 2048;

/// Odd, so that medians are measurements.
const N_RUNS: usize = 15;

fn main() -> anyhow::Result<()> {
    let report = Report::new("kernels");
    let n_threads = std::thread::available_parallelism()?.get();
    let cpu = CpuExec::new(n_threads)?;
    report.note(&format!("{n_threads} threads, {:?}", cpu.simd().level()));
    let peak = measure_peak(cpu.simd(), n_threads);
    let mut exec = Exec::Cpu(cpu);
    report.row("multiply-adds, all threads", peak, "GFLOP/s");
    for dtype in [Dtype::Bf16, Dtype::F8E4m3] {
        measure_projection(&report, &mut exec, dtype, peak)?;
    }
    for (name, n_tokens, n_seen) in [("prefill", 512, 512), ("decode", 1, 4096)] {
        measure_attention(&report, &mut exec, name, (n_tokens, n_seen))?;
    }
    Ok(())
}

/// GB/s of a plain read at one token, beside the projection's; then GFLOP/s at more tokens.
fn measure_projection(
    report: &Report,
    exec: &mut Exec,
    dtype: Dtype,
    peak: f64,
) -> anyhow::Result<()> {
    // Several copies, taken in turn: more than the caches hold, as a model's weights are.
    let layers: Vec<Projection> =
        (0..6).map(|seed| Projection::host(vec![layer(dtype, seed)])).collect();
    let n_bytes = layers[0].parts[0].matrix.n_bytes() as f64;
    let mut project = |n_tokens: usize| -> f64 {
        let mut x = Aligned::new(n_tokens * N_INPUTS);
        x.fill(0.5);
        let x_scales = vec![1.0; n_tokens];
        let mut out = vec![0.0; n_tokens * N_OUTPUTS];
        let mut turn = layers.iter().cycle();
        median_seconds(N_RUNS, || {
            let args = linear::Args {
                x: View::new(&x, n_tokens, N_INPUTS),
                x_scales: Array::Host(&x_scales),
                weights: turn.next().expect("layers come round"),
                out: ViewMut::new(&mut out, n_tokens, N_OUTPUTS),
            };
            linear(exec, args).expect("a processor does not fail");
        })
    };
    let case = |what: &str| format!("{dtype:?} [{N_OUTPUTS}, {N_INPUTS}], {what}");
    let seconds = project(1);
    let mut turn = layers.iter().cycle();
    let n_threads = std::thread::available_parallelism()?.get();
    let plain = median_seconds(N_RUNS, || {
        let layer = turn.next().expect("layers come round");
        black_box(plain_read(layer.parts[0].matrix.bytes.as_slice(), n_threads));
    });
    report.row(&case("plain read"), n_bytes / plain / 1e9, "GB/s");
    report.row(&case("1 token"), n_bytes / seconds / 1e9, "GB/s");
    report.row(&case("1 token, of plain read"), 100.0 * plain / seconds, "%");
    for n_tokens in [4, 8, 64, 512] {
        let n_operations = (2 * n_tokens * N_OUTPUTS * N_INPUTS) as f64;
        let rate = n_operations / project(n_tokens) / 1e9;
        report.row(&case(&format!("{n_tokens} tokens")), rate, "GFLOP/s");
        report.row(&case(&format!("{n_tokens} tokens, of peak")), 100.0 * rate / peak, "%");
    }
    Ok(())
}

fn layer(dtype: Dtype, seed: u8) -> LinearWeights {
    let n_bytes = N_OUTPUTS * N_INPUTS * dtype.n_bytes();
    // Small numbers in either type: no code of these is a NaN.
    let bytes: Vec<u8> = (0..n_bytes).map(|i| 0x20 | ((i as u8) ^ seed) & 0x1F).collect();
    let matrix = Matrix {
        bytes: Bytes::Static(bytes.leak()),
        offset: 0,
        dtype,
        n_rows: N_OUTPUTS,
        n_cols: N_INPUTS,
        row_stride: N_INPUTS * dtype.n_bytes(),
    };
    LinearWeights { matrix, scale: WeightScale::One, input: InputScale::PerToken }
}

/// Sums all bytes as words, each thread its own run of them.
fn plain_read(bytes: &[u8], n_threads: usize) -> u64 {
    let sum = |bytes: &[u8]| {
        let mut sums = [0u64; 32];
        for words in bytes.as_chunks::<256>().0 {
            for (sum, word) in sums.iter_mut().zip(words.as_chunks().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
        sums.into_iter().fold(0, u64::wrapping_add)
    };
    let (own, others) = bytes.split_at(bytes.len() / n_threads);
    std::thread::scope(|scope| {
        let runs = others.chunks(own.len());
        let threads: Vec<_> = runs.map(|run| scope.spawn(move || sum(run))).collect();
        let own = sum(own);
        let others = threads.into_iter().map(|thread| thread.join().expect("it only adds"));
        others.fold(own, u64::wrapping_add)
    })
}

/// GFLOP/s of multiply-adds out of registers, all threads together.
fn measure_peak(simd: Simd, n_threads: usize) -> f64 {
    const N_ROUNDS: usize = 1_000_000;
    let seconds = median_seconds(N_RUNS, || {
        std::thread::scope(|scope| {
            (1..n_threads).for_each(|_| {
                scope.spawn(move || simd.spin(N_ROUNDS));
            });
            simd.spin(N_ROUNDS);
        });
    });
    (2 * n_threads * simd.spin(N_ROUNDS)) as f64 / seconds / 1e9
}

/// A step's attention of one sequence that ends at position `n_seen`: GFLOP/s, or for one token
/// GB/s of the cache.
fn measure_attention(
    report: &Report,
    exec: &mut Exec,
    name: &str,
    (n_tokens, n_seen): (usize, usize),
) -> anyhow::Result<()> {
    const PAGE_TOKENS: usize = 16;
    let share = AttentionSpec { n_q_heads: 16, n_kv_heads: 4, head_dim: 128, window: None };
    let width = share.n_q_heads * share.head_dim;
    let pages: Vec<PageId> = (0..(n_seen / PAGE_TOKENS) as u32).map(PageId).collect();
    let mut q = Aligned::new(n_tokens * width);
    q.fill(0.5);
    let mut out = vec![0.0; n_tokens * width];
    let mut scales = vec![0.0; n_tokens];
    for dtype in [KvDtype::Bf16, KvDtype::Fp8] {
        let cache =
            KvRegion::new(dtype, pages.len(), PAGE_TOKENS, share.n_kv_heads, share.head_dim);
        let start = n_seen - n_tokens;
        let rows = [AttentionRow { token_idx: 0, n_tokens, start, pages: &pages }];
        let seconds = median_seconds(N_RUNS, || {
            let args = attention::Args {
                q: View::new(&q, n_tokens, width),
                rows: attention::Rows::Host(&rows),
                share: &share,
                k_scale: 1.0,
                v_scale: 1.0,
                cache: &cache,
                input: InputScale::None,
                out: ViewMut::new(&mut out, n_tokens, width),
                out_scales: ArrayMut::Host(&mut scales),
            };
            attention(exec, args).expect("a processor does not fail");
        });
        let case = format!("attention {dtype:?} 16q/4kv of 128, {name}");
        let n_pairs = n_tokens * start + n_tokens * (n_tokens + 1) / 2;
        report.row(&case, (4 * n_pairs * width) as f64 / seconds / 1e9, "GFLOP/s");
        if n_tokens == 1 {
            report.row(&case, cache.n_bytes() as f64 / seconds / 1e9, "GB/s");
        }
    }
    Ok(())
}
