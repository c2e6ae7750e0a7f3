//! Kernels against what the machine gives: bytes read against a plain parallel read, and operations
//! against the multiply-adds that its threads can issue.

use benches::machine::{Machine, Meter, Work};
use benches::{Report, median, seconds};
use engine::KvDtype;
use engine::device::{
    Aligned, Array, ArrayMut, CpuExec, Exec, KvRegion, Projection, SimdLevel, View, ViewMut,
};
use engine::kernels::attention::{self, AttentionRow, attention};
use engine::kernels::linear::{self, linear};
use scheduler::PageId;
use weights::{AttentionSpec, Bytes, Dtype, InputScale, LinearWeights, Matrix, WeightScale};

/// Outputs and inputs of the projections measured: as they widen and as they narrow.
const SHAPES: [(usize, usize); 2] = [(8192, 2048), (2048, 8192)];

/// Tokens of a step.
const N_TOKENS: [usize; 7] = [1, 4, 8, 16, 32, 128, 512];

/// Steps of attention: what they are called, sequences, tokens of each, position that each ends at.
const ATTENTION: [(&str, usize, usize, usize); 8] = [
    ("prefill of 512", 1, 512, 512),
    ("prefill of 512 behind 7680", 1, 512, 8192),
    ("decode of 1 at 512", 1, 1, 512),
    ("decode of 8 at 512", 8, 1, 512),
    ("decode of 32 at 512", 32, 1, 512),
    ("decode of 1 at 8192", 1, 1, 8192),
    ("decode of 8 at 8192", 8, 1, 8192),
    ("decode of 32 at 8192", 32, 1, 8192),
];

/// Odd, so that medians are measurements.
const N_RUNS: usize = 15;

fn main() -> anyhow::Result<()> {
    let report = Report::new("kernels");
    let meter = Meter::new()?;
    let machine = Machine::measure()?;
    machine.report(&report);
    let mut cpu = CpuExec::new(machine.n_threads)?;
    cpu.round_inputs(false);
    let mut exec = Exec::Cpu(cpu);
    for shape in SHAPES {
        measure_projection(&report, &mut exec, (Dtype::F8E4m3, "FP8", shape), &meter);
        measure_projection(&report, &mut exec, (Dtype::Bf16, "BF16, inputs f32", shape), &meter);
        round_inputs(&mut exec, true);
        measure_projection(&report, &mut exec, (Dtype::Bf16, "BF16", shape), &meter);
        round_inputs(&mut exec, false);
    }
    for (n_q_heads, n_kv_heads, head_dim) in [(16, 4, 128), (32, 8, 64)] {
        let share = AttentionSpec { n_q_heads, n_kv_heads, head_dim, window: None };
        for rounds in [false, true] {
            round_inputs(&mut exec, rounds);
            for case in ATTENTION {
                measure_attention(&report, &mut exec, &share, case, &meter);
            }
        }
    }
    Ok(())
}

fn round_inputs(exec: &mut Exec, rounds_inputs: bool) {
    if let Exec::Cpu(cpu) = exec {
        cpu.round_inputs(rounds_inputs);
    }
}

fn is_rounding(exec: &Exec) -> bool {
    matches!(exec, Exec::Cpu(cpu) if cpu.rounds_inputs())
}

/// GB/s and GFLOP/s of products with 1 to 512 tokens, and what share they are of the roofline. The
/// machine is measured before each, since its speed changes.
fn measure_projection(
    report: &Report,
    exec: &mut Exec,
    (dtype, name, (n_outputs, n_inputs)): (Dtype, &str, (usize, usize)),
    meter: &Meter,
) {
    // Several copies, taken in turn: more than the caches hold, as a model's weights are.
    let Exec::Cpu(cpu) = &*exec else { panic!("a processor") };
    let layers: Vec<Projection> = (0..6)
        .map(|seed| Projection::host(cpu, vec![layer(dtype, (n_outputs, n_inputs), seed)]))
        .collect();
    let n_bytes = layers[0].parts[0].matrix.n_bytes() as f64;
    let mut turn = layers.iter().cycle();
    let is_pairs = dtype == Dtype::F8E4m3 || dtype == Dtype::Bf16 && is_rounding(exec);
    for n_tokens in N_TOKENS {
        let mut x = Aligned::new(n_tokens * n_inputs);
        x.fill(0.5);
        let x_scales = vec![1.0; n_tokens];
        let mut out = vec![0.0; n_tokens * n_outputs];
        let n_operations = (2 * n_tokens * n_outputs * n_inputs) as f64;
        let mut work = Work { bytes: n_bytes, ..Work::default() };
        match is_pairs {
            true => work.bf16_operations = n_operations,
            false => work.f32_operations = n_operations,
        }
        let case = format!("{name} [{n_outputs}, {n_inputs}], {n_tokens} tokens");
        let rates = [(n_bytes, "GB/s"), (n_operations, "GFLOP/s")];
        in_turns(report, &case, (meter, work), &rates, || {
            let args = linear::Args {
                x: View::new(&x, n_tokens, n_inputs),
                x_scales: Array::Host(&x_scales),
                weights: turn.next().expect("layers come round"),
                out: ViewMut::new(&mut out, n_tokens, n_outputs),
            };
            linear(exec, args).expect("a processor does not fail");
        });
    }
}

