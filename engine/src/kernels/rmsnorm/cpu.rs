//! Two passes over a row that is in cache for the second.

use crate::device::CpuExec;
use crate::device::simd::{scale_by, sum_of_squares};
use crate::kernels::quantize::quantize_row;

use super::Args;

pub(super) fn rmsnorm(exec: &CpuExec, args: Args<'_>) {
    let Args { x, weight, eps, input, out, out_scales } = args;
    let simd = exec.simd();
    exec.for_each_row(out, out_scales, |token_idx, out, scale| {
        let x = x.row(token_idx);
        let mean = sum_of_squares(simd, x) / x.len() as f32;
        scale_by(simd, x, 1.0 / (mean + eps).sqrt(), weight, out);
        *scale = quantize_row(simd, input, out);
    });
}
