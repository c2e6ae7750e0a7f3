//! Few tokens read weights as they are stored; many share weights widened once. Either way the
//! input is packed first, once for all parts: see [`Packed`].

use weights::{Dtype, LinearWeights};

use crate::device::simd::{
    PANEL_ROWS, Packed, Packing, Product, direct_product, n_tile_tokens, pack_pairs, pack_singles,
    panel_product, panels_mut, round_to_pairs,
};
use crate::device::{CpuExec, Grid, HostView, HostViewMut};

use super::Args;

/// From this many tokens on, widening weights once pays for writing them down.
const N_TOKENS_MANY: usize = 16;

/// Input rows that a thread packs at a time.
const PACK_ROWS: usize = 8;

/// Weight rows of a tile for few tokens: long enough to stream, short enough to share out.
const DIRECT_ROWS: usize = 64;

/// Tiles for many tokens that each thread gets at least, and the least rows of one.
const N_TILES_PER_THREAD: usize = 4;
const PANEL_ROWS_MIN: usize = 16;

pub(super) fn linear(exec: &CpuExec, args: Args<'_>) {
    let Args { x, x_scales, weights, out } = args;
    let (x, x_scales, mut out) = (x.host(), x_scales.host(), out.host());
    let (packing, shape) =
        (Packing::of(&weights.parts, exec.rounds_inputs()), (x.n_rows(), x.n_cols()));
    let is_e4m3 = weights.parts.iter().all(|part| part.matrix.dtype == Dtype::F8E4m3);
    let mut memory = exec.packed(packing.n_floats(shape.0, shape.1));
    pack(exec, x, (packing, is_e4m3), &mut memory);
    let x = Packed::new(packing, shape, &memory);
    let mut begin = 0;
    for part in &weights.parts {
        let end = begin + part.matrix.n_rows;
        let out = out.reborrow().columns(begin..end);
        project(exec, Part { x, x_scales, weights: part, out });
        begin = end;
    }
}

/// Packs all of `x`, of which pairs are e4m3 values or are rounded.
fn pack(exec: &CpuExec, x: HostView<'_>, (packing, is_e4m3): (Packing, bool), memory: &mut [f32]) {
    let simd = exec.simd();
    for (col_idx, panel) in panels_mut(packing, (x.n_rows(), x.n_cols()), memory) {
        let n_cols = panel.n_cols() / 16 * packing.n_elements();
        let x = x.columns(col_idx..x.n_cols().min(col_idx + n_cols));
        let work = x.n_rows() * x.n_cols();
        let grid = Grid { tile_rows: PACK_ROWS, tile_cols: panel.n_cols(), work };
        exec.for_each_tile(panel, grid, |mut tile, _| {
            for t in 0..tile.out.n_rows() {
                let (x, out) = (x.row(tile.row_idx + t), tile.out.row_mut(t));
                match packing {
                    Packing::Singles => pack_singles(x, out),
                    Packing::Pairs if !is_e4m3 => round_to_pairs(simd, x, out),
                    Packing::Pairs => {
                        assert!(pack_pairs(simd, x, out), "a quantized input is e4m3 values");
                    }
                }
            }
        });
    }
}

/// One part of a projection, with its own columns of the output.
struct Part<'a> {
    x: Packed<'a>,
    x_scales: &'a [f32],
    weights: &'a LinearWeights,
    out: HostViewMut<'a>,
}

fn project(exec: &CpuExec, part: Part<'_>) {
    let Part { x, x_scales, weights, out } = part;
    let simd = exec.simd();
    let n_tokens = x.n_rows();
    let is_many = n_tokens >= N_TOKENS_MANY;
    let n_products = n_tokens * out.n_cols() * weights.matrix.n_cols;
    let work = weights.matrix.n_bytes().max(n_products);
    let grid = if is_many {
        Grid { tile_rows: n_tile_tokens(x), tile_cols: panel_rows(exec, out.n_cols()), work }
    } else {
        Grid { tile_rows: N_TOKENS_MANY, tile_cols: DIRECT_ROWS, work }
    };
    exec.for_each_tile(out, grid, |tile, scratch| {
        let token_end = tile.row_idx + tile.out.n_rows();
        let product = Product {
            x: x.rows(tile.row_idx, token_end),
            weights: &weights.matrix,
            row_begin: tile.col_idx,
            scale: &weights.scale,
            x_scales: &x_scales[tile.row_idx..token_end],
            out: tile.out,
        };
        if is_many {
            panel_product(simd, product, &mut scratch.product);
        } else {
            direct_product(simd, product);
        }
    });
}

/// Weight rows of a tile for many tokens: as many as its cache holds, unless threads would then
/// have too little to share.
fn panel_rows(exec: &CpuExec, n_rows: usize) -> usize {
    let n_even = n_rows.div_ceil(N_TILES_PER_THREAD * exec.n_threads());
    n_even.next_multiple_of(PANEL_ROWS_MIN).min(PANEL_ROWS)
}
