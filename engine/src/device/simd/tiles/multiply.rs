//! What a multiplication of tiles is.

use super::super::lanes::Lanes;

/// Tokens of a tile at most, and outputs of one.
pub(in super::super) const TILE: usize = 16;

/// Columns of a tile: two to a lane.
pub(in super::super) const STEP_COLUMNS: usize = 2 * TILE;

/// Strips of [`TILE`] outputs that are multiplied at once.
pub(in super::super) const N_STRIPS: usize = 2;

/// Groups of [`TILE`] tokens that are multiplied at once, at most.
pub(in super::super) const N_GROUPS: usize = 2;

/// Weights of 32 columns: `[strip, pair of columns, output]`.
pub(in super::super) type WeightStep = [[[f32; TILE]; TILE]; N_STRIPS];

/// Sums: `[group, strip, token, output]`.
pub(in super::super) type Sums = [[[[f32; TILE]; TILE]; N_STRIPS]; N_GROUPS];

/// Multiplies tiles of so many tokens as it was made for, and holds their sums meanwhile: for each
/// step `[token, pair of columns]` with [`WeightStep`].
pub(in super::super) trait Tiles {
    /// All sums are zero.
    fn clear(&mut self);

    /// Sums go on from these.
    fn resume(&mut self, sums: &Sums);

    /// Adds what one group of tokens gives, step after step.
    fn add_one(&mut self, weights: &[WeightStep], tokens: &[f32]);

    /// Adds what two groups of [`TILE`] tokens give, step after step.
    fn add_two(&mut self, weights: &[WeightStep], tokens: [&[f32]; N_GROUPS]);

    /// Where the sums are now. Those of fewer tokens, and of one group, leave the rest as it was.
    fn put(&self, sums: &mut Sums);
}

/// That all operands have as many steps.
#[inline(always)]
pub(in super::super) fn check_steps<const GROUPS: usize>(
    weights: &[WeightStep],
    tokens: [&[f32]; GROUPS],
    n_tokens: usize,
) {
    for tokens in tokens {
        let n_steps = weights.len();
        assert_eq!(tokens.len(), n_steps * TILE * n_tokens, "tokens of {n_steps} steps");
    }
}

/// The same by vectors, a lane for each output.
pub(in super::super) struct VectorTiles<S> {
    s: S,
    n_tokens: usize,
    sums: Sums,
}

impl<S: Lanes> VectorTiles<S> {
    pub(in super::super) fn new(s: S, n_tokens: usize) -> VectorTiles<S> {
        assert!((1..=TILE).contains(&n_tokens), "{n_tokens} tokens of a tile");
        VectorTiles { s, n_tokens, sums: [[[[0.0; TILE]; TILE]; N_STRIPS]; N_GROUPS] }
    }

    #[inline(always)]
    fn add(&mut self, weights: &[WeightStep], tokens: &[f32], group_idx: usize) {
        let s = self.s;
        for (weights, tokens) in weights.iter().zip(tokens.chunks_exact(TILE * self.n_tokens)) {
            for (weights, sums) in weights.iter().zip(&mut self.sums[group_idx]) {
                for (token, sums) in tokens.chunks_exact(TILE).zip(sums) {
                    let (mut of_even, mut of_odd) = (s.splat(0.0), s.splat(0.0));
                    for (pair, weights) in token.iter().zip(weights) {
                        let (bits, weights) = (pair.to_bits(), s.load(weights));
                        let even = s.splat(f32::from_bits(bits << 16));
                        let odd = s.splat(f32::from_bits(bits & 0xFFFF_0000));
                        of_even = s.mul_add(even, s.shift_left::<16>(weights), of_even);
                        of_odd = s.mul_add(odd, s.and(weights, 0xFFFF_0000), of_odd);
                    }
                    s.store(s.add(s.load(sums), s.add(of_even, of_odd)), sums);
                }
            }
        }
    }
}

impl<S: Lanes> Tiles for VectorTiles<S> {
    #[inline(always)]
    fn clear(&mut self) {
        self.sums = [[[[0.0; TILE]; TILE]; N_STRIPS]; N_GROUPS];
    }

    #[inline(always)]
    fn resume(&mut self, sums: &Sums) {
        self.sums = *sums;
    }

    #[inline(always)]
    fn add_one(&mut self, weights: &[WeightStep], tokens: &[f32]) {
        check_steps(weights, [tokens], self.n_tokens);
        self.add(weights, tokens, 0);
    }

    #[inline(always)]
    fn add_two(&mut self, weights: &[WeightStep], tokens: [&[f32]; N_GROUPS]) {
        check_steps(weights, tokens, self.n_tokens);
        for (group_idx, tokens) in tokens.into_iter().enumerate() {
            self.add(weights, tokens, group_idx);
        }
    }

    #[inline(always)]
    fn put(&self, sums: &mut Sums) {
        *sums = self.sums;
    }
}
