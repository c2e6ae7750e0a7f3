//! Checks that are made on request: races, uninitialised reads, sectors, bank conflicts.
//! The executor calls in here only where a flag is set.

mod init;
mod races;
mod traffic;

use thiserror::Error;

use crate::exec::context::lanes;
use crate::exec::fault::{Cause, Trap};
use crate::exec::inst::Space;
use crate::exec::{BlockCx, WarpCx};
use crate::memory::POISON;
use init::Written;
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

/// What a check found. Offsets are bytes of the block's shared memory.
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

/// What the checks remember of a block.
#[derive(Debug, Default)]
pub struct BlockChecks {
    /// Made at the first access that wants it.
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

impl BlockChecks {
    /// A new block begins.
    pub fn reset(&mut self, checks: &Checks, shared_bytes: usize) {
        self.races = None;
        self.written = checks.init.then(|| Written::new(shared_bytes));
    }
}

impl BlockChecks {
    /// The warps of a cluster's blocks met, this block's `warps` among them. Other blocks may have
    /// written here, which is not watched: what they left unwritten is no longer known.
    pub fn met_cluster(&mut self, warps: u64) {
        if let Some(races) = &mut self.races {
            races.barrier(warps);
        }
        self.written = None;
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
    let warp_idx = cx.warp.idx;
    let checks = cx.cx.launch.checks;
    if checks.banks {
        cx.cx.counters.n_bank_conflicts +=
            traffic::n_bank_conflicts(access.addresses, access.mask, access.n_bytes);
    }
    settle(&mut cx.cx).map_err(|cause| cause.at(access.mask.trailing_zeros() as usize))?;
    for lane in lanes(access.mask) {
        let Some(first) = cx.cx.own_shared_offset(access.addresses[lane]) else { continue };
        let n_bytes = access.n_bytes;
        let blame = |finding: Finding| Cause::from(finding).at(lane);
        if let Some(written) = &mut cx.cx.block.checks.written {
            if access.kind != AccessKind::Write {
                written.read(first, n_bytes).map_err(blame)?;
            }
            if access.kind != AccessKind::Read {
                written.write(first, n_bytes);
            }
        }
        let held = held(&mut cx.cx, first, n_bytes);
        if let Some(races) = races(&mut cx.cx) {
            match access.kind {
                AccessKind::Read => races.read(warp_idx, first, n_bytes),
                AccessKind::Write => races.write(warp_idx, first, &held),
                AccessKind::Atomic => races.atomic(warp_idx, first, n_bytes),
            }
            .map_err(blame)?;
        }
    }
    Ok(())
}

/// What shared memory holds, as far as it goes; nothing where nobody asks.
fn held(cx: &mut BlockCx<'_>, first: usize, n_bytes: usize) -> Vec<u8> {
    let shared = cx.block.shared.span();
    if !cx.launch.checks.races || first >= shared.n_bytes {
        return Vec::new();
    }
    let n_bytes = n_bytes.min(shared.n_bytes - first);
    // SAFETY: the bytes lie inside the block's shared memory, and the block runs on this thread.
    unsafe { std::slice::from_raw_parts(shared.start.as_ptr().add(first), n_bytes).to_vec() }
}

/// Judges writes that met, now that they are done.
fn settle(cx: &mut BlockCx<'_>) -> Result<(), Cause> {
    let shared = cx.block.shared.span();
    let Some(races) = races(cx) else { return Ok(()) };
    // SAFETY: contended bytes lie inside the block's shared memory, which this thread runs on.
    Ok(races.settle(|byte| unsafe { shared.start.add(byte).read() })?)
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

/// The block's clocks, if races are looked for.
fn races<'a>(cx: &'a mut BlockCx<'_>) -> Option<&'a mut Races> {
    if !cx.launch.checks.races {
        return None;
    }
    let n_warps = cx.launch.block.iter().product::<u32>().div_ceil(32) as usize;
    let shared_bytes = cx.block.shared.span().n_bytes;
    let races = cx.block.checks.races.get_or_insert_with(|| Races::new(n_warps, shared_bytes));
    Some(races)
}

/// All threads of a block met at a barrier; with `warps` the ones that did (bit by warp).
pub fn observe_barrier(cx: &mut BlockCx<'_>, warps: u64) {
    if let Some(races) = races(cx) {
        races.barrier(warps);
    }
}

/// Asynchronous work that a warp issues will read these 16-byte chunks of shared memory.
pub fn observe_async_read(
    cx: &mut BlockCx<'_>,
    warp_idx: usize,
    chunks: &[usize],
) -> Result<AsyncAccess, Cause> {
    let chunks = own_chunks(cx, chunks);
    if let Some(written) = &cx.block.checks.written {
        chunks.iter().try_for_each(|chunk| written.read(*chunk, 16))?;
    }
    let at = races(cx).map(|races| races.async_read(warp_idx, &chunks)).transpose()?;
    Ok(AsyncAccess(at.unwrap_or(0)))
}

/// Asynchronous work that a warp issues will write these 16-byte chunks of shared memory.
pub fn observe_async_write(
    cx: &mut BlockCx<'_>,
    warp_idx: usize,
    chunks: &[usize],
) -> Result<AsyncAccess, Cause> {
    let chunks = own_chunks(cx, chunks);
    if let Some(written) = &mut cx.block.checks.written {
        chunks.iter().for_each(|chunk| written.write(*chunk, 16));
    }
    let at = races(cx).map(|races| races.async_write(warp_idx, &chunks)).transpose()?;
    Ok(AsyncAccess(at.unwrap_or(0)))
}

/// The chunks that lie in this block's own memory, as offsets. Other blocks' are not watched.
fn own_chunks(cx: &BlockCx<'_>, chunks: &[usize]) -> Vec<usize> {
    chunks.iter().filter_map(|chunk| cx.own_shared_offset(*chunk as u64)).collect()
}

/// A warp waited for asynchronous work.
pub fn observe_async_done(cx: &mut BlockCx<'_>, warp_idx: usize, access: AsyncAccess) {
    if let Some(races) = races(cx) {
        races.async_done(warp_idx, access.0);
    }
}

/// Asynchronous work told an mbarrier that it is done; `is_over`: that ended a phase.
pub fn observe_async_arrival(
    cx: &mut BlockCx<'_>,
    barrier: u64,
    access: AsyncAccess,
    is_over: bool,
) {
    let offset = cx.own_shared_offset(barrier);
    if let (Some(races), Some(offset)) = (races(cx), offset) {
        races.mbarrier_arrive_async(offset as u64, access.0, is_over);
    }
}

/// A warp made an mbarrier at a shared address.
pub fn observe_mbarrier_init(
    cx: &mut BlockCx<'_>,
    barrier: u64,
    warp_idx: usize,
) -> Result<(), Cause> {
    let offset = cx.own_shared_offset(barrier);
    if let (Some(races), Some(offset)) = (races(cx), offset) {
        races.mbarrier_init(warp_idx, offset as u64)?;
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
    let offset = cx.own_shared_offset(barrier);
    if let (Some(races), Some(offset)) = (races(cx), offset) {
        races.mbarrier_arrive(warp_idx, offset as u64, is_over)?;
    }
    Ok(())
}

/// A warp saw a phase of an mbarrier end.
pub fn observe_wait(cx: &mut BlockCx<'_>, barrier: u64, warp_idx: usize) {
    let offset = cx.own_shared_offset(barrier);
    if let (Some(races), Some(offset)) = (races(cx), offset) {
        races.mbarrier_wait(warp_idx, offset as u64);
    }
}

/// A warp fenced between what threads and what asynchronous work see.
pub fn observe_proxy_fence(cx: &mut BlockCx<'_>, warp_idx: usize) {
    if let Some(races) = races(cx) {
        races.proxy_fence(warp_idx);
    }
}
