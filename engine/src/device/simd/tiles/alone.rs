//! The same sums for so few tokens that they fit into registers: where memory is what is waited
//! for, writing widened weights down for tiles to read keeps it waiting.

use super::super::lanes::{Lanes, padded};
use super::multiply::{N_STRIPS, STEP_COLUMNS};
use super::weights::{AHEAD_BYTES, TileElement, ask_behind};
use super::{TileProduct, write_token};

/// Columns of a unit.
const N_COLUMNS: usize = 2 * STEP_COLUMNS;

/// All of a product with `T` tokens, a lane for each output. Weights are those of which a unit is
/// two steps, and nothing is subnormal: there tiles and vectors have the same bits.
#[inline(always)]
pub(super) fn alone<S: Lanes, E: TileElement, const T: usize>(s: S, mut product: TileProduct<'_>) {
    assert!(E::IS_NORMAL && E::N_STEPS == 2 && product.x.n_rows() == T, "{T} tokens");
    let TileProduct { x, weights, .. } = product;
    for n in (0..product.out.n_cols()).step_by(weights.weights.n_pair_outputs()) {
        let mut sums = [[s.splat(0.0); N_STRIPS]; T];
        for (unit_idx, unit) in weights.units(n).iter().enumerate() {
            let mut columns = [[0.0; N_COLUMNS]; T];
            for (t, columns) in columns.iter_mut().enumerate() {
                let x = &x.row(t)[unit_idx * N_COLUMNS..];
                *columns = x.first_chunk().copied().unwrap_or_else(|| padded(x));
            }
            for (strip_idx, strip) in unit.iter().enumerate() {
                // `[token, step, parity]`
                let mut chains = [[[s.splat(0.0); 2]; 2]; T];
                for (k, codes) in strip.iter().enumerate() {
                    ask_behind(s, codes, AHEAD_BYTES);
                    let steps = s.pairs_of_steps(codes);
                    for (step, pairs) in steps.into_iter().enumerate() {
                        let (even, odd) = (s.shift_left::<16>(pairs), s.and(pairs, 0xFFFF_0000));
                        for t in 0..T {
                            let [of_even, of_odd] = &mut chains[t][step];
                            let at = step * STEP_COLUMNS + 2 * k;
                            *of_even = s.mul_add(s.splat(columns[t][at]), even, *of_even);
                            *of_odd = s.mul_add(s.splat(columns[t][at + 1]), odd, *of_odd);
                        }
                    }
                }
                for (sums, chains) in sums.iter_mut().zip(chains) {
                    for [of_even, of_odd] in chains {
                        sums[strip_idx] = s.add(sums[strip_idx], s.add(of_even, of_odd));
                    }
                }
            }
        }
        for (t, sums) in sums.into_iter().enumerate() {
            write_token(s, &mut product, (n, t), sums);
        }
    }
}
