//! Products with weights that were packed for tiles.

use weights::LinearWeights;

use crate::device::simd::{
    N_PAIRS_MAX, Rounding, TILE_TOKENS, TileProduct, TileRows, TileWeights, TokenLayout,
    TokenTiles, pack_tokens, tile_product,
};
use crate::device::{CpuExec, Grid, HostView, HostViewMut};

use super::{N_TOKENS_MANY, even_rows};

/// Multiply-adds that tiles do while one is done without.
const TILE_GAIN: usize = 8;

/// Most pairs of strips of a tile for few tokens: long enough to stream, short enough to share out.
const N_PAIRS_FEW: usize = 2;

/// Parts that share an input.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// `[T, K]`
    pub(super) x: HostView<'a>,
    /// `[T]`
    pub(super) x_scales: &'a [f32],
    /// In the order of the output's columns.
    pub(super) parts: &'a [LinearWeights],
    /// The same, packed: part by part, or both that are gated.
    pub(super) tiles: &'a [TileWeights],
    /// Quantizes gated outputs by this.
    pub(super) out_scale: Option<f32>,
}

impl Product<'_> {
    pub(super) fn run(self, exec: &CpuExec, rounding: Rounding, mut out: HostViewMut<'_>) {
        let Product { x, parts, tiles, .. } = self;
        let layout = TokenLayout::new(x.n_rows(), x.n_cols());
        let mut memory = exec.packed(layout.n_floats());
        pack(exec, x, (layout, rounding), &mut memory);
        let tokens = TokenTiles::new(layout, &memory);
        let most_pairs = if x.n_rows() < N_TOKENS_MANY { N_PAIRS_FEW } else { N_PAIRS_MAX };
        let n_even = |n_outputs| {
            let n_pair_outputs = tiles[0].n_pair_outputs();
            even_rows(exec, n_outputs, (n_pair_outputs, most_pairs * n_pair_outputs))
        };
        let n_rows = n_even(out.n_cols());
        // Threads meet after all parts, if no tile is of two.
        if tiles.iter().rev().skip(1).all(|tiles| tiles.n_outputs().is_multiple_of(n_rows)) {
            return self.run_at_once(exec, (tokens, n_rows), out);
        }
        let mut begin = 0;
        for (parts, tiles) in parts.chunks(1).zip(tiles.chunks(1)) {
            let end = begin + tiles[0].n_outputs();
            let out = out.reborrow().columns(begin..end);
            let part = Product { parts, tiles, ..self };
            part.run_at_once(exec, (tokens, n_even(end - begin)), out);
            begin = end;
        }
    }

    /// In tiles of `n_rows` outputs.
    fn run_at_once(
        self,
        exec: &CpuExec,
        (tokens, n_rows): (TokenTiles<'_>, usize),
        out: HostViewMut<'_>,
    ) {
        let n_operations = out.n_rows() * out.n_cols() * self.x.n_cols();
        let n_bytes = self.tiles.iter().map(TileWeights::n_bytes).sum::<usize>();
        let work = n_bytes.max(n_operations / TILE_GAIN);
        let grid = Grid { tile_rows: TILE_TOKENS, tile_cols: n_rows, work };
        exec.for_each_tile(out, grid, |tile, scratch| {
            let rows = tile.row_idx..tile.row_idx + tile.out.n_rows();
            let product = TileProduct {
                x: self.x.rows(rows.clone()),
                tokens: tokens.tokens(rows.start, rows.end),
                weights: self.rows_from(tile.col_idx),
                x_scales: &self.x_scales[rows],
                out_scale: self.out_scale,
                out: tile.out,
            };
            tile_product(exec.simd(), product, &mut scratch.tiles);
        });
    }

    /// What gives output `col_idx` and those after it.
    fn rows_from(&self, col_idx: usize) -> TileRows<'_> {
        let mut begin = col_idx;
        for (part_idx, weights) in self.tiles.iter().enumerate() {
            if begin < weights.n_outputs() {
                let last_idx = if weights.is_gated() { part_idx + 1 } else { part_idx };
                let scales = [part_idx, last_idx].map(|part_idx| &self.parts[part_idx].scale);
                return TileRows { weights, begin, scales };
            }
            begin -= weights.n_outputs();
        }
        panic!("output {col_idx} of no part")
    }
}

/// Packs all of `x` as tiles of tokens.
fn pack(
    exec: &CpuExec,
    x: HostView<'_>,
    (layout, rounding): (TokenLayout, Rounding),
    memory: &mut [f32],
) {
    let ((n_panels, n_panel_floats), n_floats) = (layout.shape(), layout.n_piece_floats());
    let (n_tokens, n_cols) = TokenLayout::PIECE;
    let out = HostViewMut::new(memory, n_panels, n_panel_floats);
    let grid = Grid { tile_rows: 1, tile_cols: n_floats.max(1), work: x.n_rows() * x.n_cols() };
    exec.for_each_tile(out, grid, |mut tile, _| {
        let (t, k) = (tile.col_idx / n_floats * n_tokens, tile.row_idx * n_cols);
        let x = x.rows(t..x.n_rows().min(t + n_tokens)).columns(k..x.n_cols().min(k + n_cols));
        let how = (rounding, layout.group_width());
        let is_exact = pack_tokens(exec.simd(), x, how, tile.out.row_mut(0));
        assert!(is_exact, "a quantized input is e4m3 values");
    });
}
