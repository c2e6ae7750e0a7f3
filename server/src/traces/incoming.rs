//! The trace that a request says it is part of: W3C's `traceparent` and `tracestate`.

use axum::http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;

/// The span that asks, if the headers tell of one. What is no `traceparent` tells of none, as the
/// recommendation has it.
pub fn incoming(headers: &HeaderMap) -> Option<SpanContext> {
    let traceparent = headers.get("traceparent")?.to_str().ok()?;
    if !has_whole_ids(traceparent) {
        return None;
    }
    let headers = HeaderExtractor(headers);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    let span = context.span().span_context().clone();
    span.is_valid().then_some(span)
}

/// Version, trace, span and flags are as long as they must be: OpenTelemetry's reader takes shorter
/// ones for numbers with zeroes before them.
fn has_whole_ids(traceparent: &str) -> bool {
    traceparent.split('-').map(str::len).take(4).eq([2, 32, 16, 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(traceparent: &str) -> Option<(String, String, bool)> {
        let value = traceparent.parse().expect("a header's value");
        let headers = HeaderMap::from_iter([("traceparent".parse().expect("a name"), value)]);
        let span = incoming(&headers)?;
        Some((span.trace_id().to_string(), span.span_id().to_string(), span.is_sampled()))
    }

    #[test]
    fn what_asks_is_known_by_the_recommendations_own_examples() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let known = |is_sampled| Some((trace.to_owned(), span.to_owned(), is_sampled));
        assert_eq!(from(&format!("00-{trace}-{span}-01")), known(true));
        assert_eq!(from(&format!("00-{trace}-{span}-00")), known(false));
        for broken in [
            String::new(),
            "00".to_owned(),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", &trace[1..]),
            format!("00-{trace}-{span}-01-more"),
            format!("00-{}-{span}-01", trace.replace('b', "x")),
        ] {
            assert_eq!(from(&broken), None, "{broken:?}");
        }
        assert!(incoming(&HeaderMap::new()).is_none());
    }
}
