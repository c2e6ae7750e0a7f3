//! The same where the processor multiplies tiles of bf16 and the cache holds such numbers. There a
//! tile of the output is many queries: each chunk of the cache is transposed once for all of them.

use std::ops::Range;

use crate::KvDtype;
use crate::device::simd::attention_tiles::{
    BLOCK, CHUNK, TiledAttention, TiledScratch, n_queries_max,
};
use crate::device::simd::{Chunk, Queries};
use crate::device::{CpuExec, HostViewMut, SimdLevel};

use super::{Args, Cut, Source, attend_to_each, heads_of_tile};

/// Tiles of the output for each thread, if it can be cut into as many.
const N_TILES_PER_THREAD: usize = 4;

/// Queries that take less time than fetching what they see: it is asked for beforehand.
const N_QUERIES_FEW: usize = 32;

/// How far ahead.
const N_POSITIONS_AHEAD: usize = BLOCK;

/// Whether this is how `exec` attends to a cache of `dtype`.
pub(super) fn suits(exec: &CpuExec, dtype: KvDtype) -> bool {
    exec.simd().level() == SimdLevel::Amx && dtype != KvDtype::F32
}

pub(super) fn attention(exec: &CpuExec, args: Args<'_>) {
    let cut = cut_of(exec, &args);
    if exec.rounds_inputs() {
        attend_to_each(exec, args, cut, |source, queries, scratch, out| {
            source.attend_by_tiles::<1>(queries, &mut scratch.tiled, out);
        });
    } else {
        attend_to_each(exec, args, cut, |source, queries, scratch, out| {
            source.attend_by_tiles::<3>(queries, &mut scratch.tiled, out);
        });
    }
}

/// As many tokens as a tile may have, unless threads would then have too little to share.
fn cut_of(exec: &CpuExec, args: &Args<'_>) -> Cut {
    let n_heads = heads_of_tile(exec, args);
    let n_columns = args.share.n_q_heads / n_heads;
    let n_even = args.out.n_rows() * n_columns / (N_TILES_PER_THREAD * exec.n_threads());
    let n_max = (n_queries_max(args.share.head_dim) / n_heads).max(1);
    Cut { n_heads, n_tokens: n_even.clamp(1, n_max) }
}

impl Source<'_> {
    /// Attends in numbers of `N_TERMS` terms.
    pub(super) fn attend_by_tiles<const N_TERMS: usize>(
        &self,
        queries: Queries<'_>,
        scratch: &mut TiledScratch,
        mut out: HostViewMut<'_>,
    ) {
        let (n_tokens, n_heads) = (queries.q.n_rows(), queries.n_heads());
        let (first, end) = (queries.visible(0).start, queries.visible(n_tokens - 1).end);
        let is_few = n_tokens * n_heads <= N_QUERIES_FEW;
        let dtype = self.cache.stored();
        let mut attention = TiledAttention::<N_TERMS>::new(self.simd, queries, dtype, scratch);
        for chunk in cut::<CHUNK>(first..end) {
            for block in cut::<BLOCK>(chunk.clone()) {
                self.copy(block.clone(), &mut attention);
                attention.pack(block.start / BLOCK * BLOCK);
                if is_few {
                    let [begin, end] =
                        [block.start, block.end].map(|at| end.min(at + N_POSITIONS_AHEAD));
                    self.prefetch(Chunk { begin, end });
                }
            }
            attention.take(chunk);
        }
        let factor = self.cache.factor(self.v_scale);
        for t in 0..n_tokens {
            for (h, out) in out.row_mut(t).chunks_exact_mut(queries.head_dim).enumerate() {
                attention.finish(t * n_heads + h, factor, out);
            }
        }
    }

    /// Copies what is stored of `positions`, run by run.
    fn copy<const N_TERMS: usize>(
        &self,
        positions: Range<usize>,
        attention: &mut TiledAttention<'_, N_TERMS>,
    ) {
        let n_bytes = self.cache.shape().head_dim * self.cache.stored().n_bytes();
        let mut begin = positions.start;
        while begin < positions.end {
            let (stored_keys, stored_values) = self.run(begin, positions.end);
            let (keys, values) = attention.places(begin..begin + stored_keys.len() / n_bytes);
            keys.copy_from_slice(&stored_keys[..keys.len()]);
            values.copy_from_slice(&stored_values[..values.len()]);
            begin += keys.len() / n_bytes;
        }
    }
}

/// `range`, cut at the multiples of `N`.
fn cut<const N: usize>(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let chunks = range.start / N..range.end.div_ceil(N);
    chunks.map(move |idx| range.start.max(idx * N)..range.end.min((idx + 1) * N))
}
