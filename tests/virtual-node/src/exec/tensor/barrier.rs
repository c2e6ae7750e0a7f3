//! The instructions of mbarriers: `mbarrier.init`, `.arrive`, `.expect_tx`, `.try_wait` and so on.

use super::mbarrier::{Mbarrier, MbarrierError};
use super::operands::{address, operand, unsupported};
use super::{TensorFault, shared_of};
use crate::exec::checks;
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{Address, Pred, R32, R64};
use crate::exec::{BlockCx, WarpCx};
use crate::ptx::{Instruction, Lowered, Lowering, Operand};

/// An instruction on a barrier, lane by lane.
#[derive(Clone, Debug, PartialEq)]
pub struct BarrierOp {
    /// The address is of the generic space.
    generic: bool,
    barrier: Address,
    action: Action,
}

/// What is done to it. Counts that are left out are 1.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    Init(R32),
    Invalidate,
    ExpectBytes(R32),
    CompleteBytes(R32),
    Arrive {
        count: Option<R32>,
        token: Option<R64>,
        way: Arrival,
    },
    /// Tells whether a phase is over; others run on where it is not.
    Test {
        over: Pred,
        phase: Phase,
    },
}

/// How a thread arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Plain,
    /// With bytes that the phase is to expect, in place of a count.
    ExpectBytes,
    WithoutCompleting,
    /// The thread leaves later phases too.
    Drop,
}

/// Which phase a test asks about.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Token(R64),
    Parity(R32),
}

/// `mbarrier.pending_count`.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingCount {
    to: R32,
    token: R64,
}

