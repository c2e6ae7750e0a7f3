//! What is known of one HTTP request: its id, its span, its line in the log, its place in the
//! metrics. It knows no protocol.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONNECTION;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use axum::middleware::Next;
use axum::response::Response;
use engine::TenantId;
use opentelemetry::KeyValue;
use tracing::{Instrument, Span};

use super::load_report;
use super::shutdown::{Passage, Phase};
use super::state::App;
use super::timing::{self, Moments};
use crate::metrics::GenerationSummary;
use crate::traces::{self, RequestSpan};

/// Carries the request's id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Asks, with any value, for `Server-Timing`: how long the request waited for what.
pub const SERVER_TIMING_WANTED: HeaderName = HeaderName::from_static("x-server-timing");

/// A caller's id is taken over up to this length.
const N_ID_BYTES_MAX: usize = 128;

/// What an error response leaves behind for the metrics.
#[derive(Clone, Copy, Debug)]
pub struct ErrorLabel(pub &'static str);

/// One request, filled in as it proceeds. Whoever lets go of it last ends the request: then its
/// line is logged.
#[derive(Debug)]
pub struct Record {
    /// The caller's id, or one of ours.
    pub id: String,
    route: String,
    began: Instant,
    status: AtomicU16,
    n_prompt: AtomicUsize,
    n_generated: AtomicUsize,
    submitted: OnceLock<Duration>,
    admitted: OnceLock<Duration>,
    n_cached: AtomicUsize,
    first_token: OnceLock<Duration>,
    /// The steps that its first token and its last came of.
    first_step: OnceLock<u64>,
    last_step: AtomicU64,
    queued: OnceLock<Duration>,
    /// How its first generation to end did.
    outcome: OnceLock<&'static str>,
    tenant: OnceLock<TenantId>,
    app: App,
    /// What a collector will be told, if anybody is; gone when it was.
    traced: Option<RequestSpan>,
    _passage: Passage,
    span: Span,
}

/// Wraps every route: id, span, metrics, and the line at the end.
pub async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) => path.as_str().to_owned(),
        None => "unmatched".to_owned(),
    };
    let id = given_id(request.headers()).unwrap_or_else(|| format!("{:016x}", random()));
    let header = HeaderValue::from_str(&id).expect("an id of ours, or one that came in a header");
    let record = Arc::new(Record::new(Arc::clone(&app), id, route, &request));
    let span = record.span.clone();
    let load_format = load_report::wanted(request.headers());
    let is_http1 = request.version() <= Version::HTTP_11;
    let wants_timing = request.headers().contains_key(SERVER_TIMING_WANTED);
    request.extensions_mut().insert(Arc::clone(&record));
    let mut response = next.run(request).instrument(span).await;
    record.answered(&response);
    response.headers_mut().insert(REQUEST_ID, header);
    if let Some(format) = load_format {
        load_report::add(&app, format, response.headers_mut());
    }
    // Who keeps connections open would send the next request where there is nobody any more.
    if is_http1 && app.shutdown.phase() > Phase::Serving {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if wants_timing { timing::add(&record, response) } else { response }
}

