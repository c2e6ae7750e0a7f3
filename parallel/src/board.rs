//! Where the ranks of a pool answer, and where the first failure stays.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::signal::{Patience, Signal};
use crate::world::{Rank, World};

/// One answer per rank, or one failure instead of all of them.
pub(crate) struct Board<T, F> {
    world: World,
    slots: Vec<Mutex<Option<T>>>,
    n_filled: AtomicUsize,
    failure: Mutex<Option<F>>,
    failed: AtomicBool,
    signal: Signal,
}

/// What a wait for the board ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// Every rank answered.
    Complete,
    /// A rank failed.
    Failed,
    /// Neither came true in time.
    TimedOut,
}

impl<T, F> Board<T, F> {
    pub(crate) fn new(world: World, patience: Patience) -> Board<T, F> {
        Board {
            world,
            slots: world.ranks().map(|_| Mutex::new(None)).collect(),
            n_filled: AtomicUsize::new(0),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
            signal: Signal::new(patience),
        }
    }

    /// A rank's answer. The last one wakes whoever waits.
    pub(crate) fn fill(&self, rank: Rank, value: T) {
        let before = self.slots[rank.idx()].lock().replace(value);
        assert!(before.is_none(), "rank {rank} answered twice");
        if self.n_filled.fetch_add(1, Ordering::AcqRel) + 1 == self.world.n_ranks() {
            self.signal.notify();
        }
    }

    /// Keeps the failure, if it is the first: what follows from a failure is not its cause.
    pub(crate) fn fail(&self, failure: F) {
        self.failure.lock().get_or_insert(failure);
        self.failed.store(true, Ordering::Release);
        self.signal.notify();
    }

    /// Waits until all ranks answered or one failed.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Waited {
        let complete = || self.n_filled.load(Ordering::Acquire) == self.world.n_ranks();
        let failed = || self.failed.load(Ordering::Acquire);
        let in_time = self.signal.wait_until(Some(deadline), || complete() || failed());
        match in_time {
            _ if failed() => Waited::Failed,
            true => Waited::Complete,
            false => Waited::TimedOut,
        }
    }

    /// All answers in rank order; the board is empty again.
    ///
    /// # Panics
    /// If a rank has not answered.
    pub(crate) fn take_all(&self) -> Vec<T> {
        self.n_filled.store(0, Ordering::Relaxed);
        let answers = self.slots.iter().map(|slot| slot.lock().take());
        answers.map(|answer| answer.expect("every rank has answered")).collect()
    }

    /// The ranks that have not answered.
    pub(crate) fn missing(&self) -> impl Iterator<Item = Rank> {
        self.world.ranks().filter(|rank| self.slots[rank.idx()].lock().is_none())
    }

    /// The first failure, which stays.
    pub(crate) fn failure(&self) -> Option<F>
    where
        F: Clone,
    {
        self.failure.lock().clone()
    }

    /// The first failure, for its last reader.
    pub(crate) fn take_failure(&self) -> Option<F> {
        self.failure.lock().take()
    }
}
