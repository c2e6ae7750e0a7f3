//! `cp.async`: copies of a thread from device memory into shared memory, which land at a wait.
//!
//! Until then the destination reads as poison. Groups belong to a thread, so lanes that diverge
//! have groups of their own.

use super::operands::{address, constant, operand, unsupported};
use super::{Landing, barrier, land};
use crate::exec::checks::{self, Access, AccessKind};
use crate::exec::fault::{Flow, Trap};
use crate::exec::inst::{Address, Pred, R32, Space};
use crate::exec::{N_LANES, WarpCx};
use crate::ptx::{Instruction, Lowered, Lowering, Operand};

/// `cp.async`.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyAsync {
    to: Address,
    from: Address,
    n_bytes: usize,
    source: Source,
}

/// How much of the source is read; zeros stand for the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Whole,
    /// As many bytes as a register says.
    Bytes(R32),
    /// Nothing where the predicate is set.
    Unless(Pred),
}

/// `cp.async.mbarrier.arrive`: a barrier hears of the copies when they have landed.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyArrive {
    barrier: Address,
    /// The arrival is not among those that the phase was told to expect.
    increments: bool,
}

/// Groups and outstanding copies of the lanes of a warp.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Groups that each lane has committed.
    n_groups: [u64; N_LANES],
    outstanding: Vec<Outstanding>,
}

#[derive(Debug)]
struct Outstanding {
    lane: usize,
    /// Groups that the lane had committed before.
    group: u64,
    landing: Landing,
}

impl Copies {
    pub(super) fn reset(&mut self) {
        self.n_groups = [0; N_LANES];
        self.outstanding.clear();
    }

    /// Takes out, in order, the copies of a lane whose group is below `group`.
    fn take(&mut self, lane: usize, group: u64) -> Vec<Landing> {
        let is_due = |copy: &mut Outstanding| copy.lane == lane && copy.group < group;
        self.outstanding.extract_if(.., is_due).map(|copy| copy.landing).collect()
    }
}

/// Decodes `cp.async.{ca,cg}.shared.global… [to], [from], n{, bytes or ignore}{, policy}`.
pub(super) fn decode(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<CopyAsync> {
    let mnemonic = &inst.mnemonic;
    let n_bytes = constant(cx, inst, 2)? as usize;
    let is_legal = [4, 8, 16].contains(&n_bytes) && (n_bytes == 16 || mnemonic.has("ca"));
    if !is_legal || !mnemonic.has("global") {
        return unsupported(mnemonic);
    }
    let has_policy = mnemonic.has("L2::cache_hint");
    let source = if inst.operands.len() > 3 + usize::from(has_policy) {
        let extra = operand(inst, 3)?;
        // Bytes or a predicate: of a register its declaration alone tells, a number is bytes.
        match (extra, cx.source_predicate(extra)) {
            (Operand::Integer(_), _) | (_, Err(_)) => Source::Bytes(cx.source32(extra)?),
            (_, Ok(ignored)) => Source::Unless(ignored),
        }
    } else {
        Source::Whole
    };
    Ok(CopyAsync { to: address(cx, inst, 0)?, from: address(cx, inst, 1)?, n_bytes, source })
}

/// Decodes `cp.async.mbarrier.arrive{.noinc}.shared.b64 [barrier]`.
pub(super) fn decode_arrive(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<CopyArrive> {
    let increments = !inst.mnemonic.has("noinc");
    Ok(CopyArrive { barrier: address(cx, inst, 0)?, increments })
}

/// Reads the source and notes what will land.
pub(super) fn execute(copy: &CopyAsync, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    let (to, from) = (cx.addresses(&copy.to), cx.addresses(&copy.from));
    let n_read = source_bytes(copy, cx);
    observe(copy, cx, &to, &from)?;
    for lane in cx.lanes() {
        let mut bytes = [0; 16];
        let n_read = n_read[lane];
        if n_read > 0 {
            // Alignment is asked of the whole, bounds of what is read.
            let start =
                cx.cx.global(from[lane], n_read, copy.n_bytes).map_err(|cause| cause.at(lane))?;
            // SAFETY: `global` gave `n_read` bytes of a live allocation.
            unsafe { start.as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), n_read) };
        }
        cx.cx.counters.bytes_read += n_read as u64;
        let destination = cx.shared(lane, to[lane], copy.n_bytes)?;
        // SAFETY: `shared` gave `n_bytes` of this block's memory.
        unsafe { destination.as_ptr().write_bytes(super::POISON_BYTE, copy.n_bytes) };
        let landing = Landing { to: to[lane], bytes, n_bytes: copy.n_bytes };
        let copies = &mut cx.warp.tensor.copies;
        let group = copies.n_groups[lane];
        copies.outstanding.push(Outstanding { lane, group, landing });
    }
    Ok(Flow::Next)
}

