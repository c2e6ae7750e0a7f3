//! Products by tiles of sixteen weight rows and sixteen tokens, for processors that multiply those
//! at once. Every level can: the others do it by vectors, bit for bit the same, for tests.
//!
//! Weights are widened into tiles as they are read: for few tokens a little at a time, between one
//! multiplication and the next, so that memory is always being read; for many a panel of columns of
//! all rows at once, which then meets all tokens. Tokens come as tiles too, see [`TokenTiles`].
//!
//! A sum takes 32 columns at a time, from zero on: those of even number are one chain of
//! multiply-adds, those of odd number another, and the sum of the two is added to what was there.
//! So few tokens and many have the same bits, however rows, tokens and columns are cut.

mod multiply;
#[cfg(test)]
pub(super) mod tests;
mod tokens;

use weights::{Dtype, Matrix};

use crate::device::{Aligned, HostViewMut};

use super::element::{Bf16Pairs, E4m3Pairs, Stored};
use super::lanes::Lanes;
use super::product::WeightRows;

pub(super) use multiply::{N_STRIPS, SumTile, TILE, Tiles, VectorTiles, WeightTile};
#[cfg(target_arch = "x86_64")]
pub(super) use multiply::{STEP_COLUMNS, n_steps_of};
pub(super) use tokens::pack_tokens;
pub(crate) use tokens::{Rounding, TokenLayout, TokenTiles};

/// Tokens up to which weights are widened a little at a time.
const N_TOKENS_FEW: usize = 2 * TILE;

/// Most weight rows of a product.
pub(crate) const TILE_ROWS: usize = 128;

/// Most tokens of one: their sums stay in the second-level cache.
pub(crate) const TILE_TOKENS: usize = 512;

/// What weight rows are multiplied at once, and so are best cut in.
pub(crate) const PAIR_ROWS: usize = N_STRIPS * TILE;

/// Steps of a panel: two groups' tokens stay in the first-level cache.
const PANEL_STEPS: usize = 8;

/// Steps that few tokens meet between two reads of weights.
const UNIT_STEPS: usize = 2;

/// Lines of a row between asking for weights and reading them.
const N_LINES_AHEAD: usize = 4;

/// What is fetched at once.
const LINE_BYTES: usize = 64;

/// Sixteen rows of weights, a panel wide.
type Strip = [WeightTile; PANEL_STEPS];

/// Sums of two strips with two groups of tokens, or with one.
type Sums = [SumTile; 2 * N_STRIPS];

/// A tile of an output.
pub(crate) struct TileProduct<'a> {
    /// `[T, K]`
    pub(crate) tokens: TokenTiles<'a>,
    /// `[N, K]` and their scale.
    pub(crate) weights: WeightRows<'a>,
    /// `[T]`: of the inputs.
    pub(crate) x_scales: &'a [f32],
    /// `[T, N]`: sums times the weights' scale, then times the input's.
    pub(crate) out: HostViewMut<'a>,
}

/// What a thread needs.
pub(crate) struct TileScratch {
    /// `[TILE_ROWS / TILE]` of [`Strip`].
    weights: Aligned,
    /// `[TILE_TOKENS / TILE, TILE_ROWS / TILE]` of [`SumTile`].
    sums: Aligned,
}

impl TileScratch {
    pub(crate) fn new() -> TileScratch {
        TileScratch {
            weights: Aligned::new(TILE_ROWS * PANEL_STEPS * TILE),
            sums: Aligned::new(TILE_TOKENS * TILE_ROWS),
        }
    }

    fn parts(&mut self) -> (&mut [Strip], &mut [Sums]) {
        let (rows, _) = self.weights.as_chunks_mut::<TILE>();
        let (sums, _) = self.sums.as_chunks_mut::<TILE>();
        let strips = rows.as_chunks_mut::<TILE>().0.as_chunks_mut().0;
        (strips, sums.as_chunks_mut::<TILE>().0.as_chunks_mut().0)
    }
}

#[inline(always)]
pub(super) fn by_tiles<S: Lanes>(s: S, product: TileProduct<'_>, scratch: &mut TileScratch) {
    match product.weights.matrix.dtype {
        Dtype::F8E4m3 => by_tiles_of::<S, E4m3Pairs>(s, product, scratch),
        Dtype::Bf16 => by_tiles_of::<S, Bf16Pairs>(s, product, scratch),
        dtype => panic!("tiles of {dtype:?}"),
    }
}

