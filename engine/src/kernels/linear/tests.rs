//! Products against float64 under the bound of [`Args`], and bit against bit across shapes.

use std::sync::Arc;

use weights::{Dtype, InputScale, LinearWeights, WeightScale};

use super::{Args, linear};
use crate::device::{Array, Deferred, Exec, Projection, SimdLevel, View, ViewMut};
use crate::kernels::testing::{
    ROUNDING, Rng, StoredMatrix, assert_close, assert_same_bits, at_levels, levels, on_exec, store,
};

/// Stored types, whether the input is numbers as they come or e4m3 values, and whether what meets
/// BF16 is rounded.
type Kind = (Dtype, InputScale, bool);

/// Whether factors are pairs of bf16.
fn is_of_pairs((dtype, input, rounds): Kind) -> bool {
    input == InputScale::PerToken || (dtype, rounds) == (Dtype::Bf16, true)
}

/// The last level whose sums are those of the levels before: tiles have an order of their own.
fn last_same(kind: Kind) -> SimdLevel {
    if is_of_pairs(kind) { SimdLevel::Avx512Bf16 } else { SimdLevel::Amx }
}

const KINDS: [Kind; 7] = [
    (Dtype::F32, InputScale::None, true),
    (Dtype::F16, InputScale::None, false),
    (Dtype::Bf16, InputScale::None, false),
    (Dtype::Bf16, InputScale::None, true),
    (Dtype::F8E4m3, InputScale::None, true),
    (Dtype::F8E4m3, InputScale::PerToken, false),
    (Dtype::F8E4m3, InputScale::PerToken, true),
];

/// N, K, T.
const SHAPES: [(usize, usize, usize); 24] = [
    (1, 1, 1),
    (1, 15, 2),
    (3, 16, 1),
    (5, 17, 3),
    (1, 672, 1),
    (5, 672, 7),
    (3, 33, 8),
    (31, 17, 9),
    (33, 15, 12),
    (67, 672, 4),
    (64, 530, 33),
    (35, 1100, 16),
    (130, 1030, 1),
    (300, 513, 6),
    (302, 513, 6),
    (290, 130, 97),
    (1, 700, 200),
    // Several panels of columns, the last one short.
    (9, 2085, 19),
    (5, 4133, 5),
    (7, 2085, 8),
    // More tokens than a tile has, of one panel and of several.
    (5, 33, 510),
    (33, 40, 530),
    (18, 2085, 97),
    (67, 2085, 95),
];

struct Case {
    weights: LinearWeights,
    stored: StoredMatrix,
    x: Vec<f32>,
    x_scales: Vec<f32>,
    rounds: bool,
}

impl Case {
    fn new(rng: &mut Rng, (dtype, input, rounds): Kind, (n, k, t): (usize, usize, usize)) -> Case {
        let stored = StoredMatrix::new(dtype, k, &rng.numbers(n * k));
        let scale = match n % 3 {
            0 => WeightScale::One,
            1 => WeightScale::PerTensor(0.37),
            _ => WeightScale::PerRow(Arc::from(rng.numbers(n))),
        };
        let weights = LinearWeights { matrix: stored.matrix.clone(), scale, input };
        let (mut x, mut x_scales) = (rng.numbers(t * k), rng.numbers(t));
        match input {
            InputScale::None => x_scales.fill(1.0),
            // Every binade of e4m3, the subnormal one among them.
            _ => x.iter_mut().for_each(|x| *x = store(Dtype::F8E4m3, *x * 448.0).1 as f32),
        }
        Case { weights, stored, x, x_scales, rounds }
    }

    fn run(&self, exec: &mut Exec) -> Vec<f32> {
        let n_tokens = self.x_scales.len();
        let x = View::new(&self.x, n_tokens, self.weights.matrix.n_cols);
        self.run_on(exec, x, &self.x_scales)
    }

    fn run_on(&self, exec: &mut Exec, x: View<'_>, x_scales: &[f32]) -> Vec<f32> {
        let Exec::Cpu(cpu) = exec else { panic!("a processor") };
        cpu.round_inputs(self.rounds);
        let n_rows = self.weights.matrix.n_rows;
        let mut out = vec![f32::NAN; x.n_rows() * n_rows];
        let view = ViewMut::new(&mut out, x.n_rows(), n_rows);
        let weights = &Projection::host(cpu, vec![self.weights.clone()]);
        let args = Args { x, x_scales: Array::Host(x_scales), weights, out: view };
        assert_eq!(linear(exec, args).expect("it runs"), Deferred::Nothing);
        out
    }

