//! The softmax of [`attention`](super::attention) where the processor multiplies tiles of bf16.
//!
//! Keys and values are bf16 as they are stored, or e4m3, which is. Queries and weights are f32, and
//! each is a sum of terms of bf16: three hold all of an f32, one is its rounding. Products of tiles
//! have queries as rows; keys are transposed for the first of them, values for neither.
//!
//! The order is again one of absolute positions: chunks and blocks begin at multiples of their
//! size, and a block's sums go as [`amx`](super::amx) says. What a query does not see weighs zero,
//! and to add that changes no sum. So it makes no difference how a prompt is cut, which blocks a
//! group of queries leaves out, who shares it, or where pages lie.

mod multiply;
mod not_numbers;
mod pack;
mod softmax;
mod vectors;

use std::arch::x86_64::*;
use std::ops::Range;

use weights::Dtype;

use crate::device::{Aligned, Simd};

use super::attention::{HEAD_DIM_MAX, Queries};
use multiply::{Product, QueryTiles, Sums};
use vectors::{load, nearest_neighbours_paired, neighbours_paired, rests, store};

/// Rows of a tile, and floats (or pairs of bf16) of a row.
const TILE: usize = 16;
const TILE_FLOATS: usize = TILE * TILE;

/// Elements of bf16 in a row of a tile: the positions of a block, or the dimensions of a step.
pub(crate) const BLOCK: usize = 2 * TILE;

/// Positions between two looks at the greatest score.
pub(crate) const CHUNK: usize = 4 * BLOCK;
const CHUNK_ROWS: usize = CHUNK / TILE;

/// Most queries of a tile of the output, for heads of up to [`NARROW_HEAD`]: the more, the less
/// often is a key transposed.
const N_QUERIES_MAX: usize = 256;
const NARROW_HEAD: usize = 128;

/// Most terms of a number.
const N_TERMS_MAX: usize = 3;

/// Less than any score, yet a number: so that having seen nothing is no special case.
const LEAST: f32 = -3e38;

/// The magnitude of ∞ in bf16; NaNs are above.
const INFINITE: u16 = 0x7F80;

/// What a thread needs for the queries of one tile.
pub(crate) struct TiledScratch {
    /// `[group, term, step]` tiles.
    queries: Aligned,
    /// Bytes of a block, `[position, 32 * n_steps]`, as they are stored.
    stored_keys: Vec<u8>,
    stored_values: Vec<u8>,
    /// `[position / 16, step]` tiles of a chunk: rows are pairs of dimensions, columns positions.
    keys: Aligned,
    /// `[block, 2 * step]` tiles: rows are pairs of positions i and i + 16, columns dimensions, in
    /// the order of [`interleaved`].
    values: Aligned,
    /// By dimension in that order: positions of the chunk whose values are no numbers.
    not_numbers: Vec<u128>,
    /// `[16, CHUNK]`: of a group.
    scores: Aligned,
    /// `[term, block]` tiles: of a group.
    weights: Aligned,
    /// By query: greatest score so far.
    greatest: Aligned,
    /// By query: sums of exponentials against it, in sixteen parts.
    totals: Aligned,
    /// `[query, 32 * n_steps]`: sums of values weighted by them.
    sums: Aligned,
}

/// Queries of one tile on their way through the positions that they see. Scores and weights are
/// sums of `N_TERMS` terms.
pub(crate) struct TiledAttention<'a, const N_TERMS: usize> {
    queries: Queries<'a>,
    scratch: &'a mut TiledScratch,
    tiles: QueryTiles,
    dtype: Dtype,
    /// Whether `scratch.not_numbers` says anything.
    has_no_number: bool,
}

impl TiledScratch {
    pub(crate) fn new() -> TiledScratch {
        const N_FLOATS: usize = N_QUERIES_MAX * NARROW_HEAD;
        TiledScratch {
            queries: Aligned::new(N_FLOATS / 2 * N_TERMS_MAX),
            stored_keys: vec![0; BLOCK * HEAD_DIM_MAX * size_of::<u16>()],
            stored_values: vec![0; BLOCK * HEAD_DIM_MAX * size_of::<u16>()],
            keys: Aligned::new(CHUNK * HEAD_DIM_MAX / 2),
            values: Aligned::new(CHUNK * HEAD_DIM_MAX / 2),
            not_numbers: vec![0; HEAD_DIM_MAX],
            scores: Aligned::new(TILE * CHUNK),
            weights: Aligned::new(TILE * CHUNK / 2 * N_TERMS_MAX),
            greatest: Aligned::new(N_QUERIES_MAX),
            totals: Aligned::new(N_QUERIES_MAX * TILE),
            sums: Aligned::new(N_FLOATS),
        }
    }
}