#[inline(always)]
fn by_tiles_of<S: Lanes, E: Stored>(s: S, product: TileProduct<'_>, scratch: &mut TileScratch) {
    let (n_tokens, n_rows) = (product.out.n_rows(), product.out.n_cols());
    assert_eq!((n_tokens, n_tokens), (product.tokens.n_tokens(), product.x_scales.len()), "[T]");
    assert!(n_tokens <= TILE_TOKENS && n_rows <= TILE_ROWS, "[{n_tokens}, {n_rows}]");
    // The layout of tiles is the thread's until the product is done.
    let tiles = s.tiles(product.tokens.group_width());
    let (strips, sums) = scratch.parts();
    match n_tokens {
        ..=N_TOKENS_FEW => few::<S, E>(s, &tiles, product, strips, &mut sums[0]),
        _ => many::<S, E>(s, &tiles, product, strips, sums),
    }
}

/// Rows that are multiplied at once. Beyond the last one stands that again, for nobody.
#[derive(Clone, Copy)]
struct Rows<'a> {
    matrix: &'a Matrix,
    begin: usize,
    n_rows: usize,
}

impl<'a> Rows<'a> {
    /// Up to [`PAIR_ROWS`] from `begin` on.
    fn new(matrix: &'a Matrix, begin: usize, end: usize) -> Rows<'a> {
        Rows { matrix, begin, n_rows: PAIR_ROWS.min(end - begin) }
    }

    /// Columns that come as whole blocks.
    fn n_whole<E: Stored>(&self) -> usize {
        self.matrix.n_cols * self.matrix.dtype.n_bytes() / size_of::<E::Block>()
    }

    /// Widens blocks `step..step + n_steps`, of which those behind the row's end are zero.
    #[inline(always)]
    fn widen<S: Lanes, E: Stored>(
        &self,
        s: S,
        (step, n_steps): (usize, usize),
        strips: &mut [Strip; N_STRIPS],
    ) {
        let begin = step * size_of::<E::Block>();
        for row_idx in 0..PAIR_ROWS {
            let row = self.matrix.row(self.begin + row_idx.min(self.n_rows - 1));
            let end = row.len().min(begin + n_steps * size_of::<E::Block>());
            let (blocks, last) = E::blocks(&row[begin.min(end)..end]);
            let (twos, one) = blocks.as_chunks::<2>();
            let strip = &mut strips[row_idx / TILE];
            for (i, two) in twos.iter().enumerate() {
                let [a, b] = E::widen_two(s, two);
                s.store(a, &mut strip[2 * i][row_idx % TILE]);
                s.store(b, &mut strip[2 * i + 1][row_idx % TILE]);
            }
            for (i, block) in one.iter().chain(&last).enumerate() {
                s.store(E::widen(s, block), &mut strip[2 * twos.len() + i][row_idx % TILE]);
            }
        }
    }

    /// Widens a unit of whole blocks, and asks for what is `n_ahead` further on in each row, or in
    /// the rows after these where the row ends before.
    #[inline(always)]
    fn widen_unit<S: Lanes, E: Stored>(
        &self,
        s: S,
        (step, n_ahead): (usize, usize),
        strips: &mut [Strip; N_STRIPS],
    ) {
        let Matrix { row_stride, offset, .. } = *self.matrix;
        let rows = &self.matrix.bytes.as_slice()[offset + self.begin * row_stride..];
        let n_unit = UNIT_STEPS * size_of::<E::Block>();
        let begin = step * size_of::<E::Block>();
        // Two lines of a row side by side come sooner than one and one.
        let asks = begin.is_multiple_of(2 * LINE_BYTES);
        let n_row_bytes = self.n_whole::<E>() * size_of::<E::Block>();
        let ahead = match begin + n_ahead < n_row_bytes {
            true => rows.as_ptr().wrapping_add(begin + n_ahead),
            false => {
                let after = rows.as_ptr().wrapping_add(PAIR_ROWS * row_stride);
                after.wrapping_add(begin + n_ahead - n_row_bytes)
            }
        };
        for (strip_idx, strip) in strips.iter_mut().enumerate() {
            let [first, second, ..] = strip;
            for (i, (first, second)) in first.iter_mut().zip(second).enumerate() {
                let row_begin = (strip_idx * TILE + i).min(self.n_rows - 1) * row_stride;
                if asks {
                    s.prefetch_at(ahead.wrapping_add(row_begin));
                    s.prefetch_at(ahead.wrapping_add(row_begin + LINE_BYTES));
                }
                let (blocks, _) = E::blocks(&rows[row_begin + begin..][..n_unit]);
                let unit = blocks.first_chunk().expect("a unit of whole blocks");
                let [a, b] = E::widen_two(s, unit);
                s.store(a, first);
                s.store(b, second);
            }
        }
    }
}

/// All of a product with one group of tokens or two.
#[inline(always)]
fn few<S: Lanes, E: Stored>(
    s: S,
    tiles: &S::Tiles,
    mut product: TileProduct<'_>,
    strips: &mut [Strip],
    sums: &mut Sums,
) {
    let WeightRows { matrix, begin, .. } = product.weights;
    let (n_rows, n_steps) = (product.out.n_cols(), product.tokens.n_steps());
    let (strips, _) = strips.split_first_chunk_mut().expect("two strips");
    for n in (0..n_rows).step_by(PAIR_ROWS) {
        *sums = [[[0.0; TILE]; TILE]; 2 * N_STRIPS];
        let rows = Rows::new(matrix, begin + n, begin + n_rows);
        let n_whole = rows.n_whole::<E>();
        for step in (0..n_steps).step_by(UNIT_STEPS) {
            let n_unit = UNIT_STEPS.min(n_steps - step);
            if step + UNIT_STEPS <= n_whole {
                rows.widen_unit::<S, E>(s, (step, N_LINES_AHEAD * LINE_BYTES), strips);
            } else {
                rows.widen::<S, E>(s, (step, n_unit), strips);
            }
            add(tiles, strips, (step, n_unit), (product.tokens, 0), sums);
        }
        write(s, &mut product, (n, 0), sums);
    }
}

/// All of a product with many groups of tokens.
#[inline(always)]
fn many<S: Lanes, E: Stored>(
    s: S,
    tiles: &S::Tiles,
    mut product: TileProduct<'_>,
    strips: &mut [Strip],
    sums: &mut [Sums],
) {
    let WeightRows { matrix, begin, .. } = product.weights;
    let (n_rows, n_steps) = (product.out.n_cols(), product.tokens.n_steps());
    let n_pairs = n_rows.div_ceil(PAIR_ROWS);
    let sums = &mut sums[..n_pairs * product.tokens.n_groups().div_ceil(2)];
    let (strips, _) = strips.as_chunks_mut::<N_STRIPS>();
    let strips = &mut strips[..n_pairs];
    sums.fill([[[0.0; TILE]; TILE]; 2 * N_STRIPS]);
    for step in (0..n_steps).step_by(PANEL_STEPS) {
        let n_panel = PANEL_STEPS.min(n_steps - step);
        for (pair_idx, strips) in strips.iter_mut().enumerate() {
            let rows = Rows::new(matrix, begin + pair_idx * PAIR_ROWS, begin + n_rows);
            rows.widen::<S, E>(s, (step, n_panel), strips);
        }
        let is_last = step + n_panel == n_steps;
        let mut ahead = Ahead::new::<E>(&product, step + n_panel, sums.len());
        for (i, sums) in sums.iter_mut().enumerate() {
            let (group_idx, pair_idx) = (i / n_pairs * 2, i % n_pairs);
            let (n, t) = (pair_idx * PAIR_ROWS, group_idx * TILE);
            ahead.fetch(s);
            if is_last {
                prefetch_out(s, &mut product, (n, t));
            }
            let tokens = (product.tokens, group_idx);
            add(tiles, &strips[pair_idx], (step, n_panel), tokens, sums);
            if is_last {
                write(s, &mut product, (n, t), sums);
            }
        }
    }
}

/// Asks for the lines that two strips and two groups are written to, while these are multiplied.
#[inline(always)]
fn prefetch_out<S: Lanes>(s: S, product: &mut TileProduct<'_>, (n, t): (usize, usize)) {
    for t in t..product.out.n_rows().min(t + 2 * TILE) {
        for line in product.out.row_mut(t)[n..].chunks(LINE_BYTES / size_of::<f32>()).take(N_STRIPS)
        {
            s.prefetch(&line[0]);
        }
    }
}

/// Adds what two strips give with one or two groups of tokens, from `group_idx` on.
#[inline(always)]
fn add<T: Tiles>(
    tiles: &T,
    strips: &[Strip; N_STRIPS],
    (step, n_steps): (usize, usize),
    (tokens, group_idx): (TokenTiles<'_>, usize),
    sums: &mut Sums,
) {
    let weights = [&strips[0][..n_steps], &strips[1][..n_steps]];
    let group = tokens.group(group_idx, (step, n_steps));
    if group_idx + 1 < tokens.n_groups() {
        let next = tokens.group(group_idx + 1, (step, n_steps));
        tiles.add_two(weights, [group, next], sums);
    } else {
        let (sums, _) = sums.split_first_chunk_mut().expect("sums of two strips");
        tiles.add_one(weights, group, sums);
    }
}

/// Writes the outputs of two strips and one or two groups, scaled: `n` is their first row, `t`
/// their first token.
#[inline(always)]
fn write<S: Lanes>(s: S, product: &mut TileProduct<'_>, (n, t): (usize, usize), sums: &Sums) {
    let (n_tokens, n_rows) = (product.out.n_rows(), product.out.n_cols());
    let n_groups = if n_tokens - t > TILE { 2 } else { 1 };
    for (i, sums) in sums[..N_STRIPS * n_groups].iter().enumerate() {
        let (n, t) = (n + i / n_groups * TILE, t + i % n_groups * TILE);
        if n >= n_rows {
            continue;
        }
        let factors = product.weights.factors::<TILE>(n);
        let mut v = [s.splat(0.0); TILE];
        for row_idx in 0..TILE {
            v[row_idx] = s.mul(s.load(&sums[row_idx]), s.splat(factors[row_idx]));
        }
        let v = s.transposed(v);
        for (v, t) in v.into_iter().zip(t..n_tokens) {
            let outputs = s.mul(v, s.splat(product.x_scales[t]));
            let out = &mut product.out.row_mut(t)[n..];
            if let Some((out, _)) = out.split_first_chunk_mut() {
                s.store(outputs, out);
            } else {
                let mut last = [0.0; TILE];
                s.store(outputs, &mut last);
                out.copy_from_slice(&last[..out.len()]);
            }
        }
    }
}

/// The rows' next panel, or the first one of the rows that a thread takes next: asked for in as
/// many parts as there are multiplications meanwhile.
struct Ahead<'a> {
    weights: &'a Matrix,
    row_idx: usize,
    row_end: usize,
    n_rows_at_once: usize,
    begin_byte: usize,
    n_bytes: usize,
}

impl<'a> Ahead<'a> {
    fn new<E: Stored>(product: &TileProduct<'a>, step: usize, n_parts: usize) -> Ahead<'a> {
        let WeightRows { matrix, begin, .. } = product.weights;
        let n_rows = product.out.n_cols();
        let is_last = step >= product.tokens.n_steps();
        let (begin, step) = if is_last { (begin + n_rows, 0) } else { (begin, step) };
        Ahead {
            weights: matrix,
            row_idx: begin,
            row_end: matrix.n_rows.min(begin + n_rows),
            n_rows_at_once: n_rows.div_ceil(n_parts),
            begin_byte: step * size_of::<E::Block>(),
            n_bytes: PANEL_STEPS * size_of::<E::Block>(),
        }
    }

    #[inline(always)]
    fn fetch<S: Lanes>(&mut self, s: S) {
        let end = self.row_end.min(self.row_idx + self.n_rows_at_once);
        while self.row_idx < end {
            let row = &self.weights.row(self.row_idx)[self.begin_byte..];
            for line in row[..self.n_bytes.min(row.len())].as_chunks::<LINE_BYTES>().0 {
                s.prefetch(line);
            }
            self.row_idx += 1;
        }
    }
}