    /// A number of the input as the product takes it.
    fn taken(&self, x: f32) -> f64 {
        let is_rounded = self.rounds && self.weights.matrix.dtype == Dtype::Bf16;
        if is_rounded { half::bf16::from_f32(x).to_f64() } else { f64::from(x) }
    }

    /// Outputs with the size of a rounding.
    fn expected(&self) -> Vec<(f64, f64)> {
        let k = self.weights.matrix.n_cols;
        let tokens = self.x.chunks_exact(k).zip(&self.x_scales);
        let row = |(x, &x_scale): (&[f32], &f32)| {
            let rows = self.stored.values.chunks_exact(k).enumerate();
            let product = |(n, w): (usize, &[f64])| {
                let scale = f64::from(x_scale)
                    * match &self.weights.scale {
                        WeightScale::One => 1.0,
                        WeightScale::PerTensor(scale) => f64::from(*scale),
                        WeightScale::PerRow(scales) => f64::from(scales[n]),
                    };
                let terms = x.iter().zip(w).map(|(&x, w)| self.taken(x) * w);
                let magnitude: f64 = terms.clone().map(f64::abs).sum();
                (terms.sum::<f64>() * scale, ROUNDING * magnitude * scale.abs())
            };
            rows.map(product).collect::<Vec<_>>()
        };
        tokens.flat_map(row).collect()
    }
}

#[test]
fn products_are_within_the_bound() {
    let mut rng = Rng::new(8);
    for kind in KINDS {
        for shape in SHAPES {
            let case = Case::new(&mut rng, kind, shape);
            let what = format!("{kind:?} (n, k, t) = {shape:?}");
            let expected = case.expected();
            let outputs = at_levels(&what, last_same(kind), |exec| case.run(exec));
            for (level, out) in &outputs {
                let n_roundings = super::n_roundings(shape.1, *level > last_same(kind));
                let bounded = expected.iter().map(|(y, one)| (*y, n_roundings * one + 1e-40));
                let bounded: Vec<_> = bounded.collect();
                assert_close(out, &bounded, &format!("{what}, {level:?}"));
                // Products of pairs are exact: nothing is lost without a fused multiply-add.
                if is_of_pairs(kind) && *level <= last_same(kind) {
                    assert_same_bits(out, &outputs[0].1, &format!("{what}, {level:?}"));
                }
            }
        }
    }
}

/// What a machine without memory for packed weights computes.
#[test]
fn weights_that_stay_mapped_are_multiplied_as_without_tiles() {
    let mut rng = Rng::new(13);
    for kind in KINDS.into_iter().filter(|kind| is_of_pairs(*kind)) {
        for shape in [(37, 530, 1), (70, 97, 33)] {
            let case = Case::new(&mut rng, kind, shape);
            let without: Vec<_> = levels()
                .map(|level| {
                    on_exec(2, level, |exec| {
                        let Exec::Cpu(cpu) = &mut *exec else { panic!("a processor") };
                        cpu.keep_weights_mapped();
                        case.run(exec)
                    })
                })
                .collect();
            for (level, out) in levels().zip(&without) {
                assert_same_bits(out, &without[0], &format!("{kind:?} {shape:?} {level:?}"));
            }
        }
    }
}

