//! Kernels against what the machine gives: bytes read against a plain parallel read, and operations
//! against the multiply-adds that its threads can issue.

use std::hint::black_box;

use benches::machine::{Machine, Work, plain_read};
use benches::{Report, median_seconds};
use engine::KvDtype;
use engine::device::{
    Aligned, Array, ArrayMut, CpuExec, Exec, KvRegion, Projection, View, ViewMut,
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
    let machine = Machine::measure()?;
    machine.report(&report);
    let mut exec = Exec::Cpu(CpuExec::new(machine.n_threads)?);
    for dtype in [Dtype::Bf16, Dtype::F8E4m3] {
        measure_projection(&report, &mut exec, dtype, &machine);
    }
    for (name, n_tokens, n_seen) in [("prefill", 512, 512), ("decode", 1, 4096)] {
        measure_attention(&report, &mut exec, name, (n_tokens, n_seen), &machine);
    }
    Ok(())
}

/// A plain read of the same weights beside GB/s and GFLOP/s of products with 1 to 512 tokens, each
/// with its share of the roofline.
fn measure_projection(report: &Report, exec: &mut Exec, dtype: Dtype, machine: &Machine) {
    // Several copies, taken in turn: more than the caches hold, as a model's weights are.
    let layers: Vec<Projection> =
        (0..6).map(|seed| Projection::host(vec![layer(dtype, seed)])).collect();
    let n_bytes = layers[0].parts[0].matrix.n_bytes() as f64;
    let case = |what: &str| format!("{dtype:?} [{N_OUTPUTS}, {N_INPUTS}], {what}");
    let mut turn = layers.iter().cycle();
    let plain = median_seconds(N_RUNS, || {
        let layer = turn.next().expect("layers come round");
        black_box(plain_read(layer.parts[0].matrix.bytes.as_slice(), machine.n_threads));
    });
    report.row(&case("plain read"), n_bytes / plain / 1e9, "GB/s");
    for n_tokens in [1, 4, 8, 32, 64, 512] {
        let mut x = Aligned::new(n_tokens * N_INPUTS);
        x.fill(0.5);
        let x_scales = vec![1.0; n_tokens];
        let mut out = vec![0.0; n_tokens * N_OUTPUTS];
        let seconds = median_seconds(N_RUNS, || {
            let args = linear::Args {
                x: View::new(&x, n_tokens, N_INPUTS),
                x_scales: Array::Host(&x_scales),
                weights: turn.next().expect("layers come round"),
                out: ViewMut::new(&mut out, n_tokens, N_OUTPUTS),
            };
            linear(exec, args).expect("a processor does not fail");
        });
        let n_operations = (2 * n_tokens * N_OUTPUTS * N_INPUTS) as f64;
        let mut work = Work { bytes: n_bytes, ..Work::default() };
        match dtype {
            Dtype::F8E4m3 => work.bf16_operations = n_operations,
            _ => work.f32_operations = n_operations,
        }
        let what = |unit: &str| case(&format!("{n_tokens} tokens{unit}"));
        report.row(&what(""), n_bytes / seconds / 1e9, "GB/s");
        report.row(&what(""), n_operations / seconds / 1e9, "GFLOP/s");
        report.row(&what(", of roofline"), 100.0 * machine.floor_seconds(work) / seconds, "%");
    }
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

/// A step's attention of one sequence that ends at position `n_seen`: GFLOP/s, or for one token
/// GB/s of the cache.
fn measure_attention(
    report: &Report,
    exec: &mut Exec,
    name: &str,
    (n_tokens, n_seen): (usize, usize),
    machine: &Machine,
) {
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
        let f32_operations = (4 * n_pairs * width) as f64;
        let work = Work { bytes: cache.n_bytes() as f64, f32_operations, bf16_operations: 0.0 };
        report.row(&case, f32_operations / seconds / 1e9, "GFLOP/s");
        if n_tokens == 1 {
            report.row(&case, cache.n_bytes() as f64 / seconds / 1e9, "GB/s");
        }
        let share = 100.0 * machine.floor_seconds(work) / seconds;
        report.row(&format!("{case}, of roofline"), share, "%");
    }
}
