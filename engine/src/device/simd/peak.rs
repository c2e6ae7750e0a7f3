//! What the processor could do if nothing else were in the way: for measurements to compare with.

use super::lanes::Lanes;

/// Independent chains: enough to hide the latency of a multiply-add, few enough for registers.
const N_CHAINS: usize = 16;

/// Multiply-adds of one round.
pub(super) const MULTIPLY_ADDS_PER_ROUND: usize = N_CHAINS * 16;

#[inline(always)]
pub(super) fn multiply_adds<S: Lanes>(s: S, n_rounds: usize) -> f32 {
    let factor = s.splat(std::hint::black_box(0.5));
    let mut chains = [s.splat(std::hint::black_box(1.0)); N_CHAINS];
    for _ in 0..n_rounds {
        for chain in &mut chains {
            *chain = s.mul_add(*chain, factor, factor);
        }
    }
    sum_of_all(s, chains)
}

#[inline(always)]
pub(super) fn multiply_adds_of_pairs<S: Lanes>(s: S, n_rounds: usize) -> f32 {
    // 0.5 and 0.5 as bf16.
    let pairs = s.splat(std::hint::black_box(f32::from_bits(0x3F00_3F00)));
    let mut chains = [s.splat(std::hint::black_box(1.0)); N_CHAINS];
    for _ in 0..n_rounds {
        for chain in &mut chains {
            *chain = s.mul_add_pairs(pairs, pairs, *chain);
        }
    }
    sum_of_all(s, chains)
}

#[inline(always)]
pub(super) fn greatest_number<S: Lanes>(s: S, bytes: &[u8]) -> f32 {
    let mut greatest = [s.splat(0.0); 4];
    for blocks in bytes.as_chunks::<64>().0.as_chunks::<4>().0 {
        for i in 0..4 {
            greatest[i] = s.max(s.widen_f32(&blocks[i]), greatest[i]);
        }
    }
    let [a, b, c, d] = greatest;
    s.greatest(s.max(s.max(a, b), s.max(c, d)))
}

#[inline(always)]
fn sum_of_all<S: Lanes>(s: S, chains: [S::V; N_CHAINS]) -> f32 {
    let mut sum = s.splat(0.0);
    for chain in chains {
        sum = s.add(sum, chain);
    }
    s.sum(sum)
}
