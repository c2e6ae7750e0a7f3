//! Softmax over positions as they come, chunk by chunk (Milakov and Gimelshein, arXiv 1805.02867).
//!
//! Chunks are cut at fixed absolute positions, and within one every query takes the positions that
//! it sees in order. So a query's result depends on its own position and data, not on how a prompt
//! was cut, which queries are its neighbours, or where pages lie.

use std::ops::Range;

use crate::device::{Aligned, HostView};

use super::element::{Singles, Widened};
use super::lanes::Lanes;
use super::math;
use super::product::{Blocks, chains, tile_sums, widened_rows};

/// Positions of a chunk; chunks begin at its multiples.
pub(crate) const N_CHUNK_POSITIONS: usize = 32;

/// Most queries (tokens times heads) of a tile.
pub(crate) const N_QUERIES_MAX: usize = 32;

/// Widest head.
pub(crate) const HEAD_DIM_MAX: usize = 512;

/// Positions `begin..end` of one chunk, widened in the scratch's `keys` and `values`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    /// First position that any query sees.
    pub(crate) begin: usize,
    /// One past the last.
    pub(crate) end: usize,
}

/// Neighbouring tokens of one sequence, and heads that share a key/value head.
#[derive(Clone, Copy)]
pub(crate) struct Queries<'a> {
    /// `[n_tokens, n_heads * head_dim]`
    pub(crate) q: HostView<'a>,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// Position of the first token.
    pub(crate) start: usize,
    /// A query at i sees j when `i - j < window`.
    pub(crate) window: usize,
    /// What turns a sum over widened keys into a score.
    pub(crate) score_factor: f32,
}

/// What a thread needs for the queries of one tile.
pub(crate) struct AttentionScratch {
    /// `[N_CHUNK_POSITIONS, stride]`: widened keys, by position in the chunk.
    keys: Aligned,
    /// The same of values.
    values: Aligned,
    /// Scores of the chunk, then their exponentials, by query.
    scores: [[f32; N_CHUNK_POSITIONS]; N_QUERIES_MAX],
    /// By query: greatest score so far, sum of exponentials against it.
    softmax: [Softmax; N_QUERIES_MAX],
    /// `[N_QUERIES_MAX, stride]`: sums of values weighted by those exponentials.
    sums: Aligned,
    /// Elements of a head, up to whole blocks of sixteen.
    stride: usize,
}

#[derive(Clone, Copy)]
struct Softmax {
    greatest: f32,
    sum: f32,
}

impl AttentionScratch {
    pub(crate) fn new() -> AttentionScratch {
        AttentionScratch {
            keys: Aligned::new(N_CHUNK_POSITIONS * HEAD_DIM_MAX),
            values: Aligned::new(N_CHUNK_POSITIONS * HEAD_DIM_MAX),
            scores: [[0.0; N_CHUNK_POSITIONS]; N_QUERIES_MAX],
            softmax: [Softmax::EMPTY; N_QUERIES_MAX],
            sums: Aligned::new(N_QUERIES_MAX * HEAD_DIM_MAX),
            stride: 0,
        }
    }

    /// Forgets everything, for queries of heads of width `head_dim`.
    pub(crate) fn begin(&mut self, n_queries: usize, head_dim: usize) {
        assert!(n_queries <= N_QUERIES_MAX && head_dim <= HEAD_DIM_MAX, "{n_queries}, {head_dim}");
        self.stride = head_dim.next_multiple_of(16);
        self.softmax[..n_queries].fill(Softmax::EMPTY);
        self.sums[..n_queries * self.stride].fill(0.0);
        // A head that is no whole number of blocks is followed by zeroes.
        if self.stride > head_dim {
            self.keys[..N_CHUNK_POSITIONS * self.stride].fill(0.0);
            self.values[..N_CHUNK_POSITIONS * self.stride].fill(0.0);
        }
    }

    /// Where keys and values from `position` on belong, heads back to back: of `n_positions` of the
    /// chunk, or of the first alone where padding lies between heads.
    pub(crate) fn places(
        &mut self,
        position: usize,
        n_positions: usize,
        head_dim: usize,
    ) -> (&mut [f32], &mut [f32]) {
        let begin = position % N_CHUNK_POSITIONS * self.stride;
        let n = if self.stride == head_dim { n_positions } else { 1 };
        let range = begin..begin + n * head_dim;
        (&mut self.keys[range.clone()], &mut self.values[range])
    }

    /// `out = factor * sums / Σ exp` of query `query_idx`.
    pub(crate) fn finish(&self, query_idx: usize, factor: f32, out: &mut [f32]) {
        let sums = &self.sums[query_idx * self.stride..][..out.len()];
        let factor = factor / self.softmax[query_idx].sum;
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * factor;
        }
    }
}

