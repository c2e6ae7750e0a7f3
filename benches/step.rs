//! Tokens a second of the whole model, their share of what the machine could do, and the memory
//! that it takes against what was planned.
//!
//! `cargo bench --bench step [-- --json]`

use std::sync::{Arc, mpsc};
use std::time::Instant;

use benches::machine::{Machine, Meter, Work};
use benches::{Report, median, seconds, synthetic};
use engine::{
    DeviceKind, EngineConfig, Output, Probe, ReaderGone, Request, SamplingParams, Terms, TokenId,
};
use harness::plans::{Planner, Span};
use weights::Checkpoint;
use weights::synthetic::SyntheticFormat;

const N_PREFILL: usize = 512;
const N_CONTEXT: usize = 1024;
/// Positions in each sequence before a decode step is timed.
const N_BEFORE: usize = 128;
const BATCHES: [usize; 3] = [1, 8, 32];
/// Turns that are measured, odd.
const N_PREFILLS: usize = 5;
const N_STEPS: usize = 17;
/// Guesses behind a token, where tokens are guessed.
const N_GUESSES: usize = 4;
/// Tokens of the answer that repeats itself.
const N_REPETITIVE: usize = 128;

fn main() -> anyhow::Result<()> {
    let report = Report::new("step");
    let meter = Meter::new()?;
    for format in [SyntheticFormat::ModelOptFp8, SyntheticFormat::Bf16] {
        let checkpoint = synthetic("bench-0.6b", format)?;
        measure(&report, &checkpoint, &meter, &format!("{format:?}"))?;
        for n_guesses in [0, N_GUESSES] {
            repetitive(&report, &checkpoint, n_guesses, &format!("{format:?}"))?;
        }
    }
    Ok(())
}

fn config() -> EngineConfig {
    EngineConfig {
        device: DeviceKind::Cpu,
        n_ranks: 1,
        n_threads: None,
        n_slots: 32,
        n_waiting_max: 1,
        n_tokens_per_step: N_PREFILL,
        n_context_tokens: Some(N_CONTEXT),
        kv_dtype: None,
        kv_bytes: None,
        is_deterministic: false,
        // As the program does.
        rounds_inputs: true,
        overlaps_steps: false,
        caches_prefixes: false,
        policy: engine::Policy::plain(),
        host_kv: None,
        n_candidates_max: 0,
    }
}

/// A step's work in projections and head; attention over these short contexts is left out.
fn work_of(checkpoint: &Checkpoint, mapped_bytes: u64, n_tokens: usize, n_emitting: usize) -> Work {
    let spec = checkpoint.spec();
    // The embedding is looked up; the head is as large.
    let n_head = (spec.vocab_size * spec.hidden_size) as f64;
    let n_linear = spec.n_parameters() as f64 - 2.0 * n_head;
    let bytes = mapped_bytes as f64 - n_head * size_of::<u16>() as f64;
    let n_operations = 2.0 * (n_linear * n_tokens as f64 + n_head * n_emitting as f64);
    Work { bytes, f32_operations: 0.0, bf16_operations: n_operations }
}

fn measure(
    report: &Report,
    checkpoint: &Arc<Checkpoint>,
    meter: &Meter,
    format: &str,
) -> anyhow::Result<()> {
    let config = config();
    let before = (resident_bytes("RssAnon:")?, resident_bytes("VmRSS:")?);
    let mut probe = Probe::new(Arc::clone(checkpoint), &config)?;
    let vocab_size = checkpoint.spec().vocab_size;
    let tokens: Vec<TokenId> =
        (0..N_PREFILL).map(|idx| TokenId((idx * 7919 % vocab_size) as u32)).collect();
    let mapped_bytes = probe.memory().mapped_bytes;
    let mut readings = Vec::new();
    let mut row = |case: &str, (n_tokens, n_emitting): (usize, usize), turns: &[Turn]| {
        let work = work_of(checkpoint, mapped_bytes, n_tokens, n_emitting);
        let case = format!("{format} {case}");
        let time = median(turns.iter().map(|turn| turn.seconds).collect());
        report.row(&case, n_tokens as f64 / time, "tokens/s");
        let shares = turns.iter().map(|turn| turn.machine.floor_seconds(work) / turn.seconds);
        report.row(&format!("{case}, of roofline"), 100.0 * median(shares.collect()), "%");
        readings.extend(turns.iter().map(|turn| turn.machine));
    };
    let turns: Vec<Turn> = (0..N_PREFILLS)
        .map(|_| {
            let mut planner = Planner::new(probe.memory());
            let plan = planner.last_only(&[Span { slot: 0, start: 0, tokens: &tokens }]);
            Turn::new(meter, || probe.run(plan).expect("the ranks run"))
        })
        .collect();
    row(&format!("prefill {N_PREFILL}"), (N_PREFILL, 1), &turns);
    for n_rows in BATCHES {
        let turns = decode(&mut probe, &tokens, n_rows, meter);
        row(&format!("decode batch={n_rows}"), (n_rows, n_rows), &turns);
    }
    Machine::median(&readings).report(report);
    let planned = probe.memory().total_bytes() - probe.memory().mapped_bytes;
    let taken = resident_bytes("RssAnon:")? - before.0;
    let rows = [
        ("weights, mapped", probe.memory().mapped_bytes),
        ("beside mapped weights, planned", planned),
        ("beside mapped weights, resident", taken),
        ("everything, planned", probe.memory().total_bytes()),
        ("everything, resident", resident_bytes("VmRSS:")? - before.1),
    ];
    for (case, bytes) in rows {
        report.row(&format!("{format} {case}"), bytes as f64, "bytes");
    }
    Ok(())
}

