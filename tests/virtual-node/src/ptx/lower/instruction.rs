//! One instruction: guard, operands, the conversions around it.

use crate::exec::alu::{self, Alu, Type};
use crate::exec::inst::{Guard, Inst, Op};
use crate::exec::tensor;
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::Lowering;
use crate::ptx::syntax::{Instruction, Operand};

impl Lowering<'_> {
    /// Lowers one instruction.
    pub(super) fn instruction(&mut self, instruction: &Instruction) -> Lowered<()> {
        self.guard = None;
        if let Some(guard) = &instruction.guard {
            let predicate = self.named_predicate(&guard.predicate)?;
            self.guard = Some(Guard { predicate, negated: guard.negated });
        }
        self.dispatch(instruction)?;
        for op in std::mem::take(&mut self.after) {
            self.emit(op);
        }
        Ok(())
    }

    fn dispatch(&mut self, instruction: &Instruction) -> Lowered<()> {
        let mnemonic = &instruction.mnemonic;
        let is_done = match mnemonic.opcode() {
            "mov" | "cvta" | "isspacep" | "mapa" | "getctarank" | "createpolicy" => {
                self.movement(instruction)?
            }
            "setp" | "set" => self.comparison(instruction)?,
            "ld" | "ldu" | "st" | "atom" | "red" => self.memory(instruction)?,
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => {
                self.warp_op(instruction)?
            }
            _ => self.control(instruction)?,
        };
        if is_done {
            return Ok(());
        }
        if let Some(alu) = alu::select(mnemonic) {
            return self.arithmetic(instruction, alu);
        }
        if let Some(op) = tensor::decode(self, instruction)? {
            self.emit(Op::Tensor(Box::new(op)));
            return Ok(());
        }
        Err(Problem::Opcode { opcode: mnemonic.text() })
    }

    /// Lane-wise arithmetic.
    fn arithmetic(&mut self, instruction: &Instruction, alu: Alu) -> Lowered<()> {
        let operands = &instruction.operands;
        let parts = &instruction.mnemonic.parts;
        let opcode = instruction.mnemonic.opcode();
        let uses_carry = parts[1..].iter().any(|part| part == "cc")
            || matches!(opcode, "addc" | "subc" | "madc");
        if uses_carry {
            return self.carried(instruction, alu);
        }
        let expected = 1 + alu.n_sources();
        if operands.len() != expected {
            let opcode = instruction.mnemonic.text();
            return Err(Problem::OperandCount { opcode, found: operands.len(), expected });
        }
        let mut rows = [0; 6];
        self.sources(&alu, &operands[1..], &mut rows)?;
        rows[0] = self.target_as(result_type(&alu, instruction), &operands[0])?;
        self.push_alu(&alu, rows);
        Ok(())
    }

    fn sources(&mut self, alu: &Alu, operands: &[Operand], rows: &mut [u16; 6]) -> Lowered<()> {
        for (idx, (slot, operand)) in alu.sources.iter().flatten().zip(operands).enumerate() {
            rows[idx + 1] = self.source(*slot, operand).map_err(|problem| match problem {
                Problem::Operand { expected, .. } => {
                    Problem::Operand { operand_idx: idx + 1, expected }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// Arithmetic with a carry in, out, or both.
    fn carried(&mut self, instruction: &Instruction, alu: Alu) -> Lowered<()> {
        let opcode = instruction.mnemonic.opcode();
        let operands = &instruction.operands;
        let carry = *self.carry.get_or_insert(crate::exec::inst::Pred(u16::MAX));
        let carry = if carry.0 == u16::MAX {
            let row = self.new_predicate();
            self.carry = Some(row);
            row
        } else {
            carry
        };
        let mut rows = [0; 6];
        self.sources(&alu, &operands[1..], &mut rows)?;
        if operands.len() < 4 {
            rows[3] = match alu.sources[2] {
                Some(slot) => self.source(slot, &Operand::Integer(0))?,
                None => 0,
            };
        }
        rows[4] = match opcode {
            "addc" | "subc" | "madc" => carry.0,
            _ => self.constant_predicate(false).0,
        };
        let sets_carry = instruction.mnemonic.has("cc");
        rows[5] = if sets_carry { carry.0 } else { self.new_predicate().0 };
        rows[0] = self.target_as(result_type(&alu, instruction), &operands[0])?;
        self.push_alu(&alu, rows);
        Ok(())
    }

    /// Appends arithmetic whose rows are known.
    pub(super) fn push_alu(&mut self, alu: &Alu, rows: [u16; 6]) {
        let (guard, line) = (self.guard, self.line);
        let op = Op::Alu { run: alu.run, rows };
        self.code.push(Inst { op, guard, n_flops: alu.n_flops, line });
    }
}

/// The type that a result is extended from, where its register is wider.
fn result_type(alu: &Alu, instruction: &Instruction) -> Type {
    let parts = &instruction.mnemonic.parts;
    let written = match instruction.mnemonic.opcode() {
        "cvt" => parts.get(parts.len().wrapping_sub(2)),
        _ => parts.last(),
    };
    let ty = written.and_then(|part| Type::parse(part)).filter(|ty| ty.slot() == alu.target);
    ty.unwrap_or(match alu.target {
        alu::Slot::R32 => Type::B32,
        alu::Slot::R64 => Type::B64,
        alu::Slot::Pred => Type::Pred,
    })
}
