//! The table and its charts as a page that needs nothing else.

use std::fmt::Write;

use crate::{Line, setup};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;\
padding:0 1rem;color:#1b2430;background:#fff}table{border-collapse:collapse;font-size:13px}\
td,th{padding:.3rem .6rem;border-bottom:1px solid #d6dde6;text-align:right}\
td:nth-child(-n+3),th:nth-child(-n+3){text-align:left}svg{display:block;margin:1rem 0}\
.p{color:#9b1c1c;font-weight:600}";

/// Pixels: of a bar's row, of the words before it, of the longest bar.
const ROW: usize = 22;
const WORDS: usize = 420;
const BAR: f64 = 400.0;

/// What a chart shows of a line.
struct Measure {
    title: &'static str,
    value: fn(&Line) -> f64,
}

const MEASURES: [Measure; 3] = [
    Measure { title: "Time to first token, median (ms)", value: |l| l.outcome.first_ms.median },
    Measure { title: "Gap between tokens, 99th percentile (ms)", value: |l| l.outcome.gap_ms.p99 },
    Measure { title: "Output (tokens/s)", value: |l| l.outcome.tokens_a_second },
];

/// HTML with everything in it.
pub(crate) fn page(lines: &[Line], commit: &str) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>lnserve: predicted \
         service of LN-Ultra</title><style>{STYLE}</style><h1>What an operator may expect</h1>\
         <p><span class=\"p\">Predicted, not measured.</span> {}; commit {commit}; \
         <code>cargo bench --bench operators</code>. The scheduler is the real one, in virtual \
         time; a step takes what the cost model says of its rows.</p>",
        setup::MACHINE
    );
    for measure in &MEASURES {
        chart(&mut page, measure, lines);
    }
    table(&mut page, lines);
    page
}

fn chart(page: &mut String, measure: &Measure, lines: &[Line]) {
    let greatest = lines.iter().map(measure.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = ROW * lines.len();
    let mut svg = format!("<h2>{} <span class=\"p\">predicted</span></h2>", measure.title);
    svg += &format!(
        "<svg width=\"900\" height=\"{height}\" viewBox=\"0 0 900 {height}\" role=\"img\" \
         aria-label=\"{}, predicted\" font-size=\"12\">",
        measure.title
    );
    for (idx, line) in lines.iter().enumerate() {
        let (value, y) = ((measure.value)(line), ROW * idx);
        let (width, text_y) = (BAR * value / greatest, y + 15);
        let words = format!("{}: {} {}", line.question, short(&line.workload), line.setup);
        write!(
            svg,
            "<text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\">{words}</text>\
             <rect x=\"{WORDS}\" y=\"{}\" width=\"{width:.1}\" height=\"14\" fill=\"#2f6f9f\"/>\
             <text x=\"{:.1}\" y=\"{text_y}\">{value:.0}</text>",
            WORDS - 8,
            y + 4,
            WORDS as f64 + width + 6.0,
        )
        .expect("a string takes all");
    }
    *page += &svg;
    *page += "</svg>";
}

/// A workload in few words.
fn short(workload: &str) -> &str {
    if workload.contains("agents") { "agents" } else { workload }
}

fn table(page: &mut String, lines: &[Line]) {
    *page += "<h2>All figures <span class=\"p\">predicted</span></h2><table><tr><th>question\
              <th>workload<th>setup<th>TTFT p50 ms<th>p99<th>ITL p50 ms<th>p99<th>output tok/s\
              <th>prompt cached<th>preemptions";
    for Line { question, workload, setup, outcome } in lines {
        write!(
            page,
            "<tr><td>{question}<td>{workload}<td>{setup}<td>{:.0}<td>{:.0}<td>{:.1}<td>{:.1}\
             <td>{:.0}<td>{:.0} %<td>{}",
            outcome.first_ms.median,
            outcome.first_ms.p99,
            outcome.gap_ms.median,
            outcome.gap_ms.p99,
            outcome.tokens_a_second,
            100.0 * outcome.cached_share,
            outcome.n_preemptions,
        )
        .expect("a string takes all");
    }
    *page += "</table></html>\n";
}
