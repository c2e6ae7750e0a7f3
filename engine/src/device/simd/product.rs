//! `x · Wᵀ`: dot products of rows, in tiles of (token, weight row) pairs.
//!
//! Every pair has one vector of partial sums and one chain of multiply-adds through it, whatever
//! the tile's shape and however the columns are cut: that is what makes all shapes agree.

use std::ops::Range;

use weights::{Dtype, Matrix};

use crate::device::{Aligned, HostViewMut};

use super::element::{
    Bf16, Bf16Pairs, E4m3, E4m3Pairs, Element, F16, F32, Factors, Stored, Widened, prefetch,
    widen_blocks,
};
use super::lanes::{Lanes, padded};
use super::packed::{PANEL_BLOCKS, Packed, Packing};

/// Most tokens of a tile of [`by_panels`]: a weight is widened once for all of them.
pub(crate) const PANEL_TOKENS: usize = 96;

/// Most weight rows of a tile of [`by_panels`].
pub(crate) const PANEL_ROWS: usize = 32;

/// How far ahead of its widening a row is asked for.
const N_ROWS_AHEAD: usize = 2;

/// A tile of a product.
pub(crate) struct Product<'a> {
    /// `[T, K]`
    pub(crate) x: Packed<'a>,
    /// `[N_all, K]`
    pub(crate) weights: &'a Matrix,
    /// The tile's first row of `weights`.
    pub(crate) row_begin: usize,
    /// `[T, N]`: sums of widened weights, see [`widened_factor`](super::widened_factor).
    pub(crate) out: HostViewMut<'a>,
}

/// What a thread needs for [`by_panels`].
pub(crate) struct ProductScratch {
    /// `[PANEL_ROWS, PANEL_BLOCKS]` vectors, widened.
    panel: Aligned,
    /// `[PANEL_TOKENS, PANEL_ROWS, 16]`: partial sums of the panels so far.
    sums: Aligned,
}

/// A row of weights as [`chains`] takes it.
#[derive(Clone, Copy)]
pub(super) struct WeightRow<'a, B> {
    /// As many whole blocks as x has.
    blocks: &'a [B],
    /// The one in which x ends.
    last: Option<B>,
    /// Blocks of a row that will be read next, if they are far away.
    ahead: &'a [B],
}

/// A row in blocks of sixteen.
pub(super) type Blocks<'a> = &'a [[f32; 16]];

impl<B> WeightRow<'_, B> {
    const NONE: Self = WeightRow { blocks: &[], last: None, ahead: &[] };
}

impl ProductScratch {
    pub(crate) fn new() -> ProductScratch {
        ProductScratch {
            panel: Aligned::new(PANEL_ROWS * PANEL_BLOCKS * 16),
            sums: Aligned::new(PANEL_TOKENS * PANEL_ROWS * 16),
        }
    }
}

/// Runs `$of` for what the weights and the inputs of `$product` are.
macro_rules! for_element {
    ($product:expr, $of:ident::<$s:ident>($($arg:expr),*)) => {
        match ($product.x.packing(), $product.weights.dtype) {
            (Packing::Pairs, Dtype::F8E4m3) => $of::<$s, E4m3Pairs>($($arg),*),
            (Packing::Pairs, Dtype::Bf16) => $of::<$s, Bf16Pairs>($($arg),*),
            (Packing::Pairs, dtype) => panic!("pairs of {dtype:?}"),
            (Packing::Singles, Dtype::F32) => $of::<$s, F32>($($arg),*),
            (Packing::Singles, Dtype::F16) => $of::<$s, F16>($($arg),*),
            (Packing::Singles, Dtype::Bf16) => $of::<$s, Bf16>($($arg),*),
            (Packing::Singles, Dtype::F8E4m3) => $of::<$s, E4m3>($($arg),*),
        }
    };
}

#[inline(always)]
pub(super) fn direct<S: Lanes>(s: S, product: Product<'_>) {
    for_element!(product, direct_of::<S>(s, product))
}

