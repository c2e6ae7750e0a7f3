//! Puts a workload on a server: who is sent when, and what is kept of it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::arrivals::Arrivals;
use super::ask::{Ask, Message, Role};
use super::exchange::{Asker, Place};
use super::generator::{Generator, Watch};
use super::sample::Sample;
use super::workload::{Session, Workload};

/// One stretch of load.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// How load comes.
    pub arrivals: Arrivals,
    /// Requests at most.
    pub n_requests: Option<usize>,
    /// Nothing is sent after that; what runs is waited for.
    pub duration: Option<Duration>,
    /// Requests under way at most, in an open loop.
    pub n_in_flight_max: usize,
    /// Answers whose text is kept, for looking at again.
    pub n_kept: usize,
    /// Number of the first session.
    pub first_session: u64,
}

/// What a stretch of load yielded.
#[derive(Debug)]
pub struct Yield {
    /// All requests, in the order of their numbers.
    pub samples: Vec<Sample>,
    /// Some whole answers.
    pub kept: Vec<Kept>,
    /// When it began.
    pub began: Duration,
    /// How the generator itself fared.
    pub generator: Generator,
    /// It was told to stop before it was through.
    pub was_stopped: bool,
    /// Number of the first session that was not used.
    pub next_session: u64,
}

/// An answer with its request.
#[derive(Clone, Debug)]
pub struct Kept {
    /// What was asked.
    pub ask: Ask,
    /// What was answered.
    pub text: String,
    /// Tokens of it.
    pub n_out: usize,
    /// Its request's number.
    pub idx: u64,
}

/// Set to end a stretch early: nothing more is sent, what runs is dropped.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<StopState>);

#[derive(Debug, Default)]
struct StopState {
    is_set: AtomicBool,
    told: tokio::sync::Notify,
}

impl Stop {
    /// Ends it.
    pub fn set(&self) {
        self.0.is_set.store(true, Ordering::Release);
        self.0.told.notify_waiters();
    }

    /// Whether it was ended.
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Acquire)
    }

    /// Comes back once it is.
    pub async fn wait(&self) {
        let told = self.0.told.notified();
        if !self.is_set() {
            told.await;
        }
    }
}

/// What the tasks of a stretch share.
struct Shared {
    asker: Asker,
    workload: Arc<Workload>,
    stretch: Stretch,
    began: Duration,
    n_taken: AtomicUsize,
    next_session: AtomicU64,
    next_idx: AtomicU64,
    results: Mutex<Results>,
}

#[derive(Default)]
struct Results {
    samples: Vec<Sample>,
    /// By a number drawn from the request's own, so that it is chance, but always the same, who is
    /// among them.
    kept: BTreeMap<u64, Kept>,
}

/// Runs a stretch to its end.
pub async fn drive(
    asker: &Asker,
    workload: &Arc<Workload>,
    stretch: Stretch,
    stop: &Stop,
) -> Yield {
    let began = asker.clock.now();
    let watch = Watch::start(&asker.clock);
    let shared = Arc::new(Shared {
        asker: asker.clone(),
        workload: Arc::clone(workload),
        began,
        n_taken: AtomicUsize::new(0),
        next_session: AtomicU64::new(stretch.first_session),
        next_idx: AtomicU64::new(0),
        results: Mutex::default(),
        stretch,
    });
    let mut tasks = JoinSet::new();
    tokio::select! {
        () = shared.run(&mut tasks) => {}
        () = stop.wait() => tasks.shutdown().await,
    }
    let generator = watch.end();
    let Results { mut samples, kept } = std::mem::take(&mut *shared.results.lock());
    samples.sort_by_key(|sample| sample.idx);
    Yield {
        samples,
        kept: kept.into_values().collect(),
        began,
        generator,
        was_stopped: stop.is_set(),
        next_session: shared.next_session.load(Ordering::Relaxed),
    }
}

