//! `wgmma`: four warps multiply matrices that lie in shared memory, asynchronously.
//!
//! Nothing is multiplied before a warp waits for it. From its issue to that wait the accumulators
//! read as NaN, shared memory is read as it is at the first wait, and registers that the
//! operation uses must hold at the wait what they held at the issue. An operation is one of the
//! whole warpgroup: when one warp sees it done, it is done for the other three as well, whose
//! registers get the result at their own wait.

mod decode;
mod product;

use std::collections::VecDeque;
use std::sync::Arc;

pub use decode::WarpgroupMma;
pub(super) use decode::decode;
use decode::{Left, N_ROWS};

use super::TensorFault;
use super::descriptor::Descriptor;
use super::multiply::{check_converged, count_flops, load_sums, store_sums};
use crate::exec::checks;
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::R32;
use crate::exec::{BlockCx, Registers, WarpCx};

/// What an accumulator holds between issue and wait: a NaN as f32 and as two f16.
const POISON: u32 = 0x7fff_7fff;

/// Warps of a warpgroup.
const N_WARPS: usize = 4;

/// Operations of the four warps that were issued and not all waited for.
#[derive(Debug, Default)]
pub(super) struct Warpgroup {
    /// In the order of issue, from sequence number `n_done` on.
    pending: VecDeque<Pending>,
    n_done: u64,
    warps: [WarpState; N_WARPS],
    /// For the check of races: reads of shared memory, by operation.
    reads: Vec<(u64, checks::AsyncAccess)>,
}

/// What the warpgroup remembers of one of its warps.
#[derive(Debug, Default)]
struct WarpState {
    n_issued: u64,
    /// For each group not yet waited for, operations issued before its commit.
    groups: VecDeque<u64>,
    has_fenced: bool,
    held: Vec<Held>,
    /// Registers of A in flight, with the operation's number and what they held.
    sources: Vec<Source>,
}

/// A register of operand A in flight.
#[derive(Debug)]
struct Source {
    sequence: u64,
    register: R32,
    value: [u32; 32],
}

/// An operation that waits for its warps to issue it, and for one of them to wait for it.
#[derive(Debug)]
struct Pending {
    issue: Issue,
    /// Operand A of each warp, if it lies in registers.
    registers: [Vec<[u32; 32]>; N_WARPS],
}

/// What all four warps must say alike.
#[derive(Clone, Debug)]
struct Issue {
    op: Arc<WarpgroupMma>,
    /// Unless it lies in registers.
    a: Option<Descriptor>,
    b: Descriptor,
    adds: bool,
}

/// Accumulators of a warp in flight: their values, `16 × n_cols`.
#[derive(Debug)]
struct Held {
    op: Arc<WarpgroupMma>,
    sums: Vec<f32>,
    /// The last operation on them, and one more.
    until: u64,
}

/// The state of a warp's group, and the warp's place in it.
fn group<'a>(cx: &'a mut BlockCx<'_>, warp_idx: usize) -> (&'a mut Warpgroup, usize) {
    let groups = &mut cx.block.tensor.warpgroups;
    let idx = warp_idx / N_WARPS;
    if groups.len() <= idx {
        groups.resize_with(idx + 1, Warpgroup::default);
    }
    (&mut groups[idx], warp_idx % N_WARPS)
}

/// `wgmma.fence`.
pub(super) fn fence(cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    check_converged(cx)?;
    let (group, place) = group(&mut cx.cx, cx.warp.idx);
    group.warps[place].has_fenced = true;
    Ok(Flow::Next)
}

/// `wgmma.commit_group`.
pub(super) fn commit(cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    check_converged(cx)?;
    let (group, place) = group(&mut cx.cx, cx.warp.idx);
    let warp = &mut group.warps[place];
    warp.groups.push_back(warp.n_issued);
    Ok(Flow::Next)
}