/// Steps that decode.
fn decode(probe: &mut Probe, tokens: &[TokenId], n_rows: usize, meter: &Meter) -> Vec<Turn> {
    let mut planner = Planner::new(probe.memory());
    for slot in 0..n_rows {
        let span = Span { slot, start: 0, tokens: &tokens[..N_BEFORE] };
        probe.run(planner.last_only(&[span])).expect("the ranks run");
    }
    let step = |start: usize| {
        let spans: Vec<Span<'_>> =
            (0..n_rows).map(|slot| Span { slot, start, tokens: &tokens[..1] }).collect();
        let plan = planner.last_only(&spans);
        Turn::new(meter, || probe.run(plan).expect("the ranks run"))
    };
    (N_BEFORE..N_BEFORE + N_STEPS).map(step).collect()
}

/// What the machine gave, and right after it the seconds of a step.
struct Turn {
    machine: Machine,
    seconds: f64,
}

impl Turn {
    fn new<T>(meter: &Meter, step: impl FnOnce() -> T) -> Turn {
        let machine = meter.read();
        let seconds = seconds(|| drop(step()));
        Turn { machine, seconds }
    }
}

/// One answer, through the engine, to a prompt that repeats itself: greedy answers of weights that
/// nobody trained soon do so, too. The same tokens with and without guesses.
fn repetitive(
    report: &Report,
    checkpoint: &Arc<Checkpoint>,
    n_guesses: usize,
    format: &str,
) -> anyhow::Result<()> {
    let config = EngineConfig { n_candidates_max: n_guesses, ..config() };
    let engine = engine::boot(Arc::clone(checkpoint), &config)?;
    let request = Request {
        prompt: (0..N_BEFORE as u32).map(|idx| TokenId(100 + idx % 16)).collect(),
        n_new_max: N_REPETITIVE,
        stop_tokens: [].into(),
        sampling: SamplingParams::greedy(),
        n_logprobs: None,
        n_prompt_logprobs: None,
        hashes_logits: false,
        cache_salt: None,
        terms: Terms::ordinary(),
    };
    let (sender, receiver) = mpsc::channel();
    let deliver = move |output| sender.send((Instant::now(), output)).map_err(|_| ReaderGone);
    let ticket = engine.handle().submit(request, Box::new(deliver))?;
    let outputs: Vec<_> = receiver.into_iter().collect();
    drop(ticket);
    let tokens = outputs.iter().filter(|(_, output)| matches!(output, Output::Token { .. }));
    let times: Vec<Instant> = tokens.map(|(time, _)| *time).collect();
    anyhow::ensure!(times.len() == N_REPETITIVE, "{} tokens came", times.len());
    let seconds = (times[N_REPETITIVE - 1] - times[0]).as_secs_f64();
    let case = format!("{format} repetitive answer, guesses={n_guesses}");
    report.row(&case, (N_REPETITIVE - 1) as f64 / seconds, "tokens/s");
    let stats = engine.handle().stats();
    if stats.n_proposed_tokens > 0 {
        let share = stats.n_accepted_tokens as f64 / stats.n_proposed_tokens as f64;
        report.row(&format!("{case}: right"), share, "of all guesses");
    }
    engine.shutdown();
    Ok(())
}

/// Resident memory of this process: all of it (`VmRSS:`), or what no file is behind (`RssAnon:`).
fn resident_bytes(field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next()).unwrap_or("0");
    Ok(kib.parse::<u64>()? * 1024)
}
