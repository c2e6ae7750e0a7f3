//! Matrix instructions, asynchronous copies and transaction barriers.
//!
//! Everything asynchronous is late: `cp.async` lands at its wait, a bulk copy when the block
//! cannot go on without it, `wgmma` multiplies when it is waited for. Until then destinations read
//! as poison, so that a missing wait shows. Where to find what:
//!
//! | instructions | module |
//! |---|---|
//! | `mma.sync` | `multiply` (fragments in `fragment`, arithmetic in `tile`) |
//! | `ldmatrix`, `stmatrix`, `movmatrix` | `matrix` |
//! | `cp.async` | `copy` |
//! | `cp.async.bulk`, tensor copies | `bulk` (maps in `tensor_map`) |
//! | `mbarrier` | `barrier` (phases in `mbarrier`) |
//! | `wgmma` | `warpgroup` (operands in `descriptor` and `swizzle`) |
//! | `tensormap` | `map_ops` |
//!
//! Not modelled: `im2col` and interleaved tensor maps, sparse matrices, 1- and 4-bit integers.
//! Sums run over K in order in single precision; a tensor core sums in another order. Third parties
//! report that Hopper's FP8 `wgmma` keeps about 14 bits of each sum between K steps; that is not
//! modelled, since no primary source says it.

pub mod barrier;
pub mod bulk;
pub mod copy;
pub mod descriptor;
pub mod element;
pub mod fragment;
pub mod map_ops;
pub mod matrix;
pub mod mbarrier;
pub mod multiply;
mod operands;
pub mod swizzle;
pub mod tensor_map;
mod tile;
pub mod warpgroup;

use std::collections::VecDeque;
use std::sync::Arc;

use thiserror::Error;

use crate::exec::checks;
use crate::exec::context::Place;
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::{BlockCx, WarpCx};
use crate::ptx::{Instruction, Lowered, Lowering};
use mbarrier::MbarrierError;
use tensor_map::MapError;

/// What shared memory holds between the issue of a copy and its landing.
const POISON_BYTE: u8 = 0xff;

/// One instruction of this family, decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorOp {
    /// `mma.sync`.
    Mma(multiply::Mma),
    /// `mma.sync` on doubles.
    MmaF64(multiply::MmaF64),
    /// `ldmatrix` and `stmatrix`.
    MatrixCopy(matrix::MatrixCopy),
    /// `movmatrix`.
    MatrixMove(matrix::MatrixMove),
    /// `cp.async`.
    Copy(copy::CopyAsync),
    /// `cp.async.commit_group`.
    CopyCommit,
    /// `cp.async.wait_group`, or `wait_all` without a number.
    CopyWait(Option<u64>),
    /// `cp.async.mbarrier.arrive`.
    CopyArrive(copy::CopyArrive),
    /// `cp.async.bulk`, tensors included.
    Bulk(bulk::BulkCopy),
    /// `cp.async.bulk.commit_group`.
    BulkCommit,
    /// `cp.async.bulk.wait_group`.
    BulkWait(u64),
    /// `mbarrier.…`.
    Barrier(barrier::BarrierOp),
    /// `mbarrier.pending_count`.
    PendingCount(barrier::PendingCount),
    /// `wgmma.mma_async`.
    WarpgroupMma(Arc<warpgroup::WarpgroupMma>),
    /// `wgmma.fence`.
    WarpgroupFence,
    /// `wgmma.commit_group`.
    WarpgroupCommit,
    /// `wgmma.wait_group`.
    WarpgroupWait(usize),
    /// `tensormap.replace`.
    ReplaceField(map_ops::Replace),
    /// `tensormap.cp_fenceproxy`.
    PublishMap(map_ops::Publish),
    /// `fence.proxy.async` and `fence.mbarrier_init`.
    ProxyFence,
    /// Hints, and fences that change nothing here.
    Nothing,
}

/// What a kernel did wrong with one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TensorFault {
    /// A barrier misused.
    #[error(transparent)]
    Mbarrier(#[from] MbarrierError),
    /// A tensor map that cannot be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A generic address where shared memory is needed.
    #[error("address {address:#x} is not in shared memory")]
    NotShared {
        /// The address.
        address: u64,
    },
    /// A bulk copy of an odd size.
    #[error("a bulk copy of {n_bytes} bytes, which is no multiple of 16")]
    BulkBytes {
        /// Its size.
        n_bytes: usize,
    },
    /// Elements that cannot be reduced so.
    #[error("a reduction that these elements do not have")]
    Reduction,
    /// Descriptors or predicates that differ between the lanes of a warp.
    #[error("lanes of the warp come with different descriptors or predicates")]
    Divergent,
    /// The warps of a warpgroup came with different operations.
    #[error("warps of the warpgroup come with different operations")]
    Disagree,
    /// No `wgmma.fence` before the first `wgmma.mma_async`.
    #[error("wgmma.mma_async without a wgmma.fence before it")]
    NoFence,
    /// Accumulators that another shape has in flight.
    #[error("accumulators that an operation of another shape has in flight")]
    Overlap,
    /// Registers that were written while an operation used them.
    #[error("registers of matrix {operand} were written while wgmma had them in flight")]
    Changed {
        /// `A` or `D`, as the ISA calls the matrices.
        operand: &'static str,
    },
    /// The block ended before it waited.
    #[error("the block ended with wgmma in flight")]
    MmaUnfinished,
    /// The block ended before its copies landed or were read.
    #[error("the block ended with {n_loads} bulk loads and {n_stores} bulk stores in flight")]
    CopyUnfinished {
        /// Loads that had not landed.
        n_loads: usize,
        /// Stores that no thread waited for.
        n_stores: usize,
    },
}

