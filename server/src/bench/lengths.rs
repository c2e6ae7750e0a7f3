//! How long prompts and answers are, in tokens.

use std::str::FromStr;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};
use serde::Serialize;
use thiserror::Error;

/// Tokens of one prompt or answer at most: beyond every model's context.
pub const N_TOKENS_MAX: usize = 10_000_000;

/// A distribution of token counts, each at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Lengths {
    /// Always the same.
    Fixed {
        /// Tokens.
        n: usize,
    },
    /// All from the least to the greatest alike.
    Uniform {
        /// The least.
        min: usize,
        /// The greatest.
        max: usize,
    },
    /// Log-normal, given by its own mean and standard deviation.
    LogNormal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        deviation: f64,
    },
}

/// Why words are no distribution.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no length: write 500, or 100-900 for all between, or lognormal:MEAN,DEVIATION; from \
     1 to 10,000,000 tokens"
)]
pub struct LengthsError(String);

impl Lengths {
    /// Draws one.
    pub fn sample(&self, random: &mut ChaCha8Rng) -> usize {
        match *self {
            Lengths::Fixed { n } => n,
            Lengths::Uniform { min, max } => random.random_range(min..=max),
            Lengths::LogNormal { mean, deviation } => {
                // Its logarithm has the variance ln(1 + s²/m²) and the mean ln m - variance/2.
                let variance = (deviation / mean).powi(2).ln_1p();
                let normal = LogNormal::new(mean.ln() - variance / 2.0, variance.sqrt());
                let n = normal.expect("mean and deviation are finite").sample(random);
                (n.round() as usize).clamp(1, N_TOKENS_MAX)
            }
        }
    }
}

impl FromStr for Lengths {
    type Err = LengthsError;

    fn from_str(text: &str) -> Result<Lengths, LengthsError> {
        let lengths = parse(text);
        lengths.filter(Lengths::is_sound).ok_or_else(|| LengthsError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Lengths> {
    if let Some(rest) = text.strip_prefix("lognormal:") {
        let (mean, deviation) = rest.split_once(',')?;
        let (mean, deviation) = (mean.trim().parse().ok()?, deviation.trim().parse().ok()?);
        return Some(Lengths::LogNormal { mean, deviation });
    }
    if let Some((min, max)) = text.split_once('-') {
        return Some(Lengths::Uniform { min: min.parse().ok()?, max: max.parse().ok()? });
    }
    Some(Lengths::Fixed { n: text.parse().ok()? })
}

impl Lengths {
    fn is_sound(&self) -> bool {
        let range = 1..=N_TOKENS_MAX;
        match *self {
            Lengths::Fixed { n } => range.contains(&n),
            Lengths::Uniform { min, max } => {
                min <= max && range.contains(&min) && range.contains(&max)
            }
            Lengths::LogNormal { mean, deviation } => {
                (1.0..=N_TOKENS_MAX as f64).contains(&mean)
                    && (0.0..=N_TOKENS_MAX as f64).contains(&deviation)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn words_are_read() {
        let cases = [
            ("500", Some(Lengths::Fixed { n: 500 })),
            ("100-900", Some(Lengths::Uniform { min: 100, max: 900 })),
            ("lognormal:500,200", Some(Lengths::LogNormal { mean: 500.0, deviation: 200.0 })),
            ("0", None),
            ("900-100", None),
            ("0-5", None),
            ("5-", None),
            ("-5", None),
            ("lognormal:0.5,1", None),
            ("lognormal:NaN,1", None),
            ("lognormal:5,-1", None),
            ("lognormal:5", None),
            ("99999999999", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Lengths>().ok(), expected, "{text}");
        }
        let message = "many".parse::<Lengths>().expect_err("no number").to_string();
        assert!(message.contains("\"many\" is no length: write 500"), "{message}");
    }

    #[test]
    fn draws_have_the_mean_and_deviation_that_were_asked_for() {
        let lengths = Lengths::LogNormal { mean: 500.0, deviation: 200.0 };
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let n = 100_000;
        let drawn: Vec<f64> = (0..n).map(|_| lengths.sample(&mut random) as f64).collect();
        let mean = drawn.iter().sum::<f64>() / n as f64;
        let deviation = (drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        assert!((mean - 500.0).abs() < 5.0, "{mean}");
        assert!((deviation - 200.0).abs() < 5.0, "{deviation}");
        let lengths = Lengths::Uniform { min: 3, max: 5 };
        let drawn: Vec<usize> = (0..1000).map(|_| lengths.sample(&mut random)).collect();
        for n in 1..8 {
            assert_eq!(drawn.contains(&n), (3..=5).contains(&n), "{n}");
        }
    }
}
