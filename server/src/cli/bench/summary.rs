//! A result for the person at the terminal.

use std::fmt::Write;

use super::super::table::{grouped, table};
use crate::bench::compare::Comparison;
use crate::bench::figures::{Figures, Spread};
use crate::bench::report::{KEY_FIGURES, Report, Run};
use crate::bench::statistics::N_FOR_BOUND;

/// Differences that are shown at most.
const N_SHOWN_MAX: usize = 3;

const RED: &str = "\x1b[31;1m";
const PLAIN: &str = "\x1b[0m";

/// The whole.
pub(super) fn of(report: &Report, has_colour: bool) -> String {
    let mut text = format!("{} on {}\n", report.model, report.server);
    if !report.has_exact_prompts {
        text += "Prompts have about the lengths asked for: this server has no /tokenize.\n";
    }
    for (idx, run) in report.runs.iter().enumerate() {
        text += "\n";
        text += &of_run(idx + 1, run, has_colour);
    }
    if report.intervals.len() == 1 && report.runs.len() > 1 {
        text += "\nmean over repeats, with its 95 % confidence interval\n";
        text += &intervals(report);
    }
    if report.intervals.len() > 1 {
        text += "\nprotocols\n";
        text += &protocols(report);
    }
    if let Some(found) = &report.search {
        text += "\n";
        text += &match (found.rate, found.too_high) {
            (Some(rate), Some(too_high)) => {
                format!("The limits are kept at {rate:.3} requests/s, and not at {too_high:.3}.\n")
            }
            (Some(rate), None) => {
                format!("The limits are kept at {rate:.3} requests/s; nothing higher was tried.\n")
            }
            (None, _) => "No rate that was tried keeps the limits.\n".to_owned(),
        };
        if let Some(rate) = found.unmeasured {
            text += &format!("Of {rate:.3} requests/s nothing is known: the generator lagged.\n");
        }
    }
    text
}

fn of_run(number: usize, run: &Run, has_colour: bool) -> String {
    let figures = &run.figures;
    let mut text =
        format!("run {number}: {}, {}, seed {}\n", run.endpoint.name(), run.load, run.seed);
    text += &counts(figures);
    text += &spreads(figures);
    if let Some(split) = &figures.split {
        let parts = [
            ("network", &split.network_ms),
            ("prepare", &split.prepare_ms),
            ("queue", &split.queue_ms),
            ("prefill", &split.prefill_ms),
            ("no text", &split.silent_ms),
        ];
        let parts: Vec<String> = parts
            .iter()
            .map(|(name, part)| format!("{name} {:.1} (p99 {:.1})", part.mean, part.p99))
            .collect();
        line(&mut text, "TTFT split", &format!("{} ms", parts.join(" + ")));
    }
    if let Some(goodput) = &figures.goodput {
        let verdict = if goodput.is_met { "limits kept" } else { "limits broken" };
        let words = format!(
            "{:.3} requests/s, {:.1} % of them; {verdict}",
            goodput.requests_per_s,
            goodput.share * 100.0
        );
        line(&mut text, "goodput", &words);
    }
    bounds(&mut text, figures);
    answers(&mut text, run);
    for reason in &run.invalid {
        let (on, off) = if has_colour { (RED, PLAIN) } else { ("", "") };
        line(&mut text, &format!("{on}INVALID{off}"), reason);
    }
    text
}

fn line(text: &mut String, name: &str, words: &str) {
    writeln!(text, "  {name}: {words}").expect("a string takes everything");
}

fn counts(figures: &Figures) -> String {
    let mut text = String::new();
    let requests = format!(
        "{} of {} answered in {:.1} s, {} cancelled, {} failed",
        figures.n_done,
        figures.n_requests,
        figures.duration_s,
        figures.n_cancelled,
        figures.n_failed
    );
    line(&mut text, "requests", &requests);
    for (kind, failures) in &figures.failures {
        line(
            &mut text,
            &format!("failed, {kind}"),
            &format!("{} ({})", failures.n, failures.words),
        );
    }
    if figures.n_short > 0 {
        let words = format!("{} ended before the length that was asked for", figures.n_short);
        line(&mut text, "short answers", &words);
    }
    let rate = format!(
        "{:.3} requests/s, {:.1} output tokens/s, {:.1} tokens/s in all",
        figures.requests_per_s, figures.output_tokens_per_s, figures.total_tokens_per_s
    );
    line(&mut text, "throughput", &rate);
    let tokens = format!(
        "{} in ({} from the cache), {} out{}",
        grouped(figures.n_prompt_tokens),
        grouped(figures.n_cached_tokens),
        grouped(figures.n_output_tokens),
        if figures.is_counted { "" } else { " (pieces of answers: the server does not count)" },
    );
    line(&mut text, "tokens", &tokens);
    text
}

