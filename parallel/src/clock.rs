//! What a rank's time went into. The rank writes, anybody reads; nothing here waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a rank's time went into, since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankTime {
    /// It served commands; of a rank with a device, its device worked at them, by its own clock.
    pub served: Duration,
    /// Of that, it exchanged numbers with its peers: through the host's memory, or in kernels that
    /// meet, with what these make of the sum, or by the devices' library, whose waits are not told
    /// apart. What is gathered of logits by the library is not in it.
    pub exchanged: Duration,
    /// Of that, it waited for a peer.
    pub waited: Duration,
}

/// A rank's own sums, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct RankClock {
    served_ns: AtomicU64,
    exchanged_ns: AtomicU64,
    waited_ns: AtomicU64,
}

impl RankClock {
    pub(crate) fn serve(&self, took: Duration) {
        add(&self.served_ns, took);
    }

    /// What a device's time went into during a command, before which the clock stood at `before`.
    /// What was exchanged through the host's memory meanwhile is time that the device did not see.
    pub(crate) fn add_device(&self, time: RankTime, before: RankTime) {
        let on_host = self.read().exchanged.saturating_sub(before.exchanged);
        self.serve(time.served + on_host);
        self.exchange(time.exchanged);
        self.wait(time.waited);
    }

    pub(crate) fn exchange(&self, took: Duration) {
        add(&self.exchanged_ns, took);
    }

    pub(crate) fn wait(&self, took: Duration) {
        add(&self.waited_ns, took);
    }

    pub(crate) fn read(&self) -> RankTime {
        let read = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
        RankTime {
            served: read(&self.served_ns),
            exchanged: read(&self.exchanged_ns),
            waited: read(&self.waited_ns),
        }
    }
}

/// Only the rank itself writes, so a load and a store will do.
fn add(sum_ns: &AtomicU64, took: Duration) {
    let sum = sum_ns.load(Ordering::Relaxed) + took.as_nanos() as u64;
    sum_ns.store(sum, Ordering::Relaxed);
}