/// Sixty-four bits that differ from call to call and from run to run.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Record {
    fn new(app: App, id: String, route: String, request: &Request) -> Record {
        let asked_by = traces::incoming(request.headers());
        let mut trace_id = asked_by.as_ref().map(|span| span.trace_id().to_string());
        // Probes would drown the rest: only who asks for something is traced.
        let traces = app.config.traces.as_ref().filter(|_| request.method() == Method::POST);
        let traced = traces.map(|traces| {
            let traced = traces.request(asked_by.as_ref(), format!("POST {route}"));
            trace_id = Some(traced.trace_id().to_string());
            traced
        });
        Record {
            span: tracing::info_span!("request", id, route, trace_id),
            traced,
            id,
            route,
            began: Instant::now(),
            status: AtomicU16::new(0),
            n_prompt: AtomicUsize::new(0),
            n_generated: AtomicUsize::new(0),
            submitted: OnceLock::new(),
            admitted: OnceLock::new(),
            n_cached: AtomicUsize::new(0),
            first_token: OnceLock::new(),
            first_step: OnceLock::new(),
            last_step: AtomicU64::new(0),
            queued: OnceLock::new(),
            outcome: OnceLock::new(),
            tenant: OnceLock::new(),
            _passage: app.in_flight.enter(),
            app,
        }
    }

    /// From its head until now.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// What a collector will be told of it, if anybody is.
    pub fn traced(&self) -> Option<&RequestSpan> {
        self.traced.as_ref()
    }

    /// It showed this tenant's key.
    pub fn belongs_to(&self, tenant: TenantId) {
        let _ = self.tenant.set(tenant);
    }

    /// Whose share of the machine it takes.
    pub fn tenant(&self) -> TenantId {
        self.tenant.get().copied().unwrap_or(TenantId(0))
    }

    /// A prompt of that many tokens was submitted, at this age.
    pub fn add_prompt(&self, n_tokens: usize, age: Duration) {
        self.n_prompt.fetch_add(n_tokens, Ordering::Relaxed);
        let _ = self.submitted.set(age);
    }

    /// A generation was given a slot.
    pub fn admitted(&self, at: Instant) {
        let _ = self.admitted.set(at.saturating_duration_since(self.began));
    }

    /// A generation's first token was generated, in this step.
    pub fn began_to_speak(&self, (at, step_idx): (Instant, u64)) {
        let _ = self.first_step.set(step_idx);
        let _ = self.first_token.set(at.saturating_duration_since(self.began));
    }

    /// When what happened, once there is a token.
    pub fn moments(&self) -> Option<Moments> {
        Some(Moments {
            submitted: *self.submitted.get()?,
            admitted: *self.admitted.get()?,
            first_token: *self.first_token.get()?,
        })
    }

    /// A generation is over, whose last token came of `last_step`, if it had one.
    pub fn ended(&self, summary: &GenerationSummary, n_cached: usize, last_step: Option<u64>) {
        let _ = self.outcome.set(summary.ended.word());
        self.last_step.fetch_max(last_step.unwrap_or_default(), Ordering::Relaxed);
        self.n_cached.fetch_add(n_cached, Ordering::Relaxed);
        self.n_generated.fetch_add(summary.n_generated, Ordering::Relaxed);
        if let Some(queued) = summary.queued {
            let _ = self.queued.set(queued);
        }
    }

    /// Names are OpenTelemetry's where its conventions have one.
    fn end_trace(&self, traced: RequestSpan, status: u16, n_prompt: usize, n_generated: usize) {
        let mut attributes = vec![
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("http.route", self.route.clone()),
            KeyValue::new("http.response.status_code", i64::from(status)),
            KeyValue::new("lnserve.request_id", self.id.clone()),
        ];
        if n_prompt > 0 {
            attributes.extend([
                KeyValue::new("gen_ai.request.model", self.app.name().to_owned()),
                KeyValue::new("gen_ai.usage.input_tokens", n_prompt as i64),
                KeyValue::new("gen_ai.usage.output_tokens", n_generated as i64),
            ]);
        }
        let outcome = self.outcome.get().copied();
        attributes.extend(outcome.map(|outcome| KeyValue::new("lnserve.outcome", outcome)));
        // What the caller did wrong is no failure of the server's.
        let failure = match (status, outcome) {
            (500.., _) => Some(format!("status {status}")),
            (_, Some("error")) => Some("the engine failed".to_owned()),
            _ => None,
        };
        traced.end(attributes, failure);
    }

    fn answered(&self, response: &Response) {
        let status = response.status().as_u16();
        self.status.store(status, Ordering::Relaxed);
        self.app.metrics.http_request(&self.route, status);
        if let Some(ErrorLabel(label)) = response.extensions().get() {
            self.app.metrics.http_error(label);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let status = match *self.status.get_mut() {
            // The client left before there was anything to answer.
            0 => 499,
            status => status,
        };
        let (n_prompt, n_generated) = (*self.n_prompt.get_mut(), *self.n_generated.get_mut());
        if let Some(traced) = self.traced.take() {
            self.end_trace(traced, status, n_prompt, n_generated);
        }
        let ttft_ms = self.first_token.get().copied().map(milliseconds);
        let total_ms = milliseconds(self.began.elapsed());
        let _in_span = self.span.enter();
        // Probes would drown the rest.
        if n_prompt == 0 && status < 400 {
            tracing::debug!(status, total_ms, "answered");
            return;
        }
        let (n_cached, outcome) = (*self.n_cached.get_mut(), self.outcome.get());
        let queued_ms = self.queued.get().copied().map(milliseconds);
        let tenant = self.tenant().0;
        let first_step = self.first_step.get();
        let last_step = first_step.map(|_| *self.last_step.get_mut());
        tracing::info!(
            status,
            outcome,
            tenant,
            n_prompt,
            n_cached,
            n_generated,
            first_step,
            last_step,
            queued_ms,
            ttft_ms,
            total_ms,
            "answered"
        );
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    (!id.is_empty() && id.len() <= N_ID_BYTES_MAX).then(|| id.to_owned())
}
