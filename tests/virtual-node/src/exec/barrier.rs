//! Barriers: of a block (sixteen, by number), of lanes of a warp, of a cluster.

use crate::exec::checks::{self, ClusterChecks};
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{Pred, R32};
use crate::exec::warp::{Wait, Warp};
use crate::exec::{Block, BlockCx, WarpCx};

/// Barriers of a block.
pub const N_BARRIERS: usize = 16;

/// A barrier instruction.
#[derive(Debug)]
pub enum BarrierOp {
    /// Waits until so many threads have come; without a count, all of the block.
    Sync {
        barrier: R32,
        n_threads: Option<R32>,
        /// Where the reduction of a predicate over the threads goes.
        result: Option<(BarrierResult, Pred)>,
    },
    /// Comes, and goes on.
    Arrive {
        barrier: R32,
        n_threads: R32,
    },
    /// Waits for the lanes of a mask.
    Warp {
        members: R32,
    },
    ClusterArrive {
        /// It tells nobody what was written before.
        is_relaxed: bool,
    },
    ClusterWait,
}

/// How a predicate is reduced, and where to.
#[derive(Debug, Clone, Copy)]
pub enum BarrierResult {
    Count(R32),
    All(Pred),
    Any(Pred),
}

/// One barrier of a block.
#[derive(Debug, Clone, Copy, Default)]
pub struct Barrier {
    n_arrived: u32,
    /// Threads to come; 0 for all of the block.
    n_expected: u32,
    /// Bit by warp.
    arrived: u64,
    waiting: u64,
    /// Threads whose predicate was set.
    n_true: u32,
    /// Threads that brought a predicate.
    n_voted: u32,
}

/// What a barrier's reduction came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    n_true: u32,
    n_voted: u32,
}

impl WarpCx<'_> {
    /// Runs a barrier instruction. A warp that must wait runs it again once it was let go.
    pub(super) fn barrier(&mut self, op: &BarrierOp) -> Result<Flow, Trap> {
        match op {
            BarrierOp::Warp { members } => {
                let lane = self.mask.trailing_zeros() as usize & 31;
                let members = self.warp.registers.r32(*members)[lane];
                if members & self.warp.live & !self.mask == 0 {
                    return Ok(Flow::Next);
                }
                self.warp.park(self.mask, true);
                Ok(Flow::Retry)
            }
            BarrierOp::ClusterArrive { is_relaxed } => {
                if !self.is_converged() {
                    return Ok(Flow::Retry);
                }
                self.cx.block.cluster_arrived |= 1 << self.warp.idx;
                checks::observe_cluster_arrival(&mut self.cx, self.warp.idx, *is_relaxed);
                Ok(Flow::Next)
            }
            BarrierOp::ClusterWait => {
                if self.warp.wait == Wait::Released {
                    self.warp.wait = Wait::None;
                    checks::observe_cluster_wait(&mut self.cx, self.warp.idx);
                    return Ok(Flow::Next);
                }
                if !self.is_converged() {
                    return Ok(Flow::Retry);
                }
                if std::mem::take(&mut self.warp.has_cluster_met) {
                    checks::observe_cluster_wait(&mut self.cx, self.warp.idx);
                    return Ok(Flow::Next);
                }
                self.warp.wait = Wait::Cluster;
                Ok(Flow::Retry)
            }
            BarrierOp::Arrive { barrier, n_threads } => {
                if !self.is_converged() {
                    return Ok(Flow::Retry);
                }
                let (barrier, n_threads) = (self.uniform(*barrier), self.uniform(*n_threads));
                self.arrive((barrier, Some(n_threads)), None, false)?;
                Ok(Flow::Next)
            }
            BarrierOp::Sync { barrier, n_threads, result } => {
                if self.warp.wait == Wait::Released {
                    self.warp.wait = Wait::None;
                    if let Some((result, _)) = result {
                        self.deliver(*result);
                    }
                    return Ok(Flow::Next);
                }
                if !self.is_converged() {
                    return Ok(Flow::Retry);
                }
                let barrier = self.uniform(*barrier);
                let n_threads = n_threads.map(|row| self.uniform(row));
                let vote = result.map(|(_, vote)| self.warp.registers.predicate(vote));
                self.arrive((barrier, n_threads), vote, true)?;
                self.warp.wait = Wait::Barrier;
                Ok(Flow::Retry)
            }
        }
    }

    /// Whether all live lanes came together. If not, these wait for the others.
    fn is_converged(&mut self) -> bool {
        let is_whole = self.mask == self.warp.live;
        if !is_whole {
            self.warp.park(self.mask, false);
        }
        is_whole
    }

    /// The value in the first active lane.
    fn uniform(&self, row: R32) -> u32 {
        self.warp.registers.r32(row)[self.mask.trailing_zeros() as usize & 31]
    }

    fn arrive(
        &mut self,
        (number, n_threads): (u32, Option<u32>),
        vote: Option<u32>,
        waits: bool,
    ) -> Result<(), Trap> {
        let lane = self.mask.trailing_zeros() as usize & 31;
        let refuse = |problem, value| Err(Cause::BarrierUse { problem, value }.at(lane));
        let warp = 1 << self.warp.idx;
        let Some(barrier) = self.cx.block.barriers.get_mut(number as usize) else {
            return refuse("there is no such barrier", number);
        };
        let n_expected = n_threads.unwrap_or(0);
        if n_threads.is_some_and(|n| n == 0 || n % 32 != 0) {
            return refuse("the count of threads is no multiple of 32", n_expected);
        }
        if barrier.arrived != 0 && barrier.n_expected != n_expected {
            let (found, expected) = (n_expected, barrier.n_expected);
            return Err(Cause::BarrierCount { barrier: number, found, expected }.at(lane));
        }
        if barrier.waiting & warp != 0 {
            return refuse("a warp came twice", number);
        }
        barrier.n_expected = n_expected;
        barrier.n_arrived += 32;
        barrier.arrived |= warp;
        if waits {
            barrier.waiting |= warp;
        }
        if let Some(vote) = vote {
            barrier.n_true += (vote & self.mask).count_ones();
            barrier.n_voted += self.mask.count_ones();
        }
        Ok(())
    }

    fn deliver(&mut self, result: BarrierResult) {
        let Tally { n_true, n_voted } = self.warp.tally;
        let mask = self.mask;
        let bits = |yes: bool| if yes { !0 } else { 0 };
        let registers = &mut self.warp.registers;
        match result {
            BarrierResult::Count(row) => registers.set_r32(row, &[n_true; 32], mask),
            BarrierResult::All(row) => registers.set_predicate(row, bits(n_true == n_voted), mask),
            BarrierResult::Any(row) => registers.set_predicate(row, bits(n_true > 0), mask),
        }
    }
}

