//! Workloads that are known by name.

use clap::ValueEnum;

use super::slo::{Metric, Slo};

/// A workload that is known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// 500 tokens in, 2,000 out, 250 users: the first of the Llama-Nemotron paper's figure 4
    S1,
    /// 5,000 tokens in, 500 out, 250 users: the second of it
    S2,
    /// MLPerf's limits for Llama-3.1-405B, server: TTFT 6 s and TPOT 175 ms at p99, Poisson
    MlperfServer,
    /// MLPerf's limits for Llama-3.1-405B, interactive: TTFT 4.5 s and TPOT 80 ms at p99, Poisson
    MlperfInteractive,
}

/// What a preset says where the operator says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PresetValues {
    /// Tokens of prompts and answers.
    pub lengths: Option<(usize, usize)>,
    /// Users.
    pub n_users: Option<usize>,
    /// Seconds of load.
    pub duration_s: Option<f64>,
    /// Limits.
    pub slos: Vec<Slo>,
}

/// MLPerf asks for ten minutes of load at least.
const MLPERF_S: f64 = 600.0;

impl Preset {
    /// What it says. Sources: arXiv 2505.00949, figure 4; MLPerf Inference v5.0, Llama-3.1-405B.
    pub fn values(self) -> PresetValues {
        let users = |n_in, n_out| PresetValues {
            lengths: Some((n_in, n_out)),
            n_users: Some(250),
            ..PresetValues::default()
        };
        let mlperf = |ttft_ms, tpot_ms| PresetValues {
            duration_s: Some(MLPERF_S),
            slos: vec![
                Slo { metric: Metric::Ttft, limit_ms: ttft_ms },
                Slo { metric: Metric::Tpot, limit_ms: tpot_ms },
            ],
            ..PresetValues::default()
        };
        match self {
            Preset::S1 => users(500, 2000),
            Preset::S2 => users(5000, 500),
            Preset::MlperfServer => mlperf(6000.0, 175.0),
            Preset::MlperfInteractive => mlperf(4500.0, 80.0),
        }
    }
}
