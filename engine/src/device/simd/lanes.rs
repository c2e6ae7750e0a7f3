//! The sixteen lanes that every algorithm is written in.

use super::math;
use super::tiles::Tiles;

/// Vectors of sixteen f32 and what may be done with them. Holding a value of an implementing type
/// proves that its instructions are there: that is what makes these methods safe.
///
/// All of it must be inlined into a function compiled for the level: hence `inline(always)` on
/// every implementation and on every algorithm, and no lanes in closures (a closure is a function
/// of its own, compiled without the level's instructions, and each operation in it a call).
pub(super) trait Lanes: Copy {
    /// Sixteen f32.
    type V: Copy;

    /// What multiplies tiles.
    type Tiles: Tiles;

    /// Room for a wide tile: 32 registers of 16 lanes, not 16 of 8.
    const HAS_MANY_REGISTERS: bool;

    /// Lays tiles out for so many tokens, up to [`TILE`](super::tiles::TILE), until dropped.
    fn tiles(self, n_tokens: usize) -> Self::Tiles;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; 16]) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; 16]);
    /// The same past the caches, where the level can and `out` is a whole line: for what is read
    /// later than they would keep it. Before others read it, [`Lanes::finish_streams`].
    #[inline(always)]
    fn stream(self, v: Self::V, out: &mut [f32; 16]) {
        self.store(v, out);
    }
    /// Has what was streamed be seen by whoever sees what this thread writes next.
    #[inline(always)]
    fn finish_streams(self) {}

    /// Asks for the cache line of what will be read soon.
    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        self.prefetch_at(std::ptr::from_ref(at).cast());
    }
    /// The same of any address, whether something lies there or not.
    fn prefetch_at(self, at: *const u8);
    /// The same, into the second-level cache.
    fn prefetch_outer(self, at: *const u8);

    /// f32 at any address.
    fn widen_f32(self, stored: &[u8; 64]) -> Self::V;
    fn widen_f16(self, stored: &[u8; 32]) -> Self::V;
    fn widen_bf16(self, stored: &[u8; 32]) -> Self::V;
    /// The value times 2^-8: an e4m3 code shifted into place is the f16 of that, so the widening
    /// is a few integer operations and the exact power of two joins a later factor.
    fn widen_e4m3(self, stored: &[u8; 16]) -> Self::V;
    /// The same as sixteen pairs of bf16, which hold every e4m3 value: neighbours share a lane, the
    /// even one in its low half.
    fn pairs_of_e4m3(self, stored: &[u8; 32]) -> Self::V;
    /// The same of neighbouring blocks.
    #[inline(always)]
    fn two_pairs_of_e4m3(self, stored: &[[u8; 32]; 2]) -> [Self::V; 2] {
        [self.pairs_of_e4m3(&stored[0]), self.pairs_of_e4m3(&stored[1])]
    }
    /// 64 codes, eight for one step and eight for the next in turns, as pairs
    /// of either: that is [`tiles`](super::tiles)' order.
    #[inline(always)]
    fn pairs_of_steps(self, codes: &[f32; 16]) -> [Self::V; 2] {
        let [first, second] = codes_of_steps(codes);
        [self.pairs_of_e4m3(&first), self.pairs_of_e4m3(&second)]
    }
    /// The codes of values that [`math::round_e4m3`] gave.
    #[inline(always)]
    fn codes_of_e4m3(self, values: Self::V) -> [u8; 16] {
        let (mut lanes, mut codes) = ([0.0; 16], [0; 16]);
        self.store(values, &mut lanes);
        for i in 0..16 {
            codes[i] = math::e4m3_code(lanes[i]);
        }
        codes
    }

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the level can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a_even * b_even + (a_odd * b_odd + c)` of pairs of bf16: two multiply-adds, the odd one
    /// first, which is what an instruction for both does where there is one. That instruction takes
    /// subnormal numbers for zero: see [`super::packed`] for why none occur.
    #[inline(always)]
    fn mul_add_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let c = self.mul_add(self.and(a, 0xFFFF_0000), self.and(b, 0xFFFF_0000), c);
        self.mul_add(self.shift_left::<16>(a), self.shift_left::<16>(b), c)
    }
    /// `a > b ? a : b`: where either is NaN, `b`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`: where either is NaN, `b`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;

    /// On bit patterns.
    fn and(self, a: Self::V, bits: u32) -> Self::V;
    /// On bit patterns.
    fn or(self, a: Self::V, b: Self::V) -> Self::V;
    /// On bit patterns, wrapping.
    fn add_bits(self, a: Self::V, bits: u32) -> Self::V;
    /// On bit patterns as signed integers.
    fn max_bits(self, a: Self::V, bits: i32) -> Self::V;
    /// On bit patterns, to the left.
    fn shift_left<const N_BITS: i32>(self, a: Self::V) -> Self::V;

    /// The fixed tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
    fn sum(self, v: Self::V) -> f32;
    /// The same tree of four vectors.
    #[inline(always)]
    fn sums_of_four(self, v: [Self::V; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }
    /// The same tree of sixteen vectors: lane i is that of the i-th.
    #[inline(always)]
    fn sums_of_sixteen(self, v: [Self::V; 16]) -> Self::V {
        let mut sums = [[0.0; 4]; 4];
        for (i, sums) in sums.iter_mut().enumerate() {
            *sums = self.sums_of_four([v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]]);
        }
        let mut lanes = [0.0; 16];
        lanes.copy_from_slice(sums.as_flattened());
        self.load(&lanes)
    }
    /// The greatest lane, by [`Lanes::max`] in the same tree.
    fn greatest(self, v: Self::V) -> f32;
}

/// What [`Lanes::pairs_of_steps`] takes, step by step.
#[inline(always)]
pub(super) fn codes_of_steps(codes: &[f32; 16]) -> [[u8; 32]; 2] {
    let mut steps = [[0; 32]; 2];
    for (lane_idx, lane) in codes.iter().enumerate() {
        let begin = lane_idx / 4 * 8 + lane_idx % 2 * 4;
        steps[lane_idx / 2 % 2][begin..begin + 4].copy_from_slice(&lane.to_le_bytes());
    }
    steps
}

/// The last, incomplete block of a row, zeroes after it.
#[inline(always)]
pub(super) fn padded<T: Copy + Default, const N: usize>(tail: &[T]) -> [T; N] {
    let mut block = [T::default(); N];
    block[..tail.len()].copy_from_slice(tail);
    block
}
