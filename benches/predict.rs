//! The **predicted** time of a step of Llama-Nemotron Ultra on eight H100s, beside the roofline.
//! Nothing in it was measured by us: see `cost/machine.rs` for every constant's source.
//!
//! `cargo bench --bench predict [-- --json]`

use benches::Report;
use benches::cost::machine::{Machine, n_launches, roofline_seconds};
use benches::cost::work::{Launch, Step, launches};
use weights::ModelSpec;
use weights::presets::preset;

const N_RANKS: u64 = 8;
const BATCHES: [u64; 6] = [1, 8, 32, 64, 128, 256];
const CONTEXTS: [u64; 3] = [1024, 8192, 32_768];
const CHUNK: u64 = 8192;
/// Tokens whose FP8 cache fits beside the weights: 92 % of 79.6 GiB a device without 3 GiB of
/// workspace, at 16,384 bytes a token.
const N_CACHED_MAX: u64 = 2_640_000;

fn main() -> anyhow::Result<()> {
    let name = "ultra-253b";
    let spec = preset(name).ok_or_else(|| anyhow::anyhow!("there is no preset {name}"))?;
    let report = Report::new("predict");
    report.note("PREDICTED, not measured: LN-Ultra 253B, FP8 weights and KV, 8 x H100 SXM, TP 8.");
    report
        .note("The range is from the worst to the best published efficiencies (cost/machine.rs);");
    report.note("the ratio is of the expected time to the roofline.\n");
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
    for n_sequences in BATCHES {
        for context in CONTEXTS {
            decode(&report, &spec, n_sequences, context);
        }
    }
    prefill(&report, &spec);
    Ok(())
}

struct Predicted {
    roofline: f64,
    slow: f64,
    expected: f64,
    fast: f64,
}

fn predict(work: &[Launch]) -> Predicted {
    Predicted {
        roofline: roofline_seconds(work),
        slow: Machine::LOW.seconds(work),
        expected: Machine::EXPECTED.seconds(work),
        fast: Machine::HIGH.seconds(work),
    }
}

fn decode(report: &Report, spec: &ModelSpec, n_sequences: u64, context: u64) {
    if n_sequences * context > N_CACHED_MAX {
        report.note(&format!("{n_sequences:>5} {context:>7}  the cache does not fit"));
        return;
    }
    let work = launches(spec, Step { n_sequences, n_tokens_each: 1, context }, N_RANKS);
    let Predicted { roofline, slow, expected, fast } = predict(&work);
    let rate = |seconds: f64| n_sequences as f64 / seconds;
    let range = format!("({:.1}-{:.1})", 1e3 * fast, 1e3 * slow);
    let rates = format!("({:.0}-{:.0})", rate(slow), rate(fast));
    report.note(&format!(
        "{n_sequences:>5} {context:>7} {:>8} {:>12.2} {:>8.2} {range:>12} {:>9.1} {rates:>13} \
         {:>6.2} {:>9.1}",
        n_launches(&work),
        1e3 * roofline,
        1e3 * expected,
        rate(expected),
        expected / roofline,
        1.0 / expected
    ));
    row(report, &format!("decode batch={n_sequences} context={context}"), expected, "predicted_s");
}

fn prefill(report: &Report, spec: &ModelSpec) {
    let step = Step { n_sequences: 1, n_tokens_each: CHUNK, context: CHUNK };
    let Predicted { roofline, slow, expected, fast } = predict(&launches(spec, step, N_RANKS));
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

/// For machines; people have the table.
fn row(report: &Report, case: &str, value: f64, unit: &str) {
    if report.is_json() {
        report.row(case, value, unit);
    }
}
