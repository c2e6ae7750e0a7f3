//! Operations between the lanes of a warp.

use crate::exec::alu::Type;
use crate::exec::inst::Op;
use crate::exec::warp_ops::{Reduction, Shuffle, Vote, WarpOp};
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::Lowering;
use crate::ptx::syntax::{Instruction, Operand};

impl Lowering<'_> {
    /// Lowers an operation between lanes.
    pub(super) fn warp_op(&mut self, instruction: &Instruction) -> Lowered<bool> {
        let modifiers: Vec<&str> =
            instruction.mnemonic.modifiers().iter().map(String::as_str).collect();
        let operands = &instruction.operands[..];
        let op = match (instruction.mnemonic.opcode(), &modifiers[..], operands) {
            ("shfl", ["sync", mode, "b32"], [target, a, b, c, members]) => {
                let kind = Shuffle::parse(mode).ok_or_else(|| unknown(instruction))?;
                let (a, b, c) = (self.source32(a)?, self.source32(b)?, self.source32(c)?);
                let members = self.source32(members)?;
                let (target, valid) = split(target);
                let valid = valid.map(|valid| self.target_predicate(valid)).transpose()?;
                let target = self.target32(target)?;
                WarpOp::Shuffle { kind, target, valid, a, b, c, members }
            }
            ("vote", ["sync", "ballot", "b32"], [target, a, members]) => {
                let (a, members) = (self.source_predicate(a)?, self.source32(members)?);
                WarpOp::Ballot { target: self.target32(target)?, a, members }
            }
            ("vote", ["sync", kind, "pred"], [target, a, members]) => {
                let kind = Vote::parse(kind).ok_or_else(|| unknown(instruction))?;
                let (a, members) = (self.source_predicate(a)?, self.source32(members)?);
                WarpOp::Vote { kind, target: self.target_predicate(target)?, a, members }
            }
            ("match", ["any" | "all", "sync", ty], _) => {
                return self.match_op(instruction, modifiers[0] == "all", ty);
            }
            ("redux", ["sync", operation, ty], [target, a, members]) => {
                let ty = Type::parse(ty).ok_or_else(|| unknown(instruction))?;
                let kind = Reduction::parse(operation, ty).ok_or_else(|| unknown(instruction))?;
                let (a, members) = (self.source32(a)?, self.source32(members)?);
                WarpOp::Reduce { kind, target: self.target32(target)?, a, members }
            }
            ("activemask", ["b32"], [target]) => {
                WarpOp::ActiveMask { target: self.target32(target)? }
            }
            ("elect", ["sync"], [target, members]) => {
                let members = self.source32(members)?;
                let (leader, elected) = split(target);
                let elected = elected.ok_or_else(|| unknown(instruction))?;
                let elected = self.target_predicate(elected)?;
                WarpOp::Elect { leader: self.target32(leader)?, elected, members }
            }
            _ => return Err(unknown(instruction)),
        };
        self.emit(Op::Warp(Box::new(op)));
        Ok(true)
    }

    fn match_op(&mut self, instruction: &Instruction, all: bool, ty: &str) -> Lowered<bool> {
        let [target, a, members] = &instruction.operands[..] else {
            return Err(unknown(instruction));
        };
        let (mut narrow, mut wide) = (None, None);
        match ty {
            "b32" => narrow = Some(self.source32(a)?),
            "b64" => wide = Some(self.source64(a)?),
            _ => return Err(unknown(instruction)),
        }
        let members = self.source32(members)?;
        let (target, same) = split(target);
        let same = same.map(|same| self.target_predicate(same)).transpose()?;
        let target = self.target32(target)?;
        let op = WarpOp::Match { all, target, same, narrow, wide, members };
        self.emit(Op::Warp(Box::new(op)));
        Ok(true)
    }
}

fn unknown(instruction: &Instruction) -> Problem {
    Problem::Opcode { opcode: instruction.mnemonic.text() }
}

/// The parts of `d|p`.
fn split(operand: &Operand) -> (&Operand, Option<&Operand>) {
    match operand {
        Operand::Pair(first, second) => (first, Some(second)),
        other => (other, None),
    }
}
