//! When requests come. An open loop sends at moments that do not depend on the answers; a closed
//! loop has users who wait for theirs.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, Gamma};

/// How load comes.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Users, each of whom sends its next request when the last one is answered.
    Closed {
        /// Users.
        n_users: usize,
    },
    /// Moments set beforehand, whatever the server does.
    Open(Pattern),
    /// At the moments that the trace names, this many times as fast.
    Trace {
        /// 1 is as it was recorded.
        speed: f64,
    },
}

/// A pattern of moments.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// Independent of each other: exponential gaps.
    Poisson {
        /// Requests a second.
        rate: f64,
    },
    /// Gamma gaps of the same mean, as vLLM's `--burstiness`: below 1 in bursts, 1 is Poisson,
    /// above 1 more even.
    Gamma {
        /// Requests a second.
        rate: f64,
        /// The gamma distribution's shape.
        burstiness: f64,
    },
    /// One gap for all.
    Constant {
        /// Requests a second.
        rate: f64,
    },
    /// Evenly spaced at a rate that grows, or falls, linearly over the run.
    Ramp {
        /// Requests a second at the beginning.
        from: f64,
        /// And at the end.
        to: f64,
        /// How long that takes; later requests come at the last rate.
        over: Duration,
    },
}

impl Pattern {
    /// The same at another mean rate; a ramp is a pattern of rates and stays.
    pub fn at_rate(&self, rate: f64) -> Pattern {
        match *self {
            Pattern::Poisson { .. } => Pattern::Poisson { rate },
            Pattern::Gamma { burstiness, .. } => Pattern::Gamma { rate, burstiness },
            Pattern::Constant { .. } => Pattern::Constant { rate },
            Pattern::Ramp { .. } => self.clone(),
        }
    }

    /// Moments from the run's beginning, rising, without end.
    pub fn moments(&self, mut random: ChaCha8Rng) -> impl Iterator<Item = Duration> + use<> {
        let pattern = self.clone();
        let mut at_s = 0.0;
        let mut n_before = 0_u64;
        std::iter::from_fn(move || {
            at_s = match pattern {
                Pattern::Poisson { rate } => {
                    let gap: f64 = Exp1.sample(&mut random);
                    at_s + gap / rate
                }
                Pattern::Gamma { rate, burstiness } => {
                    let gamma = Gamma::new(burstiness, 1.0 / (rate * burstiness));
                    at_s + gamma.expect("rate and burstiness are positive").sample(&mut random)
                }
                Pattern::Constant { rate } => n_before as f64 / rate,
                Pattern::Ramp { from, to, over } => {
                    ramp_moment(n_before as f64, (from, to), over.as_secs_f64())
                }
            };
            n_before += 1;
            // A clock holds some hundred years.
            Some(Duration::try_from_secs_f64(at_s).unwrap_or(FAR_AWAY))
        })
    }
}

/// Beyond any run.
const FAR_AWAY: Duration = Duration::from_secs(u32::MAX as u64);

/// When `n` requests have come, at a rate that goes from one value to the other within `over_s` and
/// stays there: the inverse of the rate's integral.
fn ramp_moment(n: f64, (from, to): (f64, f64), over_s: f64) -> f64 {
    let n_within = over_s * (from + to) / 2.0;
    if n >= n_within {
        return over_s + (n - n_within) / to;
    }
    let slope = (to - from) / over_s;
    if slope == 0.0 {
        return n / from;
    }
    // from t + slope t²/2 = n
    ((from * from + 2.0 * slope * n).max(0.0).sqrt() - from) / slope
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn gaps_s(pattern: &Pattern, n: usize) -> Vec<f64> {
        let random = ChaCha8Rng::seed_from_u64(7);
        let moments: Vec<f64> =
            pattern.moments(random).take(n).map(|moment| moment.as_secs_f64()).collect();
        assert!(moments.is_sorted(), "time does not run back");
        let before = std::iter::once(0.0).chain(moments.iter().copied());
        moments.iter().zip(before).map(|(at, before)| at - before).collect()
    }

    /// Mean, and the squared coefficient of variation.
    fn moments_of(gaps: &[f64]) -> (f64, f64) {
        let n = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / n;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / n;
        (mean, variance / (mean * mean))
    }

    #[test]
    fn random_gaps_have_the_mean_and_the_spread_that_they_should() {
        // The squared coefficient of variation of a gamma distribution is one over its shape.
        let cases = [
            (Pattern::Poisson { rate: 4.0 }, 1.0),
            (Pattern::Gamma { rate: 4.0, burstiness: 1.0 }, 1.0),
            (Pattern::Gamma { rate: 4.0, burstiness: 0.25 }, 4.0),
            (Pattern::Gamma { rate: 4.0, burstiness: 10.0 }, 0.1),
        ];
        for (pattern, expected) in cases {
            let (mean, spread) = moments_of(&gaps_s(&pattern, 200_000));
            assert!((mean - 0.25).abs() < 0.01, "{pattern:?}: {mean}");
            assert!((spread / expected - 1.0).abs() < 0.1, "{pattern:?}: {spread}");
        }
    }

    #[test]
    fn constant_gaps_are_even_and_begin_at_once() {
        let pattern = Pattern::Constant { rate: 8.0 };
        assert_eq!(gaps_s(&pattern, 4), [0.0, 0.125, 0.125, 0.125]);
    }

    #[test]
    fn a_ramp_has_as_many_requests_as_its_rates_add_up_to() {
        for (from, to) in [(2.0, 10.0), (10.0, 2.0), (5.0, 5.0)] {
            let over = Duration::from_secs(100);
            let pattern = Pattern::Ramp { from, to, over };
            let random = ChaCha8Rng::seed_from_u64(0);
            let moments: Vec<f64> =
                pattern.moments(random).take(2000).map(|at| at.as_secs_f64()).collect();
            let n_until = |s: f64| moments.iter().filter(|&&at| at < s).count() as f64;
            assert!((n_until(100.0) - 50.0 * (from + to)).abs() <= 1.0, "{from} to {to}");
            let middle = 50.0 * (from + (from + to) / 2.0) / 2.0;
            assert!((n_until(50.0) - middle).abs() <= 1.0, "{from} to {to}");
            // Later ones come at the last rate.
            let n_after = n_until(110.0) - n_until(100.0);
            assert!((n_after - 10.0 * to).abs() <= 1.0, "{from} to {to}: {n_after}");
        }
    }

    #[test]
    fn a_seed_repeats_its_moments() {
        let pattern = Pattern::Poisson { rate: 1.0 };
        assert_eq!(gaps_s(&pattern, 50), gaps_s(&pattern, 50));
        let other = ChaCha8Rng::seed_from_u64(8);
        let first = pattern.moments(other).next().expect("there is no end");
        assert_ne!(first.as_secs_f64(), gaps_s(&pattern, 1)[0]);
        let faster = Pattern::Poisson { rate: 2.0 };
        assert_eq!(pattern.at_rate(2.0), faster);
    }
}
