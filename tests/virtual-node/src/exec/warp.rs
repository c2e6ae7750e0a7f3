//! A warp: 32 lanes, their registers, and which of them are where.
//!
//! Lanes that took different ways form fragments. The one at the lowest instruction runs, and
//! fragments that meet at an instruction become one: for the code that compilers make this
//! brings lanes together again as soon as the machine would. Lanes that must wait for others of
//! their warp are parked, so the others come to them.

use crate::exec::barrier::Tally;
use crate::exec::fault::{Cause, Trap};
use crate::exec::registers::Registers;
use crate::exec::tensor::WarpAsync;
use crate::ptx::Kernel;

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
    /// The first instruction at which lanes may meet; 0 to choose again.
    pub(super) next_meeting: u32,
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
    pub(super) fn split(&mut self, pc: u32, lanes: u32) {
        self.active &= !lanes;
        self.others.push(Fragment { pc, lanes, state: FragmentState::Ready });
        self.next_meeting = 0;
    }

    /// Ends lanes.
    pub(super) fn exit(&mut self, lanes: u32) {
        self.live &= !lanes;
        self.active &= !lanes;
        self.pc += 1;
        if self.active == 0 {
            self.next_meeting = 0;
        }
    }

    /// Chooses the lanes that run: the lowest, with all others at the same instruction.
    pub(super) fn select(&mut self) -> Result<(), Trap> {
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

    /// Whether some lanes are elsewhere.
    pub(super) fn is_divided(&self) -> bool {
        !self.others.is_empty()
    }

    /// Lets the other lanes go first when the warp runs again.
    pub(super) fn rest(&mut self) {
        if !self.others.is_empty() && self.active != 0 {
            let (pc, lanes) = (self.pc, self.active);
            self.others.push(Fragment { pc, lanes, state: FragmentState::Resting });
            self.active = 0;
            self.next_meeting = 0;
        }
    }
}
