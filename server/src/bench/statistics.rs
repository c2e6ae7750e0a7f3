//! How sure a figure is: intervals over repeats, and MLPerf's bound of a percentile.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A mean over repeats, with the half-width of its 95 % confidence interval by Student's t.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Repeats.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Nothing for a single one.
    pub half_width: Option<f64>,
}

/// Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

impl Interval {
    /// Of a figure's values, one a repeat.
    pub fn of(values: &[f64]) -> Interval {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n.max(1) as f64;
        let half_width = (n > 1).then(|| {
            let variance =
                values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            // Beyond the table the last one is a little too wide, never too narrow.
            let t = T_95[(n - 2).min(T_95.len() - 1)];
            t * (variance / n as f64).sqrt()
        });
        Interval { n, mean, half_width }
    }

    /// Whether two can be told apart: whether their intervals do not meet. `None` where either has
    /// no interval.
    pub fn differs_from(&self, other: &Interval) -> Option<bool> {
        let reach = self.half_width? + other.half_width?;
        Some((self.mean - other.mean).abs() > reach)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.half_width {
            Some(half_width) => write!(f, "{:.2} ± {half_width:.2}", self.mean),
            None => write!(f, "{:.2}", self.mean),
        }
    }
}

/// A bound of the 99th percentile that holds with a confidence of 99 %, as MLPerf's load generator
/// computes it for early stopping (mlcommons/inference, `loadgen/early_stopping.cc`): the t-th
/// largest of n values, with the greatest t for which a percentile that lies higher would have so
/// few values above it with a chance of 1 % at most, that is
///
/// Σ_{x=0}^{t} C(n, x) pⁿ⁻ˣ (1 − p)ˣ ≤ 1 − c, with p = c = 0.99.
///
/// It takes n = 662 values for t = 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PercentileBound {
    /// Of what.
    pub metric: String,
    /// Values.
    pub n: usize,
    /// The bound, milliseconds; nothing where there are too few values.
    pub bound_ms: Option<f64>,
}

/// Values without which there is no bound.
pub const N_FOR_BOUND: usize = 662;

const PERCENTILE: f64 = 0.99;
const CONFIDENCE: f64 = 0.99;

/// Computes it.
pub(super) fn percentile_bound(metric: &str, mut values: Vec<f64>) -> PercentileBound {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let n_over = n_over_allowed(n, PERCENTILE, CONFIDENCE);
    let bound_ms = n_over.filter(|&t| t > 0).map(|t| values[n - t]);
    PercentileBound { metric: metric.to_owned(), n, bound_ms }
}

/// The greatest t of the formula; `None` if there is none.
fn n_over_allowed(n: usize, percentile: f64, confidence: f64) -> Option<usize> {
    // Logarithms, as the first terms are too small for numbers.
    let mut ln_term = n as f64 * percentile.ln();
    let mut sum = ln_term.exp();
    let ln_odds = ((1.0 - percentile) / percentile).ln();
    let mut allowed = None;
    for x in 0..n {
        if sum > 1.0 - confidence {
            break;
        }
        allowed = Some(x);
        ln_term += ((n - x) as f64 / (x + 1) as f64).ln() + ln_odds;
        sum += ln_term.exp();
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Least n for which t values may lie above.
    fn n_needed(t: usize, percentile: f64) -> usize {
        let enough = |n| n_over_allowed(n, percentile, 0.99).is_some_and(|allowed| allowed >= t);
        (1..5000).find(|&n| enough(n)).expect("some number is enough")
    }

    #[test]
    fn the_bound_needs_as_many_values_as_mlperfs() {
        // What MLPerf's load generator says: 459 for none above, and the least queries of its
        // single-stream scenario, 64 and 662.
        assert_eq!(n_needed(0, 0.99), 459);
        assert_eq!(n_needed(1, 0.9), 64);
        assert_eq!(n_needed(1, 0.99), N_FOR_BOUND);
    }

    #[test]
    fn the_bound_is_the_largest_value_but_few() {
        let bound = |n: usize| percentile_bound("ttft", (1..=n).map(|x| x as f64).collect());
        assert_eq!(bound(661).bound_ms, None);
        assert_eq!(bound(662).bound_ms, Some(662.0));
        let wide = bound(100_000).bound_ms.expect("there are enough");
        assert!((99_000.0..99_100.0).contains(&wide), "close above the percentile: {wide}");
        assert_eq!(bound(0), PercentileBound { metric: "ttft".into(), n: 0, bound_ms: None });
    }

    #[test]
    fn the_bound_holds_as_often_as_it_says() {
        // Of uniform values the 99th percentile is 0.99. The bound lies below it in one of a
        // hundred draws at most.
        use rand::Rng;
        use rand_chacha::rand_core::SeedableRng;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let n_runs = 2000;
        let n_below = (0..n_runs)
            .filter(|_| {
                let values = (0..1000).map(|_| random.random::<f64>()).collect();
                percentile_bound("e2e", values).bound_ms.expect("enough") < 0.99
            })
            .count();
        assert!(n_below <= n_runs / 100 + 14, "{n_below} of {n_runs}: three deviations over");
    }

    #[test]
    fn intervals_are_students() {
        let interval = Interval::of(&[10.0, 12.0, 14.0]);
        assert_eq!(interval.mean, 12.0);
        // 4.303 * 2 / sqrt(3)
        let half_width = interval.half_width.expect("three repeats");
        assert!((half_width - 4.9687).abs() < 1e-3, "{half_width}");
        assert_eq!(Interval::of(&[5.0]), Interval { n: 1, mean: 5.0, half_width: None });
        let far = Interval::of(&[30.0, 32.0, 34.0]);
        assert_eq!(interval.differs_from(&far), Some(true));
        assert_eq!(interval.differs_from(&Interval::of(&[13.0, 15.0, 17.0])), Some(false));
        assert_eq!(interval.differs_from(&Interval::of(&[99.0])), None);
    }
}
