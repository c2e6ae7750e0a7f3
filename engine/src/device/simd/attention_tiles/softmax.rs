//! Scores become weights, query by query.

use std::arch::x86_64::*;
use std::ops::Range;

use super::vectors::{exp2, greatest_of_each, in_order, load, paired, rests, rounded, store};
use super::{BLOCK, CHUNK_ROWS, LEAST, TILE, TiledAttention};

impl<const N_TERMS: usize> TiledAttention<'_, N_TERMS> {
    /// Hides from each query what it does not see of `blocks` of the chunk at `base`, looks for its
    /// greatest score, and where that is greater than all before weighs what was summed anew.
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) fn look(&mut self, group: Range<usize>, base: usize, blocks: Range<usize>) {
        let n_heads = self.queries.n_heads();
        let positions = base + blocks.start * BLOCK..base + blocks.end * BLOCK;
        let mut greatest = [_mm512_set1_ps(LEAST); TILE];
        let (scores, _) = self.scratch.scores.as_chunks_mut::<TILE>();
        for (row, query_idx) in group.clone().enumerate() {
            let scores = &mut scores[row * CHUNK_ROWS..][2 * blocks.start..2 * blocks.end];
            let visible = self.queries.visible(query_idx / n_heads);
            if visible.start > positions.start || visible.end < positions.end {
                hide(scores, positions.start, visible);
            }
            let mut found = greatest[row];
            for score in scores {
                // NaN is passed over: it comes back as a weight.
                found = _mm512_max_ps(load(score), found);
            }
            greatest[row] = found;
        }
        let found = greatest_of_each(&greatest);
        let (known, _) = self.scratch.greatest.as_chunks_mut::<TILE>();
        let known = &mut known[group.start / TILE];
        let old = load(known);
        let is_greater = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(found, old);
        if is_greater != 0 {
            let new = _mm512_max_ps(found, old);
            store(new, known);
            let mut decays = [0.0; TILE];
            store(exp2(_mm512_sub_ps(old, new)), &mut decays);
            for (row, query_idx) in group.enumerate() {
                if is_greater >> row & 1 == 1 {
                    self.decay(query_idx, decays[row]);
                }
            }
        }
    }

    /// Multiplies what was summed for a query.
    #[target_feature(enable = "avx512f")]
    fn decay(&mut self, query_idx: usize, decay: f32) {
        let n_rows = 2 * self.n_steps();
        let decay = _mm512_set1_ps(decay);
        let (totals, _) = self.scratch.totals.as_chunks_mut::<TILE>();
        let (sums, _) = self.scratch.sums.as_chunks_mut::<TILE>();
        let sums = &mut sums[query_idx * n_rows..][..n_rows];
        for row in sums.iter_mut().chain([&mut totals[query_idx]]) {
            store(_mm512_mul_ps(load(row), decay), row);
        }
    }

    /// Makes weights of a query's scores in `blocks`: terms, the least first.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) fn weigh(&mut self, query_idx: usize, blocks: Range<usize>) {
        let (row, n_blocks) = (query_idx % TILE, blocks.len());
        let (scores, _) = self.scratch.scores.as_chunks::<TILE>();
        let scores = &scores[row * CHUNK_ROWS..][2 * blocks.start..2 * blocks.end];
        let (totals, _) = self.scratch.totals.as_chunks_mut::<TILE>();
        let (weights, _) = self.scratch.weights.as_chunks_mut::<TILE>();
        let mut total = load(&totals[query_idx]);
        let greatest = _mm512_set1_ps(self.scratch.greatest[query_idx]);
        for (block, [low, high]) in scores.as_chunks().0.iter().enumerate() {
            let low = exp2(_mm512_sub_ps(load(low), greatest));
            let high = exp2(_mm512_sub_ps(load(high), greatest));
            total = _mm512_add_ps(total, _mm512_add_ps(low, high));
            let mut rest = if N_TERMS == 1 { rounded([low, high]) } else { [low, high] };
            for term in (0..N_TERMS).rev() {
                store(paired(rest), &mut weights[(term * n_blocks + block) * TILE + row]);
                rest = rests(rest);
            }
        }
        store(total, &mut totals[query_idx]);
    }

    /// See [`TiledAttention::finish`].
    #[target_feature(enable = "avx512f")]
    pub(super) fn finish_query(&self, query_idx: usize, factor: f32, out: &mut [f32]) {
        let n_rows = 2 * self.n_steps();
        let (totals, _) = self.scratch.totals.as_chunks::<TILE>();
        let (sums, _) = self.scratch.sums.as_chunks::<TILE>();
        let (sums, _) = sums[query_idx * n_rows..][..n_rows].as_chunks::<2>();
        let factor = _mm512_set1_ps(factor / _mm512_reduce_add_ps(load(&totals[query_idx])));
        for (out, [low, high]) in out.chunks_mut(BLOCK).zip(sums) {
            let mut finished = [[0.0; TILE]; 2];
            for (finished, sums) in finished.iter_mut().zip(in_order([load(low), load(high)])) {
                // A sum of nothing but zeroes has the sign of the blocks that were left out.
                store(_mm512_fmadd_ps(sums, factor, _mm512_setzero_ps()), finished);
            }
            out.copy_from_slice(&finished.as_flattened()[..out.len()]);
        }
    }
}

/// Scores from position `begin` on, -∞ in the place of those that are not visible.
#[target_feature(enable = "avx512f")]
fn hide(scores: &mut [[f32; TILE]], begin: usize, visible: Range<usize>) {
    for (i, score) in scores.iter_mut().enumerate() {
        let before = |end: usize| {
            let n = end.saturating_sub(begin + i * TILE).min(TILE);
            ((1u32 << n) - 1) as u16
        };
        let is_visible = before(visible.end) & !before(visible.start);
        let hidden = _mm512_set1_ps(f32::NEG_INFINITY);
        store(_mm512_mask_mov_ps(hidden, is_visible, load(score)), score);
    }
}
