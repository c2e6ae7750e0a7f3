//! Few tokens read weights as they are stored; many share weights widened once.

use weights::{LinearWeights, WeightScale};

use crate::device::simd::{
    PANEL_ROWS, PANEL_TOKENS, Product, direct_product, panel_product, widened_factor,
};
use crate::device::{CpuExec, Grid, HostView, HostViewMut, Tile};

use super::Args;

/// From this many tokens on, widening weights once pays for writing them down.
const N_TOKENS_MANY: usize = 16;

/// Weight rows of a tile for few tokens: long enough to stream, short enough to share out.
const DIRECT_ROWS: usize = 64;

pub(super) fn linear(exec: &CpuExec, args: Args<'_>) {
    let Args { x, x_scales, weights, out } = args;
    let (x, x_scales, mut out) = (x.host(), x_scales.host(), out.host());
    let mut begin = 0;
    for part in &weights.parts {
        let end = begin + part.matrix.n_rows;
        let out = out.reborrow().columns(begin..end);
        project(exec, Part { x, x_scales, weights: part, out });
        begin = end;
    }
}

/// One part of a projection, with its own columns of the output.
struct Part<'a> {
    x: HostView<'a>,
    x_scales: &'a [f32],
    weights: &'a LinearWeights,
    out: HostViewMut<'a>,
}

fn project(exec: &CpuExec, part: Part<'_>) {
    let Part { x, x_scales, weights, out } = part;
    let simd = exec.simd();
    let n_tokens = x.n_rows();
    let is_many = n_tokens >= N_TOKENS_MANY;
    let n_products = n_tokens * out.n_cols() * x.n_cols();
    let work = weights.matrix.n_bytes().max(n_products);
    let grid = if is_many {
        Grid { tile_rows: token_tile(n_tokens), tile_cols: PANEL_ROWS, work }
    } else {
        Grid { tile_rows: N_TOKENS_MANY, tile_cols: DIRECT_ROWS, work }
    };
    exec.for_each_tile(out, grid, |mut tile, scratch| {
        let token_end = tile.row_idx + tile.out.n_rows();
        let product = Product {
            x: x.rows(tile.row_idx..token_end),
            weights: &weights.matrix,
            row_begin: tile.col_idx,
            out: tile.out.reborrow(),
        };
        if is_many {
            panel_product(simd, product, &mut scratch.product);
        } else {
            direct_product(simd, product);
        }
        scale(tile, weights, x_scales);
    });
}

/// Tokens of a tile: as even as they come, in whole register tiles.
fn token_tile(n_tokens: usize) -> usize {
    let n_tiles = n_tokens.div_ceil(PANEL_TOKENS);
    n_tokens.div_ceil(n_tiles).next_multiple_of(6).min(PANEL_TOKENS)
}

/// `((sum · weight_scale) · x_scale)`: the power of two that widening left out is exact wherever it
/// goes, and goes with the weight's scale.
fn scale(mut tile: Tile<'_>, weights: &LinearWeights, x_scales: &[f32]) {
    let factor = widened_factor(weights.matrix.dtype);
    for t in 0..tile.out.n_rows() {
        let x_scale = x_scales[tile.row_idx + t];
        let row = tile.out.row_mut(t);
        match &weights.scale {
            WeightScale::One => row.iter_mut().for_each(|y| *y = *y * factor * x_scale),
            WeightScale::PerTensor(scale) => {
                row.iter_mut().for_each(|y| *y = *y * (factor * scale) * x_scale);
            }
            WeightScale::PerRow(scales) => {
                for (y, scale) in row.iter_mut().zip(&scales[tile.col_idx..]) {
                    *y = *y * (factor * scale) * x_scale;
                }
            }
        }
    }
}
