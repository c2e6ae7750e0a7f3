//! The **predicted** time of a step of Llama-Nemotron Ultra on eight H100s, beside the roofline.
//! Nothing in it was measured by us: `engine/src/predict/machine.rs` names every constant's source.
//!
//! `cargo bench --bench predict [-- --json]`
//!
//! The model boots at its true size on a virtual node that counts and does not compute, and every
//! line's step is run there: a prediction whose work is not what was launched is not printed.

mod dry;

use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use benches::Report;
use benches::cost::counted::Counted;
use benches::cost::machine::{Machine, n_launches, roofline_seconds};
use benches::cost::work::{Launch, Step, launches};
use benches::cost::{BATCHES, CHUNK, CONTEXTS};
use weights::ModelSpec;
use weights::presets::preset;

use dry::{N_RANKS, Ultra};

/// What a step is to take at most, in times of the roofline, and up to which batch at which
/// context.
const GOAL: f64 = 1.25;
const GOAL_BATCH_MAX: u64 = 64;
const GOAL_CONTEXT: u64 = 8192;

fn main() -> anyhow::Result<ExitCode> {
    if !harness::is_dry() {
        return again_dry();
    }
    let spec = preset("ultra-253b").context("there is no such preset")?;
    let report = Report::new("predict");
    report.note("PREDICTED, not measured: LN-Ultra 253B, FP8 weights and KV, 8 x H100 SXM, TP 8.");
    report.note("Launches, bytes and flops were counted on a virtual node, which has no speed.");
    report
        .note("The range is from the worst to the best published efficiencies, with their sources");
    report.note(
        "in engine/src/predict/machine.rs; the ratio is of the expected time to the roofline.\n",
    );
    report.note(&format!(
        "{:>5} {:>7} {:>8} {:>12} {:>21} {:>9} {:>13} {:>6} {:>9}",
        "batch",
        "context",
        "launches",
        "roofline ms",
        "predicted ms (range)",
        "tok/s",
        "(range)",
        "ratio",
        "per user"
    ));
    let mut ultra = Ultra::boot()?;
    let mut goals = Vec::new();
    for n_sequences in BATCHES {
        let counted = ultra.decode(n_sequences as usize)?;
        for context in CONTEXTS {
            if n_sequences * context > ultra.n_cached_max() {
                report.note(&format!("{n_sequences:>5} {context:>7}  the cache does not fit"));
                continue;
            }
            let step = Step { n_sequences, n_tokens_each: 1, context };
            let work = agreed(&spec, step, &counted)?;
            let predicted = decode(&report, step, &work);
            if context == GOAL_CONTEXT && n_sequences <= GOAL_BATCH_MAX {
                goals.push((n_sequences, predicted));
            }
        }
    }
    let step = Step { n_sequences: 1, n_tokens_each: CHUNK, context: CHUNK };
    prefill(&report, &agreed(&spec, step, &ultra.prefill()?)?);
    goal(&report, &goals);
    Ok(ExitCode::SUCCESS)
}

/// This program once more, with a node that only counts: it reads its mode once in a process.
fn again_dry() -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let (name, value) = harness::DRY;
    let status = Command::new(program).args(std::env::args_os().skip(1)).env(name, value).status();
    Ok(if status?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The work of a step, if it is what every rank launched.
fn agreed(spec: &ModelSpec, step: Step, counted: &[Counted]) -> anyhow::Result<Vec<Launch>> {
    let work = launches(spec, step, N_RANKS);
    ensure!(counted.len() as u64 == N_RANKS, "{} ranks were counted", counted.len());
    for (rank_idx, counted) in counted.iter().enumerate() {
        let differences = counted.differences(&work, N_RANKS);
        ensure!(differences.is_empty(), "{step:?} on rank {rank_idx}: {}", differences.join("; "));
        ensure!(counted.n_launches() == n_launches(&work) as u64, "{step:?}: launches differ");
    }
    Ok(work)
}

#[derive(Clone, Copy)]
struct Predicted {
    roofline: f64,
    slow: f64,
    expected: f64,
    other: f64,
    fast: f64,
}

fn predict(work: &[Launch]) -> Predicted {
    Predicted {
        roofline: roofline_seconds(work),
        slow: Machine::LOW.seconds(work),
        expected: Machine::EXPECTED.seconds(work),
        other: Machine::OTHER_PRODUCTS.seconds(work),
        fast: Machine::HIGH.seconds(work),
    }
}

/// A line.
fn decode(report: &Report, step: Step, work: &[Launch]) -> Predicted {
    let Step { n_sequences, context, .. } = step;
    let predicted = predict(work);
    let Predicted { roofline, slow, expected, fast, .. } = predicted;
    let rate = |seconds: f64| n_sequences as f64 / seconds;
    let range = format!("({:.1}-{:.1})", 1e3 * fast, 1e3 * slow);
    let rates = format!("({:.0}-{:.0})", rate(slow), rate(fast));
    report.note(&format!(
        "{n_sequences:>5} {context:>7} {:>8} {:>12.2} {:>8.2} {range:>12} {:>9.1} {rates:>13} \
         {:>6.2} {:>9.1}",
        n_launches(work),
        1e3 * roofline,
        1e3 * expected,
        rate(expected),
        expected / roofline,
        1.0 / expected
    ));
    row(report, &format!("decode batch={n_sequences} context={context}"), expected, "predicted_s");
    predicted
}

fn prefill(report: &Report, work: &[Launch]) {
    let Predicted { roofline, slow, expected, fast, .. } = predict(work);
    let rate = |seconds: f64| CHUNK as f64 / seconds;
    report.note(&format!(
        "\nprefill of a chunk of {CHUNK} tokens, predicted: {:.0} ms ({:.0}-{:.0}), {:.0} tok/s \
         ({:.0}-{:.0}); roofline {:.0} ms",
        1e3 * expected,
        1e3 * fast,
        1e3 * slow,
        rate(expected),
        rate(slow),
        rate(fast),
        1e3 * roofline
    ));
    row(report, &format!("prefill chunk={CHUNK}"), expected, "predicted_s");
}

/// How far from what is wanted, said as it is.
fn goal(report: &Report, goals: &[(u64, Predicted)]) {
    report.note(&format!(
        "\nGoal: {GOAL} x the roofline at batch 1 to {GOAL_BATCH_MAX} x {GOAL_CONTEXT}. Predicted:"
    ));
    for &(n_sequences, Predicted { roofline, slow, expected, other, fast }) in goals {
        let word = |seconds: f64| {
            let is_within = seconds / roofline <= GOAL;
            format!(
                "{:.2} x, {}",
                seconds / roofline,
                if is_within { "within it" } else { "ABOVE it" }
            )
        };
        report.note(&format!(
            "  batch {n_sequences:>2}: {}; with DeepGEMM's products {}; at the best published \
             efficiencies {}, at the worst {}",
            word(expected),
            word(other),
            word(fast),
            word(slow)
        ));
    }
}

/// For machines; people have the table.
fn row(report: &Report, case: &str, value: f64, unit: &str) {
    if report.is_json() {
        report.row(case, value, unit);
    }
}
