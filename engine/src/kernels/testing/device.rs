//! What the families' tests on devices share: numbers as devices store them, and comparisons that
//! allow for what computing a value may lose, but for nothing in its last rounding.

use half::bf16;

use super::{Rng, e4m3_nearest, e4m3_value};

/// Seeded numbers of a few binades, rounded to bf16.
pub(crate) fn bf16s(rng: &mut Rng, n: usize, factor: f32) -> Vec<bf16> {
    (0..n).map(|_| bf16::from_f32(rng.number() * factor)).collect()
}

/// An element type, as the last step of computing something.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    Bf16,
    /// Of `value / scale`, clamped to ±448; the stored value times `scale` is compared.
    E4m3 { scale: f64 },
}

impl Rounding {
    fn of(self, value: f64) -> f64 {
        match self {
            Rounding::Bf16 => nearest_bf16(value).to_f64(),
            Rounding::E4m3 { scale } => e4m3_value(e4m3_nearest(value / scale)) * scale,
        }
    }
}

/// To nearest, ties to even, in one step: `bf16::from_f64` forgets the lower half of the fraction.
fn nearest_bf16(value: f64) -> bf16 {
    let nearest = value as f32;
    // To odd on the way: a tie for bf16 is then a tie of the value itself.
    let is_away = f64::from(nearest).abs() > value.abs();
    let towards_zero = nearest.to_bits() - u32::from(is_away);
    let is_inexact = f64::from(nearest) != value;
    bf16::from_f32(f32::from_bits(towards_zero | u32::from(is_inexact)))
}

/// Asserts that `got` is what rounding makes of some number within `loss` of `value`: roundings
/// are monotone, so it lies between those of the two ends. NaN exactly where NaN is expected.
#[track_caller]
pub(crate) fn assert_rounded(got: f64, rounding: Rounding, (value, loss): (f64, f64), what: &str) {
    if value.is_nan() {
        assert!(got.is_nan(), "{what}: {got:e} for NaN");
        return;
    }
    assert!(!got.is_nan(), "{what}: NaN for {value:e}");
    // Computing the ends rounds as well.
    let loss = loss + value.abs() * 1e-15;
    let (least, most) = (rounding.of(value - loss), rounding.of(value + loss));
    assert!(
        least <= got && got <= most,
        "{what}: {got:e} is not {rounding:?} of {value:e} ± {loss:e}: {least:e} to {most:e}"
    );
}

/// Tokens of a step to look at closely: the first, the last and some between.
pub(crate) fn sampled(n_tokens: usize) -> Vec<usize> {
    let mut tokens = vec![0, n_tokens / 3, n_tokens / 2, n_tokens.saturating_sub(1)];
    tokens.dedup();
    tokens.retain(|&token| token < n_tokens);
    tokens
}

#[test]
fn a_comparison_can_fail() {
    let caught = |got: f64, rounding: Rounding, expected: (f64, f64)| {
        std::panic::catch_unwind(|| assert_rounded(got, rounding, expected, "a test")).is_err()
    };
    assert!(!caught(1.0, Rounding::Bf16, (1.001, 0.0)));
    assert!(caught(1.0078125, Rounding::Bf16, (1.001, 0.0)));
    assert!(!caught(1.0078125, Rounding::Bf16, (1.001, 0.01)));
    assert!(caught(f64::NAN, Rounding::Bf16, (1.0, 1.0)));
    assert!(caught(1.0, Rounding::Bf16, (f64::NAN, 1.0)));
    let above_a_tie = 1.00390625 + 1e-12;
    assert!(!caught(1.0078125, Rounding::Bf16, (above_a_tie, 0.0)));
    assert!(caught(1.0, Rounding::Bf16, (above_a_tie, 0.0)));
    let e4m3 = Rounding::E4m3 { scale: 2.0 };
    assert!(!caught(896.0, e4m3, (1e6, 0.0)));
    assert!(!caught(2.25, e4m3, (2.3, 0.0)));
    assert!(caught(2.5, e4m3, (2.3, 0.0)));
}
