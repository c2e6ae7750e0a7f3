//! From requests to figures. Pure: samples in, numbers out.
//!
//! Percentiles come from HDR histograms of three digits, so they are exact to a thousandth; means
//! and extremes are exact. In an open loop times count from a request's intended start, which is
//! what corrects for coordinated omission; the uncorrected ones stand beside them.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::sample::{Outcome, Sample};
use super::slo::{Goodput, Slos};
use super::statistics::{PercentileBound, percentile_bound};

/// How values are spread. Times are in milliseconds, lengths in tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is what its name says")]
pub struct Spread {
    pub n: u64,
    pub mean: f64,
    pub deviation: f64,
    pub min: f64,
    pub p50: f64,
    pub p75: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// Values at evenly spaced shares of the requests, for a curve.
    pub curve: Vec<f64>,
}

/// Milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

/// Points of a [`Spread`]'s curve, both ends among them.
pub const N_CURVE_POINTS: usize = 51;

/// Collects values for a [`Spread`].
#[derive(Clone, Debug)]
pub struct SpreadBuilder {
    /// Of nanoseconds, or of thousandths of a token.
    histogram: Histogram<u64>,
    sum: f64,
    sum_of_squares: f64,
    min: f64,
    max: f64,
}

/// Units of the histogram in one of a spread's.
const PER_MS: f64 = 1e6;

impl Default for SpreadBuilder {
    fn default() -> SpreadBuilder {
        let histogram = Histogram::new(3).expect("three digits are allowed");
        SpreadBuilder {
            histogram,
            sum: 0.0,
            sum_of_squares: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        }
    }
}

impl SpreadBuilder {
    /// Of durations.
    pub fn of(durations: impl Iterator<Item = Duration>) -> Spread {
        let mut builder = SpreadBuilder::default();
        durations.for_each(|duration| builder.add(duration));
        builder.finish()
    }

    /// Of counts.
    pub fn of_counts(counts: impl Iterator<Item = usize>) -> Spread {
        let mut builder = SpreadBuilder::default();
        counts.for_each(|n| builder.add_value(n as f64));
        builder.finish()
    }

    /// Adds a duration.
    pub fn add(&mut self, duration: Duration) {
        self.add_value(ms(duration));
    }

    fn add_value(&mut self, value: f64) {
        // It grows with its values, up to the greatest that there are.
        self.histogram.record((value * PER_MS).round() as u64).expect("it grows");
        self.sum += value;
        self.sum_of_squares += value * value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// What was added. Without any value, all zeros.
    pub fn finish(&self) -> Spread {
        let n = self.histogram.len();
        if n == 0 {
            return Spread::default();
        }
        let mean = self.sum / n as f64;
        let variance = (self.sum_of_squares / n as f64 - mean * mean).max(0.0);
        let at = |share: f64| {
            let value = self.histogram.value_at_quantile(share) as f64 / PER_MS;
            value.clamp(self.min, self.max)
        };
        let last_idx = (N_CURVE_POINTS - 1) as f64;
        Spread {
            n,
            mean,
            deviation: variance.sqrt(),
            min: self.min,
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: self.max,
            curve: (0..N_CURVE_POINTS).map(|idx| at(idx as f64 / last_idx)).collect(),
        }
    }
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many.
    pub n: usize,
    /// What the first of them said.
    pub words: String,
}

/// Where the time to the first token went, over the requests of which the server told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Requests of which it told.
    pub n: usize,
    /// From arrival until the engine had the request: reading, template, tokenizer.
    pub prepare_ms: Spread,
    /// Until it was given a slot.
    pub queue_ms: Spread,
    /// Until its first token.
    pub prefill_ms: Spread,
    /// What the server does not account for: the way there and back.
    pub network_ms: Spread,
    /// From the first event to the first text: tokens that make none.
    pub silent_ms: Spread,
}

