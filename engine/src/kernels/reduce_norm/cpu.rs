//! Three steps: the ranks' sum, the addition, and two passes over a row that is in cache for the
//! second.

use crate::device::simd::{scale_by, sum_of_squares};
use crate::device::{Array, CpuExec, Deferred, Grid};
use crate::kernels::quantize::quantize_row;
use crate::rank::StepError;

use super::Args;

/// Rows that a thread adds up at a time.
const ADDED_ROWS: usize = 8;

pub(super) fn reduce_norm(exec: &CpuExec, args: Args<'_>) -> Result<(), StepError> {
    let Args { communicator, partial, pending, residual, weight, eps, rows, input, .. } = args;
    let (out, out_scales, rows) = (args.out.host(), args.out_scales.host(), rows.map(Array::host));
    assert_eq!(pending.scales, Deferred::Nothing, "the processor finishes its products");
    let (mut partial, mut residual) = (partial.host(), residual.host());
    communicator.all_reduce_sum(partial.as_mut_slice())?;
    let (partial, work) = (partial.as_view(), residual.n_rows() * residual.n_cols());
    let grid = Grid { tile_rows: ADDED_ROWS, tile_cols: residual.n_cols(), work };
    exec.for_each_tile(residual.reborrow(), grid, |mut tile, _| {
        if pending.starts {
            tile.out.fill(0.0);
        }
        for row_idx in 0..tile.out.n_rows() {
            let addends = partial.row(tile.row_idx + row_idx);
            tile.out.row_mut(row_idx).iter_mut().zip(addends).for_each(|(x, y)| *x += y);
        }
    });
    let (residual, weight, simd) = (residual.as_view(), weight.host(), exec.simd());
    exec.for_each_row(out, out_scales, |row_idx, out, scale| {
        let x = residual.row(rows.map_or(row_idx, |rows| rows[row_idx] as usize));
        let mean = sum_of_squares(simd, x) / x.len() as f32;
        scale_by(simd, x, 1.0 / (mean + eps).sqrt(), weight, out);
        *scale = quantize_row(simd, input, out);
    });
    Ok(())
}