/// Most queries (tokens times heads) of a tile with heads of width `head_dim`.
pub(crate) fn n_queries_max(head_dim: usize) -> usize {
    N_QUERIES_MAX * NARROW_HEAD / head_dim.next_multiple_of(BLOCK).max(NARROW_HEAD) / TILE * TILE
}

impl<'a, const N_TERMS: usize> TiledAttention<'a, N_TERMS> {
    /// Queries that have seen nothing yet. `dtype` is that of stored keys and values: BF16 or e4m3.
    pub(crate) fn new(
        simd: Simd,
        queries: Queries<'a>,
        dtype: Dtype,
        scratch: &'a mut TiledScratch,
    ) -> Self {
        assert!(matches!(dtype, Dtype::Bf16 | Dtype::F8E4m3), "tiles of {dtype:?}");
        assert!(matches!(N_TERMS, 1 | N_TERMS_MAX), "{N_TERMS} terms");
        let (n_queries, head_dim) = (queries.q.n_rows() * queries.n_heads(), queries.head_dim);
        let n_max = n_queries_max(head_dim);
        assert!(n_queries <= n_max && head_dim <= HEAD_DIM_MAX, "{n_queries} of {head_dim}");
        let tiles = QueryTiles::new(simd, n_queries.min(TILE));
        let mut this = TiledAttention { queries, scratch, tiles, dtype, has_no_number: false };
        let n_rows = n_queries.next_multiple_of(TILE);
        this.scratch.greatest[..n_rows].fill(LEAST);
        this.scratch.totals[..n_rows * TILE].fill(0.0);
        let width = this.n_steps() * BLOCK;
        if width > head_dim {
            // What lies between heads.
            this.scratch.stored_keys.fill(0);
            this.scratch.stored_values.fill(0);
        }
        this.scratch.sums[..n_rows * width].fill(0.0);
        // SAFETY: a processor with tiles, which `this.tiles` proves, has the instructions.
        unsafe { this.pack_queries() };
        this
    }

    /// Where stored keys and values of `positions`, all of one block, belong: of the first alone
    /// where padding lies between heads.
    pub(crate) fn places(&mut self, positions: Range<usize>) -> (&mut [u8], &mut [u8]) {
        let n_bytes = self.queries.head_dim * self.dtype.n_bytes();
        let n = if n_bytes == self.row_bytes() { positions.len() } else { 1 };
        let begin = positions.start % BLOCK * self.row_bytes();
        let range = begin..begin + n * n_bytes;
        (&mut self.scratch.stored_keys[range.clone()], &mut self.scratch.stored_values[range])
    }

    /// Makes tiles of the block at `base`. At positions that no query sees may lie anything: scores
    /// there are hidden, and weigh zero.
    pub(crate) fn pack(&mut self, base: usize) {
        assert!(base.is_multiple_of(BLOCK), "a block at {base}");
        let block = base % CHUNK / BLOCK;
        // SAFETY: a processor with tiles, which `self.tiles` proves, has the instructions.
        let has_no_number = unsafe {
            match self.dtype {
                Dtype::F8E4m3 if self.n_steps().is_multiple_of(2) => self.pack_codes(block),
                Dtype::F8E4m3 => self.pack_pairs::<{ BLOCK }>(block),
                _ => self.pack_pairs::<{ 2 * BLOCK }>(block),
            }
        };
        if has_no_number {
            self.note_not_numbers(block);
        }
    }

