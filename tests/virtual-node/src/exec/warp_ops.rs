//! Operations between the lanes of a warp.

use crate::exec::WarpCx;
use crate::exec::alu::Type;
use crate::exec::context::lanes;
use crate::exec::fault::{Cause, Flow, Trap};
use crate::exec::inst::{Pred, R32, R64};

/// An operation between lanes.
#[derive(Debug)]
pub enum WarpOp {
    Shuffle {
        kind: Shuffle,
        target: R32,
        valid: Option<Pred>,
        a: R32,
        b: R32,
        c: R32,
        members: R32,
    },
    Vote {
        kind: Vote,
        target: Pred,
        a: Pred,
        members: R32,
    },
    Ballot {
        target: R32,
        a: Pred,
        members: R32,
    },
    Match {
        all: bool,
        target: R32,
        same: Option<Pred>,
        narrow: Option<R32>,
        wide: Option<R64>,
        members: R32,
    },
    Reduce {
        kind: Reduction,
        target: R32,
        a: R32,
        members: R32,
    },
    ActiveMask {
        target: R32,
    },
    Elect {
        leader: R32,
        elected: Pred,
        members: R32,
    },
}

/// Which lane is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

impl Shuffle {
    pub fn parse(name: &str) -> Option<Shuffle> {
        Some(match name {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Butterfly,
            "idx" => Shuffle::Index,
            _ => return None,
        })
    }

    /// The lane that a lane reads, and whether it is one of its segment; if not, a lane reads
    /// itself. `b` and `c` as the PTX ISA has them: c holds the segment's mask and a clamp.
    fn source(self, lane: u32, b: u32, c: u32) -> (u32, bool) {
        let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
        let last = (lane & segment) | (clamp & !segment);
        let first = lane & segment;
        let (source, is_valid) = match self {
            Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32),
            Shuffle::Down => (lane + b, lane + b <= last),
            Shuffle::Butterfly => (lane ^ b, lane ^ b <= last),
            Shuffle::Index => {
                let source = first | (b & !segment);
                (source, source <= last)
            }
        };
        if is_valid { (source & 31, true) } else { (lane, false) }
    }
}

/// How predicates are reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uniform,
}

impl Vote {
    pub fn parse(name: &str) -> Option<Vote> {
        Some(match name {
            "all" => Vote::All,
            "any" => Vote::Any,
            "uni" => Vote::Uniform,
            _ => return None,
        })
    }
}

/// How values are reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    Add,
    MinUnsigned,
    MaxUnsigned,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
}

impl Reduction {
    pub fn parse(name: &str, ty: Type) -> Option<Reduction> {
        Some(match (name, ty) {
            ("add", Type::U32 | Type::S32) => Reduction::Add,
            ("min", Type::U32) => Reduction::MinUnsigned,
            ("max", Type::U32) => Reduction::MaxUnsigned,
            ("min", Type::S32) => Reduction::MinSigned,
            ("max", Type::S32) => Reduction::MaxSigned,
            ("and", Type::B32) => Reduction::And,
            ("or", Type::B32) => Reduction::Or,
            ("xor", Type::B32) => Reduction::Xor,
            _ => return None,
        })
    }

    fn combine(self, a: u32, b: u32) -> u32 {
        match self {
            Reduction::Add => a.wrapping_add(b),
            Reduction::MinUnsigned => a.min(b),
            Reduction::MaxUnsigned => a.max(b),
            Reduction::MinSigned => (a as i32).min(b as i32) as u32,
            Reduction::MaxSigned => (a as i32).max(b as i32) as u32,
            Reduction::And => a & b,
            Reduction::Or => a | b,
            Reduction::Xor => a ^ b,
        }
    }
}

impl WarpOp {
    fn members(&self) -> Option<R32> {
        match *self {
            WarpOp::Shuffle { members, .. }
            | WarpOp::Vote { members, .. }
            | WarpOp::Ballot { members, .. }
            | WarpOp::Match { members, .. }
            | WarpOp::Reduce { members, .. }
            | WarpOp::Elect { members, .. } => Some(members),
            WarpOp::ActiveMask { .. } => None,
        }
    }
}

