//! Three steps: the ranks' sum, the addition, and two passes over a row that is in cache for the
//! second.

use crate::device::simd::{scale_by, sum_of_squares};
use crate::device::{Array, CpuExec, Deferred};
use crate::kernels::quantize::quantize_row;
use crate::rank::StepError;

use super::Args;

pub(super) fn reduce_norm(exec: &CpuExec, args: Args<'_>) -> Result<(), StepError> {
    let Args { communicator, partial, pending, residual, weight, eps, rows, input, .. } = args;
    let (out, out_scales, rows) = (args.out.host(), args.out_scales.host(), rows.map(Array::host));
    assert_eq!(pending.scales, Deferred::Nothing, "the processor finishes its products");
    let (mut partial, mut residual) = (partial.host(), residual.host());
    communicator.all_reduce_sum(partial.as_mut_slice())?;
    if pending.starts {
        residual.fill(0.0);
    }
    for (x, y) in residual.as_mut_slice().iter_mut().zip(partial.as_mut_slice()) {
        *x += *y;
    }
    let (residual, weight, simd) = (residual.as_view(), weight.host(), exec.simd());
    exec.for_each_row(out, out_scales, |row_idx, out, scale| {
        let x = residual.row(rows.map_or(row_idx, |rows| rows[row_idx] as usize));
        let mean = sum_of_squares(simd, x) / x.len() as f32;
        scale_by(simd, x, 1.0 / (mean + eps).sqrt(), weight, out);
        *scale = quantize_row(simd, input, out);
    });
    Ok(())
}
