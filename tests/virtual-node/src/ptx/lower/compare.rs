//! `setp` and `set`: a comparison, combined with a predicate, into one predicate or two, or into
//! a register.

use crate::exec::alu::{self, Boolean, Slot, Type};
use crate::exec::inst::{Op, Pred};
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::Lowering;
use crate::ptx::syntax::{Instruction, Operand};

/// What a comparison's modifiers say.
struct Comparison<'a> {
    name: &'a str,
    boolean: Option<Boolean>,
    is_flushed: bool,
    types: Vec<Type>,
}

fn parse(instruction: &Instruction) -> Option<Comparison<'_>> {
    let (name, rest) = instruction.mnemonic.modifiers().split_first()?;
    let mut comparison = Comparison { name, boolean: None, is_flushed: false, types: Vec::new() };
    for part in rest {
        if part == "ftz" {
            comparison.is_flushed = true;
        } else if let Some(boolean) = Boolean::parse(part) {
            comparison.boolean = Some(boolean);
        } else {
            comparison.types.push(Type::parse(part)?);
        }
    }
    Some(comparison)
}

impl Lowering<'_> {
    /// Lowers `setp` or `set`.
    pub(super) fn comparison(&mut self, instruction: &Instruction) -> Lowered<bool> {
        let unknown = || Problem::Opcode { opcode: instruction.mnemonic.text() };
        let comparison = parse(instruction).ok_or_else(unknown)?;
        let is_setp = instruction.mnemonic.opcode() == "setp";
        match comparison.types[..] {
            [ty] if is_setp && matches!(ty, Type::F16x2 | Type::Bf16x2) => {
                self.setp_halves(instruction, &comparison, ty)?;
            }
            [ty] if is_setp => self.setp(instruction, &comparison, ty)?,
            [target, ty] if !is_setp => self.set(instruction, &comparison, (target, ty))?,
            _ => return Err(unknown()),
        }
        Ok(true)
    }

    /// The bare comparison of two operands, into a predicate.
    fn compare(
        &mut self,
        comparison: &Comparison<'_>,
        ty: Type,
        operands: &[Operand],
    ) -> Lowered<Pred> {
        let alu = alu::compare(comparison.name, ty, comparison.is_flushed)
            .ok_or_else(|| Problem::Opcode { opcode: format!("{} of {ty:?}", comparison.name) })?;
        let [a, b, ..] = operands else {
            let opcode = comparison.name.to_owned();
            return Err(Problem::OperandCount { opcode, found: operands.len() + 1, expected: 3 });
        };
        let slot = ty.slot();
        let (a, b) = (self.source(slot, a)?, self.source(slot, b)?);
        let row = self.new_predicate();
        self.emit_always(Op::Alu { run: alu.run, rows: [row.0, a, b, 0, 0, 0] });
        Ok(row)
    }

    /// Combines a comparison's result with the third source, if there is one, into a target.
    fn combine(
        &mut self,
        comparison: &Comparison<'_>,
        (target, compared): (Pred, Pred),
        third: Option<Pred>,
    ) {
        let function = match (comparison.boolean, third) {
            (Some(Boolean::And), Some(_)) => alu::and_predicates(),
            (Some(Boolean::Or), Some(_)) => alu::or_predicates(),
            (Some(Boolean::Xor), Some(_)) => alu::xor_predicates(),
            _ => alu::copy_predicate(),
        };
        let third = third.unwrap_or(compared);
        self.push_alu(&function, [target.0, compared.0, third.0, 0, 0, 0]);
    }

    fn third(
        &mut self,
        comparison: &Comparison<'_>,
        instruction: &Instruction,
    ) -> Lowered<Option<Pred>> {
        match (comparison.boolean, instruction.operands.get(3)) {
            (None, None) => Ok(None),
            (Some(_), Some(operand)) => self.source_predicate(operand).map(Some),
            (boolean, _) => Err(Problem::OperandCount {
                opcode: instruction.mnemonic.text(),
                found: instruction.operands.len(),
                expected: if boolean.is_some() { 4 } else { 3 },
            }),
        }
    }

    fn setp(
        &mut self,
        instruction: &Instruction,
        comparison: &Comparison<'_>,
        ty: Type,
    ) -> Lowered<()> {
        let operands = &instruction.operands;
        let third = self.third(comparison, instruction)?;
        let (first, second) = match &operands[0] {
            Operand::Pair(first, second) => (&**first, Some(&**second)),
            other => (other, None),
        };
        // The usual form writes its predicate at once.
        if second.is_none() && third.is_none() && self.guard.is_none() {
            let target = self.target_predicate(first)?;
            let compared = self.compare(comparison, ty, &operands[1..])?;
            self.retarget(compared, target);
            return Ok(());
        }
        let compared = self.compare(comparison, ty, &operands[1..])?;
        let negated = second.map(|_| {
            let row = self.new_predicate();
            self.emit_converted(alu::not_predicate(), row.0, compared.0);
            row
        });
        let target = self.target_predicate(first)?;
        self.combine(comparison, (target, compared), third);
        if let (Some(second), Some(negated)) = (second, negated) {
            let target = self.target_predicate(second)?;
            self.combine(comparison, (target, negated), third);
        }
        Ok(())
    }

    /// Lets the last instruction, which set `from`, set `to` instead.
    fn retarget(&mut self, from: Pred, to: Pred) {
        if let Some(Op::Alu { rows, .. }) = self.code.last_mut().map(|inst| &mut inst.op) {
            assert_eq!(rows[0], from.0, "the comparison was emitted last");
            rows[0] = to.0;
        }
    }

    /// `setp.lt.f16x2 p|q, a, b`: each half has its own predicate.
    fn setp_halves(
        &mut self,
        instruction: &Instruction,
        comparison: &Comparison<'_>,
        ty: Type,
    ) -> Lowered<()> {
        let operands = &instruction.operands;
        let Operand::Pair(low, high) = &operands[0] else {
            return Err(Problem::Operand { operand_idx: 0, expected: "two predicates" });
        };
        let half = if ty == Type::F16x2 { Type::F16 } else { Type::Bf16 };
        let third = self.third(comparison, instruction)?;
        for (part, target) in [low, high].into_iter().enumerate() {
            let mut halves = [0; 2];
            for (idx, row) in halves.iter_mut().enumerate() {
                let whole = self.source32(&operands[idx + 1])?;
                *row = self.new_r32().0;
                self.emit_converted(alu::element(Slot::R32, 2, part), *row, whole.0);
            }
            let alu = alu::compare(comparison.name, half, comparison.is_flushed)
                .ok_or_else(|| Problem::Opcode { opcode: instruction.mnemonic.text() })?;
            let compared = self.new_predicate();
            let rows = [compared.0, halves[0], halves[1], 0, 0, 0];
            self.emit_always(Op::Alu { run: alu.run, rows });
            let target = self.target_predicate(target)?;
            self.combine(comparison, (target, compared), third);
        }
        Ok(())
    }

    /// `set.lt.u32.f32 d, a, b`
    fn set(
        &mut self,
        instruction: &Instruction,
        comparison: &Comparison<'_>,
        (target, ty): (Type, Type),
    ) -> Lowered<()> {
        let value = alu::set_value(target)
            .ok_or_else(|| Problem::Opcode { opcode: instruction.mnemonic.text() })?;
        let third = self.third(comparison, instruction)?;
        let compared = self.compare(comparison, ty, &instruction.operands[1..])?;
        let combined = self.new_predicate();
        let guard = self.guard.take();
        self.combine(comparison, (combined, compared), third);
        self.guard = guard;
        let yes = self.constant32(value);
        let no = self.constant32(0);
        let row = self.target_as(target, &instruction.operands[0])?;
        self.push_alu(&alu::select32(), [row, yes.0, no.0, combined.0, 0, 0]);
        Ok(())
    }
}
