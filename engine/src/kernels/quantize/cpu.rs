//! Row by row; the families that fuse quantization into their output share [`quantize_row`].

use weights::InputScale;

use crate::device::simd::{max_magnitude, quantize_e4m3};
use crate::device::{CpuExec, Simd};

use super::Args;

/// Greatest finite e4m3.
const E4M3_MAX: f32 = 448.0;

pub(super) fn quantize(exec: &CpuExec, args: Args<'_>) {
    let Args { x, input, scales } = args;
    let simd = exec.simd();
    exec.for_each_row(x, scales, |_, row, scale| *scale = quantize_row(simd, input, row));
}

/// Quantizes one token's row in place and gives back its scale.
pub(in crate::kernels) fn quantize_row(simd: Simd, input: InputScale, row: &mut [f32]) -> f32 {
    let scale = match input {
        InputScale::None => return 1.0,
        InputScale::Static(scale) => scale,
        InputScale::PerToken => {
            let scale = max_magnitude(simd, row) / E4M3_MAX;
            // A row of zeroes, or one so small that its scale is not a number above zero.
            if scale > 0.0 { scale } else { 1.0 }
        }
    };
    quantize_e4m3(simd, row, scale);
    scale
}
