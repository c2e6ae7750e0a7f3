//! A measurement's result, as it is written to files and read from them again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::answers::Answers;
use super::error::BenchError;
use super::figures::Figures;
use super::generator::Generator;
use super::protocol::Endpoint;
use super::sample::{Outcome, Sample};
use super::statistics::Interval;

/// What the files say they are.
pub const SCHEMA: &str = "lnserve-bench";

/// The schema's version: raised when a member changes its meaning or goes; new ones may come.
pub const SCHEMA_VERSION: u32 = 1;

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The program's version.
    pub program: String,
    /// When it began, seconds since 1970.
    pub began_unix_s: u64,
    /// The server's address.
    pub server: String,
    /// The model.
    pub model: String,
    /// What was asked for: names and values.
    pub settings: Vec<(String, String)>,
    /// Whether prompts were made with the server's own tokenizer.
    pub has_exact_prompts: bool,
    /// Every stretch of load, in turn.
    pub runs: Vec<Run>,
    /// The key figures over repeats, protocol by protocol.
    pub intervals: Vec<Intervals>,
    /// What a search for the highest rate found.
    pub search: Option<Found>,
}

/// A stretch of load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its protocol.
    pub endpoint: Endpoint,
    /// How load came.
    pub load: String,
    /// Requests a second that were to be sent, where that was set.
    pub rate: Option<f64>,
    /// Its seed.
    pub seed: u64,
    /// Figures.
    pub figures: Figures,
    /// How the generator fared.
    pub generator: Generator,
    /// Why its figures are not to be relied on; none if they are.
    pub invalid: Vec<String>,
    /// What became of answers that were asked for again.
    pub answers: Answers,
    /// Second by second.
    pub timeline: Vec<Second>,
    /// Some requests' starts and times to first tokens (or to the end), for a picture.
    pub dots: Vec<(f64, f64)>,
}

/// A second of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Requests that were begun in it.
    pub n_begun: usize,
    /// Requests that were over in it.
    pub n_ended: usize,
    /// Tokens, or pieces of answers, that came in it.
    pub n_tokens: usize,
    /// Requests under way at its end.
    pub n_in_flight: usize,
}

/// Key figures over repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intervals {
    /// The protocol.
    pub endpoint: Endpoint,
    /// Name, unit and values.
    pub figures: Vec<(String, Interval)>,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The highest rate that kept all limits; nothing if none did.
    pub rate: Option<f64>,
    /// The lowest that did not; nothing if all did.
    pub too_high: Option<f64>,
    /// Where the search ended because the generator itself lagged, twice: nothing is known of this
    /// rate.
    #[serde(default)]
    pub unmeasured: Option<f64>,
}

/// Seconds of a timeline at most: beyond that it ends.
const N_SECONDS_MAX: usize = 7200;

/// Dots of a picture at most.
const N_DOTS_MAX: usize = 2000;

/// A figure's name, and where it is found.
pub type KeyFigure = (&'static str, fn(&Figures) -> f64);

/// Figures that are compared: between repeats, protocols and files.
pub const KEY_FIGURES: [KeyFigure; 12] = [
    ("requests/s", |f| f.requests_per_s),
    ("output tokens/s", |f| f.output_tokens_per_s),
    ("total tokens/s", |f| f.total_tokens_per_s),
    ("TTFT mean, ms", |f| f.ttft_ms.mean),
    ("TTFT p50, ms", |f| f.ttft_ms.p50),
    ("TTFT p99, ms", |f| f.ttft_ms.p99),
    ("TPOT mean, ms", |f| f.tpot_ms.mean),
    ("TPOT p99, ms", |f| f.tpot_ms.p99),
    ("ITL p50, ms", |f| f.itl_ms.p50),
    ("ITL p99, ms", |f| f.itl_ms.p99),
    ("E2E p50, ms", |f| f.e2e_ms.p50),
    ("E2E p99, ms", |f| f.e2e_ms.p99),
];

impl Report {
    /// The key figures over all runs of each protocol, in the order of their first runs.
    pub fn intervals_of(runs: &[Run]) -> Vec<Intervals> {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for run in runs {
            if !endpoints.contains(&run.endpoint) {
                endpoints.push(run.endpoint);
            }
        }
        let of = |endpoint: Endpoint| {
            let runs: Vec<&Run> = runs.iter().filter(|run| run.endpoint == endpoint).collect();
            let figures = KEY_FIGURES.iter().filter_map(|(name, value)| {
                let values: Vec<f64> = runs.iter().map(|run| value(&run.figures)).collect();
                // Whole answers have no first token: that is no time of zero.
                let is_there = values.iter().any(|value| *value > 0.0);
                is_there.then(|| ((*name).to_owned(), Interval::of(&values)))
            });
            Intervals { endpoint, figures: figures.collect() }
        };
        endpoints.into_iter().map(of).collect()
    }

    /// A key figure of each protocol, in words; a dash where it has none.
    pub fn row(&self, name: &str) -> Vec<String> {
        let of = |one: &Intervals| {
            let figure = one.figures.iter().find(|(other, _)| other == name);
            figure.map_or_else(|| "-".to_owned(), |(_, interval)| interval.to_string())
        };
        self.intervals.iter().map(of).collect()
    }

    /// Why the whole is not to be relied on, each reason with its run's number from 1.
    pub fn invalid(&self) -> Vec<String> {
        // A search learns nothing of runs that are invalid, and makes them again.
        let is_whole = self.search.as_ref().is_some_and(|found| found.unmeasured.is_none());
        let runs = self.runs.iter().enumerate().filter(|_| !is_whole);
        runs.flat_map(|(idx, run)| {
            run.invalid.iter().map(move |reason| format!("run {}: {reason}", idx + 1))
        })
        .collect()
    }

    /// Answers that were others alone than under load.
    pub fn n_differences(&self) -> usize {
        self.runs.iter().map(|run| run.answers.differences.len()).sum()
    }

    /// Reads one from its file.
    ///
    /// # Errors
    /// There is no file, or something else is in it.
    pub fn read(path: &Path) -> Result<Report, BenchError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| BenchError::File { path: path.to_owned(), source })?;
        let wrong = |problem: String| BenchError::Content {
            path: path.to_owned(),
            place: "all of it".to_owned(),
            problem,
        };
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("{error}; it should be what --json wrote")))?;
        if value["schema"] != SCHEMA {
            return Err(wrong("it is not what `lnserve bench --json` writes".into()));
        }
        if value["schema_version"] != SCHEMA_VERSION {
            let version = &value["schema_version"];
            let problem = format!("schema version {version}, and this program reads 1");
            return Err(wrong(problem));
        }
        serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
    }
}

