//! Products of many tokens: weights are widened once for all of them.
//!
//! A tile's columns come in panels of which the vectors of a register tile stay in the first-level
//! cache. Of each panel the first tokens meet weights as they are stored and leave them widened,
//! four rows side by side, in memory that stays in the second level; the others read that, one
//! stream for each four rows. Meanwhile the next panel's weights come from main memory.

use weights::{Dtype, Matrix};

use crate::device::Aligned;

use super::element::{Bf16, Bf16Pairs, E4m3, E4m3Pairs, F16, F32, Factors, Stored};
use super::lanes::Lanes;
use super::packed::{PANEL_BLOCKS, Packed, Packing};
use super::product::{Blocks, Product, WeightRows, for_element, tile_sums};

/// Most tokens of a tile whose columns are one panel: enough that widening is next to nothing.
pub(crate) const PANEL_TOKENS: usize = 508;

/// Most tokens of a tile of several panels: their sums stay in the second-level cache meanwhile.
pub(crate) const PANELS_TOKENS: usize = 94;

/// Most weight rows of a tile.
pub(crate) const PANEL_ROWS: usize = 64;

/// Weight rows side by side.
const GROUP: usize = 4;

/// Tokens that meet stored weights, and most tokens of a register tile after them.
const N_FIRST: usize = 4;
const N_MORE: usize = 6;

/// Rows that are asked for beside each register tile: so many that those of sixteen tokens ask for
/// all of the next panel.
const N_AHEAD: usize = 2;

/// What is fetched at once.
type Line = [u8; 64];

/// Four rows' vectors of the same columns, widened.
type Wide = [[f32; 16]; GROUP];

/// What a thread needs.
pub(crate) struct ProductScratch {
    /// `[PANEL_ROWS / GROUP, PANEL_BLOCKS]` of [`Wide`].
    panel: Aligned,
    /// `[PANELS_TOKENS, PANEL_ROWS, 16]`: partial sums of the panels so far.
    sums: Aligned,
}

impl ProductScratch {
    pub(crate) fn new() -> ProductScratch {
        ProductScratch {
            panel: Aligned::new(PANEL_ROWS * PANEL_BLOCKS * 16),
            sums: Aligned::new(PANELS_TOKENS * PANEL_ROWS * 16),
        }
    }
}

/// Most tokens of a tile of these inputs.
pub(crate) fn n_tile_tokens_max(x: Packed<'_>) -> usize {
    if x.n_panels() == 1 { PANEL_TOKENS } else { PANELS_TOKENS }
}

/// Tokens of a tile: as even as they come, in whole register tiles.
pub(crate) fn n_tile_tokens(x: Packed<'_>) -> usize {
    let n_max = n_tile_tokens_max(x);
    let n_even = x.n_rows().div_ceil(x.n_rows().div_ceil(n_max).max(1));
    (n_even.saturating_sub(N_FIRST).next_multiple_of(N_MORE) + N_FIRST).min(n_max)
}

#[inline(always)]
pub(super) fn by_panels<S: Lanes>(s: S, product: Product<'_>, scratch: &mut ProductScratch) {
    for_element!(product, by_panels_of::<S>(s, product, scratch))
}

#[inline(always)]
fn by_panels_of<S: Lanes, E: Stored>(s: S, mut product: Product<'_>, scratch: &mut ProductScratch) {
    let (n_tokens, n_rows) = (product.out.n_rows(), product.out.n_cols());
    let n_max = n_tile_tokens_max(product.x);
    assert!(n_tokens <= n_max && n_rows <= PANEL_ROWS, "[{n_tokens}, {n_rows}]");
    let (wide, _) = scratch.panel.as_chunks_mut::<16>();
    let (wide, _) = wide.as_chunks_mut::<GROUP>();
    let (sums, _) = scratch.sums.as_chunks_mut();
    for panel_idx in 0..product.x.n_panels() {
        let width = product.x.panel_width(panel_idx);
        let panel = Panel {
            panel_idx,
            wide: &mut wide[..n_rows.div_ceil(GROUP) * width],
            sums: &mut sums[..],
            n_rows,
            ahead: Ahead::of::<E>(&product, panel_idx),
            product: Product { out: product.out.reborrow(), ..product },
        };
        panel.add::<S, E>(s);
    }
}