impl WarpCx<'_> {
    /// Runs an operation between lanes. Lanes that it names and that are elsewhere are waited
    /// for.
    pub(super) fn warp_op(&mut self, op: &WarpOp) -> Result<Flow, Trap> {
        if self.mask == 0 {
            return Ok(Flow::Next);
        }
        if let Some(members) = op.members() {
            let named = self.warp.registers.r32(members);
            if let Some(lane) = lanes(self.mask).find(|&lane| named[lane] >> lane & 1 == 0) {
                let (active, expected) = (self.mask, named[lane]);
                return Err(Cause::Unconverged { active, expected }.at(lane));
            }
            let members = named[self.mask.trailing_zeros() as usize];
            let missing = members & self.warp.live & !self.mask;
            if missing != 0 {
                self.warp.park(self.mask, false);
                return Ok(Flow::Retry);
            }
        }
        match *op {
            WarpOp::Shuffle { kind, target, valid, a, b, c, .. } => {
                self.shuffle((kind, valid), target, [a, b, c]);
            }
            WarpOp::Vote { kind, target, a, .. } => {
                let votes = self.warp.registers.predicate(a) & self.mask;
                let yes = match kind {
                    Vote::All => votes == self.mask,
                    Vote::Any => votes != 0,
                    Vote::Uniform => votes == 0 || votes == self.mask,
                };
                let value = if yes { !0 } else { 0 };
                self.warp.registers.set_predicate(target, value, self.mask);
            }
            WarpOp::Ballot { target, a, .. } => {
                let votes = self.warp.registers.predicate(a) & self.mask;
                self.warp.registers.set_r32(target, &[votes; 32], self.mask);
            }
            WarpOp::Match { all, target, same, narrow, wide, .. } => {
                self.match_values(all, (target, same), (narrow, wide));
            }
            WarpOp::Reduce { kind, target, a, .. } => {
                let values = *self.warp.registers.r32(a);
                let reduced = lanes(self.mask)
                    .map(|lane| values[lane])
                    .reduce(|a, b| kind.combine(a, b))
                    .unwrap_or(0);
                self.warp.registers.set_r32(target, &[reduced; 32], self.mask);
            }
            WarpOp::ActiveMask { target } => {
                let mask = self.mask;
                self.warp.registers.set_r32(target, &[mask; 32], mask);
            }
            WarpOp::Elect { leader, elected, .. } => {
                let first = self.mask.trailing_zeros();
                self.warp.registers.set_r32(leader, &[first; 32], self.mask);
                self.warp.registers.set_predicate(elected, 1 << first, self.mask);
            }
        }
        Ok(Flow::Next)
    }

    fn shuffle(
        &mut self,
        (kind, valid): (Shuffle, Option<Pred>),
        target: R32,
        [a, b, c]: [R32; 3],
    ) {
        let registers = &mut self.warp.registers;
        let (values, b, c) = (*registers.r32(a), *registers.r32(b), *registers.r32(c));
        let mut out = [0; 32];
        let mut valid_lanes = 0;
        for lane in 0..32 {
            let (source, is_valid) = kind.source(lane as u32, b[lane], c[lane]);
            out[lane] = values[source as usize];
            valid_lanes |= u32::from(is_valid) << lane;
        }
        registers.set_r32(target, &out, self.mask);
        if let Some(valid) = valid {
            registers.set_predicate(valid, valid_lanes, self.mask);
        }
    }

    fn match_values(
        &mut self,
        all: bool,
        (target, same): (R32, Option<Pred>),
        (narrow, wide): (Option<R32>, Option<R64>),
    ) {
        let registers = &mut self.warp.registers;
        let values: [u64; 32] = match (narrow, wide) {
            (Some(row), _) => registers.r32(row).map(u64::from),
            (None, Some(row)) => *registers.r64(row),
            (None, None) => [0; 32],
        };
        let mut out = [0; 32];
        for lane in lanes(self.mask) {
            let equal = lanes(self.mask)
                .filter(|other| values[*other] == values[lane])
                .fold(0u32, |mask, other| mask | 1 << other);
            out[lane] = if all && equal != self.mask { 0 } else { equal };
        }
        registers.set_r32(target, &out, self.mask);
        if let Some(same) = same {
            let first = self.mask.trailing_zeros() as usize;
            let value = if out[first] == self.mask { !0 } else { 0 };
            registers.set_predicate(same, value, self.mask);
        }
    }
}
