//! What an operator of LN-Ultra may expect: the real scheduler in virtual time, each step taking
//! what the cost model **predicts** for eight H100s. Nothing in it was measured on a GPU by us.
//!
//! `cargo bench --bench operators [-- --json] [-- --out FILE]`
//!
//! The table goes to standard output, a page with charts to `target/operators.html`.

mod cost;
mod page;
mod run;
mod setup;
mod work;

use std::path::PathBuf;
use std::process::Command;

use benches::Report;

use run::Outcome;
use setup::Setup;
use work::Workload;

/// A workload under a setup, and what came of it.
pub(crate) struct Line {
    pub(crate) question: &'static str,
    pub(crate) workload: String,
    pub(crate) setup: String,
    pub(crate) outcome: Outcome,
}

fn main() -> anyhow::Result<()> {
    let report = Report::new("operators");
    let commit = commit();
    report.note(&format!("PREDICTED, not measured: {} at commit {commit}.", setup::MACHINE));
    report.note(
        "The scheduler is the real one, in virtual time; a step takes what the cost model of",
    );
    report.note(
        "engine/src/predict says of its rows. Arrivals wait for the step that runs, as on GPUs.",
    );
    report.note("TTFT, gap between tokens (ITL): milliseconds, median and 99th percentile.\n");
    report.note(&header());
    let mut lines = Vec::new();
    for (question, workload, setup) in questions() {
        let outcome = run::run(&workload, &setup)?;
        let line = Line { question, workload: workload.name(), setup: setup.name, outcome };
        report.note(&text(&line));
        rows(&report, &line);
        lines.push(line);
    }
    let path = out();
    std::fs::write(&path, page::page(&lines, &commit))?;
    report.note(&format!("\nwritten to {}", path.display()));
    Ok(())
}

/// What is asked.
fn questions() -> Vec<(&'static str, Workload, Setup)> {
    let (generate, read) = (Workload::closed(250, 500, 2000), Workload::closed(250, 5000, 500));
    let base = Setup::base;
    // What is not said of a line: chunks of 2,048 tokens, pages of 16, the prefix cache on.
    let all = [generate, read].map(|workload| ("250 users", workload, base("chunks of 2048")));
    let mut all = all.to_vec();
    for n_tokens_per_step in [512, 1024, 8192] {
        let name = format!("chunks of {n_tokens_per_step}");
        all.push(("chunk size", read, Setup { name, n_tokens_per_step, ..base("") }));
    }
    for target_ms in [40, 60] {
        let name = format!("steps of {target_ms} ms");
        let step_target_ms = Some(target_ms);
        all.push(("latency target", read, Setup { name, step_target_ms, ..base("") }));
    }
    let agents = Workload::agents();
    all.push(("prefix cache", agents, base("with, pages of 16")));
    all.push(("prefix cache", agents, Setup { caches_prefixes: false, ..base("without") }));
    let host = Setup { n_host_gib: 256, ..base("256 GiB of host memory") };
    all.push(("host tier", agents, host));
    for page_tokens in [64, 256] {
        let name = format!("pages of {page_tokens}");
        all.push(("page size", agents, Setup { name, page_tokens, ..base("") }));
    }
    all
}

fn header() -> String {
    "| question | workload | setup | TTFT p50 | p99 | ITL p50 | p99 | output tok/s | \
     tok/s a user | prompt cached | preemptions |\n|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        .to_owned()
}

fn text(line: &Line) -> String {
    let Line { question, workload, setup, outcome } = line;
    format!(
        "| {question} | {workload} | {setup} | {:.0} | {:.0} | {:.1} | {:.1} | {:.0} | {:.1} | \
         {:.0} % | {} |",
        outcome.first_ms.median,
        outcome.first_ms.p99,
        outcome.gap_ms.median,
        outcome.gap_ms.p99,
        outcome.tokens_a_second,
        1e3 / outcome.gap_ms.mean,
        100.0 * outcome.cached_share,
        outcome.n_preemptions,
    )
}

/// For machines; people have the table.
fn rows(report: &Report, line: &Line) {
    if report.is_json() {
        let case = [line.question, &line.workload, &line.setup].join(", ");
        let outcome = &line.outcome;
        report.row(&format!("{case}: TTFT p50"), outcome.first_ms.median, "predicted_ms");
        report.row(&format!("{case}: ITL p50"), outcome.gap_ms.median, "predicted_ms");
        report.row(&format!("{case}: output"), outcome.tokens_a_second, "predicted_tokens/s");
    }
}

fn commit() -> String {
    let output = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit = output.ok().filter(|output| output.status.success());
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    commit.unwrap_or_else(|| "unknown".to_owned())
}

fn out() -> PathBuf {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--out").skip(1);
    let beside_build =
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/operators.html");
    arguments.next().map_or_else(beside_build, PathBuf::from)
}
