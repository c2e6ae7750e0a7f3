//! A warp: 32 lanes, their registers, and which of them are where.
//!
//! Lanes that took different ways form fragments. The one at the lowest instruction runs, and
//! fragments that meet at an instruction become one: for the code that compilers make this
//! brings lanes together again as soon as the machine would. Lanes that must wait for others of
//! their warp are parked, so the others come to them.

use crate::exec::barrier::Tally;
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{ClockKind, Inst, Op, R32};
use crate::exec::registers::Registers;
use crate::exec::tensor::{self, WarpAsync};
use crate::exec::{BlockCx, WarpCx};
use crate::ptx::Kernel;

/// Backward branches that a warp may take before others run.
const FUEL: u32 = 4096;
/// Looks at the same place, with nothing written in between, that make a loop a waiting one.
const N_POLLS: u32 = 4;

/// One warp of a block.
#[derive(Debug)]
pub struct Warp {
    /// Index in the block.
    pub idx: usize,
    pub registers: Registers,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Outstanding asynchronous work.
    pub tensor: WarpAsync,
    /// Index of the next instruction of the lanes that run.
    pub(super) pc: u32,
    /// The lanes that run.
    pub(super) active: u32,
    others: Vec<Fragment>,
    /// The first instruction at which lanes may meet.
    next_meeting: u32,
    pub(super) wait: Wait,
    /// What the barrier that let the warp go had counted.
    pub(super) tally: Tally,
    /// The cluster's barrier was completed before the warp began to wait for it.
    pub(super) has_cluster_met: bool,
    pub(super) polls: Polls,
}

/// Lanes that are elsewhere.
#[derive(Debug, Clone, Copy)]
struct Fragment {
    pc: u32,
    lanes: u32,
    state: FragmentState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FragmentState {
    Ready,
    /// They spun: others go first.
    Resting,
    /// They wait for other lanes, of which so many were live when they began to.
    Parked {
        live: u32,
        at_warp_barrier: bool,
    },
}

/// What a warp waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Wait {
    #[default]
    None,
    Barrier,
    Cluster,
    /// What it waited for has come; it runs the instruction once more.
    Released,
}

/// How a warp came to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Exited,
    Waiting,
    OutOfFuel,
    /// It looks at memory again and again.
    Spinning,
}

/// Places that a warp looked at last, to notice when it only waits.
#[derive(Debug, Default)]
pub(super) struct Polls {
    seen: [(u32, u64); 4],
    next: usize,
    n: u32,
}

impl Polls {
    /// Something else happened.
    pub(super) fn reset(&mut self) {
        self.n = 0;
    }

    /// Notes a look at an address by the instruction of a line; tells whether there were many.
    pub(super) fn is_spinning(&mut self, line: u32, address: u64) -> bool {
        if self.seen.contains(&(line, address)) {
            self.n += 1;
        } else {
            self.seen[self.next] = (line, address);
            self.next = (self.next + 1) % self.seen.len();
            self.n = 0;
        }
        if self.n < N_POLLS {
            return false;
        }
        self.n = 0;
        true
    }
}

impl Warp {
    pub(super) fn new(idx: usize, kernel: &Kernel) -> Warp {
        Warp {
            idx,
            registers: Registers::new(kernel.n_registers, &kernel.constants),
            local: vec![0; kernel.local_bytes * 32],
            live: 0,
            tensor: WarpAsync::default(),
            pc: 0,
            active: 0,
            others: Vec::new(),
            next_meeting: u32::MAX,
            wait: Wait::None,
            tally: Tally::default(),
            has_cluster_met: false,
            polls: Polls::default(),
        }
    }

    /// Begins a block with its first `n_lanes` lanes.
    pub(super) fn reset(&mut self, n_lanes: usize) {
        self.live = if n_lanes >= 32 { !0 } else { (1 << n_lanes) - 1 };
        self.active = self.live;
        self.pc = 0;
        self.others.clear();
        self.next_meeting = u32::MAX;
        self.wait = Wait::None;
        self.has_cluster_met = false;
        self.polls = Polls::default();
        self.local.fill(0xcd);
        self.tensor.reset();
    }

