//! Values that are ∞ or NaN. A weight of zero times one of them is NaN, so they would reach queries
//! that do not see them: tiles hold zero in their place, and who does see one gets NaN.

use super::{BLOCK, CHUNK, INFINITE, TILE, TILE_FLOATS, TiledAttention};

impl<const N_TERMS: usize> TiledAttention<'_, N_TERMS> {
    /// Notes where a packed block's values are no numbers, and puts zeroes there.
    pub(super) fn note_not_numbers(&mut self, block: usize) {
        self.has_no_number = true;
        let width = self.n_steps() * BLOCK;
        let values = &mut self.scratch.values[block * TILE * width..][..TILE * width];
        for (i, pair) in values.iter_mut().enumerate() {
            let (tile, row, column) = (i / TILE_FLOATS, i % TILE_FLOATS / TILE, i % TILE);
            let mut bits = pair.to_bits();
            for half in 0..2 {
                let shift = 16 * half as u32;
                let magnitude = (bits >> shift) as u16 & i16::MAX as u16;
                if magnitude >= INFINITE {
                    bits &= !(0xFFFF << shift);
                    let position = block * BLOCK + half * TILE + row;
                    self.scratch.not_numbers[tile * TILE + column] |= 1 << position;
                }
            }
            *pair = f32::from_bits(bits);
        }
    }

    /// Makes NaN of all sums of the chunk at `base` that have such a value in them.
    pub(super) fn spread_not_numbers(&mut self, base: usize) {
        let (n_heads, width) = (self.queries.n_heads(), self.n_steps() * BLOCK);
        for query_idx in 0..self.n_queries() {
            let visible = self.queries.visible(query_idx / n_heads);
            let before = |end: usize| match end.saturating_sub(base) {
                CHUNK.. => u128::MAX,
                n => (1 << n) - 1,
            };
            let visible = before(visible.end) & !before(visible.start);
            let sums = &mut self.scratch.sums[query_idx * width..][..width];
            for (sum, not_numbers) in sums.iter_mut().zip(&self.scratch.not_numbers) {
                if not_numbers & visible != 0 {
                    *sum = f32::NAN;
                }
            }
        }
    }
}
