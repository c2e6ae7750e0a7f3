//! A result as one page that needs nothing else: no script, no font, no picture from elsewhere.

use std::fmt::Write;

use super::charts::{Frame, Mark, Series, bars, chart, escaped};
use super::figures::{N_CURVE_POINTS, Spread};
use super::report::{KEY_FIGURES, Report, Run, Second};

const STYLE: &str = ":root{color-scheme:light dark;--ink:#1b2430;--paper:#fff;--line:#d6dde6;\
--bad:#9b1c1c;--c0:#2f6f9f;--c1:#c2571a;--c2:#3f8a4d;--c3:#8a4f9e;--c4:#a38300;--c5:#5b6b7a}\
@media(prefers-color-scheme:dark){:root{--ink:#dfe6ee;--paper:#12171d;--line:#33404d;\
--bad:#ff8a80;--c0:#6fb1e0;--c1:#f0965a;--c2:#79c487;--c3:#c592d6;--c4:#dcbf4a;--c5:#9fb0c0}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;\
color:var(--ink);background:var(--paper)}h1,h2,h3{line-height:1.2}h3{font-size:1rem;margin:1rem \
0 .2rem}section{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));\
gap:1rem}.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px}td,th{padding:.25rem\
 .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}td:first-child,\
th:first-child{text-align:left}svg{width:100%;height:auto;font-size:11px}svg text{fill:var(--ink)}\
.g{stroke:var(--line)}.l{fill:none;stroke-width:1.8}.bad{color:var(--bad);font-weight:600}\
.legend{margin:0;font-size:12px}.legend span{margin-right:1rem}.legend i{display:inline-block;\
width:.8em;height:.8em;margin-right:.3em}";

/// A spread, and what it is called.
type Named = (&'static str, fn(&Run) -> &Spread);

const CURVES: [Named; 4] = [
    ("Time to the first token", |run| &run.figures.ttft_ms),
    ("Time per output token", |run| &run.figures.tpot_ms),
    ("Gaps between pieces", |run| &run.figures.itl_ms),
    ("The whole answer", |run| &run.figures.e2e_ms),
];

/// A figure of every second: its title, its unit.
type PerSecond = (&'static str, &'static str, fn(&Second) -> usize);

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>lnserve bench: {0}</title><style>{STYLE}{1}</style>\
         <h1>Load test of {0}</h1><p>On {2}, measured by {3}, {4} s after 1970.</p>",
        escaped(&report.model),
        colours(),
        escaped(&report.server),
        escaped(&report.program),
        report.began_unix_s,
    );
    warnings(&mut page, report);
    page += "<h2>Figures</h2><p>Milliseconds. Times count from when a request should have been \
             sent.</p>";
    runs(&mut page, report);
    if report.intervals.iter().any(|one| one.figures.iter().any(|(_, i)| i.n > 1))
        || report.intervals.len() > 1
    {
        page += "<h2>Over repeats</h2><p>Means, with 95 % confidence intervals.</p>";
        intervals(&mut page, report);
    }
    page += "<h2>Charts</h2><section>";
    curves(&mut page, report);
    over_time(&mut page, report);
    split(&mut page, report);
    search(&mut page, report);
    page += "</section><h2>Asked for</h2>";
    let rows = report.settings.iter().map(|(name, value)| vec![name.clone(), value.clone()]);
    table(&mut page, &["", "value"], rows.collect());
    page + "</html>\n"
}

fn colours() -> String {
    (0..super::charts::N_COLOURS)
        .map(|idx| {
            format!(
                ".l.c{idx}{{stroke:var(--c{idx})}}.d.c{idx},.b.c{idx}{{fill:var(--c{idx})}}\
                 .k{idx}{{background:var(--c{idx})}}"
            )
        })
        .collect()
}

fn warnings(page: &mut String, report: &Report) {
    for reason in report.invalid() {
        *page += &format!("<p class=\"bad\">INVALID: {}</p>", escaped(&reason));
    }
    for (idx, run) in report.runs.iter().enumerate() {
        for difference in &run.answers.differences {
            *page += &format!(
                "<p class=\"bad\">Run {}, request {}: another answer alone than under load, after \
                 {} characters: under load “{}”, alone “{}”</p>",
                idx + 1,
                difference.idx,
                difference.n_same_chars,
                escaped(&difference.under_load),
                escaped(&difference.alone),
            );
        }
    }
}

fn name(idx: usize, run: &Run) -> String {
    format!("{}: {}, {}", idx + 1, run.endpoint.name(), run.load)
}

