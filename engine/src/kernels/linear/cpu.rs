//! Where weights were packed for tiles, tiles multiply them: see [`tiles`]. Elsewhere few tokens
//! read weights as they are stored, many share weights widened once. Either way the input is packed
//! first, once for all parts.

mod tiles;

use weights::{Dtype, LinearWeights};

use crate::device::simd::{
    PANEL_ROWS, Packed, Packing, Product, Rounding, WeightRows, direct_product, n_tile_tokens,
    pack_pairs, pack_singles, panel_product, panels_mut, round_to_pairs,
};
use crate::device::{CpuExec, Grid, HostView, HostViewMut};

use super::Args;

/// From this many tokens on, widening weights once pays for writing them down.
const N_TOKENS_MANY: usize = 16;

/// Input rows that a thread packs at a time.
const PACK_ROWS: usize = 8;

/// Weight rows of a tile for few tokens: long enough to stream, short enough to share out.
const DIRECT_ROWS: usize = 64;

/// Tiles that each thread gets at least, and the least rows of one for many tokens.
const N_TILES_PER_THREAD: usize = 4;
const PANEL_ROWS_MIN: usize = 16;

pub(super) fn linear(exec: &CpuExec, args: Args<'_>, out_scale: Option<f32>) {
    let Args { x, x_scales, weights, out } = args;
    let (x, x_scales, out) = (x.host(), x_scales.host(), out.host());
    let is_e4m3 = weights.parts.iter().all(|part| part.matrix.dtype == Dtype::F8E4m3);
    let rounding = if is_e4m3 { Rounding::Exact } else { Rounding::Nearest };
    if let Some(tiles) = &weights.tiles {
        let product = tiles::Product { x, x_scales, parts: &weights.parts, tiles, out_scale };
        product.run(exec, rounding, out);
    } else {
        let packing = Packing::of(&weights.parts, exec.rounds_inputs());
        let shape = (x.n_rows(), x.n_cols());
        let mut memory = exec.packed(packing.n_floats(shape.0, shape.1));
        pack(exec, x, (packing, rounding), &mut memory);
        let x = Packed::new(packing, shape, &memory);
        for_each_part(&weights.parts, x_scales, out, |part| multiply(exec, x, part));
    }
}

/// One part of a projection, with its own columns of the output.
struct Part<'a> {
    x_scales: &'a [f32],
    weights: &'a LinearWeights,
    out: HostViewMut<'a>,
}

fn for_each_part(
    parts: &[LinearWeights],
    x_scales: &[f32],
    mut out: HostViewMut<'_>,
    mut multiply: impl FnMut(Part<'_>),
) {
    let mut begin = 0;
    for weights in parts {
        let end = begin + weights.matrix.n_rows;
        multiply(Part { x_scales, weights, out: out.reborrow().columns(begin..end) });
        begin = end;
    }
}

/// Packs all of `x`, of which pairs are e4m3 values or are rounded.
fn pack(
    exec: &CpuExec,
    x: HostView<'_>,
    (packing, rounding): (Packing, Rounding),
    memory: &mut [f32],
) {
    let simd = exec.simd();
    for (col_idx, panel) in panels_mut(packing, (x.n_rows(), x.n_cols()), memory) {
        let n_cols = panel.n_cols() / 16 * packing.n_elements();
        let x = x.columns(col_idx..x.n_cols().min(col_idx + n_cols));
        let work = x.n_rows() * x.n_cols();
        let grid = Grid { tile_rows: PACK_ROWS, tile_cols: panel.n_cols(), work };
        exec.for_each_tile(panel, grid, |mut tile, _| {
            for t in 0..tile.out.n_rows() {
                let (x, out) = (x.row(tile.row_idx + t), tile.out.row_mut(t));
                match (packing, rounding) {
                    (Packing::Singles, _) => pack_singles(x, out),
                    (Packing::Pairs, Rounding::Nearest) => round_to_pairs(simd, x, out),
                    (Packing::Pairs, Rounding::Exact) => {
                        assert!(pack_pairs(simd, x, out), "a quantized input is e4m3 values");
                    }
                }
            }
        });
    }
}

fn multiply(exec: &CpuExec, x: Packed<'_>, part: Part<'_>) {
    let Part { x_scales, weights, out } = part;
    let (simd, matrix) = (exec.simd(), &weights.matrix);
    let n_tokens = x.n_rows();
    let is_many = n_tokens >= N_TOKENS_MANY;
    let work = matrix.n_bytes().max(n_tokens * out.n_cols() * matrix.n_cols);
    let (tile_rows, tile_cols) = match is_many {
        true => (n_tile_tokens(x), even_rows(exec, out.n_cols(), (PANEL_ROWS_MIN, PANEL_ROWS))),
        false => (N_TOKENS_MANY, DIRECT_ROWS),
    };
    exec.for_each_tile(out, Grid { tile_rows, tile_cols, work }, |tile, scratch| {
        let token_end = tile.row_idx + tile.out.n_rows();
        let product = Product {
            x: x.rows(tile.row_idx, token_end),
            weights: WeightRows { matrix, begin: tile.col_idx, scale: &weights.scale },
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

/// Weight rows of a tile, a multiple of the least: as many as its cache holds, unless threads would
/// then have too little to share.
fn even_rows(exec: &CpuExec, n_rows: usize, (least, most): (usize, usize)) -> usize {
    let n_even = n_rows.div_ceil(N_TILES_PER_THREAD * exec.n_threads());
    n_even.next_multiple_of(least).min(most)
}
