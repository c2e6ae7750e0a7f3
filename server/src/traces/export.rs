//! A queue of spans and what empties it. Whoever has a span puts it in and goes on; a task of its
//! own sends what has gathered, and tries again as long as OpenTelemetry's exporter does.

use std::time::Duration;

use engine::StepTrace;
use opentelemetry::{Context, Key};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, Span, SpanData, SpanExporter as _, SpanProcessor};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::settings::{TraceError, TraceSettings};
use super::{SpanTotals, write_step};

/// Spans and steps that wait to be sent.
pub(super) const N_QUEUED_MAX: usize = 8192;

/// Spans in a message.
const N_BATCH_MAX: usize = 512;

/// What spans get to gather before they are sent.
const LINGER: Duration = Duration::from_millis(500);

/// What a message gets, with all its tries.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The service's name where the environment has none.
const SERVICE_NAME: &str = "lnserve";

/// Where spans are put. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    queue: mpsc::Sender<Traced>,
    totals: SpanTotals,
}

/// What waits to be sent.
#[derive(Debug)]
enum Traced {
    Span(Box<SpanData>),
    Step(Box<StepTrace>),
}

/// Sends what is in an outbox.
pub(super) struct Exporter {
    state: Mutex<State>,
    totals: SpanTotals,
}

enum State {
    /// Nobody sends yet.
    Idle(Box<Sending>),
    /// A task sends; letting go of the sender ends it.
    Running {
        closing: oneshot::Sender<()>,
        task: JoinHandle<()>,
    },
    Ended,
}

struct Sending {
    exporter: SpanExporter,
    queue: mpsc::Receiver<Traced>,
    totals: SpanTotals,
}

/// An outbox, and what will empty it.
pub(super) fn new(settings: &TraceSettings) -> Result<(Outbox, Exporter), TraceError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(settings.endpoint.url())
        .with_timeout(SEND_TIMEOUT)
        .build();
    let mut exporter = exporter.map_err(|cause| TraceError::Exporter { cause })?;
    exporter.set_resource(&resource());
    let (sender, queue) = mpsc::channel(N_QUEUED_MAX);
    let totals = SpanTotals::default();
    let sending = Sending { exporter, queue, totals: totals.clone() };
    let state = Mutex::new(State::Idle(Box::new(sending)));
    Ok((Outbox { queue: sender, totals: totals.clone() }, Exporter { state, totals }))
}

/// Who tells: as the environment has it for OpenTelemetry, and our name where it has none.
fn resource() -> Resource {
    let known = Resource::builder().build();
    let name = known.get(&Key::from_static_str("service.name"));
    let is_named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder()
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    match is_named {
        true => builder.build(),
        false => builder.with_service_name(SERVICE_NAME).build(),
    }
}

impl Outbox {
    pub(super) fn step(&self, step: StepTrace) {
        self.put(Traced::Step(Box::new(step)));
    }

    pub(super) fn totals(&self) -> &SpanTotals {
        &self.totals
    }

    fn put(&self, traced: Traced) {
        if self.queue.try_send(traced).is_err() {
            self.totals.dropped.inc();
        }
    }
}

impl SpanProcessor for Outbox {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.put(Traced::Span(Box::new(span)));
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Exporter {
    /// Begins, in the runtime that this is called in. `steps` writes the spans of steps.
    pub(super) fn start(&self, steps: SdkTracer) {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Ended) {
            State::Idle(sending) => {
                let (closing, closed) = oneshot::channel();
                let task = tokio::spawn(sending.run(steps, closed));
                *state = State::Running { closing, task };
            }
            started => *state = started,
        }
    }

    /// Sends what is left, and ends.
    pub(super) async fn flush(&self, patience: Duration) {
        let state = std::mem::replace(&mut *self.state.lock(), State::Ended);
        let State::Running { closing, task } = state else { return };
        drop(closing);
        let abort = task.abort_handle();
        if timeout(patience, task).await.is_err() {
            abort.abort();
            tracing::warn!("the collector did not take the last traces in time; they are lost");
        }
        let SpanTotals { dropped, failed, .. } = &self.totals;
        let n_lost = dropped.get() + failed.get();
        if n_lost > 0 {
            tracing::warn!(n_lost, "spans never reached the collector");
        }
    }
}

impl Sending {
    /// Until it is closed, and then until nothing is left.
    async fn run(mut self: Box<Self>, steps: SdkTracer, mut closing: oneshot::Receiver<()>) {
        let mut items = Vec::with_capacity(N_BATCH_MAX);
        loop {
            tokio::select! {
                _ = &mut closing => break,
                _ = self.queue.recv_many(&mut items, N_BATCH_MAX) => {}
            }
            let is_full = items.len() == N_BATCH_MAX;
            self.send(&steps, &mut items).await;
            if is_full {
                continue;
            }
            tokio::select! {
                _ = &mut closing => break,
                () = sleep(LINGER) => {}
            }
        }
        loop {
            while items.len() < N_BATCH_MAX
                && let Ok(item) = self.queue.try_recv()
            {
                items.push(item);
            }
            if items.is_empty() {
                return;
            }
            self.send(&steps, &mut items).await;
        }
    }

    async fn send(&self, steps: &SdkTracer, items: &mut Vec<Traced>) {
        let mut batch = Vec::with_capacity(items.len());
        for item in items.drain(..) {
            match item {
                Traced::Span(span) => batch.push(*span),
                // Its span comes through the queue.
                Traced::Step(step) => write_step(steps, *step),
            }
        }
        if batch.is_empty() {
            return;
        }
        let n_spans = batch.len() as u64;
        match self.exporter.export(batch).await {
            Ok(()) => self.totals.exported.add(n_spans),
            Err(error) => {
                self.totals.failed.add(n_spans);
                tracing::warn!(n_spans, %error, "traces were not sent");
            }
        }
    }
}
