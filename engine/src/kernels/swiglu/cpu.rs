//! One pass, and one more where the row is quantized.

use crate::device::simd::silu_times;
use crate::device::{CpuExec, Deferred};
use crate::kernels::quantize::quantize_row;

use super::Args;

pub(super) fn swiglu(exec: &CpuExec, args: Args<'_>) {
    let Args { gate_up, scales, input, out, out_scales, .. } = args;
    assert_eq!(scales, Deferred::Nothing, "the processor finishes its products");
    let (gate_up, out, out_scales) = (gate_up.host(), out.host(), out_scales.host());
    let simd = exec.simd();
    let width = out.n_cols();
    exec.for_each_row(out, out_scales, |token_idx, out, scale| {
        let (gate, up) = gate_up.row(token_idx).split_at(width);
        silu_times(simd, gate, up, out);
        *scale = quantize_row(simd, input, out);
    });
}
