//! The phases in which ranks meet, and how a meeting is called off. Moves no data.
//!
//! Every rank counts the phases at which it has arrived. A phase is over when all have, so a rank
//! that waits in phase p may rely on everything that its peers wrote before they arrived at p. A
//! rank is never more than one phase ahead of a peer that still reads: what is written for phase p
//! may overwrite what was written for phase p - 2, and nothing newer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Instant;

use crate::clock::RankClock;
use crate::error::{Call, CollectiveError};
use crate::signal::{Patience, Signal};
use crate::world::{Rank, World};

/// A point at which all ranks meet, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Phase(u64);

/// The ranks of a pool as they meet.
pub(crate) struct Group {
    world: World,
    lanes: Box<[Lane]>,
    aborted: AtomicBool,
    signal: Signal,
}

/// What one rank writes and its peers read. Aligned, so that ranks do not share cache lines.
#[repr(align(128))]
struct Lane {
    n_arrived: AtomicU64,
    /// What the rank calls, by the phase's side.
    calls: [AtomicU64; Phase::N_SIDES],
    clock: RankClock,
}

impl Phase {
    /// Phases of which something is written or read at one time.
    pub(crate) const N_SIDES: usize = 2;

    /// Which of the alternating buffers belongs to this phase.
    pub(crate) fn side(self) -> usize {
        (self.0 % Phase::N_SIDES as u64) as usize
    }
}

impl Group {
    pub(crate) fn new(world: World, patience: Patience) -> Group {
        let lane = |_| Lane {
            n_arrived: AtomicU64::new(0),
            calls: Default::default(),
            clock: RankClock::default(),
        };
        Group {
            world,
            lanes: world.ranks().map(lane).collect(),
            aborted: AtomicBool::new(false),
            signal: Signal::new(patience),
        }
    }

    pub(crate) fn world(&self) -> World {
        self.world
    }

    /// What `rank` spends its time on.
    pub(crate) fn clock(&self, rank: Rank) -> &RankClock {
        &self.lanes[rank.idx()].clock
    }

    /// The phase that `rank` arrives at next.
    pub(crate) fn next_phase(&self, rank: Rank) -> Phase {
        Phase(self.n_arrived(rank) + 1)
    }

    /// Phases at which `rank` has arrived.
    pub(crate) fn n_arrived(&self, rank: Rank) -> u64 {
        self.lanes[rank.idx()].n_arrived.load(Ordering::Acquire)
    }

    /// Arrives with a call, waits for all, and sees that the calls go together. Whether they do
    /// is the same for all ranks.
    pub(crate) fn meet(&self, rank: Rank, call: Call) -> Result<(), CollectiveError> {
        let phase = self.next_phase(rank);
        self.announce(rank, phase, call);
        self.arrive_and_wait(rank)?;
        let agreed = |peer| go_together(call, self.call(peer, phase));
        if self.world.ranks().all(agreed) {
            return Ok(());
        }
        let calls = self.world.ranks().map(|peer| self.call(peer, phase)).collect();
        Err(CollectiveError::Mismatch { calls })
    }

    /// Arrives once more within a call on which all agreed, and waits for all.
    pub(crate) fn arrive_and_wait(&self, rank: Rank) -> Result<(), CollectiveError> {
        // Whoever has seen it arrive knows that it waits from then on.
        let arrived = Instant::now();
        let phase = self.arrive(rank);
        self.signal.wait(|| self.is_over(phase) || self.is_aborted());
        self.clock(rank).wait(arrived.elapsed());
        if self.is_aborted() { Err(CollectiveError::Aborted) } else { Ok(()) }
    }

    /// Arrives without waiting: the rank is done with its command. A peer that meets it there has
    /// called a collective too many. The pool sends no command before all are done with the last.
    pub(crate) fn leave(&self, rank: Rank) {
        self.announce(rank, self.next_phase(rank), Call::Return);
        self.arrive(rank);
    }

    /// Calls off every meeting from now on and releases whoever waits in one.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.signal.notify();
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    fn is_over(&self, phase: Phase) -> bool {
        self.world.ranks().all(|peer| self.n_arrived(peer) >= phase.0)
    }

    fn arrive(&self, rank: Rank) -> Phase {
        let phase = self.next_phase(rank);
        self.lanes[rank.idx()].n_arrived.store(phase.0, Ordering::Release);
        // Of two ranks that arrive last, at least one sees the other and wakes the sleepers; the
        // ranks before them spare the wake-up.
        fence(Ordering::SeqCst);
        if self.is_over(phase) {
            self.signal.notify();
        }
        phase
    }

    fn announce(&self, rank: Rank, phase: Phase, call: Call) {
        self.lanes[rank.idx()].calls[phase.side()].store(encode(call), Ordering::Relaxed);
    }

    fn call(&self, rank: Rank, phase: Phase) -> Call {
        decode(self.lanes[rank.idx()].calls[phase.side()].load(Ordering::Relaxed))
    }
}

fn go_together(a: Call, b: Call) -> bool {
    match (a, b) {
        (Call::AllGather { .. }, Call::AllGather { .. }) => true,
        (a, b) => a == b,
    }
}

/// Bits of an encoded call that hold its kind; the rest is its length.
const N_KIND_BITS: u32 = 2;

fn encode(call: Call) -> u64 {
    let (kind, n_floats) = match call {
        Call::Return => (0, 0),
        Call::AllReduceSum { n_floats } => (1, n_floats),
        Call::AllGather { n_floats } => (2, n_floats),
        Call::AllReduceMax { n_floats } => (3, n_floats),
    };
    ((n_floats as u64) << N_KIND_BITS) | kind
}

fn decode(bits: u64) -> Call {
    let n_floats = (bits >> N_KIND_BITS) as usize;
    match bits & ((1 << N_KIND_BITS) - 1) {
        0 => Call::Return,
        1 => Call::AllReduceSum { n_floats },
        2 => Call::AllGather { n_floats },
        _ => Call::AllReduceMax { n_floats },
    }
}
