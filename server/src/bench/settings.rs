//! What a measurement is to do, as typed values that were checked.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::arrivals::{Arrivals, Pattern};
use super::client::ServerUrl;
use super::lengths::Lengths;
use super::protocol::Endpoint;
use super::slo::Slos;
use super::workload::Shape;

/// A measurement.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server.
    pub url: ServerUrl,
    /// The model; `None` takes the server's first.
    pub model: Option<String>,
    /// A key to show.
    pub api_key: Option<String>,
    /// Protocols, each of which gets the same workload.
    pub endpoints: Vec<Endpoint>,
    /// How load comes.
    pub arrivals: Arrivals,
    /// Requests of a stretch at most.
    pub n_requests: Option<usize>,
    /// Seconds in which a stretch sends.
    pub duration: Option<Duration>,
    /// Requests before each stretch that do not count.
    pub n_warmup: usize,
    /// Requests under way at most, in an open loop.
    pub n_in_flight_max: usize,
    /// Where prompts come from.
    pub source: SourceSettings,
    /// What else is drawn.
    pub shape: Shape,
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Answers end where the model ends them.
    pub ends_naturally: bool,
    /// Limits that answers should keep.
    pub slos: Slos,
    /// Looks for the highest rate that keeps them.
    pub search: Option<SearchSettings>,
    /// Answers that are asked for again.
    pub n_checked: usize,
    /// Stretches that are measured, each with a seed of its own.
    pub n_repeats: usize,
    /// Decides all draws.
    pub seed: u64,
    /// An answer takes no longer.
    pub timeout: Duration,
    /// How late the generator may be.
    pub lag_max: Duration,
    /// How it was asked for, for the report.
    pub described: Vec<(String, String)>,
}

/// Where prompts come from, as the operator says.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceSettings {
    /// Drawn.
    Synthetic {
        /// Tokens of prompts.
        n_in: Lengths,
        /// Tokens of answers.
        n_out: Lengths,
    },
    /// ShareGPT's JSON.
    ShareGpt {
        /// The file.
        path: PathBuf,
        /// Tokens of answers; `None` takes as many as the file's answers have.
        n_out: Option<Lengths>,
    },
    /// A trace in Mooncake's format.
    Mooncake {
        /// The file.
        path: PathBuf,
    },
}

/// Where to look for the highest rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SearchSettings {
    /// Where to begin, requests a second.
    pub from: f64,
    /// It ends when the answer is known to this share.
    pub precision: f64,
}

impl Arrivals {
    /// For people: `25 users`, `poisson at 3 /s`.
    pub fn words(&self) -> String {
        match self {
            Arrivals::Closed { n_users: 1 } => "1 user".to_owned(),
            Arrivals::Closed { n_users } => format!("{n_users} users"),
            Arrivals::Open(Pattern::Poisson { rate }) => format!("{rate:.3} /s, Poisson"),
            Arrivals::Open(Pattern::Gamma { rate, burstiness }) => {
                format!("{rate:.3} /s, gamma {burstiness}")
            }
            Arrivals::Open(Pattern::Constant { rate }) => format!("{rate:.3} /s, constant"),
            Arrivals::Open(Pattern::Ramp { from, to, over }) => {
                format!("{from} to {to} /s in {} s", over.as_secs_f64())
            }
            Arrivals::Trace { speed } => format!("as traced, {speed} times as fast"),
        }
    }
}
