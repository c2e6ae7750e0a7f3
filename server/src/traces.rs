//! Traces: of each request a span, with one for what it waited for and two for what was computed,
//! and of some of the engine's steps a span that links to the requests in it. They go to an
//! OpenTelemetry collector, by OTLP over HTTP. It knows no route and no protocol.
//!
//! Spans are written when what they tell of is over, from moments that were kept: most of those are
//! the engine's, and `tracing`'s spans cannot begin in the past. Whoever writes one never waits:
//! what finds no room in the exporter's queue is dropped and counted.

mod export;
mod incoming;
mod settings;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use engine::{SpanName, StepTrace};
use opentelemetry::trace::{
    Link, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};

use crate::total::Total;
use export::{Exporter, Outbox};
pub use incoming::incoming;
pub use settings::{EndpointError, TraceEndpoint, TraceError, TraceSettings};

/// Requests that a step's span links to at most.
const N_LINKS_MAX: u32 = 1024;

/// Where spans go. Cheap to clone.
#[derive(Clone)]
pub struct Traces {
    shared: Arc<Shared>,
}

struct Shared {
    requests: SdkTracer,
    outbox: Outbox,
    exporter: Exporter,
    step_share: f64,
}

/// What has become of spans.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpanTotals {
    /// A collector took them.
    pub(crate) exported: Total,
    /// There was no room for them.
    pub(crate) dropped: Total,
    /// No collector took them.
    pub(crate) failed: Total,
}

/// The span of a request under way, and the clock that its moments are read by.
#[derive(Debug)]
pub struct RequestSpan {
    span: Span,
    tracer: SdkTracer,
    /// One moment by both clocks.
    began: (Instant, SystemTime),
}

/// Of one generation, when what happened.
#[derive(Clone, Copy, Debug)]
pub struct GenerationMoments {
    /// The engine had it.
    pub submitted: Instant,
    /// It had a slot.
    pub admitted: Option<Instant>,
    /// There was a token, and the step that it came of.
    pub first_token: Option<(Instant, u64)>,
    /// There was the last token, and its step.
    pub last_token: Option<(Instant, u64)>,
    /// It was over.
    pub ended: Instant,
    /// Which one of its request's, counted from 0.
    pub choice_idx: usize,
    /// Tokens generated.
    pub n_generated: usize,
    /// Tokens of its prompt that were not computed anew.
    pub n_cached: usize,
}

impl Traces {
    /// Traces that nobody sends yet.
    ///
    /// # Errors
    /// What OpenTelemetry finds wrong with its own variables in the environment.
    pub fn new(settings: &TraceSettings) -> Result<Traces, TraceError> {
        let (outbox, exporter) = export::new(settings)?;
        let sampler = Sampler::TraceIdRatioBased(settings.request_share);
        let requests = tracer(&outbox, Sampler::ParentBased(Box::new(sampler)));
        let step_share = settings.step_share;
        Ok(Traces { shared: Arc::new(Shared { requests, outbox, exporter, step_share }) })
    }

    /// Begins to send, in the runtime that this is called in.
    pub fn start(&self) {
        // Steps are chosen by the engine; here all that come are taken.
        self.shared.exporter.start(tracer(&self.shared.outbox, Sampler::AlwaysOn));
    }

    /// Sends what is left, and ends. What cannot be sent in `timeout` is lost.
    pub async fn flush(&self, timeout: Duration) {
        self.shared.exporter.flush(timeout).await;
    }

    /// The span of a request that has just begun, in the trace of whoever asks, if it told of one.
    pub fn request(&self, asked_by: Option<&SpanContext>, name: String) -> RequestSpan {
        let began = (Instant::now(), SystemTime::now());
        let parent = match asked_by {
            Some(span) => Context::new().with_remote_span_context(span.clone()),
            None => Context::new(),
        };
        let tracer = self.shared.requests.clone();
        let builder =
            tracer.span_builder(name).with_kind(SpanKind::Server).with_start_time(began.1);
        let span = builder.start_with_context(&tracer, &parent);
        RequestSpan { span, tracer, began }
    }

    /// Takes what is known of a step. Never waits.
    pub fn step(&self, step: StepTrace) {
        self.shared.outbox.step(step);
    }

    /// The share of all steps that is traced.
    pub fn step_share(&self) -> f64 {
        self.shared.step_share
    }

    pub(crate) fn totals(&self) -> &SpanTotals {
        self.shared.outbox.totals()
    }
}

impl RequestSpan {
    /// Its trace.
    pub fn trace_id(&self) -> TraceId {
        self.span.span_context().trace_id()
    }

    /// What the engine is to call it; `None` where nobody will read it.
    pub fn name(&self) -> Option<SpanName> {
        let context = self.span.span_context();
        context.is_sampled().then(|| SpanName {
            trace: u128::from_be_bytes(context.trace_id().to_bytes()),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
        })
    }