#[inline(always)]
fn direct_of<S: Lanes, E: Stored>(s: S, mut product: Product<'_>) {
    let n_rows = product.out.n_cols();
    for begin in (0..n_rows).step_by(4) {
        let rows = begin..n_rows.min(begin + 4);
        let mut t = 0;
        while t < product.x.n_rows() {
            let rows = rows.clone();
            // The more tokens, the less often a weight is widened; and as even as they come.
            t += match product.x.n_rows() - t {
                8 | 11.. if S::HAS_MANY_REGISTERS => {
                    direct_rows::<S, E, 8, 2>(s, &mut product, t, rows)
                }
                6 | 9 | 10 if S::HAS_MANY_REGISTERS => {
                    direct_rows::<S, E, 6, 2>(s, &mut product, t, rows)
                }
                4 | 7 if S::HAS_MANY_REGISTERS => {
                    direct_rows::<S, E, 4, 4>(s, &mut product, t, rows)
                }
                3 | 5 if S::HAS_MANY_REGISTERS => {
                    direct_rows::<S, E, 3, 4>(s, &mut product, t, rows)
                }
                2 if S::HAS_MANY_REGISTERS => direct_rows::<S, E, 2, 4>(s, &mut product, t, rows),
                _ => direct_rows::<S, E, 1, 4>(s, &mut product, t, rows),
            };
        }
    }
}

/// Tokens `t..t + M` with weight rows `rows`, `N` at a time; gives back `M`.
#[inline(always)]
fn direct_rows<S: Lanes, E: Stored, const M: usize, const N: usize>(
    s: S,
    product: &mut Product<'_>,
    t: usize,
    mut rows: Range<usize>,
) -> usize {
    while rows.len() >= N {
        direct_tile::<S, E, M, N>(s, product, t, rows.start);
        rows.start += N;
    }
    for n in rows {
        direct_tile::<S, E, M, 1>(s, product, t, n);
    }
    M
}

