//! Waiting for what another thread does: spin where cores are idle, then yield, then sleep.
//!
//! The condition lives with the caller, in atomics or under the caller's own lock; a [`Signal`]
//! only knows how to wait for it.

use std::hint;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::world::World;

/// Checks before a rank with a core of its own gives the core away: about ten microseconds,
/// which is what a sleeping thread takes to wake up.
const N_SPINS: u32 = 256;

/// Times that a waiting rank gives its core away before it sleeps. Peers that are about to
/// arrive need the core, not a wake-up call; peers that compute for long want to be alone.
const N_YIELDS: u32 = 32;

/// How long a waiting thread stays awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    n_spins: u32,
    n_yields: u32,
}

/// Where threads wait until a condition holds.
pub(crate) struct Signal {
    patience: Patience,
    /// Threads that sleep or are about to. Spares the lock where nobody sleeps.
    n_asleep: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Patience {
    /// What suits `world` on a machine of `n_cores`. Ranks that share cores must not spin: they
    /// would starve the one that works.
    pub(crate) fn of(world: World, n_cores: usize) -> Patience {
        let n_spins = if world.n_ranks() <= n_cores { N_SPINS } else { 0 };
        Patience { n_spins, n_yields: N_YIELDS }
    }
}

impl Signal {
    pub(crate) fn new(patience: Patience) -> Signal {
        Signal {
            patience,
            n_asleep: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Waits until `ready`, which must look at what was written before [`Signal::notify`].
    pub(crate) fn wait(&self, ready: impl Fn() -> bool) {
        self.wait_until(None, ready);
    }

    /// As [`Signal::wait`], but at most until `deadline`. Whether `ready` held in the end.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>, ready: impl Fn() -> bool) -> bool {
        self.wait_awake(&ready) || self.wait_asleep(deadline, &ready)
    }

    /// Wakes whoever waits, after the condition has been made true.
    pub(crate) fn notify(&self) {
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