    /// Takes `positions`, all that any query sees of a chunk and packed before, into every softmax.
    pub(crate) fn take(&mut self, positions: Range<usize>) {
        let (n_heads, n_queries) = (self.queries.n_heads(), self.n_queries());
        let base = positions.start / CHUNK * CHUNK;
        for first in (0..n_queries).step_by(TILE) {
            let group = first..n_queries.min(first + TILE);
            let begin = self.queries.visible(group.start / n_heads).start.max(positions.start);
            let end = self.queries.visible((group.end - 1) / n_heads).end.min(positions.end);
            if begin < end {
                let blocks = (begin - base) / BLOCK..(end - base).div_ceil(BLOCK);
                // SAFETY: a processor with tiles, which `self.tiles` proves, has the instructions.
                unsafe { self.take_blocks(group, base, blocks) };
            }
        }
        if self.has_no_number {
            self.spread_not_numbers(base);
            self.scratch.not_numbers.fill(0);
            self.has_no_number = false;
        }
    }

    /// `out = factor * sums / Σ exp` of query `query_idx`.
    pub(crate) fn finish(&self, query_idx: usize, factor: f32, out: &mut [f32]) {
        assert_eq!(out.len(), self.queries.head_dim, "a head");
        // SAFETY: a processor with tiles, which `self.tiles` proves, has the instructions.
        unsafe { self.finish_query(query_idx, factor, out) }
    }

    fn n_queries(&self) -> usize {
        self.queries.q.n_rows() * self.queries.n_heads()
    }

    /// Steps of 32 dimensions, the last filled up with zeroes.
    fn n_steps(&self) -> usize {
        self.queries.head_dim.div_ceil(BLOCK)
    }

    /// Bytes of a stored head and its padding.
    fn row_bytes(&self) -> usize {
        self.n_steps() * BLOCK * self.dtype.n_bytes()
    }

    /// Queries times what makes their scores exponents of 2, in terms, the least first.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    fn pack_queries(&mut self) {
        let Queries { q, head_dim, score_factor, .. } = self.queries;
        let (n_steps, n_heads) = (self.n_steps(), self.queries.n_heads());
        let factor = _mm512_set1_ps(score_factor * std::f32::consts::LOG2_E);
        let (rows, _) = self.scratch.queries.as_chunks_mut::<TILE>();
        for query_idx in 0..q.n_rows() * n_heads {
            let query = &q.row(query_idx / n_heads)[query_idx % n_heads * head_dim..][..head_dim];
            let (group, row) = (query_idx / TILE, query_idx % TILE);
            for (step, part) in query.chunks(BLOCK).enumerate() {
                let mut halves = [[0.0; TILE]; 2];
                halves.as_flattened_mut()[..part.len()].copy_from_slice(part);
                let [low, high] = &halves;
                let mut x = [_mm512_mul_ps(load(low), factor), _mm512_mul_ps(load(high), factor)];
                for term in (0..N_TERMS).rev() {
                    let tile = (group * N_TERMS + term) * n_steps + step;
                    let pairs = match N_TERMS {
                        1 => nearest_neighbours_paired(x),
                        _ => neighbours_paired(x),
                    };
                    store(pairs, &mut rows[tile * TILE + row]);
                    x = rests(x);
                }
            }
        }
    }

    /// Takes the `blocks` of the chunk at `base` that any query of a group of sixteen sees.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    fn take_blocks(&mut self, group: Range<usize>, base: usize, blocks: Range<usize>) {
        let n_steps = self.n_steps();
        let TiledScratch { queries, keys, scores, .. } = &mut *self.scratch;
        let product = Product {
            left: &queries[group.start / TILE * N_TERMS * n_steps * TILE_FLOATS..],
            n_terms: N_TERMS,
            n_steps,
            right: &keys[2 * blocks.start * n_steps * TILE_FLOATS..],
            column_stride: n_steps,
            step_stride: 1,
        };
        let scores = Sums { rows: &mut scores[blocks.start * BLOCK..], stride: CHUNK };
        self.tiles.multiply::<false>(product, blocks.len(), scores);
        self.look(group.clone(), base, blocks.clone());
        for query_idx in group.clone() {
            self.weigh(query_idx, blocks.clone());
        }
        let TiledScratch { values, weights, sums, .. } = &mut *self.scratch;
        let product = Product {
            left: weights,
            n_terms: N_TERMS,
            n_steps: blocks.len(),
            right: &values[2 * blocks.start * n_steps * TILE_FLOATS..],
            column_stride: 1,
            step_stride: 2 * n_steps,
        };
        let width = n_steps * BLOCK;
        let sums = Sums { rows: &mut sums[group.start * width..], stride: width };
        self.tiles.multiply::<true>(product, n_steps, sums);
    }
}
