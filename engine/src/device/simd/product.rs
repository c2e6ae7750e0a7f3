//! `x · Wᵀ`: dot products of rows, in tiles of (token, weight row) pairs.
//!
//! Every pair has one vector of partial sums and one chain of multiply-adds through it, whatever
//! the tile's shape and however the columns are cut: that is what makes all shapes agree.

use weights::{Dtype, Matrix};

use crate::device::{Aligned, HostView, HostViewMut};

use super::element::{Bf16, E4m3, Element, F16, F32, Stored, Widened, prefetch, widen};
use super::lanes::{Lanes, padded};

/// Most tokens of a tile of [`by_panels`]: a weight is widened once for all of them.
pub(crate) const PANEL_TOKENS: usize = 96;

/// Most weight rows of a tile of [`by_panels`].
pub(crate) const PANEL_ROWS: usize = 32;

/// Columns that are widened at once: a few rows of them stay in the first-level cache.
const PANEL_COLS: usize = 1024;

/// How far ahead of its widening a row is asked for.
const N_ROWS_AHEAD: usize = 2;

/// A tile of a product.
pub(crate) struct Product<'a> {
    /// `[T, K]`
    pub(crate) x: HostView<'a>,
    /// `[N_all, K]`
    pub(crate) weights: &'a Matrix,
    /// The tile's first row of `weights`.
    pub(crate) row_begin: usize,
    /// `[T, N]`: sums of widened weights, see [`widened_factor`](super::widened_factor).
    pub(crate) out: HostViewMut<'a>,
}

/// What a thread needs for [`by_panels`].
pub(crate) struct ProductScratch {
    /// `[PANEL_ROWS, PANEL_COLS]`, widened.
    panel: Aligned,
    /// `[PANEL_TOKENS, PANEL_ROWS, 16]`: partial sums of the columns so far.
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
            panel: Aligned::new(PANEL_ROWS * PANEL_COLS),
            sums: Aligned::new(PANEL_TOKENS * PANEL_ROWS * 16),
        }
    }
}

#[inline(always)]
pub(super) fn direct<S: Lanes>(s: S, product: Product<'_>) {
    match product.weights.dtype {
        Dtype::F32 => direct_of::<S, F32>(s, product),
        Dtype::F16 => direct_of::<S, F16>(s, product),
        Dtype::Bf16 => direct_of::<S, Bf16>(s, product),
        Dtype::F8E4m3 => direct_of::<S, E4m3>(s, product),
    }
}

#[inline(always)]
fn direct_of<S: Lanes, E: Stored>(s: S, mut product: Product<'_>) {
    let mut n = 0;
    while n < product.out.n_cols() {
        let n_left = product.out.n_cols() - n;
        let mut t = 0;
        while t < product.x.n_rows() {
            let t_left = product.x.n_rows() - t;
            let is_wide = S::HAS_MANY_REGISTERS;
            t += match (t_left, n_left) {
                (4.., 4..) if is_wide => direct_tile::<S, E, 4, 4>(s, &mut product, t, n),
                (2.., 4..) if is_wide => direct_tile::<S, E, 2, 4>(s, &mut product, t, n),
                (_, 4..) => direct_tile::<S, E, 1, 4>(s, &mut product, t, n),
                (2.., _) => direct_tile::<S, E, 2, 1>(s, &mut product, t, n),
                _ => direct_tile::<S, E, 1, 1>(s, &mut product, t, n),
            };
        }
        n += if n_left >= 4 { 4 } else { 1 };
    }
}

/// Tokens `t..t + M` with weight rows `n..n + N`; gives back `M`.
#[inline(always)]
fn direct_tile<S: Lanes, E: Stored, const M: usize, const N: usize>(
    s: S,
    product: &mut Product<'_>,
    t: usize,
    n: usize,
) -> usize {
    let mut x: [(Blocks<'_>, &[f32]); M] = [(&[], &[]); M];
    for (i, x) in x.iter_mut().enumerate() {
        *x = product.x.row(t + i).as_chunks();
    }
    let mut w = [WeightRow::NONE; N];
    for (j, w) in w.iter_mut().enumerate() {
        let row_idx = product.row_begin + n + j;
        let (blocks, last) = E::blocks(product.weights.row(row_idx));
        // A row is too short for the processor to see where the next ones begin.
        let next_idx = (row_idx + N).min(product.weights.n_rows - 1);
        let (ahead, _) = E::blocks(product.weights.row(next_idx));
        *w = WeightRow { blocks, last, ahead };
    }
    let sums = chains::<S, E, M, N>(s, x, w, [[s.splat(0.0); N]; M]);
    for (i, sums) in sums.iter().enumerate() {
        let out = &mut product.out.row_mut(t + i)[n..n + N];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = s.sum(*sum);
        }
    }
    M
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
                sums[i][j] = s.mul_add(x, w[j], sums[i][j]);
            }
        }
    }
    for j in 0..N {
        if let Some(last) = &w[j].last {
            let w = E::widen(s, last);
            for i in 0..M {
                sums[i][j] = s.mul_add(s.load(&padded(x[i].1)), w, sums[i][j]);
            }
        }
    }
    sums
}

