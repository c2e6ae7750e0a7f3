//! Checks that are made on request: races, uninitialised reads, sectors, bank conflicts.
//! The executor calls in here only where a flag is set.

mod init;
mod layout;
mod races;
mod traffic;

use thiserror::Error;

use crate::exec::block::Span;
use crate::exec::context::{lanes, split_shared};
use crate::exec::fault::{Cause, Trap};
use crate::exec::inst::Space;
use crate::exec::{BlockCx, WarpCx};
use crate::memory::POISON;
use init::Written;
pub(super) use layout::Layout;
use races::Races;
pub use traffic::n_sectors;

/// Which checks a launch makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// Accesses to shared memory that no barrier orders.
    pub races: bool,
    /// Reads of memory that nothing wrote.
    pub init: bool,
    /// Counts sectors of global accesses.
    pub sectors: bool,
    /// Counts bank conflicts of shared accesses.
    pub banks: bool,
}

/// What a check found. Offsets are bytes of a block's shared memory; warps are numbered through the
/// blocks of their cluster.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Finding {
    /// Two warps, no barrier between them.
    #[error("race: warps {warp} and {other} access shared byte {offset}, and nothing orders them")]
    Race {
        /// Where.
        offset: usize,
        /// Who accesses it now.
        warp: usize,
        /// Who did before.
        other: usize,
    },
    /// A warp, and asynchronous work that nobody waited for.
    #[error("race: warp {warp} accesses shared byte {offset}, which asynchronous work has in use")]
    AsyncRace {
        /// Where.
        offset: usize,
        /// Who accesses it, or issues work that does.
        warp: usize,
    },
    /// A write of threads that asynchronous work might not see.
    #[error(
        "no fence.proxy.async between warp {writer}'s write of shared byte {offset} and the \
         asynchronous read that warp {warp} issues"
    )]
    NoProxyFence {
        /// Where.
        offset: usize,
        /// Who issues the read.
        warp: usize,
        /// Who wrote.
        writer: usize,
    },
    /// Shared memory that nothing wrote.
    #[error("read of shared byte {offset}, which nothing wrote")]
    UnwrittenShared {
        /// Where.
        offset: usize,
    },
    /// Device memory that nothing wrote.
    #[error("read of device memory at {address:#x}, which nothing wrote")]
    UnwrittenGlobal {
        /// Where.
        address: u64,
    },
}

/// One warp-wide access, seen before it happens.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// Never `Generic`: lanes are sorted by space first.
    pub space: Space,
    pub kind: AccessKind,
    /// Of each lane, vectors included.
    pub n_bytes: usize,
    /// In shared memory: offsets into the block's window.
    pub addresses: &'a [u64; 32],
    pub mask: u32,
}

/// How memory is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    Read,
    Write,
    Atomic,
}

/// When asynchronous work was issued, by a clock of its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AsyncAccess(u32);

/// What the checks remember of a cluster.
#[derive(Debug)]
pub struct ClusterChecks {
    layout: Layout,
    races: Option<Races>,
    written: Option<Written>,
}

impl Checks {
    /// Whether [`observe`] wants to see accesses to a space.
    pub fn watches(&self, space: Space) -> bool {
        match space {
            Space::Shared => self.races || self.init || self.banks,
            Space::Global => self.init || self.sectors,
            _ => false,
        }
    }
}

impl ClusterChecks {
    /// A new cluster begins.
    pub(super) fn begin(checks: &Checks, layout: Layout) -> ClusterChecks {
        let races = checks.races.then(|| Races::new(layout));
        let written = checks.init.then(|| Written::new(layout));
        ClusterChecks { layout, races, written }
    }

    /// All warps of the cluster have come to its barrier.
    pub(super) fn met(&mut self) {
        if let Some(races) = &mut self.races {
            races.cluster_met();
        }
    }
}

impl BlockCx<'_> {
    /// A warp's number among those of the cluster.
    fn warp_of_cluster(&self, warp_idx: usize) -> usize {
        self.block.rank as usize * self.checks.layout.n_warps_each + warp_idx
    }

    /// A shared address as a byte of the cluster's memory; none beyond a block's end.
    fn watched(&self, address: u64) -> Option<usize> {
        let (rank, offset) = split_shared(address);
        self.checks.layout.byte(rank.unwrap_or(self.block.rank) as usize, offset)
    }
}

/// Sees an access, before bounds are checked.
pub fn observe(cx: &mut WarpCx<'_>, access: &Access<'_>) -> Result<(), Trap> {
    match access.space {
        Space::Shared => observe_shared(cx, access),
        Space::Global => observe_global(cx, access),
        _ => Ok(()),
    }
}