fn spreads(figures: &Figures) -> String {
    let row = |name: &str, spread: &Spread| {
        let values =
            [spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.p999, spread.max];
        let cells = values.iter().map(|value| format!("{value:.1}"));
        std::iter::once(name.to_owned()).chain(cells).collect::<Vec<String>>()
    };
    let mut rows = Vec::new();
    for (name, spread) in [
        ("TTFT, ms", &figures.ttft_ms),
        ("TPOT, ms", &figures.tpot_ms),
        ("ITL, ms", &figures.itl_ms),
        ("E2E, ms", &figures.e2e_ms),
        ("prompt, tokens", &figures.n_in),
        ("answer, tokens", &figures.n_out),
        ("sent late, ms", &figures.send_lag_ms),
    ] {
        if spread.n > 0 {
            rows.push(row(name, spread));
        }
    }
    table(&["", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"], &rows)
}

fn bounds(text: &mut String, figures: &Figures) {
    let known: Vec<String> = figures
        .bounds
        .iter()
        .filter_map(|bound| Some(format!("{} {:.1} ms", bound.metric, bound.bound_ms?)))
        .collect();
    match known.is_empty() {
        false => line(text, "p99 at most (99 % sure)", &known.join(", ")),
        true => {
            let words = format!("takes {N_FOR_BOUND} answers, there are {}", figures.n_done);
            line(text, "p99 at most (99 % sure)", &words);
        }
    }
}

fn answers(text: &mut String, run: &Run) {
    let answers = &run.answers;
    if answers.n_checked == 0 {
        return;
    }
    let n_different = answers.differences.len();
    let words = match n_different {
        0 => format!("{} asked for again alone, all the same", answers.n_checked),
        n => format!("{n} of {} are others when asked for alone", answers.n_checked),
    };
    line(text, "answers", &words);
    for difference in answers.differences.iter().take(N_SHOWN_MAX) {
        let words = format!(
            "after {} characters, under load {:?}, alone {:?}",
            difference.n_same_chars, difference.under_load, difference.alone
        );
        line(text, &format!("  request {}", difference.idx), &words);
    }
}

fn intervals(report: &Report) -> String {
    let mut rows = Vec::new();
    for one in &report.intervals {
        for (name, value) in &one.figures {
            rows.push(vec![format!("{}, {name}", one.endpoint.name()), value.to_string()]);
        }
    }
    table(&["", "mean"], &rows)
}

/// A row a figure, a column a protocol.
fn protocols(report: &Report) -> String {
    let header: Vec<&str> =
        std::iter::once("").chain(report.intervals.iter().map(|one| one.endpoint.name())).collect();
    let rows: Vec<Vec<String>> = KEY_FIGURES
        .iter()
        .map(|(name, _)| std::iter::once((*name).to_owned()).chain(report.row(name)).collect())
        .collect();
    table(&header, &rows)
}

/// Two results side by side.
pub(super) fn of_comparison(comparison: &Comparison) -> String {
    let mut text = String::new();
    for warning in &comparison.warnings {
        writeln!(text, "mind: {warning}").expect("a string takes everything");
    }
    let rows: Vec<Vec<String>> = comparison
        .rows
        .iter()
        .map(|row| {
            let verdict = match row.is_certain {
                Some(true) => "yes",
                Some(false) => "no",
                None => "one run",
            };
            vec![
                row.name.clone(),
                row.before.to_string(),
                row.after.to_string(),
                format!("{:+.1} %", row.change_percent),
                verdict.to_owned(),
            ]
        })
        .collect();
    text + &table(&["", "before", "after", "change", "beyond chance"], &rows)
}
