//! Limits that answers should keep, and how many do.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::figures::ms;
use super::sample::{Outcome, Sample};

/// What a limit is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Time to the first token.
    Ttft,
    /// Time per output token after it.
    Tpot,
    /// The whole answer.
    E2e,
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// What it is on.
    pub metric: Metric,
    /// Milliseconds.
    pub limit_ms: f64,
}

/// Why words are no limit.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no limit: write ttft=6000, tpot=175 or e2e=30000, in milliseconds")]
pub struct SloError(String);

/// Limits, and the share of requests that must keep each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slos {
    /// All limits.
    pub limits: Vec<Slo>,
    /// Per cent.
    pub percentile: f64,
}

/// What was good enough.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goodput {
    /// Requests that kept all limits.
    pub n_good: usize,
    /// As a share of those that were not hung up on.
    pub share: f64,
    /// A second.
    pub requests_per_s: f64,
    /// Whether enough of them kept each.
    pub is_met: bool,
}

impl FromStr for Slo {
    type Err = SloError;

    fn from_str(text: &str) -> Result<Slo, SloError> {
        let refuse = || SloError(text.to_owned());
        let (metric, limit) = text.split_once('=').ok_or_else(refuse)?;
        let metric = match metric.trim() {
            "ttft" => Metric::Ttft,
            "tpot" => Metric::Tpot,
            "e2e" => Metric::E2e,
            _ => return Err(refuse()),
        };
        let limit_ms: f64 = limit.trim().trim_end_matches("ms").parse().map_err(|_| refuse())?;
        match limit_ms.is_finite() && limit_ms > 0.0 {
            true => Ok(Slo { metric, limit_ms }),
            false => Err(refuse()),
        }
    }
}

impl Slo {
    /// Whether a request kept it; one that failed did not. An answer of one token has no time per
    /// token, and keeps any limit on that.
    fn is_kept(&self, sample: &Sample) -> bool {
        let value = match self.metric {
            Metric::Ttft => sample.ttft(),
            Metric::Tpot => sample.tpot(),
            Metric::E2e => Some(sample.e2e()),
        };
        let is_kept = match value {
            Some(value) => ms(value) <= self.limit_ms,
            None => self.metric == Metric::Tpot,
        };
        sample.is_done() && is_kept
    }
}

impl Slos {
    /// No limit.
    pub fn none() -> Slos {
        Slos { limits: Vec::new(), percentile: 99.0 }
    }

    /// What was good enough; nothing where there is no limit.
    pub fn goodput(&self, samples: &[Sample], duration_s: f64) -> Option<Goodput> {
        if self.limits.is_empty() {
            return None;
        }
        let judged: Vec<&Sample> =
            samples.iter().filter(|sample| sample.outcome != Outcome::Cancelled).collect();
        let n_good = judged
            .iter()
            .filter(|sample| self.limits.iter().all(|slo| slo.is_kept(sample)))
            .count();
        let share = |n: usize| if judged.is_empty() { 0.0 } else { n as f64 / judged.len() as f64 };
        let is_met = self.limits.iter().all(|slo| {
            let n_kept = judged.iter().filter(|sample| slo.is_kept(sample)).count();
            share(n_kept) >= self.percentile / 100.0
        });
        let requests_per_s = if duration_s > 0.0 { n_good as f64 / duration_s } else { 0.0 };
        Some(Goodput { n_good, share: share(n_good), requests_per_s, is_met })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Failure;
    use super::super::sample::tests::sample;
    use super::*;

    #[test]
    fn limits_are_read() {
        let slo = |metric, limit_ms| Slo { metric, limit_ms };
        assert_eq!("ttft=6000".parse(), Ok(slo(Metric::Ttft, 6000.0)));
        assert_eq!("tpot= 17.5ms".parse(), Ok(slo(Metric::Tpot, 17.5)));
        for text in ["ttft", "ttft=", "ttft=0", "ttft=-1", "ttft=inf", "itl=5", "=5"] {
            assert_eq!(text.parse::<Slo>(), Err(SloError(text.to_owned())));
        }
    }

    #[test]
    fn what_failed_is_not_good_and_what_was_cancelled_is_not_judged() {
        // 100 ms to the first token, 10 a token, 140 in all.
        let failure = Failure { kind: "500".into(), words: String::new() };
        let samples = [
            sample(),
            sample(),
            Sample { outcome: Outcome::Failed(failure), ..sample() },
            Sample { outcome: Outcome::Cancelled, ..sample() },
        ];
        let cases = [
            (vec!["ttft=100"], 66.0, 2, true),
            (vec!["ttft=100"], 67.0, 2, false),
            (vec!["ttft=99"], 1.0, 0, false),
            (vec!["ttft=100", "tpot=10", "e2e=140"], 50.0, 2, true),
            (vec!["ttft=100", "tpot=9.9"], 50.0, 0, false),
        ];
        for (limits, percentile, n_good, is_met) in cases {
            let parsed = limits.iter().map(|text| text.parse().expect(text)).collect();
            let slos = Slos { limits: parsed, percentile };
            let goodput = slos.goodput(&samples, 2.0).expect("there are limits");
            assert_eq!((goodput.n_good, goodput.is_met), (n_good, is_met), "{limits:?}");
            assert_eq!(goodput.share, n_good as f64 / 3.0);
            assert_eq!(goodput.requests_per_s, n_good as f64 / 2.0);
        }
        assert_eq!(Slos::none().goodput(&samples, 2.0), None);
    }

    #[test]
    fn an_answer_without_a_first_token_keeps_no_limit_on_it() {
        let whole = Sample { first: None, ..sample() };
        let kept = |text: &str| text.parse::<Slo>().expect(text).is_kept(&whole);
        assert_eq!((kept("ttft=9999"), kept("tpot=1"), kept("e2e=140")), (false, true, true));
    }
}
