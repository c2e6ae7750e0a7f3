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

/// The parts of a vector operand; a scalar has one part.
fn parts(operand: &Operand) -> &[Operand] {
    match operand {
        Operand::Vector(parts) => parts,
        scalar => std::slice::from_ref(scalar),
    }
}

fn check_count(operand: &Operand, n_registers: usize, operand_idx: usize) -> Lowered<()> {
    let expected = "a vector of as many registers as the shape has";
    let fits = parts(operand).len() == n_registers;
    if fits { Ok(()) } else { Err(Problem::Operand { operand_idx, expected }) }
}

/// A vector of `n_registers` sources of 32 bits.
pub(super) fn sources32(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
    n_registers: usize,
) -> Lowered<Box<[R32]>> {
    let vector = operand(inst, operand_idx)?;
    check_count(vector, n_registers, operand_idx)?;
    parts(vector).iter().map(|part| cx.source32(part)).collect()
}

/// A vector of `n_registers` destinations of 32 bits.
pub(super) fn targets32(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
    n_registers: usize,
) -> Lowered<Box<[R32]>> {
    let vector = operand(inst, operand_idx)?;
    check_count(vector, n_registers, operand_idx)?;
    parts(vector).iter().map(|part| cx.target32(part)).collect()
}

/// A vector of `n_registers` sources of 64 bits.
pub(super) fn sources64(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
    n_registers: usize,
) -> Lowered<Box<[R64]>> {
    let vector = operand(inst, operand_idx)?;
    check_count(vector, n_registers, operand_idx)?;
    parts(vector).iter().map(|part| cx.source64(part)).collect()
}

/// A vector of `n_registers` destinations of 64 bits.
pub(super) fn targets64(
    cx: &mut Lowering<'_>,
    inst: &Instruction,
    operand_idx: usize,
    n_registers: usize,
) -> Lowered<Box<[R64]>> {
    let vector = operand(inst, operand_idx)?;
    check_count(vector, n_registers, operand_idx)?;
    parts(vector).iter().map(|part| cx.target64(part)).collect()
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
