//! The product that a warpgroup asked for: operands gathered from shared memory and registers.

use super::super::descriptor::{Descriptor, Major};
use super::super::element::Element;
use super::super::fragment::a_place;
use super::super::multiply::Sum;
use super::super::tile;
use super::decode::{N_ROWS, Side};
use crate::exec::BlockCx;
use crate::exec::fault::Cause;

/// An operand in shared memory as rows of K: `n_rows × k` values, row-major.
pub(super) fn gather_shared(
    cx: &mut BlockCx<'_>,
    descriptor: Descriptor,
    side: Side,
    n_rows: usize,
    k: usize,
) -> Result<Vec<f32>, Cause> {
    let mut values = match side.major {
        Major::K => gather_k_major(cx, descriptor, side.element, n_rows)?,
        Major::Mn => gather_mn_major(cx, descriptor, side.element, n_rows, k)?,
    };
    if side.negated {
        values.iter_mut().for_each(|value| *value = -*value);
    }
    Ok(values)
}

fn gather_k_major(
    cx: &mut BlockCx<'_>,
    descriptor: Descriptor,
    element: Element,
    n_rows: usize,
) -> Result<Vec<f32>, Cause> {
    let mut values = Vec::with_capacity(n_rows * 32 / element.bytes());
    for row in 0..n_rows {
        for chunk in 0..2 {
            let bytes = chunk_at(cx, descriptor.k_major_chunk(row, chunk))?;
            element.values(&bytes, &mut values);
        }
    }
    Ok(values)
}

fn gather_mn_major(
    cx: &mut BlockCx<'_>,
    descriptor: Descriptor,
    element: Element,
    n_rows: usize,
    k: usize,
) -> Result<Vec<f32>, Cause> {
    let n_per_chunk = 16 / element.bytes();
    let mut values = vec![0.0; n_rows * k];
    let mut chunk_values = Vec::with_capacity(n_per_chunk);
    for at in 0..k {
        for chunk in 0..n_rows / n_per_chunk {
            let bytes = chunk_at(cx, descriptor.mn_major_chunk(chunk, at))?;
            chunk_values.clear();
            element.values(&bytes, &mut chunk_values);
            for (part, value) in chunk_values.iter().enumerate() {
                values[(chunk * n_per_chunk + part) * k + at] = *value;
            }
        }
    }
    Ok(values)
}

/// Every 16-byte chunk that an operand lies in, as shared addresses.
pub(super) fn chunks(descriptor: Descriptor, major: Major, n_rows: usize, k: usize) -> Vec<usize> {
    match major {
        Major::K => (0..2 * n_rows).map(|i| descriptor.k_major_chunk(i / 2, i % 2)).collect(),
        Major::Mn => (0..n_rows / 8 * k).map(|i| descriptor.mn_major_chunk(i / k, i % k)).collect(),
    }
}

fn chunk_at(cx: &mut BlockCx<'_>, address: usize) -> Result<[u8; 16], Cause> {
    let at = cx.shared(address as u64, 16, 16)?.cast::<[u8; 16]>();
    // SAFETY: `shared` gave 16 bytes of this block's memory, and the block runs on this thread.
    Ok(unsafe { at.read() })
}

/// Operand A from the registers of four warps: `64 × k` values.
pub(super) fn gather_registers(warps: &[Vec<[u32; 32]>; 4], side: Side, k: usize) -> Vec<f32> {
    let n_per_register = 4 / side.element.bytes();
    let bits = 8 * side.element.bytes() as u32;
    let sign = if side.negated { -1.0 } else { 1.0 };
    let mut values = vec![0.0; N_ROWS * k];
    for (warp, registers) in warps.iter().enumerate() {
        for (register_idx, register) in registers.iter().enumerate() {
            for (lane, word) in register.iter().enumerate() {
                for part in 0..n_per_register {
                    let place = a_place(lane, register_idx, part, n_per_register);
                    let value = side.element.value(word >> (bits * part as u32));
                    values[(warp * 16 + place.row) * k + place.col] = sign * value;
                }
            }
        }
    }
    values
}

/// The transpose of `n_rows × n_cols` values.
pub(super) fn transpose(values: &[f32], n_rows: usize, n_cols: usize) -> Vec<f32> {
    let mut transposed = vec![0.0; values.len()];
    for row in 0..n_rows {
        for col in 0..n_cols {
            transposed[col * n_rows + row] = values[row * n_cols + col];
        }
    }
    transposed
}

/// Adds the product to the sums of one warp, as the accumulators' type has it. `a` is `16 × k`,
/// `b` is `k × n_cols`, sums of integers are kept as bits.
pub(super) fn add_product(a: &[f32], b: &[f32], sums: &mut [f32], k: usize, sum: Sum) {
    let n_cols = b.len() / k;
    match sum {
        Sum::F32 => tile::multiply(a, b, sums, k, n_cols),
        Sum::F16 => {
            tile::multiply(a, b, sums, k, n_cols);
            for value in sums {
                *value = half::f16::from_f32(*value).to_f32();
            }
        }
        Sum::S32 { saturate } => {
            let mut product = vec![0.0; sums.len()];
            tile::multiply(a, b, &mut product, k, n_cols);
            for (bits, product) in sums.iter_mut().zip(product) {
                let before = bits.to_bits() as i32;
                let after = super::super::multiply::add_integers(before, product as i32, saturate);
                *bits = f32::from_bits(after as u32);
            }
        }
    }
}