/// Decodes an instruction on a barrier.
pub(super) fn decode(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<BarrierOp> {
    let mnemonic = &inst.mnemonic;
    let mut source = |operand_idx| cx.source32(operand(inst, operand_idx)?);
    let (barrier_idx, action) = match mnemonic.modifiers().first().map_or("", String::as_str) {
        "init" => (0, Action::Init(source(1)?)),
        "inval" => (0, Action::Invalidate),
        "expect_tx" => (0, Action::ExpectBytes(source(1)?)),
        "complete_tx" => (0, Action::CompleteBytes(source(1)?)),
        "arrive" | "arrive_drop" => decode_arrive(cx, inst)?,
        "test_wait" | "try_wait" => {
            let over = cx.target_predicate(operand(inst, 0)?)?;
            let phase = operand(inst, 2)?;
            let phase = if mnemonic.has("parity") {
                Phase::Parity(cx.source32(phase)?)
            } else {
                Phase::Token(cx.source64(phase)?)
            };
            (1, Action::Test { over, phase })
        }
        _ => return unsupported(mnemonic),
    };
    let is_shared = |part: &String| part.starts_with("shared");
    let generic = !mnemonic.modifiers().iter().any(is_shared);
    Ok(BarrierOp { generic, barrier: address(cx, inst, barrier_idx)?, action })
}

fn decode_arrive(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<(usize, Action)> {
    let mnemonic = &inst.mnemonic;
    // A remote arrival has no token: then the address comes first.
    let has_token = !matches!(operand(inst, 0)?, Operand::Memory(_));
    let barrier_idx = usize::from(has_token);
    let token = match operand(inst, 0)? {
        Operand::Sink | Operand::Memory(_) => None,
        token => Some(cx.target64(token)?),
    };
    let count = inst.operands.get(barrier_idx + 1);
    let count = count.map(|count| cx.source32(count)).transpose()?;
    let drops = mnemonic.has("arrive_drop");
    let way = match (mnemonic.has("expect_tx"), mnemonic.has("noComplete"), drops) {
        (false, false, false) => Arrival::Plain,
        (true, false, false) => Arrival::ExpectBytes,
        (false, true, false) => Arrival::WithoutCompleting,
        (false, false, true) => Arrival::Drop,
        _ => return unsupported(mnemonic),
    };
    Ok((barrier_idx, Action::Arrive { count, token, way }))
}

/// Decodes `mbarrier.pending_count.b64 count, token`.
pub(super) fn decode_pending(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<PendingCount> {
    let (to, token) = (operand(inst, 0)?, operand(inst, 1)?);
    Ok(PendingCount { to: cx.target32(to)?, token: cx.source64(token)? })
}

/// Runs it for each lane in turn.
pub(super) fn execute(op: &BarrierOp, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    let addresses = cx.addresses(&op.barrier);
    let mut over = 0u32;
    for lane in cx.lanes() {
        let at = |cause: Cause| cause.at(lane);
        let address = shared_of(op.generic, addresses[lane]).map_err(at)?;
        over |= u32::from(act(&op.action, cx, lane, address).map_err(at)?) << lane;
    }
    if let Action::Test { over: predicate, .. } = op.action {
        let mask = cx.mask;
        cx.warp.registers.set_predicate(predicate, over, mask);
        cx.warp.tensor.waits = over & mask != mask;
        return Ok(if cx.warp.tensor.waits { Flow::Yield } else { Flow::Next });
    }
    Ok(Flow::Next)
}

/// Acts for one lane; tells whether a phase that it asked about is over.
fn act(action: &Action, cx: &mut WarpCx<'_>, lane: usize, address: u64) -> Result<bool, Cause> {
    let warp_idx = cx.warp.idx;
    let value = |row: R32, cx: &WarpCx<'_>| cx.warp.registers.r32(row)[lane];
    match action {
        Action::Init(count) => {
            let barrier = Mbarrier::new(value(*count, cx)).map_err(TensorFault::from)?;
            store(&mut cx.cx, address, barrier.bits())?;
            checks::observe_mbarrier_init(&mut cx.cx, address, warp_idx)?;
        }
        Action::Invalidate => {
            change(&mut cx.cx, address, |_| Ok(()))?;
            store(&mut cx.cx, address, 0)?;
        }
        Action::ExpectBytes(n_bytes) => {
            let n_bytes = value(*n_bytes, cx);
            change(&mut cx.cx, address, |barrier| barrier.expect_bytes(n_bytes))?;
        }
        Action::CompleteBytes(n_bytes) => {
            let n_bytes = value(*n_bytes, cx);
            let is_over = change(&mut cx.cx, address, |barrier| barrier.complete_bytes(n_bytes))?;
            checks::observe_arrival(&mut cx.cx, address, warp_idx, is_over)?;
        }
        Action::Arrive { count, token, way } => {
            let count = count.map(|count| value(count, cx));
            let before = arrive(&mut cx.cx, address, *way, count, warp_idx)?;
            if let Some(token) = token {
                cx.warp.registers.r64_mut(*token)[lane] = before;
            }
        }
        Action::Test { phase, .. } => {
            let phase = match phase {
                Phase::Token(token) => Err(cx.warp.registers.r64(*token)[lane]),
                Phase::Parity(parity) => Ok(value(*parity, cx) & 1 == 1),
            };
            let barrier = load(&mut cx.cx, address)?;
            let is_over = match phase {
                Ok(parity) => barrier.is_over(parity),
                Err(token) => barrier.is_over_since(token).map_err(TensorFault::from)?,
            };
            if is_over {
                checks::observe_wait(&mut cx.cx, address, warp_idx);
            }
            return Ok(is_over);
        }
    }
    Ok(false)
}

/// Arrives; returns the barrier as it was before, which is the token.
fn arrive(
    cx: &mut BlockCx<'_>,
    address: u64,
    way: Arrival,
    count: Option<u32>,
    warp_idx: usize,
) -> Result<u64, Cause> {
    let (before, is_over) = change(cx, address, |barrier| {
        let before = barrier.bits();
        let is_over = match way {
            Arrival::Plain => barrier.arrive(count.unwrap_or(1))?,
            Arrival::Drop => barrier.drop_arrivals(count.unwrap_or(1))?,
            Arrival::WithoutCompleting => {
                barrier.arrive_without_completing(count.unwrap_or(1))?;
                false
            }
            Arrival::ExpectBytes => {
                barrier.expect_bytes(count.unwrap_or(0))?;
                barrier.arrive(1)?
            }
        };
        Ok((before, is_over))
    })?;
    checks::observe_arrival(cx, address, warp_idx, is_over)?;
    Ok(before)
}

/// Reads the token's count.
pub(super) fn execute_pending(op: &PendingCount, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    for lane in cx.lanes() {
        let token = cx.warp.registers.r64(op.token)[lane];
        let barrier = Mbarrier::from_bits(token)
            .map_err(|error| Cause::from(TensorFault::from(error)).at(lane))?;
        cx.warp.registers.r32_mut(op.to)[lane] = barrier.n_pending();
    }
    Ok(Flow::Next)
}

/// The barrier at a shared address.
fn load(cx: &mut BlockCx<'_>, address: u64) -> Result<Mbarrier, Cause> {
    let at = cx.shared(address, 8, 8)?.cast::<u64>();
    // SAFETY: `shared` gave 8 aligned bytes of the cluster's memory, whose blocks share a thread.
    let bits = unsafe { at.read() };
    Ok(Mbarrier::from_bits(bits).map_err(TensorFault::from)?)
}

/// Changes the barrier at a shared address.
pub(super) fn change<T>(
    cx: &mut BlockCx<'_>,
    address: u64,
    change: impl FnOnce(&mut Mbarrier) -> Result<T, MbarrierError>,
) -> Result<T, Cause> {
    let mut barrier = load(cx, address)?;
    let result = change(&mut barrier).map_err(TensorFault::from)?;
    store(cx, address, barrier.bits())?;
    Ok(result)
}

fn store(cx: &mut BlockCx<'_>, address: u64, bits: u64) -> Result<(), Cause> {
    cx.block.tensor.n_barrier_changes += 1;
    let at = cx.shared(address, 8, 8)?.cast::<u64>();
    // SAFETY: `shared` gave 8 aligned bytes of the cluster's memory, whose blocks share a thread.
    unsafe { at.write(bits) };
    Ok(())
}