impl Shared {
    async fn run(self: &Arc<Shared>, tasks: &mut JoinSet<()>) {
        match &self.stretch.arrivals {
            Arrivals::Closed { n_users } => {
                for _ in 0..*n_users {
                    let shared = Arc::clone(self);
                    tasks.spawn(async move { shared.user().await });
                }
            }
            Arrivals::Open(pattern) => {
                let random = ChaCha8Rng::seed_from_u64(self.workload.seed);
                self.send_at(tasks, pattern.moments(random)).await;
            }
            Arrivals::Trace { speed } => {
                let n_sessions = self.workload.n_sessions().unwrap_or(0);
                let moments = (0..n_sessions).filter_map(|idx| {
                    let at = self.workload.session(idx).at?;
                    Duration::try_from_secs_f64(at.as_secs_f64() / speed).ok()
                });
                self.send_at(tasks, moments).await;
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    /// A user of a closed loop.
    async fn user(self: Arc<Shared>) {
        while let Some(session) = self.take_session() {
            let intended = self.asker.clock.now();
            self.hold(session, intended).await;
        }
    }

    /// An open loop. Where too many are under way it waits, and everything after is late, which
    /// the intended moments show.
    async fn send_at(
        self: &Arc<Shared>,
        tasks: &mut JoinSet<()>,
        moments: impl Iterator<Item = Duration>,
    ) {
        let room = Arc::new(Semaphore::new(self.stretch.n_in_flight_max));
        for moment in moments {
            if self.stretch.duration.is_some_and(|duration| moment >= duration) {
                return;
            }
            let intended = self.began + moment;
            self.asker.clock.sleep_until(intended).await;
            let permit = Arc::clone(&room).acquire_owned().await;
            let Some(session) = self.take_session() else { return };
            let shared = Arc::clone(self);
            tasks.spawn(async move {
                shared.hold(session, intended).await;
                drop(permit);
            });
            // Those that are over need not be kept until the end.
            while tasks.try_join_next().is_some() {}
        }
    }

    /// The next session, if there is still something to send.
    fn take_session(&self) -> Option<Session> {
        let idx = self.next_session.load(Ordering::Relaxed);
        if self.workload.n_sessions().is_some_and(|n| idx >= n) || !self.take_request() {
            return None;
        }
        let idx = self.next_session.fetch_add(1, Ordering::Relaxed);
        let is_there = self.workload.n_sessions().is_none_or(|n| idx < n);
        is_there.then(|| self.workload.session(idx))
    }

    fn take_request(&self) -> bool {
        let is_late = |duration| self.asker.clock.now() >= self.began + duration;
        if self.stretch.duration.is_some_and(is_late) {
            return false;
        }
        let n_max = self.stretch.n_requests.unwrap_or(usize::MAX);
        self.n_taken.fetch_add(1, Ordering::Relaxed) < n_max
    }

    /// A conversation, turn after turn; one that fails, or is hung up on, is over.
    async fn hold(&self, session: Session, mut intended: Duration) {
        let mut messages: Vec<Message> = session.system.into_iter().collect();
        for (turn_idx, turn) in session.turns.into_iter().enumerate() {
            if turn_idx > 0 {
                intended = self.asker.clock.now() + self.workload.shape.think_time;
                self.asker.clock.sleep_until(intended).await;
                if !self.take_request() {
                    return;
                }
            }
            messages.push(Message { role: Role::User, text: turn.text });
            let ask = Ask {
                messages: messages.clone(),
                n_out: turn.n_out,
                seed: turn.seed,
                cancel_after: turn.cancel_after,
            };
            let idx = self.next_idx.fetch_add(1, Ordering::Relaxed);
            let place = Place { idx, turn: turn_idx, intended };
            let (sample, text) = self.asker.ask(&ask, place).await;
            let is_done = sample.is_done();
            messages.push(Message { role: Role::Assistant, text: text.as_str().into() });
            self.keep(sample, ask, text);
            if !is_done {
                return;
            }
        }
    }

    fn keep(&self, sample: Sample, ask: Ask, text: String) {
        let mut results = self.results.lock();
        if sample.is_done() && self.stretch.n_kept > 0 {
            let mut hasher = DefaultHasher::new();
            (self.workload.seed, ask.seed, sample.idx).hash(&mut hasher);
            let (idx, n_out) = (sample.idx, sample.n_out);
            results.kept.insert(hasher.finish(), Kept { ask, text, n_out, idx });
            if results.kept.len() > self.stretch.n_kept {
                results.kept.pop_last();
            }
        }
        results.samples.push(sample);
    }
}
