//! Loads, stores and atomic operations.

use crate::exec::access::{Load, Store};
use crate::exec::alu::Type;
use crate::exec::atomics::{Atomic, AtomicOp};
use crate::exec::inst::{Address, Base, Op, Space};
use crate::ptx::error::{Lowered, Problem};
use crate::ptx::lower::Lowering;
use crate::ptx::lower::moves::space;
use crate::ptx::syntax::{Instruction, Operand};

/// What the modifiers of a memory instruction say.
struct Access {
    space: Space,
    /// Whether others may write at the same time: such a load may be polling.
    is_strong: bool,
    n_elements: usize,
    ty: Type,
    operation: Option<AtomicOp>,
    /// Whether a cache policy follows the operands.
    has_policy: bool,
}

const HINTS: &[&str] = &[
    "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "unified", "weak", "noftz", "cta", "cluster",
    "gpu", "sys",
];

fn parse(instruction: &Instruction) -> Option<Access> {
    let (ty, modifiers) = instruction.mnemonic.modifiers().split_last()?;
    let mut access = Access {
        space: Space::Generic,
        is_strong: false,
        n_elements: 1,
        ty: Type::parse(ty)?,
        operation: None,
        has_policy: false,
    };
    for part in modifiers {
        match part.as_str() {
            "v2" => access.n_elements = 2,
            "v4" => access.n_elements = 4,
            "v8" => access.n_elements = 8,
            "volatile" | "relaxed" | "acquire" | "release" | "acq_rel" | "mmio" => {
                access.is_strong = true;
            }
            "L2::cache_hint" => access.has_policy = true,
            hint if HINTS.contains(&hint)
                || hint.starts_with("L1::")
                || hint.starts_with("L2::") => {}
            name => match (space(name), AtomicOp::parse(name)) {
                (Some(space), _) => access.space = space,
                (None, Some(operation)) => access.operation = Some(operation),
                (None, None) => return None,
            },
        }
    }
    Some(access)
}

impl Lowering<'_> {
    /// Lowers a load, store or atomic operation.
    pub(super) fn memory(&mut self, instruction: &Instruction) -> Lowered<bool> {
        let opcode = instruction.mnemonic.opcode();
        // `st.async`, `red.async` and `st.bulk` complete on transaction barriers.
        if instruction.mnemonic.has("async") || instruction.mnemonic.has("bulk") {
            return Ok(false);
        }
        let unknown = || Problem::Opcode { opcode: instruction.mnemonic.text() };
        let access = parse(instruction).ok_or_else(unknown)?;
        let is_atomic = matches!(opcode, "atom" | "red");
        if access.operation.is_some() != is_atomic || access.ty.n_bytes() > 8 {
            return Err(unknown());
        }
        let n_operands = instruction.operands.len() - usize::from(access.has_policy);
        let operands = &instruction.operands[..n_operands];
        match (opcode, operands) {
            ("ld" | "ldu", [target, address]) => self.load(&access, target, address)?,
            ("st", [address, value]) => self.store(&access, address, value)?,
            ("atom", [target, address, values @ ..]) => {
                self.atomic(&access, Some(target), (address, values))?;
            }
            ("red", [address, values @ ..]) => self.atomic(&access, None, (address, values))?,
            _ => {
                let expected = if opcode == "atom" { 3 } else { 2 };
                let opcode = instruction.mnemonic.text();
                return Err(Problem::OperandCount { opcode, found: n_operands, expected });
            }
        }
        Ok(true)
    }

    /// The address and the space it is in: a variable's own, where one is named.
    fn target_of(&mut self, access: &Access, operand: &Operand) -> Lowered<(Address, Space)> {
        let (address, named) = self.place_of(operand)?;
        let space = match (access.space, named) {
            (Space::Param, Some(named)) => named,
            (Space::Generic, Some(named)) => named,
            // A pointer to a parameter that was passed to an inlined function is never made.
            (space, _) => space,
        };
        // Addresses of 32 bits only reach the small spaces.
        if matches!(address.base, Base::Narrow(_)) && matches!(space, Space::Global) {
            return Err(Problem::Operand { operand_idx: 1, expected: "a 64-bit address" });
        }
        Ok((address, space))
    }

    /// Rows of the elements of a vector operand, at most four.
    fn rows(
        &mut self,
        access: &Access,
        operand: &Operand,
        mut row: impl FnMut(&mut Self, &Operand) -> Lowered<u16>,
    ) -> Lowered<[u16; 4]> {
        let elements = self.elements(operand);
        if elements.len() != access.n_elements || elements.len() > 4 {
            let expected = "as many registers as the vector has elements, four at most";
            return Err(Problem::Operand { operand_idx: 0, expected });
        }
        let mut rows = [0; 4];
        for (slot, element) in rows.iter_mut().zip(elements) {
            *slot = row(self, element)?;
        }
        Ok(rows)
    }

    fn load(&mut self, access: &Access, target: &Operand, address: &Operand) -> Lowered<()> {
        let (address, space) = self.target_of(access, address)?;
        let ty = access.ty;
        let rows = self.rows(access, target, |cx, element| cx.target_as(ty, element))?;
        self.emit(Op::Load(Box::new(Load {
            space,
            address,
            element_bytes: ty.n_bytes() as u8,
            n_elements: access.n_elements as u8,
            is_signed: ty.is_signed(),
            is_strong: access.is_strong,
            rows,
        })));
        Ok(())
    }

    fn store(&mut self, access: &Access, address: &Operand, value: &Operand) -> Lowered<()> {
        let (address, space) = self.target_of(access, address)?;
        let slot = access.ty.slot();
        let rows = self.rows(access, value, |cx, element| cx.source(slot, element))?;
        self.emit(Op::Store(Box::new(Store {
            space,
            address,
            element_bytes: access.ty.n_bytes() as u8,
            n_elements: access.n_elements as u8,
            is_strong: access.is_strong,
            rows,
        })));
        Ok(())
    }

    fn atomic(
        &mut self,
        access: &Access,
        target: Option<&Operand>,
        (address, values): (&Operand, &[Operand]),
    ) -> Lowered<()> {
        let operation = access.operation.expect("an atomic operation has one");
        let (address, space) = self.target_of(access, address)?;
        let n_values = if operation == AtomicOp::CompareAndSwap { 2 } else { 1 };
        if values.len() != n_values {
            let opcode = format!("{operation:?}");
            let (found, expected) = (values.len(), n_values);
            return Err(Problem::OperandCount { opcode, found, expected });
        }
        let (ty, slot) = (access.ty, access.ty.slot());
        if !operation.accepts(ty) {
            return Err(Problem::Opcode { opcode: format!("{operation:?} of {ty:?}") });
        }
        let rows = self.rows(access, &values[0], |cx, element| cx.source(slot, element))?;
        let second = match values.get(1) {
            Some(value) => self.source(slot, value)?,
            None => 0,
        };
        let targets = match target {
            Some(Operand::Sink) | None => None,
            Some(target) => {
                Some(self.rows(access, target, |cx, element| cx.target_as(ty, element))?)
            }
        };
        let n_elements = access.n_elements as u8;
        let atomic = Atomic { space, address, operation, ty, n_elements, targets, rows, second };
        self.emit(Op::Atomic(Box::new(atomic)));
        Ok(())
    }
}
