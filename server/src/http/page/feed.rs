//! `/v1/node/events`: what the node does, as it does it. One sampler looks at the engine for all
//! who watch, and none looks where nobody does. A watcher that reads slowly misses samples, and
//! holds up nobody.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::response::Response;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::super::body::{Chunks, ClientGone, chunked};
use super::super::error::ApiError;
use super::super::openai::Refusal;
use super::super::shutdown::Phase;
use super::super::sse;
use super::super::state::App;
use super::N_WATCHERS_MAX;
use super::node::{Snapshot, State};

/// Between two samples while steps are made.
const TICK: Duration = Duration::from_millis(250);

/// Between two samples while none is.
const IDLE_TICK: Duration = Duration::from_secs(2);

/// Steps that a sample tells of at most: the newest.
const N_SAMPLED_STEPS_MAX: u64 = 64;

/// Samples written ahead of a watcher.
const N_CHUNKS_MAX: usize = 2;

/// What is told to all who watch.
#[derive(Clone, Debug)]
struct Sample {
    /// The steps that were made by the sample before this one.
    first: u64,
    /// The steps that were made by this one.
    end: u64,
    /// As it is written, to all from the same memory.
    event: Bytes,
}

/// Where watchers hear of the node.
#[derive(Debug)]
pub struct Feed {
    seats: Arc<Semaphore>,
    /// The newest sample.
    samples: watch::Sender<Option<Sample>>,
    is_sampled: Mutex<bool>,
}

impl Feed {
    /// Nobody watches.
    pub fn new() -> Feed {
        Feed {
            seats: Arc::new(Semaphore::new(N_WATCHERS_MAX)),
            samples: watch::Sender::new(None),
            is_sampled: Mutex::new(false),
        }
    }

    /// Watchers now.
    pub fn n_watchers(&self) -> usize {
        N_WATCHERS_MAX - self.seats.available_permits()
    }

    /// Hears every sample from now on, unless the reader is slow.
    fn subscribe(&self, app: &App) -> watch::Receiver<Option<Sample>> {
        let mut is_sampled = self.is_sampled.lock();
        let samples = self.samples.subscribe();
        if !std::mem::replace(&mut *is_sampled, true) {
            tokio::spawn(sample(Arc::clone(app)));
        }
        samples
    }

    /// Whether the sampler may end: nobody listens any more, and who comes now starts another.
    fn is_left(&self) -> bool {
        let mut is_sampled = self.is_sampled.lock();
        *is_sampled = self.samples.receiver_count() > 0;
        !*is_sampled
    }
}

impl Default for Feed {
    fn default() -> Feed {
        Feed::new()
    }
}

impl Sample {
    /// The node now, with the newest of the steps from the `first`th on.
    fn new(app: &App, first: u64) -> Sample {
        let stats = app.engine.stats();
        let newest = stats.n_steps.saturating_sub(N_SAMPLED_STEPS_MAX);
        let steps = app.engine.steps_since(first.max(newest));
        let end = steps.last().map_or(first, |step| step.idx + 1);
        let event = sse::named_event("state", &State::new(app, &stats, steps)).into();
        Sample { first, end, event }
    }
}

/// Looks at the node for all who watch, until nobody does.
async fn sample(app: App) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut first, mut told) = (app.engine.stats().n_steps, Instant::now());
    while !app.feed.is_left() {
        ticks.tick().await;
        if app.engine.stats().n_steps == first && told.elapsed() < IDLE_TICK {
            continue;
        }
        let sample = Sample::new(&app, first);
        first = sample.end;
        app.feed.samples.send_replace(Some(sample));
        told = Instant::now();
    }
}

/// Tells a watcher all there is, then what changes, until it leaves or the server does.
pub(super) async fn events(Shared(app): Shared<App>) -> Result<Response, Refusal> {
    let seat = Arc::clone(&app.feed.seats).try_acquire_owned();
    let seat = seat.map_err(|_| ApiError::TooManyWatchers { n_max: N_WATCHERS_MAX })?;
    let (chunks, body) = chunked(N_CHUNKS_MAX);
    tokio::spawn(async move {
        let watching = tell(&app, &chunks, seat);
        tokio::select! {
            told = watching => if told.is_err() {
                tracing::debug!("a watcher of the node has left");
            },
            () = chunks.gone() => {}
            // Nobody waits for watchers.
            () = app.shutdown.reached(Phase::Draining) => {}
        }
    });
    Ok(sse::response(body))
}

async fn tell(app: &App, chunks: &Chunks, _seat: OwnedSemaphorePermit) -> Result<(), ClientGone> {
    let mut samples = app.feed.subscribe(app);
    let mut told = app.engine.stats().n_steps;
    chunks.write(sse::named_event("node", &Snapshot::new(app))).await?;
    while samples.changed().await.is_ok() {
        let Some(mut sample) = samples.borrow_and_update().clone() else { continue };
        if sample.first > told {
            // It read so slowly that it missed some, or came while the sampler slept.
            sample = Sample::new(app, told);
        }
        told = told.max(sample.end);
        chunks.write(sample.event).await?;
    }
    Ok(())
}
