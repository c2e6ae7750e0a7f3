//! How loaded the server is, in the head of an answer, for load balancers that weigh replicas by
//! it: `endpoint-load-metrics` of ORCA (Open Request Cost Aggregation, github.com/cncf/xds,
//! `orca_load_report.proto`), for callers that ask with `endpoint-load-metrics-format: TEXT` or
//! `JSON`. Its named metrics are those of vLLM and of Triton with TensorRT-LLM, which report so.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use super::state::AppState;
use crate::metrics::{kv_share, n_pages_of_any};

const WANTED: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
const REPORT: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

/// What the caller asks for. Other formats are none, as if nobody had asked.
pub(super) fn wanted(headers: &HeaderMap) -> Option<Format> {
    let format = headers.get(WANTED)?.as_bytes();
    match () {
        () if format.eq_ignore_ascii_case(b"text") => Some(Format::Text),
        () if format.eq_ignore_ascii_case(b"json") => Some(Format::Json),
        () => None,
    }
}

/// Adds the report of this moment.
pub(super) fn add(app: &AppState, format: Format, headers: &mut HeaderMap) {
    let (stats, info) = (app.engine.stats(), app.engine.info());
    let share = kv_share(&stats);
    let capacity = (n_pages_of_any(&stats) * info.page_tokens) as f64;
    let metrics = [
        ("kv_cache_usage_perc", share),
        ("num_requests_running", stats.n_running as f64),
        ("num_requests_waiting", stats.n_waiting as f64),
        ("kv_cache_utilization", share),
        ("max_token_capacity", capacity),
    ];
    let report = match format {
        Format::Text => {
            let metrics = metrics.map(|(name, value)| format!("named_metrics.{name}={value:?}"));
            format!("TEXT {}", metrics.join(", "))
        }
        Format::Json => {
            let metrics: serde_json::Map<_, _> =
                metrics.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            format!("JSON {}", json!({ "named_metrics": metrics }))
        }
    };
    let report = HeaderValue::from_str(&report).expect("numbers and words of ours");
    headers.insert(REPORT, report);
}
