//! What an instruction sees while it runs: its warp, its block, and the memory they reach.

use std::ptr::NonNull;

use crate::exec::block::Block;
use crate::exec::checks::ClusterChecks;
use crate::exec::fault::{Cause, Trap};
use crate::exec::grid::Launch;
use crate::exec::inst::{Address, Base, Inst, Space};
use crate::exec::warp::Warp;
use crate::exec::{CLUSTER_SHIFT, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::memory::Window;
use crate::report::KernelCounters;

/// A block that runs, and what it reaches.
pub struct BlockCx<'a> {
    pub launch: &'a Launch,
    pub block: &'a mut Block,
    /// Device memory as this launch's device may access it.
    pub window: &'a mut Window<'static>,
    /// Counts of this worker, added up when the launch ends.
    pub counters: &'a mut KernelCounters,
    /// What the checks remember of the block's cluster.
    pub checks: &'a mut ClusterChecks,
}

/// A warp that runs an instruction.
pub struct WarpCx<'a> {
    pub cx: BlockCx<'a>,
    pub warp: &'a mut Warp,
    pub inst: &'a Inst,
    /// Lanes that run the instruction: active and under its guard.
    pub mask: u32,
}

/// Where a generic address points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Global(u64),
    /// Address in the shared window, rank bits included.
    Shared(u64),
    /// Offset into the thread's local memory.
    Local(u64),
    /// Offset into the parameter block.
    Param(u64),
}

impl Place {
    /// Sorts a generic address.
    pub fn of(address: u64) -> Place {
        let offset = address & 0xffff_ffff;
        match address & !0xffff_ffff {
            SHARED_WINDOW => Place::Shared(offset),
            LOCAL_WINDOW => Place::Local(offset),
            PARAM_WINDOW => Place::Param(offset),
            _ => Place::Global(address),
        }
    }
}

impl BlockCx<'_> {
    /// `n_bytes` of device memory, aligned to `align`.
    #[inline]
    pub fn global(
        &mut self,
        address: u64,
        n_bytes: usize,
        align: usize,
    ) -> Result<NonNull<u8>, Cause> {
        if address & (align as u64 - 1) != 0 {
            return Err(Cause::Misaligned { space: Space::Global, address, n_bytes });
        }
        self.window.resolve(address, n_bytes as u64).map_err(Cause::Memory)
    }

    /// `n_bytes` of shared memory, aligned to `align`: of this block, or of another one of the
    /// cluster where the address says so.
    #[inline]
    pub fn shared(
        &mut self,
        address: u64,
        n_bytes: usize,
        align: usize,
    ) -> Result<NonNull<u8>, Cause> {
        let (rank, offset) = split_shared(address);
        let shared = match rank {
            None => self.block.shared.span(),
            Some(rank) => self.block.peer_shared(rank)?,
        };
        if offset + n_bytes > shared.n_bytes {
            let limit = shared.n_bytes;
            return Err(Cause::Bounds { space: Space::Shared, address, n_bytes, limit });
        }
        if offset & (align - 1) != 0 {
            return Err(Cause::Misaligned { space: Space::Shared, address, n_bytes });
        }
        // SAFETY: the offset lies inside the span, which lives as long as the cluster runs.
        Ok(unsafe { shared.start.add(offset) })
    }
}

/// Rank in the cluster (none: one's own block) and offset of a shared address.
pub(super) fn split_shared(address: u64) -> (Option<u32>, usize) {
    let address = address as u32;
    let offset = (address & ((1 << CLUSTER_SHIFT) - 1)) as usize;
    ((address >> CLUSTER_SHIFT).checked_sub(1), offset)
}

impl WarpCx<'_> {
    /// Where each lane's operand points. Lanes outside of the mask hold anything.
    #[inline]
    pub fn addresses(&self, address: &Address) -> [u64; 32] {
        let offset = address.offset;
        match address.base {
            Base::Wide(row) => {
                self.warp.registers.r64(row).map(|base| base.wrapping_add_signed(offset))
            }
            Base::Narrow(row) => {
                let base = self.warp.registers.r32(row);
                base.map(|base| u64::from(base.wrapping_add_signed(offset as i32)))
            }
            Base::Absolute => [offset as u64; 32],
        }
    }

    /// The lanes of the mask, in order.
    pub fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        lanes(self.mask)
    }

    /// `n_bytes` of shared memory for a lane; see [`BlockCx::shared`].
    pub fn shared(
        &mut self,
        lane: usize,
        address: u64,
        n_bytes: usize,
    ) -> Result<NonNull<u8>, Trap> {
        let align = n_bytes.next_power_of_two();
        self.cx.shared(address, n_bytes, align).map_err(|cause| cause.at(lane))
    }

    /// `n_bytes` of device memory for a lane, aligned to their number.
    pub fn global(
        &mut self,
        lane: usize,
        address: u64,
        n_bytes: usize,
    ) -> Result<NonNull<u8>, Trap> {
        let align = n_bytes.next_power_of_two();
        self.cx.global(address, n_bytes, align).map_err(|cause| cause.at(lane))
    }

    /// `n_bytes` of whatever a generic address points at, for a lane. Parameters are only read.
    pub fn generic(
        &mut self,
        lane: usize,
        address: u64,
        n_bytes: usize,
    ) -> Result<NonNull<u8>, Trap> {
        match Place::of(address) {
            Place::Global(address) => self.global(lane, address, n_bytes),
            Place::Shared(address) => self.shared(lane, address, n_bytes),
            Place::Local(offset) => self.local(lane, offset, n_bytes),
            Place::Param(offset) => self.param(lane, offset, n_bytes),
        }
    }

    /// `n_bytes` of a lane's local memory.
    pub fn local(&mut self, lane: usize, offset: u64, n_bytes: usize) -> Result<NonNull<u8>, Trap> {
        let limit = self.cx.launch.kernel.local_bytes;
        let at = in_bounds(Space::Local, offset, n_bytes, limit).map_err(|cause| cause.at(lane))?;
        Ok(NonNull::from(&mut self.warp.local[lane * limit + at]))
    }

    /// `n_bytes` of the kernel's parameters, to be read.
    pub fn param(&mut self, lane: usize, offset: u64, n_bytes: usize) -> Result<NonNull<u8>, Trap> {
        let params = &self.cx.launch.params;
        let at = in_bounds(Space::Param, offset, n_bytes, params.len())
            .map_err(|cause| cause.at(lane))?;
        Ok(NonNull::from(&params[at]))
    }
}

/// The offset, if so many aligned bytes lie there under the limit.
fn in_bounds(space: Space, offset: u64, n_bytes: usize, limit: usize) -> Result<usize, Cause> {
    let at = (offset & 0xffff_ffff) as usize;
    if at + n_bytes > limit {
        return Err(Cause::Bounds { space, address: offset, n_bytes, limit });
    }
    if at & (n_bytes - 1) != 0 {
        return Err(Cause::Misaligned { space, address: offset, n_bytes });
    }
    Ok(at)
}

/// Set bits of a mask, in order.
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros() as usize;
        rest &= rest.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}
