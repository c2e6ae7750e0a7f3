//! What a rank's time went into. The rank writes, anybody reads; nothing here waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a rank's time went into, since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankTime {
    /// It served commands.
    pub served: Duration,
    /// Of that, it exchanged numbers with its peers through the host's memory. What devices
    /// exchange among themselves is not seen here.
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
