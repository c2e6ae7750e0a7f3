//! A rank's compute threads. A step hands them work every few microseconds, so they wait for it
//! awake for a while, where every one of them has a core; later, and elsewhere, they sleep.
//!
//! Work is a number of pieces. Each thread begins with a run of its own, so that neighbours stay in
//! one core's caches, and when it is through helps the others with theirs.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use parallel::{Patience, Signal};
use parking_lot::Mutex;

/// What every thread runs, with its number.
type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// Threads beside the one that calls.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// By thread: its pieces. Held while a job runs: there is one at a time.
    runs: Mutex<Vec<Run>>,
}

struct Shared {
    /// Written by the caller while no helper runs, read by helpers of the turn that follows.
    job: UnsafeCell<Option<Job<'static>>>,
    /// Jobs so far.
    turn: AtomicU64,
    /// Helpers that have not finished this turn's job.
    n_busy: AtomicUsize,
    ends: AtomicBool,
    begun: Signal,
    done: Signal,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only field that is not `Sync` by itself. The caller writes it while `n_busy`
// is zero, before it raises `turn`; helpers read it after they have seen `turn` raised and before
// they lower `n_busy`.
unsafe impl Sync for Shared {}
// SAFETY: what `job` holds is a reference to something `Sync`.
unsafe impl Send for Shared {}

impl Team {
    /// Starts `n_threads - 1` threads beside the calling one.
    ///
    /// # Errors
    /// The operating system's, if it starts no more.
    pub(super) fn new(n_threads: usize) -> std::io::Result<Team> {
        let n_cores = thread::available_parallelism().map_or(1, usize::from);
        let patience = Patience::between_jobs(n_threads, n_cores);
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            turn: AtomicU64::new(0),
            n_busy: AtomicUsize::new(0),
            ends: AtomicBool::new(false),
            begun: Signal::new(patience),
            done: Signal::new(patience),
            panic: Mutex::new(None),
        });
        let runs = (0..n_threads).map(|_| Run::default()).collect();
        let mut team = Team { shared, helpers: Vec::new(), runs: Mutex::new(runs) };
        for thread_idx in 1..n_threads {
            let shared = Arc::clone(&team.shared);
            let builder = thread::Builder::new().name(format!("compute-{thread_idx}"));
            team.helpers.push(builder.spawn(move || shared.help(thread_idx))?);
        }
        Ok(team)
    }

    /// Runs `piece(thread_idx, piece_idx)` once for each of `n_pieces`, on all threads. A panic in
    /// one goes on here, after all threads have come back.
    pub(super) fn run(&self, n_pieces: usize, piece: &(dyn Fn(usize, usize) + Sync)) {
        let mut runs = self.runs.lock();
        let n_threads = runs.len();
        for (thread_idx, run) in runs.iter_mut().enumerate() {
            let begin = n_pieces * thread_idx / n_threads;
            *run = Run { next: begin.into(), end: n_pieces * (thread_idx + 1) / n_threads };
        }
        let runs = &*runs;
        self.run_on_each(&|thread_idx| {
            for victim in (0..n_threads).map(|i| (thread_idx + i) % n_threads) {
                while let Some(piece_idx) = runs[victim].take() {
                    piece(thread_idx, piece_idx);
                }
            }
        });
    }

    /// Under the lock of `runs`.
    fn run_on_each(&self, job: Job<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; nobody leaves before every helper is done with it.
        let unending = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: no helper is busy, see `Shared`.
        unsafe { *shared.job.get() = Some(unending) };
        shared.n_busy.store(self.helpers.len(), Ordering::Relaxed);
        shared.turn.fetch_add(1, Ordering::Release);
        shared.begun.notify();
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        shared.done.wait(|| shared.n_busy.load(Ordering::Acquire) == 0);
        let theirs = shared.panic.lock().take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        self.shared.begun.notify();
        for helper in self.helpers.drain(..) {
            // What it had to say of a panic was said when it happened.
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// A helper's life.
    fn help(&self, thread_idx: usize) {
        for turn in 1.. {
            let has_begun = || self.turn.load(Ordering::Acquire) >= turn;
            self.begun.wait(|| has_begun() || self.ends.load(Ordering::Acquire));
            if !has_begun() {
                return;
            }
            // SAFETY: the turn was raised after the job was written, and the next is not written
            // before this helper has lowered `n_busy`.
            let job = unsafe { *self.job.get() };
            let outcome =
                catch_unwind(AssertUnwindSafe(|| job.into_iter().for_each(|f| f(thread_idx))));
            if let Err(panic) = outcome {
                self.panic.lock().get_or_insert(panic);
            }
            if self.n_busy.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.notify();
            }
        }
    }
}

/// Pieces of which each is taken once. Aligned, so that threads do not share cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Run {
    next: AtomicUsize,
    end: usize,
}

impl Run {
    fn take(&self) -> Option<usize> {
        // Looked at first: so it never passes the end by more than the threads there are.
        if self.next.load(Ordering::Relaxed) >= self.end {
            return None;
        }
        let piece_idx = self.next.fetch_add(1, Ordering::Relaxed);
        (piece_idx < self.end).then_some(piece_idx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once() {
        for n_threads in [1, 2, 3, 7] {
            let team = Team::new(n_threads).expect("threads start");
            for n_pieces in [0, 1, 2, 5, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_pieces).map(|_| AtomicUsize::new(0)).collect();
                team.run(n_pieces, &|thread_idx, piece_idx| {
                    assert!(thread_idx < n_threads);
                    counts[piece_idx].fetch_add(1, Ordering::Relaxed);
                });
                let is_one = |count: &AtomicUsize| count.load(Ordering::Relaxed) == 1;
                assert!(counts.iter().all(is_one), "{n_threads} threads, {n_pieces}: {counts:?}");
            }
        }
    }

    /// Pieces that wait for each other show that threads run at one time, and the last of them that
    /// one who is through helps.
    #[test]
    fn threads_run_side_by_side_and_help_each_other() {
        let team = Team::new(2).expect("threads start");
        let barrier = std::sync::Barrier::new(2);
        for _ in 0..100 {
            // Three and three: the pieces of either thread's run meet one of the other's.
            team.run(6, &|_, _| {
                barrier.wait();
            });
        }
        // Of 0..4, thread 0 stays in its first piece until every other one has run.
        let (is_in, n_run) = (AtomicBool::new(false), AtomicUsize::new(0));
        let changed = Signal::new(Patience::between_jobs(2, 1));
        team.run(4, &|thread_idx, _| {
            if thread_idx == 0 {
                is_in.store(true, Ordering::Release);
                changed.notify();
                changed.wait(|| n_run.load(Ordering::Acquire) == 3);
            } else {
                changed.wait(|| is_in.load(Ordering::Acquire));
                n_run.fetch_add(1, Ordering::AcqRel);
                changed.notify();
            }
        });
        assert_eq!(n_run.into_inner(), 3);
    }

    #[test]
    fn a_panic_comes_out_and_the_team_goes_on() {
        let team = Team::new(3).expect("threads start");
        for bad_idx in [0, 4, 8] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run(9, &|_, piece_idx| assert_ne!(piece_idx, bad_idx, "planned"));
            }));
            assert!(outcome.is_err(), "the panic of piece {bad_idx} was lost");
            let n_run = AtomicUsize::new(0);
            team.run(9, &|_, _| {
                n_run.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(n_run.into_inner(), 9);
        }
    }
}