fn observe_shared(cx: &mut WarpCx<'_>, access: &Access<'_>) -> Result<(), Trap> {
    let warp = cx.cx.warp_of_cluster(cx.warp.idx);
    let checks = cx.cx.launch.checks;
    if checks.banks {
        cx.cx.counters.n_bank_conflicts +=
            traffic::n_bank_conflicts(access.addresses, access.mask, access.n_bytes);
    }
    settle(&mut cx.cx).map_err(|cause| cause.at(access.mask.trailing_zeros() as usize))?;
    for lane in lanes(access.mask) {
        let Some(first) = cx.cx.watched(access.addresses[lane]) else { continue };
        let n_bytes = access.n_bytes;
        let blame = |finding: Finding| Cause::from(finding).at(lane);
        if let Some(written) = &mut cx.cx.checks.written {
            if access.kind != AccessKind::Write {
                written.read(first, n_bytes).map_err(blame)?;
            }
            if access.kind != AccessKind::Read {
                written.write(first, n_bytes);
            }
        }
        let held = held(&cx.cx, first, n_bytes);
        if let Some(races) = &mut cx.cx.checks.races {
            match access.kind {
                AccessKind::Read => races.read(warp, first, n_bytes),
                AccessKind::Write => races.write(warp, first, &held),
                AccessKind::Atomic => races.atomic(warp, first, n_bytes),
            }
            .map_err(blame)?;
        }
    }
    Ok(())
}

/// What the cluster's memory holds, as far as a block's goes; nothing where nobody asks.
fn held(cx: &BlockCx<'_>, first: usize, n_bytes: usize) -> Vec<u8> {
    if cx.checks.races.is_none() {
        return Vec::new();
    }
    let layout = cx.checks.layout;
    let within = layout.within_block(first, n_bytes);
    within.map(|byte| held_byte(&cx.block.peers, layout, byte)).collect()
}

/// A byte of the cluster's memory; a block's rounded-up end holds nothing.
fn held_byte(shared: &[Span], layout: Layout, byte: usize) -> u8 {
    let (rank, offset) = (layout.rank(byte), layout.offset(byte));
    let Span { start, n_bytes } = shared[rank];
    if offset >= n_bytes {
        return 0;
    }
    // SAFETY: the offset lies inside that block's shared memory, and the cluster's blocks run on
    // this thread.
    unsafe { start.add(offset).read() }
}

/// Judges writes that met, now that they are done.
fn settle(cx: &mut BlockCx<'_>) -> Result<(), Cause> {
    let (layout, shared) = (cx.checks.layout, &cx.block.peers);
    let Some(races) = &mut cx.checks.races else { return Ok(()) };
    Ok(races.settle(|byte| held_byte(shared, layout, byte))?)
}

fn observe_global(cx: &mut WarpCx<'_>, access: &Access<'_>) -> Result<(), Trap> {
    let checks = cx.cx.launch.checks;
    if checks.sectors {
        let n = traffic::n_sectors_of_warp(access.addresses, access.mask, access.n_bytes);
        match access.kind {
            AccessKind::Read => cx.cx.counters.sectors_read += n,
            AccessKind::Write => cx.cx.counters.sectors_written += n,
            AccessKind::Atomic => {
                cx.cx.counters.sectors_read += n;
                cx.cx.counters.sectors_written += n;
            }
        }
    }
    if checks.init && access.kind != AccessKind::Write {
        for lane in lanes(access.mask) {
            let address = access.addresses[lane];
            check_global(&mut cx.cx, address, access.n_bytes).map_err(|cause| cause.at(lane))?;
        }
    }
    Ok(())
}

/// A word of device memory that holds what fresh memory holds counts as not written.
fn check_global(cx: &mut BlockCx<'_>, address: u64, n_bytes: usize) -> Result<(), Cause> {
    for word in (address & !3..address + n_bytes as u64).step_by(4) {
        let Ok(at) = cx.global(word, 4, 4) else { continue };
        // SAFETY: `global` gave four aligned, readable bytes.
        if unsafe { at.cast::<u32>().read_volatile() } == POISON {
            return Err(Finding::UnwrittenGlobal { address: word }.into());
        }
    }
    Ok(())
}

/// All threads of a block met at a barrier; with `warps` the ones that did (bit by warp).
pub fn observe_barrier(cx: &mut BlockCx<'_>, warps: u64) {
    let first = cx.warp_of_cluster(0);
    if let Some(races) = &mut cx.checks.races {
        races.barrier(first, warps);
    }
}

/// A warp arrived at the barrier of its cluster, with what it did before or (`is_relaxed`) without.
pub fn observe_cluster_arrival(cx: &mut BlockCx<'_>, warp_idx: usize, is_relaxed: bool) {
    let warp = cx.warp_of_cluster(warp_idx);
    if let Some(races) = &mut cx.checks.races {
        races.cluster_arrive(warp, is_relaxed);
    }
}

