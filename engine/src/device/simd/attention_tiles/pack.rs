//! A block of keys and values as tiles.
//!
//! Keys are transposed: a row of a tile is a pair of dimensions of sixteen positions. Values are
//! not: a row is a pair of positions, i and i + 16, in sixteen dimensions.

use std::arch::x86_64::*;

use super::vectors::{
    bytes, greater_magnitudes, has_no_number, interleaved, interleaved_codes, pairs, store,
    transposed, two_e4m3_pairs, words_parted,
};
use super::{BLOCK, TILE, TiledAttention};

/// Codes of two steps.
const CODES: usize = 2 * BLOCK;

/// Each gives back whether some value is no number.
impl<const N_TERMS: usize> TiledAttention<'_, N_TERMS> {
    /// Of numbers that take `N_BYTES` a row of a tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
    pub(super) fn pack_pairs<const N_BYTES: usize>(&mut self, block: usize) -> bool {
        let n_steps = self.n_steps();
        let (stored, _) = self.scratch.stored_keys.as_chunks::<N_BYTES>();
        let (keys, _) = self.scratch.keys.as_chunks_mut::<TILE>();
        for (half, stored) in stored[..BLOCK * n_steps].chunks_exact(TILE * n_steps).enumerate() {
            for step in 0..n_steps {
                let mut rows = [_mm512_setzero_ps(); TILE];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = pairs(&stored[i * n_steps + step]);
                }
                let tile = ((2 * block + half) * n_steps + step) * TILE;
                for (out, row) in keys[tile..tile + TILE].iter_mut().zip(transposed(rows)) {
                    store(row, out);
                }
            }
        }
        let (stored, _) = self.scratch.stored_values.as_chunks::<N_BYTES>();
        let (low, high) = stored[..BLOCK * n_steps].split_at(TILE * n_steps);
        let (values, _) = self.scratch.values.as_chunks_mut::<TILE>();
        let mut magnitudes = _mm512_setzero_si512();
        for step in 0..n_steps {
            let tiles = &mut values[2 * (block * n_steps + step) * TILE..][..2 * TILE];
            for i in 0..TILE {
                let (a, b) = (&low[i * n_steps + step], &high[i * n_steps + step]);
                let [a, b] = interleaved(pairs(a), pairs(b));
                magnitudes = greater_magnitudes(greater_magnitudes(magnitudes, a), b);
                store(a, &mut tiles[i]);
                store(b, &mut tiles[TILE + i]);
            }
        }
        has_no_number(magnitudes)
    }

    /// Of e4m3 in an even number of steps, two at once: codes change places while they are codes.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi")]
    pub(super) fn pack_codes(&mut self, block: usize) -> bool {
        let n_twos = self.n_steps() / 2;
        let (stored, _) = self.scratch.stored_keys.as_chunks::<CODES>();
        let (keys, _) = self.scratch.keys.as_chunks_mut::<TILE>();
        for (half, stored) in stored[..BLOCK * n_twos].chunks_exact(TILE * n_twos).enumerate() {
            for two in 0..n_twos {
                let mut rows = [_mm512_setzero_ps(); TILE];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = bytes(&stored[i * n_twos + two]);
                }
                let tile = 2 * ((2 * block + half) * n_twos + two) * TILE;
                let (out, _) = keys[tile..tile + 2 * TILE].as_chunks_mut();
                for ([even, odd], row) in out.iter_mut().zip(transposed(rows)) {
                    // Four dimensions of each position: two, then two.
                    let [a, b] = two_e4m3_pairs(words_parted(row));
                    store(a, even);
                    store(b, odd);
                }
            }
        }
        let (stored, _) = self.scratch.stored_values.as_chunks::<CODES>();
        let (low, high) = stored[..BLOCK * n_twos].split_at(TILE * n_twos);
        let (values, _) = self.scratch.values.as_chunks_mut::<TILE>();
        let mut magnitudes = _mm512_setzero_si512();
        for two in 0..n_twos {
            let tiles = &mut values[4 * (block * n_twos + two) * TILE..][..4 * TILE];
            for i in 0..TILE {
                let (a, b) = (&low[i * n_twos + two], &high[i * n_twos + two]);
                let codes = interleaved_codes(bytes(a), bytes(b));
                for (j, codes) in codes.into_iter().enumerate() {
                    let [first, second] = two_e4m3_pairs(codes);
                    magnitudes = greater_magnitudes(greater_magnitudes(magnitudes, first), second);
                    store(first, &mut tiles[j * TILE + i]);
                    store(second, &mut tiles[(2 + j) * TILE + i]);
                }
            }
        }
        has_no_number(magnitudes)
    }
}
