//! `ldmatrix`, `stmatrix` and `movmatrix`: 8 × 8 matrices of 16-bit elements, spread over a warp.
//!
//! Lane l of a matrix in registers holds row l / 4, columns 2 (l % 4) and the next; transposed, it
//! holds column l / 4, rows 2 (l % 4) and the next.

use super::multiply::check_converged;
use super::operands::{address, operand, sources32, targets32, unsupported};
use crate::exec::WarpCx;
use crate::exec::checks::{self, Access, AccessKind};
use crate::exec::context::Place;
use crate::exec::fault::{Flow, Trap};
use crate::exec::inst::{Address, R32, Space};
use crate::ptx::{Instruction, Lowered, Lowering, Mnemonic, Operand};

/// `ldmatrix` and `stmatrix`.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixCopy {
    stores: bool,
    /// Rows lie in memory one after another of what is a column in registers.
    transposed: bool,
    /// Addresses are of the generic space.
    generic: bool,
    rows: Address,
    /// One for each matrix.
    registers: Box<[R32]>,
}

/// `movmatrix`: a transposition between registers.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixMove {
    to: R32,
    from: R32,
}

const ROW_BYTES: usize = 16;

/// Decodes `ldmatrix.sync.aligned.m8n8.xN{.trans}{.shared}.b16` and the like of `stmatrix`.
pub(super) fn decode_copy(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<MatrixCopy> {
    let mnemonic = &inst.mnemonic;
    let stores = mnemonic.opcode() == "stmatrix";
    let Some(n_matrices) = n_matrices(mnemonic) else { return unsupported(mnemonic) };
    let (address_idx, vector_idx) = if stores { (0, 1) } else { (1, 0) };
    let registers = if stores {
        sources32(cx, inst, vector_idx, n_matrices)?
    } else {
        targets32(cx, inst, vector_idx, n_matrices)?
    };
    Ok(MatrixCopy {
        stores,
        transposed: mnemonic.has("trans"),
        generic: !mnemonic.has("shared") && !mnemonic.has("shared::cta"),
        rows: address(cx, inst, address_idx)?,
        registers,
    })
}

fn n_matrices(mnemonic: &Mnemonic) -> Option<usize> {
    let is_known = mnemonic.has("m8n8") && mnemonic.has("b16") && mnemonic.has("sync");
    let counts = [("x1", 1), ("x2", 2), ("x4", 4)];
    let count = counts.iter().find(|(name, _)| mnemonic.has(name))?;
    is_known.then_some(count.1)
}

/// Decodes `movmatrix.sync.aligned.m8n8.trans.b16`.
pub(super) fn decode_move(cx: &mut Lowering<'_>, inst: &Instruction) -> Lowered<MatrixMove> {
    let to: &Operand = operand(inst, 0)?;
    Ok(MatrixMove { to: cx.target32(to)?, from: cx.source32(operand(inst, 1)?)? })
}

/// Runs a load or a store.
pub(super) fn execute_copy(copy: &MatrixCopy, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    check_converged(cx)?;
    let mut rows = cx.addresses(&copy.rows);
    if copy.generic {
        rows = rows.map(|row| match Place::of(row) {
            Place::Shared(offset) => offset,
            // Out of every bound, so that the access below says what is wrong.
            _ => row,
        });
    }
    let n_rows = 8 * copy.registers.len();
    if cx.cx.launch.checks.watches(Space::Shared) {
        let kind = if copy.stores { AccessKind::Write } else { AccessKind::Read };
        // Only the first lanes hold addresses that count.
        let mask = (!0u32) >> (32 - n_rows);
        let space = Space::Shared;
        let access = Access { space, kind, n_bytes: ROW_BYTES, addresses: &rows, mask };
        checks::observe(cx, &access)?;
    }
    let mut matrix = [[0u16; 8]; 8];
    for (matrix_idx, register) in copy.registers.iter().enumerate() {
        if copy.stores {
            take_apart(cx.warp.registers.r32(*register), copy.transposed, &mut matrix);
        }
        for (row, elements) in matrix.iter_mut().enumerate() {
            let lane = matrix_idx * 8 + row;
            let at = cx.shared(lane, rows[lane], ROW_BYTES)?.cast::<[u16; 8]>();
            // SAFETY: `shared` gave 16 aligned bytes of this block's memory, which nothing else
            // touches while the block runs on this thread.
            unsafe {
                if copy.stores {
                    at.write(*elements);
                } else {
                    *elements = at.read();
                }
            }
        }
        if !copy.stores {
            let values = put_together(&matrix, copy.transposed);
            *cx.warp.registers.r32_mut(*register) = values;
        }
    }
    Ok(Flow::Next)
}

/// Runs a transposition.
pub(super) fn execute_move(movement: &MatrixMove, cx: &mut WarpCx<'_>) -> Result<Flow, Trap> {
    check_converged(cx)?;
    let mut matrix = [[0u16; 8]; 8];
    take_apart(cx.warp.registers.r32(movement.from), false, &mut matrix);
    *cx.warp.registers.r32_mut(movement.to) = put_together(&matrix, true);
    Ok(Flow::Next)
}

/// Registers of a warp from a matrix in memory.
fn put_together(matrix: &[[u16; 8]; 8], transposed: bool) -> [u32; 32] {
    std::array::from_fn(|lane| {
        let (major, minor) = (lane / 4, lane % 4 * 2);
        let element = |minor: usize| {
            u32::from(if transposed { matrix[minor][major] } else { matrix[major][minor] })
        };
        element(minor) | element(minor + 1) << 16
    })
}

/// A matrix in memory from registers of a warp.
fn take_apart(registers: &[u32; 32], transposed: bool, matrix: &mut [[u16; 8]; 8]) {
    for (lane, word) in registers.iter().enumerate() {
        let (major, minor) = (lane / 4, lane % 4 * 2);
        for part in 0..2 {
            let (row, col) = if transposed { (minor + part, major) } else { (major, minor + part) };
            matrix[row][col] = (word >> (16 * part)) as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered() -> [[u16; 8]; 8] {
        std::array::from_fn(|row| std::array::from_fn(|col| (row * 8 + col) as u16))
    }

    /// The fragment table of ldmatrix: thread 0 holds row 0, columns 0 and 1; thread 31 holds
    /// row 7, columns 6 and 7.
    #[test]
    fn rows_over_lanes() {
        let registers = put_together(&numbered(), false);
        assert_eq!(registers[0], 1 << 16);
        assert_eq!(registers[5], 10 | 11 << 16);
        assert_eq!(registers[31], 62 | 63 << 16);
        let transposed = put_together(&numbered(), true);
        assert_eq!(transposed[0], 8 << 16, "column 0, rows 0 and 1");
        assert_eq!(transposed[31], 55 | 63 << 16, "column 7, rows 6 and 7");
    }

    #[test]
    fn back_and_forth() {
        for transposed in [false, true] {
            let mut back = [[0; 8]; 8];
            take_apart(&put_together(&numbered(), transposed), transposed, &mut back);
            assert_eq!(back, numbered());
        }
    }
}