/// Asynchronous work of a block.
#[derive(Debug, Default)]
pub struct BlockAsync {
    arrivals: VecDeque<Arrival>,
    n_landed: u64,
    was_asked: bool,
    /// Times that an mbarrier was changed: while this stands still, none will complete a phase.
    pub n_barrier_changes: u64,
    stores: bulk::Stores,
    warpgroups: Vec<warpgroup::Warpgroup>,
}

/// Asynchronous work of a warp.
#[derive(Debug, Default)]
pub struct WarpAsync {
    copies: copy::Copies,
    /// The last thing that the warp did was to ask an mbarrier in vain.
    pub waits: bool,
}

/// Bytes that will land in shared memory.
#[derive(Debug)]
struct Landing {
    to: u64,
    bytes: [u8; 16],
    n_bytes: usize,
}

/// Work that lands without the thread that asked for it.
#[derive(Debug)]
enum Arrival {
    /// Copies of a thread, which then arrives at a barrier.
    Copies {
        landings: Vec<Landing>,
        barrier: u64,
        warp_idx: usize,
    },
    Bulk(Box<bulk::Load>),
}

impl BlockAsync {
    /// A new block begins.
    pub fn reset(&mut self) {
        self.arrivals.clear();
        self.n_landed = 0;
        self.was_asked = false;
        self.stores.reset();
        self.warpgroups.clear();
    }

    fn push(&mut self, arrival: Arrival) {
        self.arrivals.push_back(arrival);
    }

    /// What the block left undone when its threads had all exited.
    pub fn unfinished(&self) -> Option<TensorFault> {
        let is_bulk = |arrival: &&Arrival| matches!(arrival, Arrival::Bulk(_));
        let n_loads = self.arrivals.iter().filter(is_bulk).count();
        let n_stores = self.stores.n_under_way();
        if n_loads + n_stores > 0 {
            return Some(TensorFault::CopyUnfinished { n_loads, n_stores });
        }
        self.warpgroups.iter().find_map(warpgroup::unfinished)
    }
}

impl WarpAsync {
    /// A new block begins.
    pub fn reset(&mut self) {
        self.copies.reset();
        self.waits = false;
    }
}