/// A warp waited for the barrier of its cluster.
pub fn observe_cluster_wait(cx: &mut BlockCx<'_>, warp_idx: usize) {
    let warp = cx.warp_of_cluster(warp_idx);
    if let Some(races) = &mut cx.checks.races {
        races.cluster_wait(warp);
    }
}

/// Asynchronous work that a warp issues will read these 16-byte chunks of shared memory.
pub fn observe_async_read(
    cx: &mut BlockCx<'_>,
    warp_idx: usize,
    chunks: &[usize],
) -> Result<AsyncAccess, Cause> {
    let (warp, chunks) = (cx.warp_of_cluster(warp_idx), watched_chunks(cx, chunks));
    if let Some(written) = &cx.checks.written {
        chunks.iter().try_for_each(|chunk| written.read(*chunk, 16))?;
    }
    let races = cx.checks.races.as_mut();
    let at = races.map(|races| races.async_read(warp, &chunks)).transpose()?;
    Ok(AsyncAccess(at.unwrap_or(0)))
}

/// Asynchronous work that a warp issues will write these 16-byte chunks of shared memory.
pub fn observe_async_write(
    cx: &mut BlockCx<'_>,
    warp_idx: usize,
    chunks: &[usize],
) -> Result<AsyncAccess, Cause> {
    let (warp, chunks) = (cx.warp_of_cluster(warp_idx), watched_chunks(cx, chunks));
    if let Some(written) = &mut cx.checks.written {
        chunks.iter().for_each(|chunk| written.write(*chunk, 16));
    }
    let races = cx.checks.races.as_mut();
    let at = races.map(|races| races.async_write(warp, &chunks)).transpose()?;
    Ok(AsyncAccess(at.unwrap_or(0)))
}

fn watched_chunks(cx: &BlockCx<'_>, chunks: &[usize]) -> Vec<usize> {
    chunks.iter().filter_map(|chunk| cx.watched(*chunk as u64)).collect()
}

/// A warp waited for asynchronous work of its block.
pub fn observe_async_done(cx: &mut BlockCx<'_>, warp_idx: usize, access: AsyncAccess) {
    let warp = cx.warp_of_cluster(warp_idx);
    if let Some(races) = &mut cx.checks.races {
        races.async_done(warp, access.0);
    }
}

/// Asynchronous work of the block told an mbarrier that it is done; `is_over`: that ended a phase.
pub fn observe_async_arrival(
    cx: &mut BlockCx<'_>,
    barrier: u64,
    access: AsyncAccess,
    is_over: bool,
) {
    let (first, barrier) = (cx.warp_of_cluster(0), cx.watched(barrier));
    if let (Some(races), Some(barrier)) = (&mut cx.checks.races, barrier) {
        races.mbarrier_arrive_async(first, barrier as u64, access.0, is_over);
    }
}

/// A warp made an mbarrier at a shared address.
pub fn observe_mbarrier_init(
    cx: &mut BlockCx<'_>,
    barrier: u64,
    warp_idx: usize,
) -> Result<(), Cause> {
    let (warp, barrier) = (cx.warp_of_cluster(warp_idx), cx.watched(barrier));
    if let (Some(races), Some(barrier)) = (&mut cx.checks.races, barrier) {
        races.mbarrier_init(warp, barrier as u64)?;
    }
    Ok(())
}

/// A warp arrived at an mbarrier; `is_over`: that ended a phase.
pub fn observe_arrival(
    cx: &mut BlockCx<'_>,
    barrier: u64,
    warp_idx: usize,
    is_over: bool,
) -> Result<(), Cause> {
    let (warp, barrier) = (cx.warp_of_cluster(warp_idx), cx.watched(barrier));
    if let (Some(races), Some(barrier)) = (&mut cx.checks.races, barrier) {
        races.mbarrier_arrive(warp, barrier as u64, is_over)?;
    }
    Ok(())
}

/// A warp saw a phase of an mbarrier end.
pub fn observe_wait(cx: &mut BlockCx<'_>, barrier: u64, warp_idx: usize) {
    let (warp, barrier) = (cx.warp_of_cluster(warp_idx), cx.watched(barrier));
    if let (Some(races), Some(barrier)) = (&mut cx.checks.races, barrier) {
        races.mbarrier_wait(warp, barrier as u64);
    }
}

/// A warp fenced between what threads and what asynchronous work see.
pub fn observe_proxy_fence(cx: &mut BlockCx<'_>, warp_idx: usize) {
    let warp = cx.warp_of_cluster(warp_idx);
    if let Some(races) = &mut cx.checks.races {
        races.proxy_fence(warp);
    }
}
