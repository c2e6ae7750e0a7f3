//! A warp's instructions, one after the other, until it should let others run.

use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{ClockKind, Inst, Op, R32};
use crate::exec::tensor;
use crate::exec::warp::{Outcome, Wait, Warp};
use crate::exec::{BlockCx, WarpCx};

/// Backward branches that a warp may take before others run.
const FUEL: u32 = 4096;

impl<'a> WarpCx<'a> {
    pub(super) fn new(cx: BlockCx<'a>, warp: &'a mut Warp) -> WarpCx<'a> {
        let inst = &cx.launch.kernel.code[0];
        WarpCx { cx, warp, inst, mask: 0 }
    }

    /// Runs the warp until it exits, waits or should let others run.
    pub(super) fn run(&mut self) -> Result<Outcome, Trap> {
        let code: &'a [Inst] = &self.cx.launch.kernel.code;
        let mut fuel = FUEL;
        let (mut n_instructions, mut n_flops) = (0u64, 0u64);
        let outcome = loop {
            if self.warp.pc >= self.warp.next_meeting {
                let selected = self.warp.select();
                if let Err(trap) = selected {
                    self.inst = &code[self.warp.pc as usize];
                    break Err(trap);
                }
            }
            let inst = &code[self.warp.pc as usize];
            let mut mask = self.warp.active;
            if let Some(guard) = inst.guard {
                let predicate = self.warp.registers.predicate(guard.predicate);
                mask &= if guard.negated { !predicate } else { predicate };
            }
            n_instructions += 1;
            if let Op::Alu { run, rows } = &inst.op {
                n_flops += u64::from(inst.n_flops) * u64::from(mask.count_ones());
                // SAFETY: the kernel was lowered with its register counts, which this warp's
                // files have, and the function was chosen for this processor.
                unsafe { run(&mut self.warp.registers, rows, mask) };
                self.warp.pc += 1;
                continue;
            }
            self.inst = inst;
            self.mask = mask;
            match self.steer(inst, &mut fuel) {
                Ok(None) => {}
                Ok(Some(outcome)) => break Ok(outcome),
                Err(trap) => break Err(trap),
            }
        };
        self.cx.counters.n_warp_instructions += n_instructions;
        self.cx.counters.flops.f32 += n_flops;
        if matches!(outcome, Ok(Outcome::Spinning | Outcome::OutOfFuel)) {
            self.warp.rest();
        }
        outcome
    }

    /// Runs an instruction that is not arithmetic. Tells when the warp stops.
    #[inline]
    fn steer(&mut self, inst: &Inst, fuel: &mut u32) -> Result<Option<Outcome>, Trap> {
        match &inst.op {
            Op::Branch { target } => return Ok(self.branch(*target, fuel)),
            Op::BranchIndexed { index, targets } => {
                self.branch_indexed(*index, targets)?;
                *fuel -= 1;
                return Ok((*fuel == 0).then_some(Outcome::OutOfFuel));
            }
            Op::Exit => {
                self.warp.exit(self.mask);
                return Ok((self.warp.live == 0).then_some(Outcome::Exited));
            }
            _ => {}
        }
        match self.effect(inst)? {
            Flow::Next => {
                self.warp.pc += 1;
                Ok(None)
            }
            Flow::Yield => {
                self.warp.pc += 1;
                Ok(Some(Outcome::Spinning))
            }
            Flow::Retry if self.warp.wait != Wait::None => Ok(Some(Outcome::Waiting)),
            // Lanes were parked, and the others run.
            Flow::Retry if self.warp.next_meeting == 0 => Ok(None),
            Flow::Retry => Ok(Some(Outcome::Spinning)),
        }
    }

    fn effect(&mut self, inst: &Inst) -> Result<Flow, Trap> {
        match &inst.op {
            Op::Load(load) => self.load(load),
            Op::Store(store) => self.store(store),
            Op::Atomic(atomic) => self.atomic(atomic),
            Op::Warp(op) => self.warp_op(op),
            _ if self.mask == 0 => Ok(Flow::Next),
            Op::Barrier(op) => self.barrier(op),
            Op::Tensor(op) => tensor::execute(op, self),
            Op::Sleep => Ok(Flow::Yield),
            Op::Trap => Err(Cause::Trap.at(self.mask.trailing_zeros() as usize)),
            Op::Assert { message, file, line } => Err(self.assertion([*message, *file, *line])),
            Op::Clock { wide, narrow, kind } => {
                let now = self.clock(*kind);
                if let Some(row) = wide {
                    self.warp.registers.set_r64(*row, &[now; 32], self.mask);
                }
                if let Some(row) = narrow {
                    self.warp.registers.set_r32(*row, &[now as u32; 32], self.mask);
                }
                // A loop that waits for time to pass lets others run.
                let is_spinning = self.warp.polls.is_spinning(inst.line, 0);
                Ok(if is_spinning { Flow::Yield } else { Flow::Next })
            }
            Op::Nop | Op::Alu { .. } => Ok(Flow::Next),
            Op::Branch { .. } | Op::BranchIndexed { .. } | Op::Exit => Ok(Flow::Next),
        }
    }

    fn branch(&mut self, target: u32, fuel: &mut u32) -> Option<Outcome> {
        let (taken, pc) = (self.mask, self.warp.pc);
        if taken == 0 {
            self.warp.pc = pc + 1;
        } else if taken == self.warp.active {
            self.warp.pc = target;
            if self.warp.is_divided() {
                self.warp.next_meeting = 0;
            }
        } else {
            self.warp.split(target, taken);
            self.warp.pc = pc + 1;
        }
        if target <= pc && taken != 0 {
            *fuel -= 1;
            if *fuel == 0 {
                return Some(Outcome::OutOfFuel);
            }
        }
        None
    }

    fn branch_indexed(&mut self, index: R32, targets: &[u32]) -> Result<(), Trap> {
        let indices = *self.warp.registers.r32(index);
        let pc = self.warp.pc;
        for lane in self.lanes() {
            let index = indices[lane];
            let Some(target) = targets.get(index as usize) else {
                return Err(Cause::BranchTable { index, n_targets: targets.len() }.at(lane));
            };
            self.warp.split(*target, 1 << lane);
        }
        self.warp.pc = pc + 1;
        Ok(())
    }

    /// Nanoseconds since the first question; cycles at 1.98 GHz, the H100's boost clock.
    fn clock(&self, kind: ClockKind) -> u64 {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        let nanoseconds = START.get_or_init(Instant::now).elapsed().as_nanos() as u64;
        let cycles = (nanoseconds as f64 * 1.98) as u64;
        match kind {
            ClockKind::Cycles => cycles,
            ClockKind::CyclesHigh => cycles >> 32,
            ClockKind::Nanoseconds => nanoseconds,
            ClockKind::NanosecondsHigh => nanoseconds >> 32,
        }
    }

    /// What a failed assertion of the kernel says.
    fn assertion(&mut self, [message, file, line]: [usize; 3]) -> Trap {
        let lane = self.mask.trailing_zeros() as usize;
        let [message, file] = [message, file].map(|at| self.text(lane, at));
        let line = self.local_bytes::<4>(lane, line).map_or(0, u32::from_le_bytes);
        Cause::Assert { message, file, line }.at(lane)
    }

    fn local_bytes<const N: usize>(&self, lane: usize, at: usize) -> Option<[u8; N]> {
        let start = lane * self.cx.launch.kernel.local_bytes + at;
        self.warp.local.get(start..start + N)?.try_into().ok()
    }

    /// The text whose address stands in local memory.
    fn text(&mut self, lane: usize, at: usize) -> String {
        const N_BYTES_MAX: u64 = 1024;
        let Some(address) = self.local_bytes(lane, at).map(u64::from_le_bytes) else {
            return String::new();
        };
        let bytes = (0..N_BYTES_MAX).map_while(|idx| {
            let at = self.generic(lane, address + idx, 1).ok()?;
            // SAFETY: `generic` found a byte there.
            let byte = unsafe { at.read_volatile() };
            (byte != 0).then_some(byte)
        });
        String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
    }
}