    /// A generation of it is over.
    pub fn generation(&self, moments: &GenerationMoments) {
        let GenerationMoments { submitted, admitted, first_token, last_token, ended, .. } =
            *moments;
        let choice = || KeyValue::new("lnserve.choice", moments.choice_idx as i64);
        let step = |name, step_idx: u64| KeyValue::new(name, step_idx as i64);
        self.child("queue", (submitted, admitted.unwrap_or(ended)), vec![choice()]);
        let Some(admitted) = admitted else { return };
        let mut prefill =
            vec![choice(), KeyValue::new("lnserve.n_cached", moments.n_cached as i64)];
        let Some((first, first_idx)) = first_token else {
            self.child("prefill", (admitted, ended), prefill);
            return;
        };
        prefill.push(step("lnserve.step.last", first_idx));
        self.child("prefill", (admitted, first), prefill);
        let (last, last_idx) = last_token.unwrap_or((first, first_idx));
        let decode = vec![
            choice(),
            step("lnserve.step.first", first_idx),
            step("lnserve.step.last", last_idx),
            KeyValue::new("lnserve.n_generated", moments.n_generated as i64),
        ];
        self.child("decode", (first, last), decode);
    }

    /// It is over.
    pub fn end(mut self, attributes: Vec<KeyValue>, failure: Option<String>) {
        self.span.set_attributes(attributes);
        if let Some(description) = failure {
            self.span.set_status(Status::error(description));
        }
        let now = self.time(Instant::now());
        self.span.end_with_timestamp(now);
    }

    fn child(&self, name: &'static str, (from, to): (Instant, Instant), with: Vec<KeyValue>) {
        if !self.span.span_context().is_sampled() {
            return;
        }
        let parent = Context::new().with_remote_span_context(self.span.span_context().clone());
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Internal);
        let builder = builder.with_start_time(self.time(from)).with_attributes(with);
        let mut span = builder.start_with_context(&self.tracer, &parent);
        span.end_with_timestamp(self.time(to.max(from)));
    }

    fn time(&self, at: Instant) -> SystemTime {
        let (instant, time) = self.began;
        match at.checked_duration_since(instant) {
            Some(after) => time + after,
            None => time - instant.duration_since(at),
        }
    }
}

/// Writes the span of a step.
fn write_step(tracer: &SdkTracer, step: StepTrace) {
    let now = (Instant::now(), SystemTime::now());
    let began = now.1 - now.0.saturating_duration_since(step.began);
    let record = &step.record;
    let n = |name, n: usize| KeyValue::new(name, n as i64);
    let attributes = vec![
        KeyValue::new("lnserve.step", record.idx as i64),
        n("lnserve.step.prefill_rows", record.n_prefill_rows),
        n("lnserve.step.prefill_tokens", record.n_prefill_tokens),
        n("lnserve.step.decode_rows", record.n_decode_rows),
        n("lnserve.step.decode_tokens", record.n_decode_tokens),
        n("lnserve.step.running", record.n_running),
        n("lnserve.step.waiting", record.n_waiting),
        n("lnserve.step.used_pages", record.n_pages_used),
    ];
    let builder = tracer.span_builder("step").with_kind(SpanKind::Internal);
    let builder = builder.with_start_time(began).with_attributes(attributes);
    let links = step.spans.iter().map(|&span| Link::with_context(context(span))).collect();
    let mut span = builder.with_links(links).start_with_context(tracer, &Context::new());
    span.end_with_timestamp(began + record.took);
}

fn context(span: SpanName) -> SpanContext {
    let trace_id = TraceId::from_bytes(span.trace.to_be_bytes());
    let span_id = SpanId::from_bytes(span.span.to_be_bytes());
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::default())
}

fn tracer(outbox: &Outbox, sampler: Sampler) -> SdkTracer {
    let provider = SdkTracerProvider::builder()
        .with_span_processor(outbox.clone())
        .with_sampler(sampler)
        .with_max_links_per_span(N_LINKS_MAX)
        .build();
    provider.tracer("lnserve")
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use engine::StepRecord;

    use super::*;

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let endpoint = "http://127.0.0.1:1".parse().expect("an address");
        let settings = TraceSettings { endpoint, request_share: 1.0, step_share: 1.0 };
        // Nobody sends.
        let traces = Traces::new(&settings).expect("nothing is in the way");
        let span = traces.request(None, "POST /".to_owned()).name().expect("it is traced");
        // Dropped, the request's span took a place.
        for _ in 1..export::N_QUEUED_MAX + 5 {
            let record = StepRecord::default();
            traces.step(StepTrace { began: Instant::now(), record, spans: vec![span] });
        }
        assert_eq!(traces.totals().dropped.get(), 5);
    }
}