    /// Lets lanes of the running ones wait at this instruction; those under its guard only.
    pub(super) fn park(&mut self, lanes: u32, at_warp_barrier: bool) {
        let state = FragmentState::Parked { live: self.live, at_warp_barrier };
        let (pc, rest) = (self.pc, self.active & !lanes);
        self.others.push(Fragment { pc, lanes, state });
        self.active = rest;
        self.pc = pc + 1;
        self.next_meeting = 0;
    }

    /// Takes lanes away from the running ones, to another instruction.
    fn split(&mut self, pc: u32, lanes: u32) {
        self.active &= !lanes;
        self.others.push(Fragment { pc, lanes, state: FragmentState::Ready });
        self.next_meeting = 0;
    }

    /// Ends lanes.
    fn exit(&mut self, lanes: u32) {
        self.live &= !lanes;
        self.active &= !lanes;
        self.pc += 1;
        if self.active == 0 {
            self.next_meeting = 0;
        }
    }

    /// Chooses the lanes that run: the lowest, with all others at the same instruction.
    fn select(&mut self) -> Result<(), Trap> {
        if self.active != 0 {
            let (pc, lanes) = (self.pc, self.active);
            self.others.push(Fragment { pc, lanes, state: FragmentState::Ready });
            self.active = 0;
        }
        self.wake_meeting();
        let ready = |fragment: &&Fragment| fragment.state == FragmentState::Ready;
        let mut lowest = self.others.iter().filter(ready).map(|fragment| fragment.pc).min();
        if lowest.is_none() {
            self.wake_resting()?;
            lowest = self.others.iter().filter(ready).map(|fragment| fragment.pc).min();
        }
        let pc = lowest.expect("a live warp has lanes that are ready, or was refused");
        let mut active = 0;
        self.others.retain(|fragment| {
            if fragment.pc == pc {
                active |= fragment.lanes;
            }
            fragment.pc != pc
        });
        self.pc = pc;
        self.active = active;
        let ahead = self.others.iter().map(|fragment| fragment.pc).filter(|other| *other > pc);
        self.next_meeting = ahead.min().unwrap_or(u32::MAX);
        Ok(())
    }

    /// Parked lanes that were joined by others, or whose company has exited, try again.
    fn wake_meeting(&mut self) {
        for idx in 0..self.others.len() {
            let FragmentState::Parked { live, .. } = self.others[idx].state else { continue };
            let pc = self.others[idx].pc;
            let is_met = self.others.iter().enumerate().any(|(other_idx, other)| {
                other_idx != idx && other.pc == pc && other.state == FragmentState::Ready
            });
            if is_met || live != self.live {
                self.others[idx].state = FragmentState::Ready;
            }
        }
    }

    /// Nobody is ready: those that rested go on; else all lanes wait for each other, which only
    /// barriers of a warp at different instructions resolve.
    fn wake_resting(&mut self) -> Result<(), Trap> {
        let mut has_woken = false;
        for fragment in &mut self.others {
            if fragment.state == FragmentState::Resting {
                fragment.state = FragmentState::Ready;
                has_woken = true;
            }
        }
        let at_warp_barrier = |fragment: &Fragment| {
            matches!(fragment.state, FragmentState::Parked { at_warp_barrier: true, .. })
        };
        if has_woken {
            return Ok(());
        }
        if self.others.iter().all(at_warp_barrier) {
            for fragment in &mut self.others {
                fragment.state = FragmentState::Ready;
                fragment.pc += 1;
            }
            return Ok(());
        }
        let stuck = self.others.iter().min_by_key(|fragment| fragment.pc);
        let (pc, active) = stuck.map_or((self.pc, 0), |fragment| (fragment.pc, fragment.lanes));
        self.pc = pc;
        let lane = active.trailing_zeros() as usize & 31;
        Err(Cause::Unconverged { active, expected: self.live }.at(lane))
    }

    /// Lets the other lanes go first when the warp runs again.
    fn rest(&mut self) {
        if !self.others.is_empty() && self.active != 0 {
            let (pc, lanes) = (self.pc, self.active);
            self.others.push(Fragment { pc, lanes, state: FragmentState::Resting });
            self.active = 0;
            self.next_meeting = 0;
        }
    }
}

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
            if !self.warp.others.is_empty() {
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