fn runs(page: &mut String, report: &Report) {
    let header = [
        "run",
        "done",
        "failed",
        "requests/s",
        "output tokens/s",
        "TTFT p50",
        "p99",
        "p99.9",
        "TPOT p50",
        "p99",
        "ITL p50",
        "p99",
        "E2E p50",
        "p99",
        "sent late p99",
        "goodput/s",
        "answers the same",
    ];
    let number = |value: f64| format!("{value:.1}");
    let rows = report.runs.iter().enumerate().map(|(idx, run)| {
        let figures = &run.figures;
        let goodput = figures.goodput.as_ref();
        let n_same = run.answers.n_checked - run.answers.differences.len();
        vec![
            name(idx, run),
            figures.n_done.to_string(),
            figures.n_failed.to_string(),
            format!("{:.3}", figures.requests_per_s),
            number(figures.output_tokens_per_s),
            number(figures.ttft_ms.p50),
            number(figures.ttft_ms.p99),
            number(figures.ttft_ms.p999),
            number(figures.tpot_ms.p50),
            number(figures.tpot_ms.p99),
            number(figures.itl_ms.p50),
            number(figures.itl_ms.p99),
            number(figures.e2e_ms.p50),
            number(figures.e2e_ms.p99),
            number(figures.send_lag_ms.p99),
            goodput.map_or_else(String::new, |goodput| format!("{:.3}", goodput.requests_per_s)),
            format!("{n_same} of {}", run.answers.n_checked),
        ]
    });
    table(page, &header, rows.collect());
}

fn intervals(page: &mut String, report: &Report) {
    let header: Vec<&str> =
        std::iter::once("").chain(report.intervals.iter().map(|one| one.endpoint.name())).collect();
    let rows = KEY_FIGURES
        .iter()
        .map(|(name, _)| std::iter::once((*name).to_owned()).chain(report.row(name)).collect());
    table(page, &header, rows.collect());
}

fn series(report: &Report, points: impl Fn(&Run) -> Vec<(f64, f64)>) -> Vec<Series> {
    let runs = report.runs.iter().enumerate();
    let all = runs.map(|(idx, run)| Series { name: name(idx, run), points: points(run) });
    all.filter(|one| !one.points.is_empty()).collect()
}

fn curves(page: &mut String, report: &Report) {
    for (title, spread) in CURVES {
        let of_run = |run: &Run| {
            let step = 100.0 / (N_CURVE_POINTS - 1) as f64;
            let curve = spread(run).curve.iter().enumerate();
            curve.map(|(idx, &value)| (idx as f64 * step, value)).collect()
        };
        let all = series(report, of_run);
        if !all.is_empty() {
            let frame = Frame { title, x: "per cent of them are at most", y: "ms" };
            *page += &format!("<div>{}</div>", chart(frame, Mark::Line, &all));
        }
    }
}

fn over_time(page: &mut String, report: &Report) {
    let frame = |title, y| Frame { title, x: "seconds of the run", y };
    let dots = series(report, |run| run.dots.clone());
    let title = "First tokens (or whole answers) by start";
    *page += &format!("<div>{}</div>", chart(frame(title, "ms"), Mark::Dot, &dots));
    let lines: [PerSecond; 2] = [
        ("Pieces of answers", "a second", |second| second.n_tokens),
        ("Requests under way", "at the second's end", |second| second.n_in_flight),
    ];
    for (title, y, value) in lines {
        let all = series(report, |run| {
            let seconds = run.timeline.iter().enumerate();
            seconds.map(|(idx, second)| (idx as f64, value(second) as f64)).collect()
        });
        *page += &format!("<div>{}</div>", chart(frame(title, y), Mark::Line, &all));
    }
}

fn split(page: &mut String, report: &Report) {
    let told = report.runs.iter().enumerate().filter_map(|(idx, run)| {
        let split = run.figures.split.as_ref()?;
        let parts = [
            &split.network_ms,
            &split.prepare_ms,
            &split.queue_ms,
            &split.prefill_ms,
            &split.silent_ms,
        ];
        Some((name(idx, run), parts.map(|part| part.mean).to_vec()))
    });
    let told: Vec<(String, Vec<f64>)> = told.collect();
    if !told.is_empty() {
        let parts = ["network", "prepare", "queue", "prefill", "tokens without text"];
        let title = "Where the time to the first token goes, mean";
        *page += &format!("<div>{}</div>", bars(title, &parts, &told));
    }
}

fn search(page: &mut String, report: &Report) {
    if report.search.is_none() {
        return;
    }
    let mut points: Vec<(f64, f64)> = report
        .runs
        .iter()
        .filter_map(|run| Some((run.rate?, run.figures.goodput.as_ref()?.share * 100.0)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let series = [Series { name: "rates that were tried".to_owned(), points }];
    let frame =
        Frame { title: "Requests that keep all limits", x: "requests a second", y: "per cent" };
    *page += &format!("<div>{}</div>", chart(frame, Mark::Line, &series));
}

fn table(page: &mut String, header: &[&str], rows: Vec<Vec<String>>) {
    *page += "<div class=\"scroll\"><table><tr>";
    for cell in header {
        write!(page, "<th>{}", escaped(cell)).expect("a string takes everything");
    }
    for row in rows {
        *page += "<tr>";
        for cell in row {
            write!(page, "<td>{}", escaped(&cell)).expect("a string takes everything");
        }
    }
    *page += "</table></div>";
}