/// A run second by second, from its first start.
pub(super) fn timeline(samples: &[Sample]) -> Vec<Second> {
    let began = samples.iter().map(|sample| sample.began).min().unwrap_or_default();
    let ended = samples.iter().map(|sample| sample.ended).max().unwrap_or_default();
    let second_of = |moment: std::time::Duration| moment.saturating_sub(began).as_secs() as usize;
    let n_seconds = (second_of(ended) + 1).min(N_SECONDS_MAX);
    let mut seconds = vec![Second::default(); if samples.is_empty() { 0 } else { n_seconds }];
    let mut add = |moment, change: fn(&mut Second)| {
        if let Some(second) = seconds.get_mut(second_of(moment)) {
            change(second);
        }
    };
    for sample in samples {
        add(sample.began, |second| second.n_begun += 1);
        add(sample.ended, |second| second.n_ended += 1);
        let Some(mut at) = sample.first else { continue };
        add(at, |second| second.n_tokens += 1);
        for gap in &sample.gaps_us {
            at += std::time::Duration::from_micros((*gap).into());
            add(at, |second| second.n_tokens += 1);
        }
    }
    let mut n_in_flight = 0;
    for second in &mut seconds {
        n_in_flight = n_in_flight + second.n_begun - second.n_ended;
        second.n_in_flight = n_in_flight;
    }
    seconds
}

/// Starts and times to the first token, both from the run's beginning: seconds, milliseconds.
pub(super) fn dots(samples: &[Sample]) -> Vec<(f64, f64)> {
    let began = samples.iter().map(|sample| sample.began).min().unwrap_or_default();
    let done: Vec<&Sample> =
        samples.iter().filter(|sample| sample.outcome == Outcome::Done).collect();
    let every = done.len().div_ceil(N_DOTS_MAX).max(1);
    let dot = |sample: &&Sample| {
        let wait = sample.ttft().unwrap_or_else(|| sample.e2e());
        (sample.intended.saturating_sub(began).as_secs_f64(), wait.as_secs_f64() * 1e3)
    };
    done.iter().step_by(every).map(dot).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::{ms, sample};
    use super::*;

    #[test]
    fn a_timeline_has_every_request_and_token_once() {
        let late = Sample {
            began: ms(1500),
            first: Some(ms(1900)),
            gaps_us: vec![200_000, 1_000_000],
            ended: ms(3100),
            ..sample()
        };
        let seconds = timeline(&[sample(), late]);
        let seen: Vec<_> =
            seconds.iter().map(|s| (s.n_begun, s.n_ended, s.n_tokens, s.n_in_flight)).collect();
        // The first began at 105 ms.
        assert_eq!(seen, [(1, 1, 5, 0), (1, 0, 2, 1), (0, 1, 1, 0)]);
        assert_eq!(timeline(&[]), []);
    }

    #[test]
    fn a_picture_has_dots_for_a_part_of_many_requests() {
        let samples = vec![sample(); 5000];
        assert_eq!(dots(&samples).len(), 1667);
        assert_eq!(dots(&samples[..3]), [(0.0, 100.0); 3]);
    }
}