/// The figures of one stretch of load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that were sent.
    pub n_requests: usize,
    /// Of these, answered in full.
    pub n_done: usize,
    /// Hung up on, as planned.
    pub n_cancelled: usize,
    /// Failed.
    pub n_failed: usize,
    /// Answers that are shorter than was asked for, though they should not be.
    pub n_short: usize,
    /// By status, or by a word where there was none.
    pub failures: BTreeMap<String, Failures>,
    /// From the first start to the last end, seconds.
    pub duration_s: f64,
    /// Answers a second.
    pub requests_per_s: f64,
    /// Generated tokens a second.
    pub output_tokens_per_s: f64,
    /// These, and those of prompts.
    pub total_tokens_per_s: f64,
    /// Tokens that were generated.
    pub n_output_tokens: usize,
    /// Tokens of prompts.
    pub n_prompt_tokens: usize,
    /// Of these, from the server's cache.
    pub n_cached_tokens: usize,
    /// Whether the server counted all tokens; else pieces of answers stand for them.
    pub is_counted: bool,
    /// Prompts.
    pub n_in: Spread,
    /// Answers.
    pub n_out: Spread,
    /// See [`Sample::ttft`].
    pub ttft_ms: Spread,
    /// See [`Sample::tpot`].
    pub tpot_ms: Spread,
    /// Gaps between pieces of an answer.
    pub itl_ms: Spread,
    /// See [`Sample::e2e`].
    pub e2e_ms: Spread,
    /// From the actual start.
    pub ttft_uncorrected_ms: Spread,
    /// From the actual start.
    pub e2e_uncorrected_ms: Spread,
    /// How late requests were sent.
    pub send_lag_ms: Spread,
    /// Where the time to the first token went.
    pub split: Option<Split>,
    /// What was good enough, where limits were set.
    pub goodput: Option<Goodput>,
    /// Bounds of the 99th percentiles of TTFT, TPOT and E2E, with a confidence of 99 %.
    pub bounds: Vec<PercentileBound>,
}

/// Computes them. `wants_length`: answers should have the length that was asked for.
pub fn figures(samples: &[Sample], slos: &Slos, wants_length: bool) -> Figures {
    let answered: Vec<&Sample> =
        samples.iter().filter(|sample| !matches!(sample.outcome, Outcome::Failed(_))).collect();
    let done: Vec<&Sample> = samples.iter().filter(|sample| sample.is_done()).collect();
    let began = samples.iter().map(|sample| sample.began).min().unwrap_or_default();
    let ended = samples.iter().map(|sample| sample.ended).max().unwrap_or_default();
    let duration_s = ended.saturating_sub(began).as_secs_f64();
    let per_s = |n: usize| if duration_s > 0.0 { n as f64 / duration_s } else { 0.0 };
    let sum = |of: fn(&Sample) -> usize| answered.iter().map(|sample| of(sample)).sum::<usize>();
    let n_output_tokens = sum(|sample| sample.n_out);
    let n_prompt_tokens = sum(|sample| sample.n_prompt.unwrap_or(0));
    let spread = |of: fn(&Sample) -> Option<Duration>| {
        SpreadBuilder::of(done.iter().filter_map(|sample| of(sample)))
    };
    let gaps = done.iter().flat_map(|sample| &sample.gaps_us);
    Figures {
        n_requests: samples.len(),
        n_done: done.len(),
        n_cancelled: answered.len() - done.len(),
        n_failed: samples.len() - answered.len(),
        n_short: match wants_length {
            true => done.iter().filter(|sample| sample.n_out < sample.n_out_wanted).count(),
            false => 0,
        },
        failures: failures(samples),
        duration_s,
        requests_per_s: per_s(done.len()),
        output_tokens_per_s: per_s(n_output_tokens),
        total_tokens_per_s: per_s(n_output_tokens + n_prompt_tokens),
        n_output_tokens,
        n_prompt_tokens,
        n_cached_tokens: sum(|sample| sample.n_cached.unwrap_or(0)),
        is_counted: done.iter().all(|sample| sample.is_counted),
        n_in: SpreadBuilder::of_counts(done.iter().filter_map(|sample| sample.n_prompt)),
        n_out: SpreadBuilder::of_counts(done.iter().map(|sample| sample.n_out)),
        ttft_ms: spread(Sample::ttft),
        tpot_ms: spread(Sample::tpot),
        itl_ms: SpreadBuilder::of(gaps.map(|&us| Duration::from_micros(us.into()))),
        e2e_ms: spread(|sample| Some(sample.e2e())),
        ttft_uncorrected_ms: spread(Sample::ttft_uncorrected),
        e2e_uncorrected_ms: spread(|sample| Some(sample.e2e_uncorrected())),
        send_lag_ms: SpreadBuilder::of(samples.iter().map(Sample::lag)),
        split: split(&done),
        goodput: slos.goodput(samples, duration_s),
        bounds: bounds(&done),
    }
}

fn failures(samples: &[Sample]) -> BTreeMap<String, Failures> {
    let mut failures: BTreeMap<String, Failures> = BTreeMap::new();
    for sample in samples {
        if let Outcome::Failed(failure) = &sample.outcome {
            let first = || Failures { n: 0, words: failure.words.clone() };
            failures.entry(failure.kind.clone()).or_insert_with(first).n += 1;
        }
    }
    failures
}