/// Tokens `t..t + M` with weight rows `n..n + N`.
#[inline(always)]
fn direct_tile<S: Lanes, E: Stored, const M: usize, const N: usize>(
    s: S,
    product: &mut Product<'_>,
    t: usize,
    n: usize,
) {
    let mut rows = [WeightRow::NONE; N];
    for (j, row) in rows.iter_mut().enumerate() {
        let row_idx = product.row_begin + n + j;
        let (blocks, last) = E::blocks(product.weights.row(row_idx));
        // A row is too short for the processor to see where the next ones begin.
        let next_idx = (row_idx + N).min(product.weights.n_rows - 1);
        let (ahead, _) = E::blocks(product.weights.row(next_idx));
        *row = WeightRow { blocks, last, ahead };
    }
    let mut sums = [[s.splat(0.0); N]; M];
    for panel_idx in 0..product.x.n_panels() {
        let begin = panel_idx * PANEL_BLOCKS;
        let n_whole = product.x.panel_width(panel_idx).min(rows[0].blocks.len() - begin);
        let mut x: [(Blocks<'_>, &[f32]); M] = [(&[], &[]); M];
        for (i, x) in x.iter_mut().enumerate() {
            let (blocks, last) = product.x.row(panel_idx, t + i).split_at(n_whole);
            *x = (blocks, last.as_flattened());
        }
        let mut w = rows;
        for w in &mut w {
            w.blocks = &w.blocks[begin..begin + n_whole];
            w.ahead = &w.ahead[begin..begin + n_whole];
            w.last = w.last.filter(|_| !x[0].1.is_empty());
        }
        sums = chains::<S, E, M, N>(s, x, w, sums);
    }
    for (i, sums) in sums.iter().enumerate() {
        write_sums::<S, N>(s, sums, &mut product.out.row_mut(t + i)[n..n + N]);
    }
}

#[inline(always)]
fn write_sums<S: Lanes, const N: usize>(s: S, sums: &[S::V; N], out: &mut [f32]) {
    if N == 1 {
        out[0] = s.sum(sums[0]);
        return;
    }
    let mut four = [s.splat(0.0); 4];
    four[..N].copy_from_slice(sums);
    out.copy_from_slice(&s.sums_of_four(four)[..N]);
}

/// The chains of multiply-adds of `M` rows of x with `N` rows of weights, from `sums` on.
#[inline(always)]
pub(super) fn chains<S: Lanes, E: Element, const M: usize, const N: usize>(
    s: S,
    x: [(Blocks<'_>, &[f32]); M],
    w: [WeightRow<'_, E::Block>; N],
    mut sums: [[S::V; N]; M],
) -> [[S::V; N]; M] {
    let n_blocks = x[0].0.len();
    // Of one length, known to the compiler.
    let mut x_blocks: [Blocks<'_>; M] = [&[]; M];
    for i in 0..M {
        x_blocks[i] = &x[i].0[..n_blocks];
    }
    let (mut w_blocks, mut ahead) = ([[].as_slice(); N], [[].as_slice(); N]);
    for j in 0..N {
        w_blocks[j] = &w[j].blocks[..n_blocks];
        if E::IS_FAR {
            ahead[j] = &w[j].ahead[..n_blocks];
        }
    }
    for block in 0..n_blocks {
        let mut w = [s.splat(0.0); N];
        for j in 0..N {
            w[j] = E::widen(s, &w_blocks[j][block]);
            if E::IS_FAR {
                s.prefetch(&ahead[j][block]);
            }
        }
        for i in 0..M {
            let x = s.load(&x_blocks[i][block]);
            for j in 0..N {
                sums[i][j] = E::Factors::mul_add(s, x, w[j], sums[i][j]);
            }
        }
    }
    for j in 0..N {
        if let Some(last) = &w[j].last {
            let w = E::widen(s, last);
            for i in 0..M {
                let x = s.load(&padded(x[i].1));
                sums[i][j] = E::Factors::mul_add(s, x, w, sums[i][j]);
            }
        }
    }
    sums
}

#[inline(always)]
pub(super) fn by_panels<S: Lanes>(s: S, product: Product<'_>, scratch: &mut ProductScratch) {
    for_element!(product, by_panels_of::<S>(s, product, scratch))
}

#[inline(always)]
fn by_panels_of<S: Lanes, E: Stored>(s: S, mut product: Product<'_>, scratch: &mut ProductScratch) {
    let (n_tokens, n_rows) = (product.out.n_rows(), product.out.n_cols());
    assert!(n_tokens <= PANEL_TOKENS && n_rows <= PANEL_ROWS, "[{n_tokens}, {n_rows}]");
    let (panel, _) = scratch.panel.as_chunks_mut();
    let (sums, _) = scratch.sums.as_chunks_mut();
    let n_panel_bytes = PANEL_BLOCKS * size_of::<E::Block>();
    for panel_idx in 0..product.x.n_panels() {
        let width = product.x.panel_width(panel_idx);
        for (n, row) in panel.chunks_exact_mut(width).take(n_rows).enumerate() {
            // A row's share is too short for the processor to see where the next one begins.
            let ahead = (n + N_ROWS_AHEAD).min(n_rows - 1);
            let [stored, ahead] = [n, ahead].map(|n| {
                let row = &product.weights.row(product.row_begin + n)[panel_idx * n_panel_bytes..];
                &row[..n_panel_bytes.min(row.len())]
            });
            prefetch(s, ahead);
            widen_blocks::<S, E>(s, stored, row);
        }
        let panel = Panel {
            x: product.x,
            panel_idx,
            weights: &panel[..n_rows * width],
            sums: &mut sums[..n_tokens * n_rows],
            out: product.out.reborrow(),
        };
        panel.add::<S, E::Factors>(s);
    }
}

/// A panel of columns of a tile.
struct Panel<'a> {
    x: Packed<'a>,
    panel_idx: usize,
    /// `[N, panel]`, zeroes behind the end of a row.
    weights: Blocks<'a>,
    /// `[T, N]`: of the panels before, unless this is the first.
    sums: &'a mut [[f32; 16]],
    /// `[T, N]`: written with the last panel.
    out: HostViewMut<'a>,
}

impl Panel<'_> {
    #[inline(always)]
    fn add<S: Lanes, F: Factors>(mut self, s: S) {
        let mut t = 0;
        while t < self.x.n_rows() {
            let t_left = self.x.n_rows() - t;
            // Register tiles of 6 by 4 at most; as even as they come.
            let n_even = t_left.div_ceil(t_left.div_ceil(6));
            t += match n_even {
                6 if S::HAS_MANY_REGISTERS => self.add_rows::<S, F, 6, 4>(s, t),
                5 if S::HAS_MANY_REGISTERS => self.add_rows::<S, F, 5, 4>(s, t),
                4 if S::HAS_MANY_REGISTERS => self.add_rows::<S, F, 4, 4>(s, t),
                3 if S::HAS_MANY_REGISTERS => self.add_rows::<S, F, 3, 4>(s, t),
                _ if t_left >= 2 => self.add_rows::<S, F, 2, 2>(s, t),
                _ => self.add_rows::<S, F, 1, 4>(s, t),
            };
        }
    }

    /// Tokens `t..t + M`, `N` weight rows at a time; gives back `M`.
    #[inline(always)]
    fn add_rows<S: Lanes, F: Factors, const M: usize, const N: usize>(
        &mut self,
        s: S,
        t: usize,
    ) -> usize {
        let n_rows = self.out.n_cols();
        let mut n = 0;
        while n + N <= n_rows {
            self.add_tile::<S, F, M, N>(s, t, n);
            n += N;
        }
        while n < n_rows {
            self.add_tile::<S, F, M, 1>(s, t, n);
            n += 1;
        }
        M
    }

    /// Tokens `t..t + M` with weight rows `n..n + N`.
    #[inline(always)]
    fn add_tile<S: Lanes, F: Factors, const M: usize, const N: usize>(
        &mut self,
        s: S,
        t: usize,
        n: usize,
    ) {
        let (n_rows, width) = (self.out.n_cols(), self.x.panel_width(self.panel_idx));
        let mut tile = [[s.splat(0.0); N]; M];
        if self.panel_idx > 0 {
            for (i, tile) in tile.iter_mut().enumerate() {
                for (j, sum) in tile.iter_mut().enumerate() {
                    *sum = s.load(&self.sums[(t + i) * n_rows + n + j]);
                }
            }
        }
        let mut x: [(Blocks<'_>, &[f32]); M] = [(&[], &[]); M];
        for (i, x) in x.iter_mut().enumerate() {
            x.0 = self.x.row(self.panel_idx, t + i);
        }
        let w = widened_rows::<N>(&self.weights[n * width..], width, width);
        let tile = chains::<S, Widened<F>, M, N>(s, x, w, tile);
        let is_last = self.panel_idx + 1 == self.x.n_panels();
        for (i, sums) in tile.iter().enumerate() {
            if is_last {
                write_sums::<S, N>(s, sums, &mut self.out.row_mut(t + i)[n..n + N]);
                continue;
            }
            for (j, sum) in sums.iter().enumerate() {
                s.store(*sum, &mut self.sums[(t + i) * n_rows + n + j]);
            }
        }
    }
}

/// The first `N` widened rows, `stride` blocks each, as [`chains`] takes them. Of x, `n_whole`
/// blocks are whole.
#[inline(always)]
pub(super) fn widened_rows<const N: usize>(
    rows: Blocks<'_>,
    stride: usize,
    n_whole: usize,
) -> [WeightRow<'_, [f32; 16]>; N] {
    let mut w = [WeightRow::NONE; N];
    for j in 0..N {
        let row = &rows[j * stride..(j + 1) * stride];
        w[j] = WeightRow { blocks: &row[..n_whole], last: row.get(n_whole).copied(), ahead: &[] };
    }
    w
}