/// Rows of the panel that comes next: of the same rows, or of those that a thread takes next.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    weights: &'a Matrix,
    row_idx: usize,
    row_end: usize,
    begin_byte: usize,
    n_bytes: usize,
}

impl<'a> Ahead<'a> {
    fn of<E: Stored>(product: &Product<'a>, panel_idx: usize) -> Ahead<'a> {
        let (weights, n_rows) = (product.weights.matrix, product.out.n_cols());
        let is_last = panel_idx + 1 == product.x.n_panels();
        let (begin, panel_idx) = match is_last {
            true => (product.weights.begin + n_rows, 0),
            false => (product.weights.begin, panel_idx + 1),
        };
        let n_bytes = PANEL_BLOCKS * size_of::<E::Block>();
        Ahead {
            weights,
            row_idx: begin,
            row_end: weights.n_rows.min(begin + n_rows),
            begin_byte: panel_idx * n_bytes,
            n_bytes,
        }
    }

    /// The next rows' lines; none where all were given.
    #[inline(always)]
    fn lines(&mut self) -> [&'a [Line]; N_AHEAD] {
        let mut lines: [&[Line]; N_AHEAD] = [&[]; N_AHEAD];
        for lines in &mut lines {
            if self.row_idx < self.row_end {
                let row = &self.weights.row(self.row_idx)[self.begin_byte..];
                *lines = row[..self.n_bytes.min(row.len())].as_chunks().0;
                self.row_idx += 1;
            }
        }
        lines
    }
}

/// A panel of columns of a tile.
struct Panel<'a> {
    /// Its output is written with the last panel.
    product: Product<'a>,
    panel_idx: usize,
    /// `[N / GROUP, panel]`
    wide: &'a mut [Wide],
    /// `[T, N / GROUP, GROUP]`: of the panels before, unless this is the first.
    sums: &'a mut [[f32; 16]],
    n_rows: usize,
    ahead: Ahead<'a>,
}

impl<'a> Panel<'a> {
    #[inline(always)]
    fn add<S: Lanes, E: Stored>(mut self, s: S) {
        let n_tokens = self.product.x.n_rows();
        let mut t = match n_tokens {
            N_FIRST.. if S::HAS_MANY_REGISTERS => self.add_stored::<S, E, N_FIRST>(s),
            _ => self.add_stored::<S, E, 1>(s),
        };
        while t < n_tokens {
            let t_left = n_tokens - t;
            // Register tiles as even as they come.
            t += match t_left.div_ceil(t_left.div_ceil(N_MORE)) {
                6 if S::HAS_MANY_REGISTERS => self.add_wide::<S, E::Factors, 6>(s, t),
                5 if S::HAS_MANY_REGISTERS => self.add_wide::<S, E::Factors, 5>(s, t),
                4 if S::HAS_MANY_REGISTERS => self.add_wide::<S, E::Factors, 4>(s, t),
                3 if S::HAS_MANY_REGISTERS => self.add_wide::<S, E::Factors, 3>(s, t),
                _ if t_left >= 2 => self.add_wide::<S, E::Factors, 2>(s, t),
                _ => self.add_wide::<S, E::Factors, 1>(s, t),
            };
        }
    }

