//! `x · Wᵀ`: dot products of rows, in tiles of (token, weight row) pairs. Here for few tokens; for
//! many see [`panels`](super::panels).
//!
//! Every pair has one vector of partial sums and one chain of multiply-adds through it, whatever
//! the tile's shape and however the columns are cut: that is what makes all shapes agree.

use std::ops::Range;

use weights::{Dtype, Matrix, WeightScale};

use crate::device::HostViewMut;

use super::element::{
    Bf16, Bf16Pairs, E4m3, E4m3Pairs, Element, F16, F32, Factors, Stored, widened_factor,
};
use super::lanes::{Lanes, padded};
use super::packed::{PANEL_BLOCKS, Packed, Packing};

/// Weight rows from some one on, with their scale.
#[derive(Clone, Copy)]
pub(crate) struct WeightRows<'a> {
    /// `[N_all, K]`
    pub(crate) matrix: &'a Matrix,
    /// The first row.
    pub(crate) begin: usize,
    /// Of all of the matrix.
    pub(crate) scale: &'a WeightScale,
}

/// A tile of a product.
pub(crate) struct Product<'a> {
    /// `[T, K]`
    pub(crate) x: Packed<'a>,
    /// `[N, K]`
    pub(crate) weights: WeightRows<'a>,
    /// `[T]`: of the inputs.
    pub(crate) x_scales: &'a [f32],
    /// `[T, N]`: sums times the weights' scale, then times the input's.
    pub(crate) out: HostViewMut<'a>,
}

impl WeightRows<'_> {
    /// What sums over rows `n..n + N` are multiplied by; 1 beyond the matrix's end. The power of
    /// two that widening left out is exact wherever it goes, and goes with the scale.
    #[inline(always)]
    pub(super) fn factors<const N: usize>(&self, n: usize) -> [f32; N] {
        row_factors(widened_factor(self.matrix.dtype), self.scale, self.begin + n)
    }
}

/// `factor` times the scales of rows `n..n + N`; 1 beyond the last one.
#[inline(always)]
pub(super) fn row_factors<const N: usize>(factor: f32, scale: &WeightScale, n: usize) -> [f32; N] {
    match scale {
        WeightScale::One => [factor; N],
        WeightScale::PerTensor(scale) => [factor * scale; N],
        WeightScale::PerRow(scales) => {
            let mut factors = [1.0; N];
            for (row, scale) in factors.iter_mut().zip(&scales[n..]) {
                *row = factor * scale;
            }
            factors
        }
    }
}

impl Product<'_> {
    /// Scales what was written as sums. Few tokens have few sums to a row: all at the end takes
    /// less time than each as it comes.
    #[inline(always)]
    fn scale(&mut self) {
        for n in (0..self.out.n_cols()).step_by(16) {
            let factors = self.weights.factors::<16>(n);
            for t in 0..self.out.n_rows() {
                let x_scale = self.x_scales[t];
                for (y, factor) in self.out.row_mut(t)[n..].iter_mut().zip(factors) {
                    *y = *y * factor * x_scale;
                }
            }
        }
    }
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

/// Runs `$of` for what the weights and the inputs of `$product` are.
macro_rules! for_element {
    ($product:expr, $of:ident::<$s:ident>($($arg:expr),*)) => {
        match ($product.x.packing(), $product.weights.matrix.dtype) {
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
pub(super) use for_element;

#[inline(always)]
pub(super) fn direct<S: Lanes>(s: S, product: Product<'_>) {
    for_element!(product, direct_of::<S>(s, product))
}

#[inline(always)]
fn direct_of<S: Lanes, E: Stored>(s: S, mut product: Product<'_>) {
    let n_rows = product.out.n_cols();
    // Eight tokens of one panel stay in the first-level cache. Of several they do not: then four
    // rows share what comes of each from the second, and weights are widened twice.
    let n_tokens_max = if product.x.n_panels() == 1 { 8 } else { 4 };
    for begin in (0..n_rows).step_by(4) {
        let rows = begin..n_rows.min(begin + 4);
        let mut t = 0;
        while t < product.x.n_rows() {
            let rows = rows.clone();
            // The more tokens, the less often a weight is widened; and as even as they come.
            let n_left = product.x.n_rows() - t;
            let n_even = n_left.div_ceil(n_left.div_ceil(n_tokens_max));
            t += match if n_tokens_max == 8 { n_left } else { n_even } {
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
    product.scale();
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
        let row_idx = product.weights.begin + n + j;
        let (blocks, last) = E::blocks(product.weights.matrix.row(row_idx));
        // A row is too short for the processor to see where the next ones begin.
        let next_idx = (row_idx + N).min(product.weights.matrix.n_rows - 1);
        let (ahead, _) = E::blocks(product.weights.matrix.row(next_idx));
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

/// The trees of all vectors of a tile of at most 32.
#[inline(always)]
pub(super) fn tile_sums<S: Lanes, const M: usize, const N: usize>(
    s: S,
    tile: &[[S::V; N]; M],
) -> [[f32; N]; M] {
    assert!(M * N <= 32, "{M} times {N}");
    let mut sums = [[0.0; N]; M];
    if M * N <= 4 {
        let mut four = [s.splat(0.0); 4];
        for k in 0..M * N {
            four[k] = tile[k / N][k % N];
        }
        let four = s.sums_of_four(four);
        for k in 0..M * N {
            sums[k / N][k % N] = four[k];
        }
        return sums;
    }
    sixteen_sums::<S, M, N, 0>(s, tile, &mut sums);
    if M * N > 16 {
        sixteen_sums::<S, M, N, 16>(s, tile, &mut sums);
    }
    sums
}

/// Those of the vectors `FROM..FROM + 16`. Beyond their end stands the last one again, for nobody.
#[inline(always)]
fn sixteen_sums<S: Lanes, const M: usize, const N: usize, const FROM: usize>(
    s: S,
    tile: &[[S::V; N]; M],
    sums: &mut [[f32; N]; M],
) {
    let mut sixteen = [tile[M - 1][N - 1]; 16];
    let mut k = 0;
    while k < 16 {
        let idx = (FROM + k).min(M * N - 1);
        sixteen[k] = tile[idx / N][idx % N];
        k += 1;
    }
    let mut lanes = [0.0; 16];
    s.store(s.sums_of_sixteen(sixteen), &mut lanes);
    for k in 0..16.min(M * N - FROM) {
        sums[(FROM + k) / N][(FROM + k) % N] = lanes[k];
    }
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
    // One token or two wait for memory, which larger steps keep less busy.
    let in_twos = E::COME_IN_TWOS && S::HAS_MANY_REGISTERS && M > 2;
    let n_twos = if in_twos { n_blocks / 2 } else { 0 };
    for two in 0..n_twos {
        let mut w = [[s.splat(0.0); 2]; N];
        for j in 0..N {
            w[j] = E::widen_two(s, &w_blocks[j].as_chunks().0[two]);
            if E::IS_FAR {
                s.prefetch(&ahead[j][2 * two]);
            }
        }
        for half in 0..2 {
            for i in 0..M {
                let x = s.load(&x_blocks[i][2 * two + half]);
                for j in 0..N {
                    sums[i][j] = E::Factors::mul_add(s, x, w[j][half], sums[i][j]);
                }
            }
        }
    }
    for block in 2 * n_twos..n_blocks {
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
