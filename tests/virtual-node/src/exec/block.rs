//! Blocks: what their threads share, and their warps in turn.
//!
//! The blocks of a cluster run together on one worker, warp after warp. A cluster stalls when
//! all that its warps do is to look at memory that somebody else must write: then its worker
//! turns to another cluster.

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use crate::exec::barrier::{self, Barrier, N_BARRIERS};
use crate::exec::checks::{ClusterChecks, Layout};
use crate::exec::fault::{Cause, KernelFault, Trap};
use crate::exec::grid::Launch;
use crate::exec::tensor::{self, BlockAsync};
use crate::exec::warp::{Outcome, Wait, Warp};
use crate::exec::{BlockCx, WarpCx, special};
use crate::memory::{POISON, Window};
use crate::report::KernelCounters;

/// How long a cluster may run without an end or a wait.
const RUN_MAX: Duration = Duration::from_secs(600);
/// Passes over the warps between two looks at the clock.
const N_PASSES_TIMED: u64 = 256;

/// What the threads of a block share.
#[derive(Debug)]
pub struct Block {
    /// Position in the grid.
    pub idx: [u32; 3],
    /// Rank in the cluster.
    pub rank: u32,
    pub shared: Shared,
    /// Shared memory of all blocks of the cluster, by rank.
    pub peers: Vec<Span>,
    /// Outstanding asynchronous work.
    pub tensor: BlockAsync,
    pub(super) barriers: [Barrier; N_BARRIERS],
    /// Warps that came to the cluster's barrier, by bit.
    pub(super) cluster_arrived: u64,
}

/// Shared memory of a block.
#[derive(Debug)]
pub struct Shared {
    /// Its first byte aligned as shared memory is on the device.
    storage: Vec<Unit>,
    n_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(align(1024))]
struct Unit(#[expect(dead_code, reason = "read as bytes")] [u32; 256]);

/// A stretch of shared memory.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub start: NonNull<u8>,
    pub n_bytes: usize,
}

// SAFETY: the pointer is to shared memory of a block of the same cluster. All of them move
// between threads together, and only the thread that runs the cluster follows it.
unsafe impl Send for Span {}

impl Shared {
    pub(crate) fn new(n_bytes: usize) -> Shared {
        Shared { storage: vec![Unit([POISON; 256]); n_bytes / 1024 + 1], n_bytes }
    }

    /// All of it.
    pub fn span(&mut self) -> Span {
        Span { start: NonNull::from(&mut self.storage[0]).cast(), n_bytes: self.n_bytes }
    }
}

impl Block {
    fn new(shared_bytes: usize) -> Block {
        Block {
            idx: [0; 3],
            rank: 0,
            shared: Shared::new(shared_bytes),
            peers: Vec::new(),
            tensor: BlockAsync::default(),
            barriers: [Barrier::default(); N_BARRIERS],
            cluster_arrived: 0,
        }
    }

    /// Shared memory of a block of the cluster.
    pub fn peer_shared(&self, rank: u32) -> Result<Span, Cause> {
        let n_blocks = self.peers.len();
        self.peers.get(rank as usize).copied().ok_or(Cause::ClusterRank { rank, n_blocks })
    }
}

/// A cluster's blocks with their warps.
#[derive(Debug)]
pub(super) struct Cluster {
    members: Vec<(Block, Vec<Warp>)>,
    layout: Layout,
    checks: ClusterChecks,
}

/// How a cluster came to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Done,
    Stalled,
}

impl Cluster {
    /// Blocks for a launch, not begun.
    pub(super) fn new(launch: &Launch) -> Cluster {
        let n_warps = launch.threads_per_block().div_ceil(32);
        let shared_bytes = launch.shared_bytes();
        let member = |_| {
            let warps = (0..n_warps).map(|idx| Warp::new(idx, &launch.kernel)).collect();
            (Block::new(shared_bytes), warps)
        };
        let members: Vec<_> = (0..launch.blocks_per_cluster()).map(member).collect();
        let layout = Layout::new(members.len(), n_warps, shared_bytes);
        Cluster { members, layout, checks: ClusterChecks::begin(&launch.checks, layout) }
    }

    /// Begins the cluster of that index in the grid.
    pub(super) fn begin(&mut self, launch: &Launch, cluster_idx: usize) {
        let peers: Vec<Span> =
            self.members.iter_mut().map(|(block, _)| block.shared.span()).collect();
        self.checks = ClusterChecks::begin(&launch.checks, self.layout);
        let n_threads = launch.threads_per_block();
        for (rank, (block, warps)) in self.members.iter_mut().enumerate() {
            block.idx = launch.block_idx(cluster_idx, rank);
            block.rank = rank as u32;
            block.peers.clone_from(&peers);
            block.barriers = [Barrier::default(); N_BARRIERS];
            block.cluster_arrived = 0;
            block.shared.storage.fill(Unit([POISON; 256]));
            block.tensor.reset();
            for warp in warps {
                warp.reset(n_threads - warp.idx * 32);
                special::fill(warp, launch, block);
            }
        }
    }