    /// The first `M` tokens with all rows, which are left widened; gives back `M`.
    #[inline(always)]
    fn add_stored<S: Lanes, E: Stored, const M: usize>(&mut self, s: S) -> usize {
        let WeightRows { matrix, begin: row_begin, .. } = self.product.weights;
        let width = self.product.x.panel_width(self.panel_idx);
        let x = self.tokens::<M>(0);
        let (begin, is_end) = (self.panel_idx * PANEL_BLOCKS, self.is_last());
        for n in (0..self.n_rows).step_by(GROUP) {
            let mut blocks: [&[E::Block]; GROUP] = [&[]; GROUP];
            let mut last: [Option<E::Block>; GROUP] = [None; GROUP];
            for j in 0..GROUP {
                // Beyond the tile's end stands its last row again, for nobody.
                let row_idx = row_begin + (n + j).min(self.n_rows - 1);
                let (whole, rest) = E::blocks(matrix.row(row_idx));
                (blocks[j], last[j]) = (&whole[begin..whole.len().min(begin + width)], rest);
            }
            let mut tile = self.sums::<S, M>(s, 0, n);
            let wide = &mut self.wide[n / GROUP * width..][..width];
            let n_whole = blocks[0].len();
            tile = stored_tile::<S, E, M>(s, x, blocks, wide, tile);
            if let ([Some(a), Some(b), Some(c), Some(d)], true) = (last, is_end) {
                let mut x_last: [Blocks<'_>; M] = [&[]; M];
                for i in 0..M {
                    x_last[i] = &x[i][n_whole..];
                }
                let last = [&[a][..], &[b], &[c], &[d]];
                tile = stored_tile::<S, E, M>(s, x_last, last, &mut wide[n_whole..], tile);
            }
            self.keep::<S, M>(s, 0, n, tile);
        }
        M
    }

    /// Tokens `t..t + M` with all rows as they were widened; gives back `M`.
    #[inline(always)]
    fn add_wide<S: Lanes, F: Factors, const M: usize>(&mut self, s: S, t: usize) -> usize {
        let width = self.product.x.panel_width(self.panel_idx);
        let x = self.tokens::<M>(t);
        for n in (0..self.n_rows).step_by(GROUP) {
            let ahead = self.ahead.lines();
            let tile = self.sums::<S, M>(s, t, n);
            let wide = &self.wide[n / GROUP * width..][..width];
            let tile = if S::HAS_MANY_REGISTERS {
                wide_tile::<S, F, M, 0, GROUP>(s, x, wide, ahead, tile)
            } else {
                let tile = wide_tile::<S, F, M, 0, 2>(s, x, wide, ahead, tile);
                wide_tile::<S, F, M, 2, 2>(s, x, wide, [&[]; N_AHEAD], tile)
            };
            self.keep::<S, M>(s, t, n, tile);
        }
        M
    }

    #[inline(always)]
    fn tokens<const M: usize>(&self, t: usize) -> [Blocks<'a>; M] {
        let mut x: [Blocks<'_>; M] = [&[]; M];
        for (i, x) in x.iter_mut().enumerate() {
            *x = self.product.x.row(self.panel_idx, t + i);
        }
        x
    }

    #[inline(always)]
    fn is_last(&self) -> bool {
        self.panel_idx + 1 == self.product.x.n_panels()
    }

    /// What the panels before came to.
    #[inline(always)]
    fn sums<S: Lanes, const M: usize>(&self, s: S, t: usize, n: usize) -> [[S::V; GROUP]; M] {
        let mut tile = [[s.splat(0.0); GROUP]; M];
        if self.panel_idx > 0 {
            let stride = self.n_rows.next_multiple_of(GROUP);
            for (i, tile) in tile.iter_mut().enumerate() {
                let sums = &self.sums[(t + i) * stride + n..][..GROUP];
                for (j, sum) in tile.iter_mut().enumerate() {
                    *sum = s.load(&sums[j]);
                }
            }
        }
        tile
    }

    /// Writes results with the last panel, and sums before.
    #[inline(always)]
    fn keep<S: Lanes, const M: usize>(
        &mut self,
        s: S,
        t: usize,
        n: usize,
        tile: [[S::V; GROUP]; M],
    ) {
        if self.is_last() {
            return self.write::<S, M>(s, t, n, &tile);
        }
        let stride = self.n_rows.next_multiple_of(GROUP);
        for (i, tile) in tile.iter().enumerate() {
            let sums = &mut self.sums[(t + i) * stride + n..][..GROUP];
            for (j, sum) in tile.iter().enumerate() {
                s.store(*sum, &mut sums[j]);
            }
        }
    }

    /// Tokens `t..t + M` with rows `n..n + GROUP`, as far as there are such.
    #[inline(always)]
    fn write<S: Lanes, const M: usize>(
        &mut self,
        s: S,
        t: usize,
        n: usize,
        tile: &[[S::V; GROUP]; M],
    ) {
        let n_there = GROUP.min(self.n_rows - n);
        let factors = self.product.weights.factors::<GROUP>(n);
        let x_scales = &self.product.x_scales[t..t + M];
        let sums = tile_sums::<S, M, GROUP>(s, tile);
        for i in 0..M {
            let mut scaled = [0.0; GROUP];
            for j in 0..GROUP {
                scaled[j] = sums[i][j] * factors[j] * x_scales[i];
            }
            let out = &mut self.product.out.row_mut(t + i)[n..n + n_there];
            match <&mut [f32; GROUP]>::try_from(&mut *out) {
                Ok(out) => *out = scaled,
                Err(_) => out.copy_from_slice(&scaled[..n_there]),
            }
        }
    }
}

/// `M` tokens with four rows as they are stored, from `sums` on.
#[inline(always)]
fn stored_tile<S: Lanes, E: Stored, const M: usize>(
    s: S,
    x: [Blocks<'_>; M],
    w: [&[E::Block]; GROUP],
    wide: &mut [Wide],
    mut sums: [[S::V; GROUP]; M],
) -> [[S::V; GROUP]; M] {
    let n_blocks = w[0].len();
    // Of one length, known to the compiler.
    let (mut x_blocks, mut w_blocks) = ([[].as_slice(); M], [[].as_slice(); GROUP]);
    for i in 0..M {
        x_blocks[i] = &x[i][..n_blocks];
    }
    for j in 0..GROUP {
        w_blocks[j] = &w[j][..n_blocks];
    }
    let wide = &mut wide[..n_blocks];
    let n_twos = if E::COME_IN_TWOS && S::HAS_MANY_REGISTERS { n_blocks / 2 } else { 0 };
    for two in 0..n_twos {
        let mut w = [[s.splat(0.0); 2]; GROUP];
        for j in 0..GROUP {
            w[j] = E::widen_two(s, &w_blocks[j].as_chunks().0[two]);
        }
        for half in 0..2 {
            for j in 0..GROUP {
                s.store(w[j][half], &mut wide[2 * two + half][j]);
            }
            for i in 0..M {
                let x = s.load(&x_blocks[i][2 * two + half]);
                for j in 0..GROUP {
                    sums[i][j] = E::Factors::mul_add(s, x, w[j][half], sums[i][j]);
                }
            }
        }
    }
    for block in 2 * n_twos..n_blocks {
        let mut w = [s.splat(0.0); GROUP];
        for j in 0..GROUP {
            w[j] = E::widen(s, &w_blocks[j][block]);
            s.store(w[j], &mut wide[block][j]);
        }
        for i in 0..M {
            let x = s.load(&x_blocks[i][block]);
            for j in 0..GROUP {
                sums[i][j] = E::Factors::mul_add(s, x, w[j], sums[i][j]);
            }
        }
    }
    sums
}

/// `M` tokens with rows `FROM..FROM + N` of four widened ones, from `sums` on.
#[inline(always)]
fn wide_tile<S: Lanes, F: Factors, const M: usize, const FROM: usize, const N: usize>(
    s: S,
    x: [Blocks<'_>; M],
    wide: &[Wide],
    ahead: [&[Line]; N_AHEAD],
    mut sums: [[S::V; GROUP]; M],
) -> [[S::V; GROUP]; M] {
    let n_blocks = wide.len();
    let mut x_blocks = [[].as_slice(); M];
    for i in 0..M {
        x_blocks[i] = &x[i][..n_blocks];
    }
    for block in 0..n_blocks {
        for lines in ahead {
            if let Some(line) = lines.get(block) {
                s.prefetch(line);
            }
        }
        let mut w = [s.splat(0.0); N];
        for j in 0..N {
            w[j] = s.load(&wide[block][FROM + j]);
        }
        for i in 0..M {
            let x = s.load(&x_blocks[i][block]);
            for j in 0..N {
                sums[i][FROM + j] = F::mul_add(s, x, w[j], sums[i][FROM + j]);
            }
        }
    }
    sums
}