impl Chunk {
    /// The first chunk of `begin..end`: empty where that is.
    pub(crate) fn first(begin: usize, end: usize) -> Chunk {
        let next = (begin / N_CHUNK_POSITIONS + 1) * N_CHUNK_POSITIONS;
        Chunk { begin, end: next.min(end) }
    }
}

impl Softmax {
    const EMPTY: Softmax = Softmax { greatest: f32::NEG_INFINITY, sum: 0.0 };
}

impl Queries<'_> {
    /// Heads of each token.
    pub(crate) fn n_heads(&self) -> usize {
        self.q.n_cols() / self.head_dim
    }

    /// Positions that token `token_idx` sees.
    pub(crate) fn visible(&self, token_idx: usize) -> Range<usize> {
        let end = self.start + token_idx + 1;
        end.saturating_sub(self.window)..end
    }

    /// What query `query_idx` (heads of a token are neighbours) sees of `chunk`, by position in it.
    fn visible_in(&self, chunk: Chunk, query_idx: usize) -> Range<usize> {
        let base = chunk.begin - chunk.begin % N_CHUNK_POSITIONS;
        let visible = self.visible(query_idx / self.n_heads());
        let begin = visible.start.max(chunk.begin);
        begin - base..visible.end.min(chunk.end).max(begin) - base
    }
}

#[inline(always)]
pub(super) fn attend<S: Lanes>(
    s: S,
    chunk: Chunk,
    queries: Queries<'_>,
    scratch: &mut AttentionScratch,
) {
    let stride = scratch.stride / 16;
    let n_queries = queries.q.n_rows() * queries.n_heads();
    score(s, chunk, queries, scratch);
    let mut query_idx = 0;
    while query_idx < n_queries {
        let visible = queries.visible_in(chunk, query_idx);
        let n_alike = (query_idx..n_queries.min(query_idx + 4))
            .take_while(|&idx| queries.visible_in(chunk, idx) == visible)
            .count();
        let is_wide = S::HAS_MANY_REGISTERS && n_alike == 4;
        let n = if is_wide { 4 } else { 1 };
        let (sums, _) = scratch.sums[query_idx * scratch.stride..].as_chunks_mut();
        let (values, _) = scratch.values.as_chunks();
        if !visible.is_empty() {
            for i in 0..n {
                let scores = &mut scratch.scores[query_idx + i];
                let softmax = &mut scratch.softmax[query_idx + i];
                let decay = exponentials(s, visible.clone(), scores, softmax);
                if let Some(decay) = decay {
                    for sum in &mut sums[i * stride..(i + 1) * stride] {
                        let decayed = s.mul(s.load(sum), s.splat(decay));
                        s.store(decayed, sum);
                    }
                }
            }
            let scores = &scratch.scores[query_idx..];
            if is_wide {
                add_values::<S, 4>(s, &scores[..4], visible, (values, stride), sums);
            } else {
                add_values::<S, 1>(s, &scores[..1], visible, (values, stride), sums);
            }
        }
        query_idx += n;
    }
}

/// Sums over the chunk's widened keys, for all queries and all positions that any of them sees.
#[inline(always)]
fn score<S: Lanes>(s: S, chunk: Chunk, queries: Queries<'_>, scratch: &mut AttentionScratch) {
    let n_queries = queries.q.n_rows() * queries.n_heads();
    let base = chunk.begin - chunk.begin % N_CHUNK_POSITIONS;
    let positions = chunk.begin - base..chunk.end - base;
    let (keys, _) = scratch.keys.as_chunks();
    let mut query_idx = 0;
    while query_idx < n_queries {
        let scores = &mut scratch.scores[query_idx..];
        let span = (query_idx, positions.clone());
        query_idx += match n_queries - query_idx {
            4.. if S::HAS_MANY_REGISTERS => score_rows::<S, 4>(s, queries, span, keys, scores),
            _ => score_rows::<S, 1>(s, queries, span, keys, scores),
        };
    }
}