/// `wgmma.mma_async`: notes what is to be done and takes the accumulators away.
pub(super) fn issue(op: &Arc<WarpgroupMma>, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    check_converged(cx)?;
    let lane_0 = |fault: TensorFault| Cause::from(fault).at(0);
    let issue = Issue::read(op, &cx.warp.registers).map_err(lane_0)?;
    let reads = if cx.cx.launch.checks.races || cx.cx.launch.checks.init {
        let chunks = issue.chunks();
        Some(checks::observe_async_read(&mut cx.cx, cx.warp.idx, &chunks).map_err(|c| c.at(0))?)
    } else {
        None
    };
    let (group, place) = group(&mut cx.cx, cx.warp.idx);
    let sequence = group.warps[place].n_issued;
    group.reads.extend(reads.map(|read| (sequence, read)));
    group.enter(&issue, place, &mut cx.warp.registers).map_err(lane_0)?;
    count_flops(cx, op.a_side.element, 2 * (16 * op.n_cols * op.k) as u64);
    Ok(Flow::Next)
}

/// `wgmma.wait_group`: until no more than `n_outstanding` groups of the warp are under way.
pub(super) fn wait(n_outstanding: usize, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    check_converged(cx)?;
    let (group, place) = group(&mut cx.cx, cx.warp.idx);
    let groups = &mut group.warps[place].groups;
    if groups.len() <= n_outstanding {
        return Ok(Flow::Next);
    }
    let until = groups[groups.len() - 1 - n_outstanding];
    if group.warps.iter().any(|warp| warp.n_issued < until) {
        // The other warps of the group have yet to issue what this one waits for.
        return Ok(Flow::Retry);
    }
    let groups = &mut group.warps[place].groups;
    groups.drain(..groups.len() - n_outstanding);
    run_until(&mut cx.cx, cx.warp.idx, until).map_err(|cause| cause.at(0))?;
    let (group, place) = self::group(&mut cx.cx, cx.warp.idx);
    group.warps[place]
        .deliver(until, &mut cx.warp.registers)
        .map_err(|fault| Cause::from(fault).at(0))?;
    let reads = group.reads.iter().filter(|(sequence, _)| *sequence < until);
    if let Some(last) = reads.map(|(_, read)| *read).max() {
        checks::observe_async_done(&mut cx.cx, cx.warp.idx, last);
    }
    Ok(Flow::Next)
}

/// What is still under way when the threads of a block have exited, if anything is.
pub(super) fn unfinished(group: &Warpgroup) -> Option<TensorFault> {
    let in_flight = group.warps.iter().any(|warp| !warp.held.is_empty());
    in_flight.then_some(TensorFault::MmaUnfinished)
}

impl Issue {
    fn read(op: &Arc<WarpgroupMma>, registers: &Registers) -> Result<Issue, TensorFault> {
        let descriptor = |row| {
            let values = registers.r64(row);
            let same = values.iter().all(|value| *value == values[0]);
            if same { Ok(Descriptor::decode(values[0])) } else { Err(TensorFault::Divergent) }
        };
        let a = match &op.a {
            Left::Shared(row) => Some(descriptor(*row)?),
            Left::Registers(_) => None,
        };
        let adds = match registers.predicate(op.adds) {
            0 => false,
            u32::MAX => true,
            _ => return Err(TensorFault::Divergent),
        };
        Ok(Issue { op: op.clone(), a, b: descriptor(op.b)?, adds })
    }

    /// Every 16-byte chunk of shared memory that the operation reads.
    fn chunks(&self) -> Vec<usize> {
        let op = &self.op;
        let mut chunks = product::chunks(self.b, op.b_side.major, op.n_cols, op.k);
        if let Some(a) = self.a {
            chunks.extend(product::chunks(a, op.a_side.major, N_ROWS, op.k));
        }
        chunks
    }

    fn agrees(&self, other: &Issue) -> bool {
        Arc::ptr_eq(&self.op, &other.op)
            && self.a == other.a
            && self.b == other.b
            && self.adds == other.adds
    }
}