#[inline(always)]
pub(super) fn by_panels<S: Lanes>(s: S, mut product: Product<'_>, scratch: &mut ProductScratch) {
    let (n_tokens, n_rows) = (product.out.n_rows(), product.out.n_cols());
    assert!(n_tokens <= PANEL_TOKENS && n_rows <= PANEL_ROWS, "[{n_tokens}, {n_rows}]");
    let n_cols = product.weights.n_cols;
    let ProductScratch { panel, sums } = scratch;
    let sums = &mut sums.as_chunks_mut().0[..n_tokens * n_rows];
    sums.fill([0.0; 16]);
    for col_idx in (0..n_cols).step_by(PANEL_COLS) {
        let cols = col_idx..n_cols.min(col_idx + PANEL_COLS);
        let stride = cols.len().next_multiple_of(16);
        let n_bytes = product.weights.dtype.n_bytes();
        let bytes = cols.start * n_bytes..cols.end * n_bytes;
        let stored = |n: usize| &product.weights.row(product.row_begin + n)[bytes.clone()];
        for (n, row) in panel.chunks_exact_mut(stride).take(n_rows).enumerate() {
            // A row's share is too short for the processor to see where the next one begins.
            prefetch(s, stored((n + N_ROWS_AHEAD).min(n_rows - 1)));
            row[cols.len()..].fill(0.0);
            widen(s, product.weights.dtype, stored(n), &mut row[..cols.len()]);
        }
        let (panel, _) = panel[..n_rows * stride].as_chunks();
        add_panel(s, product.x.columns(cols), panel, sums);
    }
    for (t, sums) in sums.chunks_exact(n_rows).enumerate() {
        for (out, sum) in product.out.row_mut(t).iter_mut().zip(sums) {
            *out = s.sum(s.load(sum));
        }
    }
}

/// Adds the products of `x` `[T, K]` with the rows of `panel` `[N, K]` (zeroes up to whole blocks)
/// to `sums` `[T, N]`.
#[inline(always)]
fn add_panel<S: Lanes>(s: S, x: HostView<'_>, panel: Blocks<'_>, sums: &mut [[f32; 16]]) {
    let n_rows = sums.len() / x.n_rows();
    let mut t = 0;
    while t < x.n_rows() {
        let t_left = x.n_rows() - t;
        let is_wide = S::HAS_MANY_REGISTERS;
        let sums = &mut sums[t * n_rows..];
        t += match t_left {
            // Seven and eight are better halved than cut to six and a rest.
            6 | 9.. if is_wide => add_rows::<S, 6, 4>(s, x.rows(t..t + 6), panel, sums),
            4.. if is_wide => add_rows::<S, 4, 4>(s, x.rows(t..t + 4), panel, sums),
            2.. if is_wide => add_rows::<S, 2, 4>(s, x.rows(t..t + 2), panel, sums),
            2.. => add_rows::<S, 2, 2>(s, x.rows(t..t + 2), panel, sums),
            _ => add_rows::<S, 1, 4>(s, x.rows(t..t + 1), panel, sums),
        };
    }
}

/// The first `M` rows of `sums`, `N` columns at a time; gives back `M`.
#[inline(always)]
fn add_rows<S: Lanes, const M: usize, const N: usize>(
    s: S,
    x: HostView<'_>,
    panel: Blocks<'_>,
    sums: &mut [[f32; 16]],
) -> usize {
    let stride = x.n_cols().div_ceil(16);
    let n_rows = panel.len() / stride;
    let mut rows: [(Blocks<'_>, &[f32]); M] = [(&[], &[]); M];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = x.row(i).as_chunks();
    }
    let mut n = 0;
    while n < n_rows {
        let panel = &panel[n * stride..];
        if n + N <= n_rows {
            add_tile::<S, M, N>(s, rows, (panel, stride), &mut sums[n..], n_rows);
            n += N;
        } else {
            add_tile::<S, M, 1>(s, rows, (panel, stride), &mut sums[n..], n_rows);
            n += 1;
        }
    }
    M
}

/// `M` rows of x with the first `N` rows of a panel, `stride` blocks each; sums are `n_rows` apart.
#[inline(always)]
fn add_tile<S: Lanes, const M: usize, const N: usize>(
    s: S,
    x: [(Blocks<'_>, &[f32]); M],
    (panel, stride): (Blocks<'_>, usize),
    sums: &mut [[f32; 16]],
    n_rows: usize,
) {
    let mut tile = [[s.splat(0.0); N]; M];
    for i in 0..M {
        for j in 0..N {
            tile[i][j] = s.load(&sums[i * n_rows + j]);
        }
    }
    let w = widened_rows::<N>(panel, stride, x[0].0.len());
    let tile = chains::<S, Widened, M, N>(s, x, w, tile);
    for i in 0..M {
        for j in 0..N {
            s.store(tile[i][j], &mut sums[i * n_rows + j]);
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