impl Barrier {
    /// Warps to let go, if enough threads have come; the barrier is then as new.
    pub(super) fn complete(&mut self, live_warps: u64) -> Option<(u64, u64, Tally)> {
        let is_complete = match self.n_expected {
            0 => self.arrived & live_warps == live_warps,
            n_expected => self.n_arrived >= n_expected,
        };
        if !is_complete || self.arrived == 0 {
            return None;
        }
        let done = std::mem::take(self);
        let tally = Tally { n_true: done.n_true, n_voted: done.n_voted };
        Some((done.waiting, done.arrived, tally))
    }
}

/// Lets warps go whose barriers are complete. Tells whether there were any.
pub(super) fn release(cx: &mut BlockCx<'_>, warps: &mut [Warp]) -> bool {
    let live = live_warps(warps);
    let mut has_released = false;
    for number in 0..N_BARRIERS {
        if cx.block.barriers[number].arrived == 0 {
            continue;
        }
        if let Some((waiting, arrived, tally)) = cx.block.barriers[number].complete(live) {
            for warp in warps.iter_mut().filter(|warp| waiting >> warp.idx & 1 != 0) {
                warp.wait = Wait::Released;
                warp.tally = tally;
            }
            checks::observe_barrier(cx, arrived);
            has_released = true;
        }
    }
    has_released
}

/// Lets the warps of a cluster's blocks go, if all have come to its barrier.
pub(super) fn release_cluster<'a>(
    members: impl Iterator<Item = (&'a mut Block, &'a mut [Warp])>,
    checks: &mut ClusterChecks,
) {
    let mut members: Vec<_> = members.collect();
    let is_complete = members.iter().all(|(block, warps)| {
        let live = live_warps(warps);
        block.cluster_arrived & live == live
    });
    let has_any = members.iter().any(|(block, _)| block.cluster_arrived != 0);
    if !is_complete || !has_any {
        return;
    }
    checks.met();
    for (block, warps) in &mut members {
        block.cluster_arrived = 0;
        for warp in warps.iter_mut() {
            if warp.wait == Wait::Cluster {
                warp.wait = Wait::Released;
            } else {
                warp.has_cluster_met = true;
            }
        }
    }
}

/// Warps with threads that have not exited, bit by warp.
fn live_warps(warps: &[Warp]) -> u64 {
    warps.iter().filter(|warp| warp.live != 0).fold(0, |bits, warp| bits | 1 << warp.idx)
}