fn source_bytes(copy: &CopyAsync, cx: &WarpCx<'_>) -> [usize; N_LANES] {
    let registers = &cx.warp.registers;
    match copy.source {
        Source::Whole => [copy.n_bytes; N_LANES],
        Source::Bytes(row) => registers.r32(row).map(|n| (n as usize).min(copy.n_bytes)),
        Source::Unless(ignored) => {
            let ignored = registers.predicate(ignored);
            std::array::from_fn(|lane| if ignored >> lane & 1 != 0 { 0 } else { copy.n_bytes })
        }
    }
}

fn observe(
    copy: &CopyAsync,
    cx: &mut WarpCx<'_>,
    to: &[u64; N_LANES],
    from: &[u64; N_LANES],
) -> Result<(), Trap> {
    let (n_bytes, mask) = (copy.n_bytes, cx.mask);
    let n_read = source_bytes(copy, cx);
    let reading = cx.lanes().filter(|&lane| n_read[lane] > 0).fold(0, |set, lane| set | 1 << lane);
    if cx.cx.launch.checks.watches(Space::Global) {
        let kind = AccessKind::Read;
        let access = Access { space: Space::Global, kind, n_bytes, addresses: from, mask: reading };
        checks::observe(cx, &access)?;
    }
    if cx.cx.launch.checks.watches(Space::Shared) {
        let kind = AccessKind::Write;
        let access = Access { space: Space::Shared, kind, n_bytes, addresses: to, mask };
        checks::observe(cx, &access)?;
    }
    Ok(())
}

/// `cp.async.commit_group`.
pub(super) fn commit(cx: &mut WarpCx<'_>) -> Flow {
    for lane in cx.lanes() {
        cx.warp.tensor.copies.n_groups[lane] += 1;
    }
    Flow::Next
}

/// `cp.async.wait_group n`, or `cp.async.wait_all` where nothing may stay outstanding, not even
/// what was never committed.
pub(super) fn wait(n_outstanding: Option<u64>, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    for lane in cx.lanes() {
        let copies = &mut cx.warp.tensor.copies;
        let group = match n_outstanding {
            Some(n) => copies.n_groups[lane].saturating_sub(n),
            None => u64::MAX,
        };
        for landing in copies.take(lane, group) {
            land(&mut cx.cx, &landing).map_err(|cause| cause.at(lane))?;
        }
    }
    Ok(Flow::Next)
}

/// Hands what a lane has outstanding to the block, which lands it when it likes and then arrives.
pub(super) fn arrive(op: &CopyArrive, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    let barriers = cx.addresses(&op.barrier);
    for lane in cx.lanes() {
        let at = barriers[lane];
        if op.increments {
            barrier::change(&mut cx.cx, at, |barrier| barrier.add_pending())
                .map_err(|cause| cause.at(lane))?;
        }
        let landings = cx.warp.tensor.copies.take(lane, u64::MAX);
        let warp_idx = cx.warp.idx;
        cx.cx.block.tensor.push(super::Arrival::Copies { landings, barrier: at, warp_idx });
    }
    Ok(Flow::Next)
}