#[test]
fn a_token_alone_has_the_same_bits() {
    let mut rng = Rng::new(9);
    for kind in KINDS {
        // Enough rows and tokens for several tiles, and for threads to share them; several panels.
        let shapes = [
            (70, 1045, 33),
            (37, 672, 100),
            (130, 530, 7),
            (33, 17, 13),
            (5, 2090, 23),
            (6, 90, 15),
        ];
        for (n, k, t) in shapes {
            let case = Case::new(&mut rng, kind, (n, k, t));
            let what = format!("{kind:?} {:?}", (n, k, t));
            // The same tokens in the middle of a wider, oddly placed matrix.
            let pad = 3;
            let mut wide = vec![f32::NAN; (t + 2) * (k + 2 * pad)];
            for (i, row) in case.x.chunks_exact(k).enumerate() {
                wide[(i + 1) * (k + 2 * pad) + pad..][..k].copy_from_slice(row);
            }
            let wide = View::new(&wide, t + 2, k + 2 * pad).columns(pad..pad + k).rows(1..t + 1);
            for (level, out) in at_levels(&what, last_same(kind), |exec| case.run(exec)) {
                let what = format!("{what}, {level:?}");
                let moved = on_exec(2, level, |exec| case.run_on(exec, wide, &case.x_scales));
                assert_same_bits(&moved, &out, &format!("{what}, moved"));
                on_exec(1, level, |exec| {
                    for i in 0..t {
                        let alone =
                            case.run_on(exec, wide.rows(i..i + 1), &case.x_scales[i..i + 1]);
                        assert_same_bits(&out[i * n..(i + 1) * n], &alone, &what);
                    }
                    // Cut in two anywhere.
                    let cut = t / 3;
                    let mut parts = case.run_on(exec, wide.rows(0..cut), &case.x_scales[..cut]);
                    parts.extend(case.run_on(exec, wide.rows(cut..t), &case.x_scales[cut..]));
                    assert_same_bits(&parts, &out, &what);
                });
            }
        }
    }
}

#[test]
fn nan_reaches_its_own_outputs_and_no_other() {
    for kind @ (dtype, ..) in KINDS {
        for t in [1, 3, 16] {
            let mut rng = Rng::new(10);
            let (n, k) = (9, 35);
            for (bad_row, bad_col) in [(0, 0), (4, 20), (8, 34)] {
                let mut numbers = rng.numbers(n * k);
                numbers[bad_row * k + bad_col] = f32::NAN;
                let mut case = Case::new(&mut rng, kind, (n, k, t));
                case.stored = StoredMatrix::new(dtype, k, &numbers);
                case.weights.matrix = case.stored.matrix.clone();
                case.x[(t / 2) * k + bad_col] = f32::NAN;
                for level in levels() {
                    let out = on_exec(1, level, |exec| case.run(exec));
                    for (i, y) in out.iter().enumerate() {
                        let is_bad = i / n == t / 2 || i % n == bad_row;
                        assert_eq!(y.is_nan(), is_bad, "{kind:?} {level:?} element {i}: {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn no_tokens_are_no_work() {
    let case = Case::new(&mut Rng::new(11), (Dtype::Bf16, InputScale::None, true), (4, 20, 0));
    for level in levels() {
        assert!(on_exec(2, level, |exec| case.run(exec)).is_empty());
    }
}

/// The least products that there are, and sums that cancel down to them.
#[test]
fn products_of_the_least_e4m3_values_are_not_lost() {
    let least = 2f32.powi(-9);
    let k = 70;
    let mut numbers = vec![0.0; k];
    let mut x = vec![0.0; k];
    (numbers[0], x[0]) = (448.0, 448.0);
    (numbers[33], x[33]) = (-448.0, 448.0);
    (numbers[66], x[66]) = (least, -least);
    for n_tokens in [1, 17] {
        let stored = StoredMatrix::new(Dtype::F8E4m3, k, &numbers);
        let weights = LinearWeights {
            matrix: stored.matrix.clone(),
            scale: WeightScale::One,
            input: InputScale::Static(1.0),
        };
        let x = x.repeat(n_tokens);
        let case = Case { weights, stored, x, x_scales: vec![1.0; n_tokens], rounds: false };
        for (level, out) in at_levels("least products", SimdLevel::Amx, |exec| case.run(exec)) {
            assert!(out.iter().all(|&y| y == -least * least), "{level:?}: {out:?}");
        }
    }
}

#[test]
fn a_quantized_input_of_other_numbers_is_refused() {
    let kind = (Dtype::F8E4m3, InputScale::PerToken, true);
    let mut case = Case::new(&mut Rng::new(12), kind, (4, 20, 2));
    case.x[25] = 1.0 + f32::EPSILON;
    for level in levels() {
        let outcome = std::panic::catch_unwind(|| on_exec(1, level, |exec| case.run(exec)));
        assert!(outcome.is_err(), "{level:?} took it");
    }
}