/// Scores of `M` queries from `query_idx` on; gives back `M`.
#[inline(always)]
fn score_rows<S: Lanes, const M: usize>(
    s: S,
    queries: Queries<'_>,
    (query_idx, positions): (usize, Range<usize>),
    keys: Blocks<'_>,
    scores: &mut [[f32; N_CHUNK_POSITIONS]],
) -> usize {
    let Queries { q, head_dim, score_factor, .. } = queries;
    let n_heads = queries.n_heads();
    let mut rows: [(Blocks<'_>, &[f32]); M] = [(&[], &[]); M];
    for (i, row) in rows.iter_mut().enumerate() {
        let (token_idx, head_idx) = ((query_idx + i) / n_heads, (query_idx + i) % n_heads);
        *row = q.row(token_idx)[head_idx * head_dim..][..head_dim].as_chunks();
    }
    let (stride, n_whole) = (head_dim.div_ceil(16), rows[0].0.len());
    let mut position = positions.start;
    while position < positions.end {
        let keys = &keys[position * stride..];
        if position + 4 <= positions.end {
            let keys = widened_rows::<4>(keys, stride, n_whole);
            let sums = chains::<S, Widened<Singles>, M, 4>(s, rows, keys, [[s.splat(0.0); 4]; M]);
            let sums = tile_sums::<S, M, 4>(s, &sums);
            for (scores, sums) in scores.iter_mut().zip(sums) {
                for (score, sum) in scores[position..].iter_mut().zip(sums) {
                    *score = sum * score_factor;
                }
            }
            position += 4;
        } else {
            let key = widened_rows::<1>(keys, stride, n_whole);
            let sums = chains::<S, Widened<Singles>, M, 1>(s, rows, key, [[s.splat(0.0)]; M]);
            for (scores, sums) in scores.iter_mut().zip(&sums) {
                scores[position] = s.sum(sums[0]) * score_factor;
            }
            position += 1;
        }
    }
    M
}

/// Turns a query's visible scores into exponentials against the greatest so far, and all others
/// into zero. Gives back what earlier sums of values must be multiplied by, unless it is one.
#[inline(always)]
fn exponentials<S: Lanes>(
    s: S,
    visible: Range<usize>,
    scores: &mut [f32; N_CHUNK_POSITIONS],
    softmax: &mut Softmax,
) -> Option<f32> {
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);
    let (blocks, _) = scores.as_chunks_mut::<16>();
    let [low, high] = [s.load(&blocks[0]), s.load(&blocks[1])];
    let found = s.greatest(s.max(low, high));
    let greatest = if found > softmax.greatest { found } else { softmax.greatest };
    let against = s.splat(greatest);
    let low = math::exp(s, s.sub(low, against));
    let high = math::exp(s, s.sub(high, against));
    s.store(low, &mut blocks[0]);
    s.store(high, &mut blocks[1]);
    let sum = s.sum(s.add(low, high));
    if greatest == softmax.greatest {
        softmax.sum += sum;
        return None;
    }
    let mut decay = [0.0; 16];
    s.store(math::exp(s, s.splat(softmax.greatest - greatest)), &mut decay);
    *softmax = Softmax { greatest, sum: softmax.sum * decay[0] + sum };
    Some(decay[0])
}

/// Adds visible values, weighted, to the sums of `M` queries, position by position.
#[inline(always)]
fn add_values<S: Lanes, const M: usize>(
    s: S,
    scores: &[[f32; N_CHUNK_POSITIONS]],
    visible: Range<usize>,
    (values, stride): (Blocks<'_>, usize),
    sums: &mut [[f32; 16]],
) {
    let mut block = 0;
    while block < stride {
        let sums = &mut sums[block..];
        let values = (&values[block..], stride);
        block += match stride - block {
            4.. => add_value_blocks::<S, M, 4>(s, scores, visible.clone(), values, sums),
            _ => add_value_blocks::<S, M, 1>(s, scores, visible.clone(), values, sums),
        };
    }
}

/// The first `D` blocks of every head; gives back `D`.
#[inline(always)]
fn add_value_blocks<S: Lanes, const M: usize, const D: usize>(
    s: S,
    scores: &[[f32; N_CHUNK_POSITIONS]],
    visible: Range<usize>,
    (values, stride): (Blocks<'_>, usize),
    sums: &mut [[f32; 16]],
) -> usize {
    let mut tile = [[s.splat(0.0); D]; M];
    for i in 0..M {
        for d in 0..D {
            tile[i][d] = s.load(&sums[i * stride + d]);
        }
    }
    let scores = &scores[..M];
    for position in visible {
        let blocks = &values[position * stride..][..D];
        let mut value = [s.splat(0.0); D];
        for d in 0..D {
            value[d] = s.load(&blocks[d]);
        }
        for i in 0..M {
            let weight = s.splat(scores[i][position]);
            for d in 0..D {
                tile[i][d] = s.mul_add(weight, value[d], tile[i][d]);
            }
        }
    }
    for i in 0..M {
        for d in 0..D {
            s.store(tile[i][d], &mut sums[i * stride + d]);
        }
    }
    D
}