impl Warpgroup {
    /// Enters the next operation of a warp, or holds it against what the warps before it entered.
    fn enter(
        &mut self,
        issue: &Issue,
        place: usize,
        registers: &mut Registers,
    ) -> Result<(), TensorFault> {
        if !self.warps[place].has_fenced {
            return Err(TensorFault::NoFence);
        }
        let sequence = self.warps[place].n_issued;
        let position = (sequence - self.n_done) as usize;
        match self.pending.get(position) {
            Some(pending) if !pending.issue.agrees(issue) => return Err(TensorFault::Disagree),
            Some(_) => {}
            None => {
                let registers = Default::default();
                self.pending.push_back(Pending { issue: issue.clone(), registers });
            }
        }
        let warp = &mut self.warps[place];
        warp.n_issued += 1;
        if let Left::Registers(rows) = &issue.op.a {
            for &register in rows {
                let value = *registers.r32(register);
                self.pending[position].registers[place].push(value);
                warp.sources.push(Source { sequence, register, value });
            }
        }
        warp.hold(issue, registers)
    }
}

impl WarpState {
    /// Takes the accumulators out of the registers, unless an operation before has them.
    fn hold(&mut self, issue: &Issue, registers: &mut Registers) -> Result<(), TensorFault> {
        let op = &issue.op;
        let until = self.n_issued;
        for held in &mut self.held {
            if held.op.accumulators == op.accumulators && held.op.sum == op.sum {
                held.until = until;
                return Ok(());
            }
            if held.op.accumulators.iter().any(|held| op.accumulators.contains(held)) {
                return Err(TensorFault::Overlap);
            }
        }
        let mut sums = vec![0.0; 16 * op.n_cols];
        if issue.adds {
            load_sums(&mut sums, op.n_cols, &op.accumulators, op.sum, registers);
        }
        for accumulator in &op.accumulators {
            *registers.r32_mut(*accumulator) = [POISON; 32];
        }
        self.held.push(Held { op: op.clone(), sums, until });
        Ok(())
    }

    /// Puts accumulators back that no operation from `until` on uses.
    fn deliver(&mut self, until: u64, registers: &mut Registers) -> Result<(), TensorFault> {
        for source in self.sources.extract_if(.., |source| source.sequence < until) {
            if *registers.r32(source.register) != source.value {
                return Err(TensorFault::Changed { operand: "A" });
            }
        }
        for held in self.held.extract_if(.., |held| held.until <= until) {
            let op = &held.op;
            let is_poison = |row: &R32| *registers.r32(*row) == [POISON; 32];
            if !op.accumulators.iter().all(is_poison) {
                return Err(TensorFault::Changed { operand: "D" });
            }
            store_sums(&held.sums, op.n_cols, &op.accumulators, op.sum, registers);
        }
        Ok(())
    }
}

/// Does what is pending, in order, up to operation `until`.
fn run_until(cx: &mut BlockCx<'_>, warp_idx: usize, until: u64) -> Result<(), Cause> {
    loop {
        let (group, _) = group(cx, warp_idx);
        if group.n_done >= until {
            return Ok(());
        }
        let pending = group.pending.pop_front().expect("all four warps have issued it");
        group.n_done += 1;
        run(cx, warp_idx, &pending)?;
    }
}

fn run(cx: &mut BlockCx<'_>, warp_idx: usize, pending: &Pending) -> Result<(), Cause> {
    let issue = &pending.issue;
    let op = &*issue.op;
    let a = match issue.a {
        Some(a) => product::gather_shared(cx, a, op.a_side, N_ROWS, op.k)?,
        None => product::gather_registers(&pending.registers, op.a_side, op.k),
    };
    let b = product::gather_shared(cx, issue.b, op.b_side, op.n_cols, op.k)?;
    let b = product::transpose(&b, op.n_cols, op.k);
    let (group, _) = group(cx, warp_idx);
    for (warp, a) in group.warps.iter_mut().zip(a.chunks_exact(16 * op.k)) {
        let mut held = warp.held.iter_mut();
        let held = held.find(|held| held.op.accumulators == op.accumulators);
        let sums = &mut held.expect("held since its issue").sums;
        if !issue.adds {
            sums.fill(0.0);
        }
        product::add_product(a, &b, sums, op.k, op.sum);
    }
    Ok(())
}
