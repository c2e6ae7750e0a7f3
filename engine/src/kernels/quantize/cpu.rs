//! Row by row; the families that fuse quantization into their output share [`quantize_row`].

use weights::InputScale;

use crate::device::simd::{max_magnitude, quantize_e4m3};
use crate::device::{CpuExec, Simd};

use super::{Args, KnownArgs, MagnitudeArgs};

/// Greatest finite e4m3.
const E4M3_MAX: f32 = 448.0;

pub(super) fn quantize(exec: &CpuExec, args: Args<'_>) {
    let Args { x, out, input, scales, .. } = args;
    assert!(out.is_none(), "the host quantizes in place");
    let (x, scales) = (x.host(), scales.host());
    let simd = exec.simd();
    exec.for_each_row(x, scales, |_, row, scale| *scale = quantize_row(simd, input, row));
}

pub(super) fn magnitudes(exec: &CpuExec, args: MagnitudeArgs<'_>) {
    // One pass over what the cache still holds: not worth a thread's waking.
    let x = args.x.host();
    for (row_idx, magnitude) in args.magnitudes.host().iter_mut().enumerate() {
        *magnitude = max_magnitude(exec.simd(), x.row(row_idx));
    }
}

pub(super) fn quantize_known(exec: &CpuExec, args: KnownArgs<'_>) {
    let KnownArgs { x, magnitudes } = args;
    let simd = exec.simd();
    exec.for_each_row(x.host(), magnitudes.host(), |_, row, magnitude| {
        *magnitude = scale_of(*magnitude);
        quantize_e4m3(simd, row, *magnitude);
    });
}

/// What maps the greatest magnitude of a row onto the greatest e4m3.
fn scale_of(magnitude: f32) -> f32 {
    let scale = magnitude / E4M3_MAX;
    // A row of zeroes, or one so small that its scale is not a number above zero.
    if scale > 0.0 { scale } else { 1.0 }
}

/// Quantizes one token's row in place and gives back its scale.
pub(in crate::kernels) fn quantize_row(simd: Simd, input: InputScale, row: &mut [f32]) -> f32 {
    let scale = match input {
        InputScale::None => return 1.0,
        InputScale::Static(scale) => scale,
        InputScale::PerToken => scale_of(max_magnitude(simd, row)),
    };
    quantize_e4m3(simd, row, scale);
    scale
}