    /// Runs until all threads have exited, or until nothing moves without others.
    pub(super) fn run(
        &mut self,
        launch: &Launch,
        window: &mut Window<'static>,
        counters: &mut KernelCounters,
    ) -> Result<Stop, KernelFault> {
        let started = Instant::now();
        for n_passes in 1u64.. {
            // A loop that never ends moves, too.
            if n_passes % N_PASSES_TIMED == 0 && started.elapsed() > RUN_MAX {
                return Err(self.hang(launch, RUN_MAX));
            }
            let mut has_moved = false;
            let mut is_spinning = false;
            let n_changes = self.n_barrier_changes();
            for (block, warps) in &mut self.members {
                let mut cx = BlockCx { launch, block, window, counters, checks: &mut self.checks };
                let moved = run_warps(&mut cx, warps)?;
                has_moved |= moved.has_moved;
                is_spinning |= moved.is_spinning;
                has_moved |= barrier::release(&mut cx, warps);
            }
            if self.members.len() > 1 || self.has_cluster_waits() {
                let members = self.members.iter_mut();
                let members = members.map(|(block, warps)| (block, &mut warps[..]));
                barrier::release_cluster(members, &mut self.checks);
                has_moved |= self.has_released();
            }
            if has_moved && !self.is_done() {
                continue;
            }
            if self.is_done() {
                self.check_finished(launch)?;
                return Ok(Stop::Done);
            }
            if self.advance(launch, window, counters)? {
                continue;
            }
            let may_be_freed = n_changes != self.n_barrier_changes() || !self.waits_for_itself();
            if is_spinning && may_be_freed {
                return Ok(Stop::Stalled);
            }
            return Err(self.deadlock(launch));
        }
        unreachable!("the passes have no end of their own")
    }

    fn is_done(&self) -> bool {
        self.members.iter().all(|(_, warps)| warps.iter().all(|warp| warp.live == 0))
    }

    fn has_cluster_waits(&self) -> bool {
        self.members.iter().any(|(block, _)| block.cluster_arrived != 0)
    }

    fn has_released(&self) -> bool {
        let mut warps = self.members.iter().flat_map(|(_, warps)| warps);
        warps.any(|warp| warp.live != 0 && warp.wait == Wait::Released)
    }

    /// Lands a piece of asynchronous work, of which there may be some in each block.
    fn advance(
        &mut self,
        launch: &Launch,
        window: &mut Window<'static>,
        counters: &mut KernelCounters,
    ) -> Result<bool, KernelFault> {
        for (block, warps) in &mut self.members {
            let mut cx = BlockCx { launch, block, window, counters, checks: &mut self.checks };
            match tensor::advance(&mut cx) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(cause) => return Err(launch.fault(block.idx, &warps[0], 0, cause)),
            }
        }
        Ok(false)
    }

    fn n_barrier_changes(&self) -> u64 {
        self.members.iter().map(|(block, _)| block.tensor.n_barrier_changes).sum()
    }

    /// Whether only the cluster itself could free its warps: they wait at barriers, or ask
    /// mbarriers over and over.
    fn waits_for_itself(&self) -> bool {
        let mut warps = self.members.iter().flat_map(|(_, warps)| warps);
        warps.all(|warp| {
            let at_barrier = matches!(warp.wait, Wait::Barrier | Wait::Cluster);
            warp.live == 0 || at_barrier || warp.tensor.waits
        })
    }

    /// Nothing asynchronous may outlive its block.
    fn check_finished(&self, launch: &Launch) -> Result<(), KernelFault> {
        for (block, warps) in &self.members {
            if let Some(fault) = block.tensor.unfinished() {
                return Err(launch.fault(block.idx, &warps[0], 0, fault.into()));
            }
        }
        Ok(())
    }

    /// All warps wait for barriers.
    fn deadlock(&self, launch: &Launch) -> KernelFault {
        let waiting = |warp: &&Warp| warp.live != 0;
        let all = self.members.iter().flat_map(|(block, warps)| {
            warps.iter().filter(waiting).map(move |warp| (block.idx, warp))
        });
        let n_waiting = all.clone().count();
        let (idx, warp) = all.into_iter().next().expect("somebody waits");
        launch.fault_at(idx, warp, Cause::Deadlock { n_waiting })
    }

    /// It has waited for others for so long that they will not come.
    pub(super) fn hang(&self, launch: &Launch, waited: Duration) -> KernelFault {
        let live = |(block, warps): &'_ (Block, Vec<Warp>)| {
            let warp = warps.iter().position(|warp| warp.live != 0)?;
            Some((block.idx, warp))
        };
        let found = self.members.iter().enumerate().find_map(|(rank, member)| {
            live(member).map(|(idx, warp)| (idx, &self.members[rank].1[warp]))
        });
        let (idx, warp) = found.expect("somebody waits");
        launch.fault_at(idx, warp, Cause::Hang { waited })
    }
}

/// What a pass over a block's warps came to.
struct Moved {
    has_moved: bool,
    is_spinning: bool,
}

fn run_warps(cx: &mut BlockCx<'_>, warps: &mut [Warp]) -> Result<Moved, KernelFault> {
    let mut moved = Moved { has_moved: false, is_spinning: false };
    for warp in warps.iter_mut() {
        if warp.live == 0 || matches!(warp.wait, Wait::Barrier | Wait::Cluster) {
            continue;
        }
        match run_warp(cx, warp)? {
            Outcome::Exited | Outcome::Waiting | Outcome::OutOfFuel => moved.has_moved = true,
            Outcome::Spinning => moved.is_spinning = true,
        }
    }
    Ok(moved)
}

fn run_warp(cx: &mut BlockCx<'_>, warp: &mut Warp) -> Result<Outcome, KernelFault> {
    let launch = cx.launch;
    let idx = cx.block.idx;
    let cx = BlockCx {
        launch,
        block: &mut *cx.block,
        window: &mut *cx.window,
        counters: &mut *cx.counters,
        checks: &mut *cx.checks,
    };
    warp.tensor.waits = false;
    let mut running = WarpCx::new(cx, warp);
    let ran = running.run();
    let line = running.inst.line;
    ran.map_err(|Trap { lane, cause }| {
        let mut fault = launch.fault(idx, warp, lane, cause);
        launch.blame(&mut fault, line);
        fault
    })
}
