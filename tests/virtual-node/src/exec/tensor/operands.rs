//! Operands as this family writes them: vectors of registers, addresses with coordinates.

use crate::exec::inst::{Address, R32, R64};
use crate::ptx::{Instruction, Lowered, Lowering, Mnemonic, Operand, Problem};

/// The operand at a position.
pub(super) fn operand(inst: &Instruction, operand_idx: usize) -> Lowered<&Operand> {
    let expected = operand_idx + 1;
    inst.operands.get(operand_idx).ok_or_else(|| Problem::OperandCount {
        opcode: inst.mnemonic.text(),
        found: inst.operands.len(),
        expected,
    })
}

/// What `read` makes of the parts of a vector of `n_registers`; a scalar has one part.
fn vector<T>(
    (inst, operand_idx): (&Instruction, usize),
    n_registers: usize,
    read: impl FnMut(&Operand) -> Lowered<T>,
) -> Lowered<Box<[T]>> {
    let parts = match operand(inst, operand_idx)? {
        Operand::Vector(parts) => parts,
        scalar => std::slice::from_ref(scalar),
    };
    if parts.len() != n_registers {
        let expected = "a vector of as many registers as the shape has";
        return Err(Problem::Operand { operand_idx, expected });
    }
    parts.iter().map(read).collect()
}

/// A vector of `n_registers` sources of 32 bits.
pub(super) fn sources32(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
    n_registers: usize,
) -> Lowered<Box<[R32]>> {
    vector((inst, operand_idx), n_registers, |part| cx.source32(part))
}

/// A vector of `n_registers` destinations of 32 bits.
pub(super) fn targets32(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
    n_registers: usize,
) -> Lowered<Box<[R32]>> {
    vector((inst, operand_idx), n_registers, |part| cx.target32(part))
}

/// A vector of `n_registers` sources of 64 bits.
pub(super) fn sources64(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
    n_registers: usize,
) -> Lowered<Box<[R64]>> {
    vector((inst, operand_idx), n_registers, |part| cx.source64(part))
}

/// A vector of `n_registers` destinations of 64 bits.
pub(super) fn targets64(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
    n_registers: usize,
) -> Lowered<Box<[R64]>> {
    vector((inst, operand_idx), n_registers, |part| cx.target64(part))
}

/// The address at a position.
pub(super) fn address(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
) -> Lowered<Address> {
    cx.address(operand(inst, operand_idx)?)
}

/// A tensor map and coordinates: `[map, {x, y}]`.
pub(super) fn map_and_coordinates(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
) -> Lowered<(Address, Box<[R32]>)> {
    let expected = "a tensor map with coordinates";
    let Operand::Memory(parts) = operand(inst, operand_idx)? else {
        return Err(Problem::Operand { operand_idx, expected });
    };
    let [map, Operand::Vector(coordinates)] = parts.as_slice() else {
        return Err(Problem::Operand { operand_idx, expected });
    };
    let map = cx.address(&Operand::Memory(vec![map.clone()]))?;
    let coordinates = coordinates.iter().map(|at| cx.source32(at)).collect::<Lowered<_>>()?;
    Ok((map, coordinates))
}

/// A modifier that this family has not.
pub(super) fn unsupported<T>(mnemonic: &Mnemonic) -> Lowered<T> {
    Err(Problem::Unsupported { what: mnemonic.text() })
}

/// The constant at a position.
pub(super) fn constant(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
) -> Lowered<i64> {
    cx.constant(operand(inst, operand_idx)?)
}
