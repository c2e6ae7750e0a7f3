//! The server over a scripted engine, and the beat of its steps.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::rank::StepInput;
use harness::serving::{ServerSettings, TestServer, Workers};
use parking_lot::{Condvar, Mutex, MutexGuard};
use scheduler::SlotIdx;

use crate::N_STREAMS;

/// What the model says, in turn.
const SAYS: &str = "The answer is 85, because 27 plus 58 makes 85.";

/// Where the kernel tells how long a thread has run.
const TASKS: &str = "/proc/self/task";

/// When steps are done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Beat {
    /// Without delay.
    AtOnce,
    /// As soon as all that was said up to the step before the last has been read.
    AsRead {
        /// How many read.
        n_readers: usize,
    },
    /// Once in this time.
    Every(Duration),
}

/// Steps, and who said what when.
pub(crate) struct Steps {
    beat: Mutex<State>,
    /// Events that readers have had.
    n_heard: AtomicU64,
    /// Where the number of them wakes the rank.
    n_wanted: AtomicU64,
    wake: Condvar,
}

struct State {
    beat: Beat,
    n_said: u64,
    next: Instant,
    /// Of steps at a beat that had a token for all, the first and the last.
    full: Option<(Full, Full)>,
    /// Seeds of those in slots: a reader is known by its.
    seeds: HashMap<SlotIdx, usize>,
    said: HashMap<usize, Vec<Said>>,
}

impl Steps {
    fn new() -> Steps {
        let state = State {
            beat: Beat::AtOnce,
            n_said: 0,
            next: Instant::now(),
            full: None,
            seeds: HashMap::new(),
            said: HashMap::new(),
        };
        Steps {
            beat: Mutex::new(state),
            n_heard: AtomicU64::new(0),
            n_wanted: AtomicU64::new(u64::MAX),
            wake: Condvar::new(),
        }
    }

    /// From now on; forgets what was. Nothing runs meanwhile.
    pub(crate) fn follow(&self, beat: Beat) {
        let mut state = self.beat.lock();
        (state.beat, state.n_said, state.full) = (beat, 0, None);
        state.said.clear();
        self.n_heard.store(0, Ordering::SeqCst);
        self.n_wanted.store(u64::MAX, Ordering::SeqCst);
    }

    /// Somebody has read events.
    pub(crate) fn heard(&self, n_events: usize) {
        let n_heard = self.n_heard.fetch_add(n_events as u64, Ordering::SeqCst) + n_events as u64;
        if n_heard >= self.n_wanted.load(Ordering::SeqCst) {
            // Under the lock, so that it is not between looking and sleeping.
            drop(self.beat.lock());
            self.wake.notify_one();
        }
    }

    /// When each token was said to each of `n` readers.
    pub(crate) fn said(&self, n: usize) -> Vec<Vec<Said>> {
        let mut state = self.beat.lock();
        (0..n).map(|idx| state.said.remove(&idx).unwrap_or_default()).collect()
    }

    /// What a token of a step that had one for each of `n` took the server, in seconds: all that it
    /// did from the first such step to the last, shared among their tokens. What requests took
    /// before they streamed is not in it.
    pub(crate) fn seconds_a_token(&self, n: usize) -> f64 {
        let (first, last) = self.beat.lock().full.expect("steps were full");
        assert!(last.n_steps > first.n_steps, "several were");
        (last.seconds - first.seconds) / ((last.n_steps - first.n_steps) * n) as f64
    }

    fn step(&self, input: &StepInput) {
        let mut state = self.beat.lock();
        for entering in &input.entering {
            state.seeds.insert(entering.slot, entering.request.sampling.seed as usize);
        }
        let is_late = match state.beat {
            Beat::AtOnce => false,
            Beat::AsRead { n_readers } => {
                // Who has not read all of the last step does not hold up this one.
                let n_wanted = state.n_said.saturating_sub(n_readers as u64);
                self.n_wanted.store(n_wanted, Ordering::SeqCst);
                while self.n_heard.load(Ordering::SeqCst) < n_wanted {
                    self.wake.wait(&mut state);
                }
                self.n_wanted.store(u64::MAX, Ordering::SeqCst);
                false
            }
            Beat::Every(step) => {
                let now = Instant::now();
                state.next = (state.next + step).max(now);
                let left = state.next - now;
                // Readers need the lock meanwhile.
                let seconds = MutexGuard::unlocked(&mut state, || {
                    std::thread::sleep(left);
                    server_seconds()
                });
                state.tell(input, seconds);
                true
            }
        };
        let rows = || input.plan.rows.iter().filter(|row| row.emit.samples());
        let (at, n_tokens) = (Instant::now(), rows().count());
        let State { n_said, seeds, said, .. } = &mut *state;
        *n_said += n_tokens as u64;
        if is_late {
            for row in rows() {
                said.entry(seeds[&row.slot]).or_default().push(Said { at, n_tokens });
            }
        }
    }
}

impl State {
    /// Before the tokens of a step are handed over; the server has run so long up to now.
    fn tell(&mut self, input: &StepInput, seconds: f64) {
        let n_tokens = input.plan.rows.iter().filter(|row| row.emit.samples()).count();
        if n_tokens < N_STREAMS {
            return;
        }
        let n_steps = self.full.map_or(0, |(_, last)| last.n_steps + 1);
        let now = Full { n_steps, seconds };
        self.full = Some((self.full.map_or(now, |(first, _)| first), now));
    }
}

/// A step that has a token for all.
#[derive(Clone, Copy, Debug)]
struct Full {
    /// Such steps before it.
    n_steps: usize,
    /// What the server's threads had run until then.
    seconds: f64,
}

/// A token's moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    /// When its step was done.
    pub(crate) at: Instant,
    /// Tokens of that step.
    pub(crate) n_tokens: usize,
}

/// The server, without a model.
pub(crate) struct Stub {
    server: TestServer,
    steps: Arc<Steps>,
    address: SocketAddr,
}

impl Stub {
    /// Serves `n_slots` at once, on one processor.
    pub(crate) fn start(n_slots: usize, cpu: usize) -> Stub {
        let steps = Arc::new(Steps::new());
        let pace = Arc::clone(&steps);
        let settings = ServerSettings {
            n_slots,
            n_context_tokens: 4096,
            pace: Arc::new(move |input| pace.step(input)),
            workers: Workers { n: 1, cpu: Some(cpu) },
            ..ServerSettings::roomy()
        };
        let server = TestServer::scripted(SAYS, settings);
        let address = server.client.address();
        Stub { server, steps, address }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its steps.
    pub(crate) fn beat(&self) -> &Arc<Steps> {
        &self.steps
    }

    /// Seconds that the server's threads have run so far.
    pub(crate) fn server_seconds(&self) -> f64 {
        assert!(self.server.app.engine.ready().is_ok(), "the engine runs");
        server_seconds()
    }
}

fn server_seconds() -> f64 {
    let tasks = std::fs::read_dir(TASKS).expect("the kernel tells of threads");
    let seconds = tasks.flatten().filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        name.starts_with("tokio-").then(|| seconds_of(&task.path()))?
    });
    seconds.sum()
}

/// Seconds that a thread has run so far, by its folder.
pub(crate) fn seconds_of(task: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}