fn split(done: &[&Sample]) -> Option<Split> {
    let told: Vec<&&Sample> = done.iter().filter(|sample| sample.network().is_some()).collect();
    let spread = |of: fn(&Sample) -> Option<Duration>| {
        SpreadBuilder::of(told.iter().filter_map(|sample| of(sample)))
    };
    (!told.is_empty()).then(|| Split {
        n: told.len(),
        prepare_ms: spread(|sample| Some(sample.waits?.prepare)),
        queue_ms: spread(|sample| Some(sample.waits?.queue)),
        prefill_ms: spread(|sample| Some(sample.waits?.prefill)),
        network_ms: spread(Sample::network),
        silent_ms: spread(Sample::silent),
    })
}

fn bounds(done: &[&Sample]) -> Vec<PercentileBound> {
    let of = |metric: &str, value: fn(&Sample) -> Option<Duration>| {
        let values: Vec<f64> = done.iter().filter_map(|sample| Some(ms(value(sample)?))).collect();
        (!values.is_empty()).then(|| percentile_bound(metric, values))
    };
    let all = [
        of("ttft", Sample::ttft),
        of("tpot", Sample::tpot),
        of("e2e", |sample| Some(sample.e2e())),
    ];
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample::Failure;
    use super::super::sample::tests::{ms, sample};
    use super::*;

    #[test]
    fn spreads_are_exact_to_a_thousandth() {
        let spread = SpreadBuilder::of((1..=1000).map(Duration::from_millis));
        let cases = [
            (spread.mean, 500.5),
            (spread.deviation, 288.675),
            (spread.min, 1.0),
            (spread.p50, 500.0),
            (spread.p75, 750.0),
            (spread.p90, 900.0),
            (spread.p95, 950.0),
            (spread.p99, 990.0),
            (spread.p999, 999.0),
            (spread.max, 1000.0),
            (spread.curve[0], 1.0),
            (spread.curve[25], 500.0),
            (spread.curve[50], 1000.0),
        ];
        for (idx, (seen, expected)) in cases.into_iter().enumerate() {
            assert!((seen / expected - 1.0).abs() < 1e-3, "{idx}: {seen}, not {expected}");
        }
        assert_eq!(SpreadBuilder::of(std::iter::empty()), Spread::default());
    }

    #[test]
    fn figures_add_up() {
        let failure = Failure { kind: "429".into(), words: "full".into() };
        let samples = [
            sample(),
            Sample {
                idx: 1,
                intended: ms(1105),
                began: ms(1105),
                first: Some(ms(1135)),
                last: Some(ms(1205)),
                ended: ms(1205),
                n_out: 8,
                gaps_us: vec![10_000; 7],
                n_out_wanted: 9,
                waits: None,
                ..sample()
            },
            Sample { idx: 2, outcome: Outcome::Cancelled, n_out: 3, n_prompt: None, ..sample() },
            Sample {
                idx: 3,
                outcome: Outcome::Failed(failure),
                n_out: 0,
                ended: ms(2105),
                ..sample()
            },
        ];
        let figures = figures(&samples, &Slos::none(), true);
        let counts = (figures.n_requests, figures.n_done, figures.n_cancelled, figures.n_failed);
        assert_eq!(counts, (4, 2, 1, 1));
        assert_eq!(figures.failures["429"], Failures { n: 1, words: "full".into() });
        assert_eq!((figures.n_short, figures.is_counted), (1, true));
        assert_eq!(figures.duration_s, 2.0);
        assert_eq!((figures.n_output_tokens, figures.n_prompt_tokens), (16, 100));
        assert_eq!((figures.output_tokens_per_s, figures.total_tokens_per_s), (8.0, 58.0));
        assert_eq!(figures.requests_per_s, 1.0);
        assert_eq!((figures.ttft_ms.min, figures.ttft_ms.max), (30.0, 100.0));
        assert_eq!(figures.ttft_uncorrected_ms.max, 95.0);
        assert_eq!((figures.tpot_ms.n, figures.itl_ms.n), (2, 11));
        let split = figures.split.expect("one was told of");
        let parts = [&split.prepare_ms, &split.queue_ms, &split.prefill_ms, &split.network_ms];
        assert_eq!(parts.map(|part| part.mean), [1.0, 30.0, 60.0, 4.0]);
        let sum: f64 = parts.iter().map(|part| part.mean).sum();
        assert_eq!(sum, 95.0, "the parts are the whole, from the actual start");
    }

    #[test]
    fn no_request_is_no_figure() {
        let figures = figures(&[], &Slos::none(), true);
        assert_eq!((figures.n_requests, figures.duration_s), (0, 0.0));
        assert_eq!((figures.output_tokens_per_s, figures.bounds.len()), (0.0, 0));
    }
}
