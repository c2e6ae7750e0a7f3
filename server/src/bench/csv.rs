//! A line for every request.

use std::fmt::Write;
use std::time::Duration;

use super::report::Report;
use super::sample::{Outcome, Sample};

const HEADER: &str = "run,endpoint,request,turn,intended_s,sent_s,lag_ms,outcome,ttft_ms,tpot_ms,\
                      e2e_ms,prompt_tokens,cached_tokens,output_tokens,prepare_ms,queue_ms,\
                      prefill_ms,network_ms,silent_ms\n";

/// All of them, run after run. What is not known is left empty.
pub fn of(report: &Report, samples: &[Vec<Sample>]) -> String {
    let mut text = HEADER.to_owned();
    for (idx, (run, samples)) in report.runs.iter().zip(samples).enumerate() {
        let began = samples.iter().map(|sample| sample.intended).min().unwrap_or_default();
        for sample in samples {
            write!(text, "{},{},", idx + 1, run.endpoint.name()).expect("a string takes all");
            line(&mut text, sample, began);
        }
    }
    text
}

fn line(text: &mut String, sample: &Sample, began: Duration) {
    let s = |moment: Duration| moment.saturating_sub(began).as_secs_f64();
    let ms = |duration: Option<Duration>| {
        duration.map_or_else(String::new, |duration| format!("{:.3}", duration.as_secs_f64() * 1e3))
    };
    let count = |n: Option<usize>| n.map_or_else(String::new, |n| n.to_string());
    let outcome = match &sample.outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::Cancelled => "cancelled".to_owned(),
        // A status, or a word of ours: nothing that a table would read otherwise.
        Outcome::Failed(failure) => format!("failed {}", failure.kind),
    };
    let waits = sample.waits;
    writeln!(
        text,
        "{},{},{:.6},{:.6},{},{outcome},{},{},{},{},{},{},{},{},{},{},{}",
        sample.idx,
        sample.turn,
        s(sample.intended),
        s(sample.began),
        ms(Some(sample.lag())),
        ms(sample.ttft()),
        ms(sample.tpot()),
        ms(Some(sample.e2e())),
        count(sample.n_prompt),
        count(sample.n_cached),
        sample.n_out,
        ms(waits.map(|waits| waits.prepare)),
        ms(waits.map(|waits| waits.queue)),
        ms(waits.map(|waits| waits.prefill)),
        ms(sample.network()),
        ms(sample.silent()),
    )
    .expect("a string takes everything");
}