/// Decodes an instruction if it is of this family: `Ok(None)` where the opcode is not.
pub fn decode(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<Option<TensorOp>> {
    let mnemonic = &inst.mnemonic;
    let second = mnemonic.modifiers().first().map_or("", String::as_str);
    Ok(Some(match (mnemonic.opcode(), second) {
        ("mma", "sync") => match multiply::decode(cx, inst)? {
            multiply::Decoded::Narrow(mma) => TensorOp::Mma(mma),
            multiply::Decoded::Double(mma) => TensorOp::MmaF64(mma),
        },
        ("ldmatrix" | "stmatrix", _) => TensorOp::MatrixCopy(matrix::decode_copy(cx, inst)?),
        ("movmatrix", _) => TensorOp::MatrixMove(matrix::decode_move(cx, inst)?),
        ("cp", "async" | "reduce") => decode_copy(cx, inst)?,
        ("mbarrier", "pending_count") => TensorOp::PendingCount(barrier::decode_pending(cx, inst)?),
        ("mbarrier", _) => TensorOp::Barrier(barrier::decode(cx, inst)?),
        ("wgmma", "mma_async") => TensorOp::WarpgroupMma(warpgroup::decode(cx, inst)?),
        ("wgmma", "fence") => TensorOp::WarpgroupFence,
        ("wgmma", "commit_group") => TensorOp::WarpgroupCommit,
        ("wgmma", "wait_group") => {
            TensorOp::WarpgroupWait(operands::constant(cx, inst, 0)? as usize)
        }
        ("tensormap", "replace") => TensorOp::ReplaceField(map_ops::decode_replace(cx, inst)?),
        ("tensormap", "cp_fenceproxy") => TensorOp::PublishMap(map_ops::decode_publish(cx, inst)?),
        ("fence", "proxy") => match mnemonic.modifiers().get(1) {
            Some(kind) if kind.starts_with("async") => TensorOp::ProxyFence,
            Some(_) => TensorOp::Nothing,
            None => return operands::unsupported(mnemonic),
        },
        ("fence", "mbarrier_init") => TensorOp::ProxyFence,
        ("prefetch", "tensormap") => TensorOp::Nothing,
        ("mma" | "wgmma" | "tensormap", _) => return operands::unsupported(mnemonic),
        _ => return Ok(None),
    }))
}

fn decode_copy(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<TensorOp> {
    let mnemonic = &inst.mnemonic;
    let is_bulk = mnemonic.has("bulk");
    if mnemonic.has("commit_group") {
        return Ok(if is_bulk { TensorOp::BulkCommit } else { TensorOp::CopyCommit });
    }
    if mnemonic.has("wait_group") {
        let n_outstanding = operands::constant(cx, inst, 0)? as u64;
        let copy = TensorOp::CopyWait(Some(n_outstanding));
        return Ok(if is_bulk { TensorOp::BulkWait(n_outstanding) } else { copy });
    }
    if mnemonic.has("wait_all") {
        return Ok(TensorOp::CopyWait(None));
    }
    if is_bulk {
        let copy = bulk::decode(cx, inst)?;
        return Ok(copy.map_or(TensorOp::Nothing, TensorOp::Bulk));
    }
    if mnemonic.has("mbarrier") {
        return Ok(TensorOp::CopyArrive(copy::decode_arrive(cx, inst)?));
    }
    Ok(TensorOp::Copy(copy::decode(cx, inst)?))
}

/// Runs one for the active lanes.
pub fn execute(op: &TensorOp, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    match op {
        TensorOp::Mma(mma) => multiply::execute(mma, cx),
        TensorOp::MmaF64(mma) => multiply::execute_f64(mma, cx),
        TensorOp::MatrixCopy(copy) => matrix::execute_copy(copy, cx),
        TensorOp::MatrixMove(movement) => matrix::execute_move(movement, cx),
        TensorOp::Copy(copy) => copy::execute(copy, cx),
        TensorOp::CopyCommit => Ok(copy::commit(cx)),
        TensorOp::CopyWait(n_outstanding) => copy::wait(*n_outstanding, cx),
        TensorOp::CopyArrive(arrive) => copy::arrive(arrive, cx),
        TensorOp::Bulk(copy) => bulk::issue(copy, cx),
        TensorOp::BulkCommit => Ok(bulk::commit(cx)),
        TensorOp::BulkWait(n_outstanding) => bulk::wait(*n_outstanding, cx),
        TensorOp::Barrier(op) => barrier::execute(op, cx),
        TensorOp::PendingCount(op) => barrier::execute_pending(op, cx),
        TensorOp::WarpgroupMma(mma) => warpgroup::issue(mma, cx),
        TensorOp::WarpgroupFence => warpgroup::fence(cx),
        TensorOp::WarpgroupCommit => warpgroup::commit(cx),
        TensorOp::WarpgroupWait(n_outstanding) => warpgroup::wait(*n_outstanding, cx),
        TensorOp::ReplaceField(op) => map_ops::execute_replace(op, cx),
        TensorOp::PublishMap(op) => map_ops::execute_publish(op, cx),
        TensorOp::ProxyFence => {
            checks::observe_proxy_fence(&mut cx.cx, cx.warp.idx);
            Ok(Flow::Next)
        }
        TensorOp::Nothing => Ok(Flow::Next),
    }
}

/// Lands one piece of outstanding asynchronous work: called when no warp of the block can go on.
/// Tells whether there was any.
///
/// The newest and the oldest take turns, an order that no hardware promises to avoid. And nothing
/// lands at the first call: a thread that asks once, and goes on whatever the answer, goes on.
pub fn advance(cx: &mut BlockCx<'_>) -> Result<bool, Cause> {
    let work = &mut cx.block.tensor;
    work.was_asked = !work.was_asked && !work.arrivals.is_empty();
    if work.was_asked {
        return Ok(true);
    }
    work.n_landed += 1;
    let is_odd = work.n_landed % 2 == 1;
    let arrival = if is_odd { work.arrivals.pop_back() } else { work.arrivals.pop_front() };
    match arrival {
        None => return Ok(false),
        Some(Arrival::Bulk(load)) => bulk::land(cx, &load)?,
        Some(Arrival::Copies { landings, barrier, warp_idx }) => {
            for landing in &landings {
                land(cx, landing)?;
            }
            let is_over = barrier::change(cx, barrier, |barrier| barrier.arrive(1))?;
            checks::observe_arrival(cx, barrier, warp_idx, is_over)?;
        }
    }
    Ok(true)
}

fn land(cx: &mut BlockCx<'_>, landing: &Landing) -> Result<(), Cause> {
    let at = cx.shared(landing.to, landing.n_bytes, landing.n_bytes)?;
    // SAFETY: `shared` gave as many bytes of this block's memory.
    unsafe { at.as_ptr().copy_from_nonoverlapping(landing.bytes.as_ptr(), landing.n_bytes) };
    Ok(())
}

/// The shared address that an operand means, whether it is generic or not.
fn shared_of(is_generic: bool, address: u64) -> Result<u64, Cause> {
    match Place::of(address) {
        Place::Shared(address) if is_generic => Ok(address),
        _ if is_generic => Err(TensorFault::NotShared { address }.into()),
        _ => Ok(address),
    }
}
