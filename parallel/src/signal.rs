//! Waiting for what another thread does: spin where cores are idle, then yield, then sleep.
//!
//! The condition lives with the caller, in atomics or under the caller's own lock; a [`Signal`]
//! only knows how to wait for it.

use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Checks before a thread with a core of its own gives the core away: about three microseconds.
/// That covers peers in step, and costs little where the cores are less idle than counted.
const N_SPINS: u32 = 64;

/// Times that a waiting thread gives its core away before it sleeps. Peers that are about to
/// arrive need the core, not a wake-up call; peers that compute for long want it to themselves.
const N_YIELDS: u32 = 32;

/// The same for threads that wait for their next piece of a step: about a hundred microseconds, so
/// that what a step does between two products, and what lies between steps, puts nobody to sleep.
const N_SPINS_BETWEEN_JOBS: u32 = 2048;

/// How long a waiting thread stays awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    n_spins: u32,
    n_yields: u32,
}

/// Where threads wait until a condition holds.
pub struct Signal {
    patience: Patience,
    /// Threads that sleep or are about to. Spares the lock where nobody sleeps.
    n_asleep: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Patience {
    /// What suits `n_threads` that work on each other's results, on a machine of `n_cores`.
    /// Threads that share cores must not spin: they would starve the one that works.
    pub(crate) fn of(n_threads: usize, n_cores: usize) -> Patience {
        let n_spins = if n_threads <= n_cores { N_SPINS } else { 0 };
        Patience { n_spins, n_yields: N_YIELDS }
    }

    /// What suits `n_threads` that compute, between two pieces of work, on a machine of `n_cores`.
    pub fn between_jobs(n_threads: usize, n_cores: usize) -> Patience {
        let n_spins = if n_threads <= n_cores { N_SPINS_BETWEEN_JOBS } else { 0 };
        Patience { n_spins, n_yields: N_YIELDS }
    }
}

impl Signal {
    /// Where threads wait as `patience` says.
    pub fn new(patience: Patience) -> Signal {
        Signal {
            patience,
            n_asleep: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Waits until `ready`, which must look at what was written before [`Signal::notify`].
    pub fn wait(&self, ready: impl Fn() -> bool) {
        self.wait_until(None, ready);
    }

    /// As [`Signal::wait`], but at most until `deadline`. Whether `ready` held in the end.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>, ready: impl Fn() -> bool) -> bool {
        self.wait_awake(&ready) || self.wait_asleep(deadline, &ready)
    }

    /// Wakes whoever waits, after the condition has been made true.
    pub fn notify(&self) {
        // Pairs with the fence in `wait_asleep`: either the sleeper sees the condition, or the
        // sleeper is seen here.
        fence(Ordering::SeqCst);
        if self.n_asleep.load(Ordering::Relaxed) > 0 {
            // Under the lock nobody is between looking at the condition and sleeping.
            drop(self.lock.lock());
            self.wake.notify_all();
        }
    }

    fn wait_awake(&self, ready: &impl Fn() -> bool) -> bool {
        for _ in 0..self.patience.n_spins {
            if ready() {
                return true;
            }
            hint::spin_loop();
        }
        for _ in 0..self.patience.n_yields {
            if ready() {
                return true;
            }
            thread::yield_now();
        }
        ready()
    }

    fn wait_asleep(&self, deadline: Option<Instant>, ready: &impl Fn() -> bool) -> bool {
        let mut guard = self.lock.lock();
        self.n_asleep.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut in_time = true;
        while in_time && !ready() {
            match deadline {
                Some(deadline) => in_time = !self.wake.wait_until(&mut guard, deadline).timed_out(),
                None => self.wake.wait(&mut guard),
            }
        }
        self.n_asleep.fetch_sub(1, Ordering::Relaxed);
        in_time || ready()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use super::*;
    use crate::fixture::PATIENT;

    const PATIENCES: [Patience; 3] = [
        Patience { n_spins: 0, n_yields: 0 },
        Patience { n_spins: 0, n_yields: 4 },
        Patience { n_spins: 100, n_yields: 4 },
    ];

    #[test]
    fn no_wake_up_is_lost() {
        const N_TURNS: u32 = 4_000;
        for patience in PATIENCES {
            // Two threads that hand a turn to each other: one lost wake-up and both wait for ever.
            let turn = AtomicU32::new(0);
            let signal = Signal::new(patience);
            let play = |player: u32| {
                for mine in (player..N_TURNS).step_by(2) {
                    signal.wait(|| turn.load(Ordering::Acquire) == mine);
                    turn.store(mine + 1, Ordering::Release);
                    signal.notify();
                }
            };
            thread::scope(|scope| {
                scope.spawn(|| play(0));
                play(1);
            });
            assert_eq!(turn.into_inner(), N_TURNS);
        }
    }

    #[test]
    fn a_wake_up_between_the_last_look_and_sleep_is_not_lost() {
        let signal = Signal::new(Patience { n_spins: 0, n_yields: 0 });
        let (is_set, n_looks) = (AtomicU32::new(0), AtomicU32::new(0));
        let started = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                while n_looks.load(Ordering::Acquire) < 2 {
                    thread::yield_now();
                }
                is_set.store(1, Ordering::Release);
                signal.notify();
            });
            signal.wait_until(Some(started + PATIENT), || {
                let was_set = is_set.load(Ordering::Acquire) == 1;
                // The second look is the one before sleep: let the other thread come between.
                if n_looks.fetch_add(1, Ordering::AcqRel) == 1 {
                    thread::sleep(Duration::from_millis(50));
                }
                was_set
            });
        });
        assert!(started.elapsed() < PATIENT, "slept through the wake-up");
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        for patience in PATIENCES {
            let signal = Signal::new(patience);
            let deadline = Instant::now() + Duration::from_millis(5);
            assert!(!signal.wait_until(Some(deadline), || false));
            assert!(Instant::now() >= deadline);
            assert!(signal.wait_until(Some(deadline), || true), "what holds needs no time");
        }
    }

    #[test]
    fn only_threads_with_a_core_each_spin() {
        assert_eq!(Patience::of(8, 8).n_spins, N_SPINS);
        assert_eq!(Patience::of(8, 2).n_spins, 0);
    }
}