/// Medians of `run`, each time after a reading of the machine: amounts a second, and the share of
/// what the machine could do.
fn in_turns(
    report: &Report,
    case: &str,
    (meter, work): (&Meter, Work),
    rates: &[(f64, &str)],
    mut run: impl FnMut(),
) {
    let (mut times, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..N_RUNS {
        let machine = meter.read();
        let seconds = seconds(&mut run);
        times.push(seconds);
        shares.push(100.0 * machine.floor_seconds(work) / seconds);
    }
    let time = median(times);
    for (amount, unit) in rates {
        report.row(case, amount / time / 1e9, unit);
    }
    report.row(&format!("{case}, of roofline"), median(shares), "%");
}

fn layer(dtype: Dtype, (n_rows, n_cols): (usize, usize), seed: u8) -> LinearWeights {
    let row_stride = n_cols * dtype.n_bytes();
    // Small numbers in either type: no code of these is a NaN.
    let bytes: Vec<u8> =
        (0..n_rows * row_stride).map(|i| 0x20 | ((i as u8) ^ seed) & 0x1F).collect();
    let bytes = Bytes::Static(bytes.leak());
    let matrix = Matrix { bytes, offset: 0, dtype, n_rows, n_cols, row_stride };
    LinearWeights { matrix, scale: WeightScale::One, input: InputScale::PerToken }
}

/// A step's attention: GFLOP/s, GB/s of the cache, and what share they are of the roofline.
fn measure_attention(
    report: &Report,
    exec: &mut Exec,
    share: &AttentionSpec,
    (name, n_sequences, n_tokens, n_seen): (&str, usize, usize, usize),
    meter: &Meter,
) {
    const PAGE_TOKENS: usize = 16;
    let AttentionSpec { n_q_heads, n_kv_heads, head_dim, .. } = *share;
    let (width, n_all) = (n_q_heads * head_dim, n_sequences * n_tokens);
    // Sequences that grew together: neighbouring pages are others'.
    let n_pages = n_seen / PAGE_TOKENS;
    let page = |sequence, idx| PageId((idx * n_sequences + sequence) as u32);
    let tables: Vec<Vec<PageId>> = (0..n_sequences)
        .map(|sequence| (0..n_pages).map(|idx| page(sequence, idx)).collect())
        .collect();
    let start = n_seen - n_tokens;
    let row = |(idx, pages)| AttentionRow { token_idx: idx * n_tokens, n_tokens, start, pages };
    let rows: Vec<AttentionRow<'_>> =
        tables.iter().map(Vec::as_slice).enumerate().map(row).collect();
    let mut q = Aligned::new(n_all * width);
    q.fill(0.5);
    let (mut out, mut scales) = (vec![0.0; n_all * width], vec![0.0; n_all]);
    let n_pairs = n_tokens * start + n_tokens * (n_tokens + 1) / 2;
    let n_operations = (4 * n_sequences * n_pairs * width) as f64;
    for dtype in [KvDtype::Bf16, KvDtype::Fp8] {
        let mut cache =
            KvRegion::new(dtype, n_sequences * n_pages, PAGE_TOKENS, n_kv_heads, head_dim);
        let n_bytes = cache.n_bytes() as f64;
        let rates = [(n_operations, "GFLOP/s"), (n_bytes, "GB/s")];
        let mut work = Work { bytes: n_bytes, ..Work::default() };
        match exec {
            // Tiles multiply f32 as three numbers of bf16.
            Exec::Cpu(cpu) if cpu.simd().level() == SimdLevel::Amx => {
                work.bf16_operations = n_operations * if cpu.rounds_inputs() { 1.0 } else { 3.0 };
            }
            _ => work.f32_operations = n_operations,
        }
        let inputs = if is_rounding(exec) { "" } else { ", inputs f32" };
        let heads = format!("{n_q_heads}q/{n_kv_heads}kv of {head_dim}");
        let case = format!("attention {dtype:?}{inputs} {heads}, {name}");
        in_turns(report, &case, (meter, work), &rates, || {
            let args = attention::Args {
                queries: attention::Queries::Rotated(View::new(&q, n_all, width)),
                rows: attention::Rows::Host(&rows),
                share,
                k_scale: 1.0,
                v_scale: 1.0,
                cache: &mut cache,
                next: None,
                input: InputScale::None,
                out: ViewMut::new(&mut out, n_all, width),
                out_scales: ArrayMut::Host(&mut scales),
            };
            attention(exec, args).expect("a processor does not fail");
        });
    }
}
