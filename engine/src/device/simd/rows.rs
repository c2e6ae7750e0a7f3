//! Algorithms over one row: reductions, quantization, activation.

use super::lanes::{Lanes, padded};
use super::math;

/// Runs `$block` on whole blocks of sixteen and on the padded last one.
macro_rules! for_each_block {
    ($x:expr, |$block:ident| $body:expr) => {
        let (blocks, tail) = $x.as_chunks::<16>();
        for $block in blocks {
            $body
        }
        if !tail.is_empty() {
            let $block = &padded::<f32, 16>(tail);
            $body
        }
    };
}

/// `$out = $y` for blocks of sixteen of `$a` and `$b`, the last one padded. A macro, because a
/// closure would be compiled without the level's instructions.
macro_rules! for_each_pair {
    ($s:ident, ($a:ident, $b:ident) in ($a_row:expr, $b_row:expr), $out:expr, $y:expr) => {
        assert!($a_row.len() == $b_row.len() && $a_row.len() == $out.len(), "rows of one length");
        let ((a_blocks, a_tail), (b_blocks, b_tail)) = ($a_row.as_chunks(), $b_row.as_chunks());
        let (out_blocks, out_tail) = $out.as_chunks_mut();
        for ((a, b), out) in a_blocks.iter().zip(b_blocks).zip(out_blocks) {
            let ($a, $b) = ($s.load(a), $s.load(b));
            $s.store($y, out);
        }
        if !out_tail.is_empty() {
            let ($a, $b) = ($s.load(&padded(a_tail)), $s.load(&padded(b_tail)));
            let mut last = [0.0; 16];
            $s.store($y, &mut last);
            out_tail.copy_from_slice(&last[..out_tail.len()]);
        }
    };
}

#[inline(always)]
pub(super) fn sum_of_squares<S: Lanes>(s: S, x: &[f32]) -> f32 {
    let mut sums = s.splat(0.0);
    for_each_block!(x, |block| {
        let x = s.load(block);
        sums = s.mul_add(x, x, sums);
    });
    s.sum(sums)
}

#[inline(always)]
pub(super) fn max_magnitude<S: Lanes>(s: S, x: &[f32]) -> f32 {
    let mut greatest = s.splat(0.0);
    for_each_block!(x, |block| {
        // NaN on the left loses to what was found so far.
        greatest = s.max(s.and(s.load(block), 0x7FFF_FFFF), greatest);
    });
    s.greatest(greatest)
}

#[inline(always)]
pub(super) fn scale_by<S: Lanes>(s: S, x: &[f32], factor: f32, weight: &[f32], out: &mut [f32]) {
    let factor = s.splat(factor);
    for_each_pair!(s, (x, w) in (x, weight), out, s.mul(s.mul(x, factor), w));
}

#[inline(always)]
pub(super) fn silu_times<S: Lanes>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for_each_pair!(s, (gate, up) in (gate, up), out, silu_times_lanes(s, gate, up));
}

/// The same of sixteen.
#[inline(always)]
pub(super) fn silu_times_lanes<S: Lanes>(s: S, gate: S::V, up: S::V) -> S::V {
    let decay = math::exp(s, s.sub(s.splat(0.0), gate));
    s.mul(s.div(gate, s.add(s.splat(1.0), decay)), up)
}

#[inline(always)]
pub(super) fn quantize_e4m3<S: Lanes>(s: S, x: &mut [f32], scale: f32) {
    let scale = s.splat(scale);
    let (blocks, tail) = x.as_chunks_mut::<16>();
    for block in blocks {
        s.store(quantized_lanes(s, s.load(block), scale), block);
    }
    if !tail.is_empty() {
        let mut block = padded(tail);
        s.store(quantized_lanes(s, s.load(&block), scale), &mut block);
        tail.copy_from_slice(&block[..tail.len()]);
    }
}

/// The same of sixteen.
#[inline(always)]
pub(super) fn quantized_lanes<S: Lanes>(s: S, x: S::V, scale: S::V) -> S::V {
    math::round_e4m3(s, s.div(x, scale))
}

#[inline(always)]
pub(super) fn encode_e4m3<S: Lanes>(s: S, x: &[f32], scale: f32, out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "a code for every element");
    let scale = s.splat(scale);
    let ((blocks, tail), (out_blocks, out_tail)) = (x.as_chunks(), out.as_chunks_mut());
    for (block, out) in blocks.iter().zip(out_blocks) {
        *out = encoded(s, block, scale);
    }
    if !tail.is_empty() {
        out_tail.copy_from_slice(&encoded(s, &padded(tail), scale)[..tail.len()]);
    }
}

#[inline(always)]
fn encoded<S: Lanes>(s: S, block: &[f32; 16], scale: S::V) -> [u8; 16] {
    s.codes_of_e4m3(quantized_lanes(s, s.load(block), scale))
}
