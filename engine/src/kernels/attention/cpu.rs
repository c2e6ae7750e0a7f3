//! A tile is a few tokens of a few heads that share a key/value head: each chunk of the cache is
//! widened once for all of them.

#[cfg(target_arch = "x86_64")]
mod tiled;

use weights::InputScale;

use crate::device::simd::{
    AttentionScratch, Chunk, N_QUERIES_MAX, Queries, attend, prefetch, widen,
};
use crate::device::{CpuExec, Grid, HostViewMut, KvRegion, Scratch, Simd};
use crate::kernels::quantize::quantize_row;

use super::{Args, AttentionRow, Rows};

/// How the output is cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Heads of a tile.
    n_heads: usize,
    /// Most tokens of one.
    n_tokens: usize,
}

pub(super) fn attention(exec: &CpuExec, args: Args<'_>) {
    #[cfg(target_arch = "x86_64")]
    if tiled::suits(exec, args.cache.shape().dtype) {
        return tiled::attention(exec, args);
    }
    let n_heads = heads_of_tile(exec, &args);
    let cut = Cut { n_heads, n_tokens: (N_QUERIES_MAX / n_heads).max(1) };
    attend_to_each(exec, args, cut, |source, queries, scratch, out| {
        source.attend(queries, &mut scratch.attention, out);
    });
}

/// Runs `attend` for the queries of every tile, sequence by sequence.
fn attend_to_each(
    exec: &CpuExec,
    args: Args<'_>,
    cut: Cut,
    attend: impl Fn(&Source<'_>, Queries<'_>, &mut Scratch, HostViewMut<'_>) + Sync,
) {
    let Args { queries, rows, share, k_scale, v_scale, cache, input, out, out_scales, .. } = args;
    let super::Queries::Rotated(q) = queries else { panic!("queries that nobody has rotated") };
    let Rows::Host(rows) = rows else { panic!("rows for a kernel of the device") };
    let cache = &*cache;
    let (q, mut out) = (q.host(), out.host());
    let head_dim = share.head_dim;
    let group = share.n_q_heads / share.n_kv_heads;
    let n_seen: usize = rows.iter().map(|row| row.n_tokens * (row.start + row.n_tokens)).sum();
    let grid = Grid {
        tile_rows: cut.n_tokens,
        tile_cols: cut.n_heads * head_dim,
        work: n_seen * 2 * share.n_q_heads * head_dim,
    };
    let window = share.window.unwrap_or(usize::MAX);
    let score_factor = cache.factor(k_scale) / (head_dim as f32).sqrt();
    exec.for_each_tile(out.reborrow(), grid, |tile, scratch| {
        let (cols, mut out) = (tile.col_idx..tile.col_idx + tile.out.n_cols(), tile.out);
        let tokens = tile.row_idx..tile.row_idx + out.n_rows();
        let first = rows.partition_point(|row| row.token_idx + row.n_tokens <= tokens.start);
        for row in rows[first..].iter().take_while(|row| row.token_idx < tokens.end) {
            let begin = row.token_idx.max(tokens.start);
            let end = (row.token_idx + row.n_tokens).min(tokens.end);
            let queries = Queries {
                q: q.rows(begin..end).columns(cols.clone()),
                head_dim,
                start: row.start + begin - row.token_idx,
                window,
                score_factor,
            };
            let kv_head = cols.start / head_dim / group;
            let source = Source { simd: exec.simd(), cache, kv_head, row, v_scale };
            let out = out.reborrow().rows(begin - tokens.start..end - tokens.start);
            attend(&source, queries, scratch, out);
        }
    });
    let simd = exec.simd();
    match input {
        InputScale::None => out_scales.host().fill(1.0),
        _ => exec.for_each_row(out, out_scales.host(), |_, row, scale| {
            *scale = quantize_row(simd, input, row);
        }),
    }
}

/// Query heads of a tile: a divisor of the group, so that a tile has one key/value head; as many
/// as share it, unless threads would then have nothing to do.
fn heads_of_tile(exec: &CpuExec, args: &Args<'_>) -> usize {
    let (n_kv_heads, n_threads) = (args.share.n_kv_heads, exec.n_threads());
    let group = args.share.n_q_heads / n_kv_heads;
    let is_fine = |n: &usize| {
        let n_tiles = n_kv_heads * (group / n);
        group.is_multiple_of(*n) && *n <= N_QUERIES_MAX && (n_tiles >= n_threads || *n <= 4)
    };
    (1..=group).rev().find(is_fine).unwrap_or(1)
}

/// One sequence's keys and values in one head.
struct Source<'a> {
    simd: Simd,
    cache: &'a KvRegion,
    kv_head: usize,
    row: &'a AttentionRow<'a>,
    v_scale: f32,
}

impl Source<'_> {
    fn attend(
        &self,
        queries: Queries<'_>,
        scratch: &mut AttentionScratch,
        mut out: HostViewMut<'_>,
    ) {
        let (n_tokens, n_heads) = (queries.q.n_rows(), queries.n_heads());
        scratch.begin(n_tokens * n_heads, queries.head_dim);
        let (first, end) = (queries.visible(0).start, queries.visible(n_tokens - 1).end);
        let mut chunk = Chunk::first(first, end);
        while chunk.begin < end {
            let next = Chunk::first(chunk.end, end);
            self.widen(chunk, queries.head_dim, scratch);
            self.prefetch(next);
            attend(self.simd, chunk, queries, scratch);
            chunk = next;
        }
        let factor = self.cache.factor(self.v_scale);
        for t in 0..n_tokens {
            for (h, out) in out.row_mut(t).chunks_exact_mut(queries.head_dim).enumerate() {
                scratch.finish(t * n_heads + h, factor, out);
            }
        }
    }

    /// Tokens of a page are neighbours in the cache, and in the scratch where a head is a whole
    /// number of vectors: then they are widened together.
    fn widen(&self, chunk: Chunk, head_dim: usize, scratch: &mut AttentionScratch) {
        let dtype = self.cache.stored();
        let mut position = chunk.begin;
        while position < chunk.end {
            let (stored_keys, stored_values) = self.run(position, chunk.end);
            let n_run = stored_keys.len() / (head_dim * dtype.n_bytes());
            let (keys, values) = scratch.places(position, n_run, head_dim);
            let n_bytes = keys.len() * dtype.n_bytes();
            widen(self.simd, dtype, &stored_keys[..n_bytes], keys);
            widen(self.simd, dtype, &stored_values[..n_bytes], values);
            position += keys.len() / head_dim;
        }
    }

    /// Asks for what [`Source::widen`] will read.
    fn prefetch(&self, chunk: Chunk) {
        let mut position = chunk.begin;
        while position < chunk.end {
            let (keys, values) = self.run(position, chunk.end);
            prefetch(self.simd, keys);
            prefetch(self.simd, values);
            position += self.page_tokens() - position % self.page_tokens();
        }
    }

    /// Stored keys and values from `position` to `end` or to the end of its page.
    fn run(&self, position: usize, end: usize) -> (&[u8], &[u8]) {
        let shape = self.cache.shape();
        let page = self.row.pages[position / shape.page_tokens];
        let offset = position % shape.page_tokens;
        let n_run = (shape.page_tokens - offset).min(end - position);
        let n_bytes = n_run * shape.head_dim * shape.dtype.n_bytes();
        let keys = &self.cache.keys(self.kv_head, page, offset)[..n_bytes];
        (keys, &self.cache.values(self.kv_head, page, offset)[..n_bytes])
    }

    fn page_tokens(&self) -> usize {
        self.cache.shape().page_tokens
    }
}
