//! What a multiplication of tiles is.

use super::super::lanes::Lanes;

/// Weight rows of a tile, and tokens of one at most.
pub(in super::super) const TILE: usize = 16;

/// Columns of a tile: two to a lane.
pub(in super::super) const STEP_COLUMNS: usize = 2 * TILE;

/// Strips of [`TILE`] weight rows that are multiplied at once.
pub(in super::super) const N_STRIPS: usize = 2;

/// Sixteen weight rows of 32 columns, in pairs.
pub(in super::super) type WeightTile = [[f32; TILE]; TILE];

/// `[weight row, token]`; of fewer than sixteen tokens, those columns alone mean something.
pub(in super::super) type SumTile = [[f32; TILE]; TILE];

/// Multiplies tiles of so many tokens as it was made for: of each step `[TILE, n_tokens]`, pairs of
/// columns.
pub(in super::super) trait Tiles {
    /// `sums[strip] += weights[strip] · tokens`, step after step.
    fn add_one(
        &self,
        weights: [&[WeightTile]; N_STRIPS],
        tokens: &[f32],
        sums: &mut [SumTile; N_STRIPS],
    );

    /// `sums[strip][group] += weights[strip] · tokens[group]`, step after step.
    fn add_two(
        &self,
        weights: [&[WeightTile]; N_STRIPS],
        tokens: [&[f32]; 2],
        sums: &mut [SumTile; 2 * N_STRIPS],
    );
}

/// Steps of all operands.
#[inline(always)]
pub(in super::super) fn n_steps_of<const GROUPS: usize>(
    weights: [&[WeightTile]; N_STRIPS],
    tokens: [&[f32]; GROUPS],
    n_tokens: usize,
) -> usize {
    let n_steps = weights[0].len();
    assert_eq!(weights[1].len(), n_steps, "as many steps of either strip");
    for tokens in tokens {
        assert_eq!(tokens.len(), n_steps * TILE * n_tokens, "tokens of {n_steps} steps");
    }
    n_steps
}

/// The same by vectors, a lane for each token.
pub(in super::super) struct VectorTiles<S> {
    s: S,
    n_tokens: usize,
}

impl<S: Lanes> VectorTiles<S> {
    pub(in super::super) fn new(s: S, n_tokens: usize) -> VectorTiles<S> {
        assert!((1..=TILE).contains(&n_tokens), "{n_tokens} tokens of a tile");
        VectorTiles { s, n_tokens }
    }

    #[inline(always)]
    fn add(&self, weights: &[WeightTile], tokens: &[f32], sums: &mut SumTile) {
        let s = self.s;
        for (weights, tokens) in weights.iter().zip(tokens.chunks_exact(TILE * self.n_tokens)) {
            let mut even = [s.splat(0.0); TILE];
            let mut odd = even;
            for (k, pairs) in tokens.chunks_exact(self.n_tokens).enumerate() {
                let mut lanes = [0.0; TILE];
                lanes[..self.n_tokens].copy_from_slice(pairs);
                let pairs = s.load(&lanes);
                (even[k], odd[k]) = (s.shift_left::<16>(pairs), s.and(pairs, 0xFFFF_0000));
            }
            for (weights, sums) in weights.iter().zip(&mut *sums) {
                let (mut of_even, mut of_odd) = (s.splat(0.0), s.splat(0.0));
                for k in 0..TILE {
                    let bits = weights[k].to_bits();
                    let low = s.splat(f32::from_bits(bits << 16));
                    let high = s.splat(f32::from_bits(bits & 0xFFFF_0000));
                    of_even = s.mul_add(even[k], low, of_even);
                    of_odd = s.mul_add(odd[k], high, of_odd);
                }
                s.store(s.add(s.load(sums), s.add(of_even, of_odd)), sums);
            }
        }
    }
}

impl<S: Lanes> Tiles for VectorTiles<S> {
    #[inline(always)]
    fn add_one(
        &self,
        weights: [&[WeightTile]; N_STRIPS],
        tokens: &[f32],
        sums: &mut [SumTile; N_STRIPS],
    ) {
        n_steps_of(weights, [tokens], self.n_tokens);
        for (weights, sums) in weights.iter().zip(sums) {
            self.add(weights, tokens, sums);
        }
    }

    #[inline(always)]
    fn add_two(
        &self,
        weights: [&[WeightTile]; N_STRIPS],
        tokens: [&[f32]; 2],
        sums: &mut [SumTile; 2 * N_STRIPS],
    ) {
        n_steps_of(weights, tokens, self.n_tokens);
        for (i, sums) in sums.iter_mut().enumerate() {
            self.add(weights[i / 2], tokens[i % 2], sums);
        }
    }
}
